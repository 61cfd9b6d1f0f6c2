"""The sidecar: a meter and an engine's counters are read, OTLP is received over HTTP, and the pages are served.

Threads only append to bounded queues; one task, on the event loop, owns the ledger.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as text_page
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_page

from loadgen import __version__
from loadgen.clock import anchor, monotonic_ns
from loadgen.energy.sampler import Sampler
from loadgen.sidecar.clock_sync import ClockSync
from loadgen.sidecar.exporter import Exporter, PushCounts, SidecarPage
from loadgen.sidecar.ledger import Ledger
from loadgen.sidecar.settlement import KEPT_REQUESTS, KEPT_S, Settlement
from loadgen.sidecar.span_feed import SpanFeed
from loadgen.sidecar.watermark import AllowedLateness
from loadgen.telemetry.engine_metrics import EnginePoller, EngineState
from loadgen.telemetry.otlp_parse import MalformedError, RequestSpan, SpanLabels, parse_spans
from loadgen.units import NS_PER_S, s_from_ns

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy.series import EnergySample

TICK_S = 1.0
ENGINE_PERIOD_S = 0.25
"""Period of reading the engine's counters. They place other clients' requests: what began within a period and what was
there all along look the same, so a second would be too long beside requests of a second."""
ENGINE_AWAY_S = 5.0
"""An engine whose page did not answer for this long counts as away."""
MAX_ENGINE_SAMPLES = 1000
MAX_OTLP_BYTES = 4 << 20
MAX_QUEUED_SPANS = 50_000
MAX_FEED_SAMPLES = 20_000
"""Samples that /energy can still serve: half an hour of one GPU."""
FEED_PORTION = 5_000
"""Samples in one answer of /energy."""
STALE_S = 30.0
"""A meter that was silent this long counts as away."""
_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics_page

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_PATHS = ("/healthz",)
"""Paths that need no token: they disclose nothing."""


@dataclass(frozen=True)
class SidecarOptions:
    """Options of `loadgen sidecar`."""

    host: str = "127.0.0.1"
    port: int = 9478
    grpc_port: int | None = None
    engine_url: str | None = None
    engine_key: str | None = field(default=None, repr=False)
    """API key of the engine, which the list of its models may require."""
    energy: str = "auto"
    gpus: tuple[str, ...] = ()
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    energy_token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    lateness: AllowedLateness = field(default_factory=AllowedLateness)
    ledger: Path | None = None
    """Folder of the ledger on disk."""
    kept_requests: int = KEPT_REQUESTS
    """Settled requests that can be looked up."""
    kept_s: float = KEPT_S
    """Time for which they can be."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Attributes of spans, by the label that shows their values."""
    label_values: int = 50
    """Values of a label that are shown."""
    otlp_metrics_endpoint: str | None = None
    """URL of the collector that gets the metrics; its headers are in the environment."""
    otlp_traces_endpoint: str | None = None
    """URL of the collector that gets a span with the joules of each settled request."""
    otlp_interval_s: float = 10.0
    """Time between two pushes of the metrics."""


class Sidecar:
    """One meter, one engine, one ledger."""

    def __init__(self, options: SidecarOptions, meter: EnergyMeter, model: str | None) -> None:
        """Raise LoadgenError: the engine's URL is none (MeterError), or the ledger cannot be written."""
        self.options, self.meter = options, meter
        self.authorized = partial(authorized, options.token)
        self.ledger = Ledger(
            meter.domains, lateness=options.lateness, model=model, labels=options.labels,
            label_values=options.label_values, since_ns=monotonic_ns(),
        )  # fmt: skip
        self.clock = ClockSync(anchor())
        self._energy: deque[EnergySample] = deque(maxlen=MAX_FEED_SAMPLES)
        self._feed: deque[EnergySample] = deque(maxlen=MAX_FEED_SAMPLES)
        self._engine: deque[Mapping[str, float]] = deque(maxlen=MAX_ENGINE_SAMPLES)
        self._spans: deque[RequestSpan] = deque()
        self._span_feed = SpanFeed()
        self._first_tokens: deque[tuple[bytes, int]] = deque(maxlen=MAX_QUEUED_SPANS)
        self._span_labels: deque[SpanLabels] = deque(maxlen=MAX_QUEUED_SPANS)
        self._dropped: Counter[str] = Counter()
        self._dropping = threading.Lock()
        self.sampler = Sampler(meter, self._on_energy)
        self.poller: EnginePoller | None = None
        if options.engine_url is not None:
            self.poller = EnginePoller(options.engine_url, self._engine.append, period_s=ENGINE_PERIOD_S, watch=True)
        self.settlement = Settlement(
            self.ledger, folder=options.ledger, kept=options.kept_requests, kept_s=options.kept_s,
            engine_url=options.engine_url,
        )  # fmt: skip
        self._newest_engine: Mapping[str, float] | None = None
        self._engine_restarts = 0
        self.pushes = PushCounts()
        self.page = self._page()
        self._registry = CollectorRegistry()
        self._registry.register(Exporter(lambda: self.page))

    # -- called from threads: append only ----------------------------------------------------------------------

    def _on_energy(self, samples: list[EnergySample]) -> None:
        self._energy.extend(samples)
        self._feed.extend(samples)

    def receive(self, body: bytes) -> None:
        """Queue the spans of OTLP bytes, from any thread. Raises MalformedError; spans beyond the queue are counted."""
        try:
            parsed = parse_spans(body, self.options.labels)
        except MalformedError:
            self.drop("malformed")
            raise
        for reason, count in parsed.dropped.items():
            self.drop(reason, count)
        self._first_tokens.extend(parsed.first_tokens.items())
        self._span_labels.extend(parsed.span_labels)
        room = MAX_QUEUED_SPANS - len(self._spans)
        self._spans.extend(parsed.spans[:room])
        if len(parsed.spans) > room:
            self.drop("overflow", len(parsed.spans) - room)

    def drop(self, reason: str, count: int = 1) -> None:
        with self._dropping:
            self._dropped[reason] += count

    # -- the ledger --------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep the ledger until cancelled."""
        while True:
            self.tick()
            await self.settlement.write()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Move everything received into the ledger, commit, and replace the page."""
        now_ns = monotonic_ns()
        self.clock.observe(anchor())
        self.ledger.add_energy(_drained(self._energy))
        for sample in _drained(self._engine):
            previous, self._newest_engine = self._newest_engine, sample
            if previous is not None:
                name = "generation_tokens"
                self._engine_restarts += sample.get(name, 0.0) < previous.get(name, 0.0)
            self.ledger.add_engine_sample(sample)
        spans = _drained(self._spans)
        self._span_feed.add(spans)
        self.ledger.add_first_tokens(
            (trace_id, self.clock.monotonic_ns(first_ns)) for trace_id, first_ns in _drained(self._first_tokens)
        )
        self.ledger.add_labels(span.moved(self.clock.monotonic_ns) for span in _drained(self._span_labels))
        for span in spans:
            self.ledger.add_span(span.moved(self.clock.monotonic_ns), now_ns)
        with self._dropping:
            counts, self._dropped = self._dropped, Counter()
        self.ledger.dropped.update(counts)
        self.ledger.commit(now_ns)
        self.page = self._page()
        self.settlement.take(self.page.ledger, self.clock.unix_ns, now_ns)

    def _page(self) -> SidecarPage:
        now_ns, clocks = monotonic_ns(), anchor()
        report = self.sampler.report()
        state = self.poller.state if self.poller else EngineState()
        silence_ns = ENGINE_AWAY_S * NS_PER_S
        answered = state.answered_ns is not None and now_ns - state.answered_ns < silence_ns
        return SidecarPage(
            ledger=self.ledger.snapshot(now_ns),
            watts=self.sampler.latest().watts,
            resets=report.resets,
            read_errors=sum(report.errors.values()),
            last_read_s=s_from_ns(self._feed[-1].t_ns + clocks.offset_ns) if self._feed else None,
            engine_up=answered if self.poller else None,
            engine_understood=answered and state.path is not None if self.poller else None,
            engine_restarts=self._engine_restarts if self.poller else None,
            pushes=self.pushes.copy(),
        )

    # -- pages -------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_OTLP_BYTES, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/metrics", self.metrics),
                web.get("/energy", self.energy),
                web.get("/spans", self._span_feed.serve),
                web.get("/requests/{id}", self.settlement.serve),
                web.get("/healthz", self.healthz),
                web.post("/v1/traces", self.traces),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in OPEN_PATHS and not self.authorized(request.headers.get("Authorization")):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="this sidecar requires its token\n")
        return await handler(request)

    async def metrics(self, request: web.Request) -> web.Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):
            return web.Response(body=_openmetrics(self._registry), headers={"Content-Type": OPENMETRICS})
        return web.Response(body=text_page(self._registry), headers={"Content-Type": TEXT})

    async def traces(self, request: web.Request) -> web.Response:
        if request.content_type != "application/x-protobuf":
            raise web.HTTPUnsupportedMediaType(
                text="send application/x-protobuf: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf\n"
            )
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self.drop("oversized")
            raise
        try:
            self.receive(body)
        except MalformedError as err:
            raise web.HTTPBadRequest(text=f"{err}\n") from err
        return web.Response(content_type="application/x-protobuf")  # an empty ExportTraceServiceResponse

    async def energy(self, request: web.Request) -> web.Response:
        """Serve the meter's samples after ?since=NS of this machine's monotonic clock, the oldest first."""
        try:
            since_ns = int(request.query.get("since", "0"))
        except ValueError as err:
            raise web.HTTPBadRequest(text="since must be an integer: nanoseconds of this server's clock\n") from err
        clocks = anchor()
        samples = [sample for sample in list(self._feed) if sample.t_ns > since_ns][:FEED_PORTION]
        feed = {
            "now_ns": monotonic_ns(),
            "anchor": {"wall_ns": clocks.wall_ns, "monotonic_ns": clocks.monotonic_ns},
            "domains": self.meter.domains,
            "samples": [(s.t_ns, s.domain, s.joules) for s in samples],
            "slack_ns": [s.slack_ns for s in samples],
            "capped_ns": [s.capped_ns for s in samples],
            "sm_mhz": [s.sm_mhz for s in samples],
            "gaps": [s.gap for s in samples],
            "simulated": all("simulated" in domain.source for domain in self.meter.domains),
        }
        return web.Response(body=msgspec.json.encode(feed), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer 200 while the meter answers; the engine may come and go."""
        if self._feed:
            silent_s = s_from_ns(monotonic_ns() - self._feed[-1].t_ns)
        else:
            silent_s = min(self.sampler.report().silence_s.values(), default=0.0)
        health = {
            "ok": silent_s < STALE_S,
            "version": __version__,
            "meter": "answers" if silent_s < STALE_S else f"silent for {silent_s:.0f} s",
            "engine": {None: "none named", True: "answers", False: "away"}[self.page.engine_up],
            "engine_metrics": self._engine_metrics(),
            "ledger": self.settlement.health,
        }
        return web.json_response(health, status=200 if health["ok"] else 503)

    def _engine_metrics(self) -> str | None:
        """Return what healthz says about the engine's counters; None without an answer."""
        if self.poller is None or not self.page.engine_up:
            return None
        state = self.poller.state
        return f"{state.engine}'s, at {state.path}" if state.path else state.reason or "none yet"


_Item = TypeVar("_Item")


def _drained(queue: deque[_Item]) -> list[_Item]:
    """Remove and return the items in the queue. Other threads may append meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]


def authorized(token: str | None, header: str | None) -> bool:
    """Return True if the header carries the token; takes the same time however much of the token is right."""
    if token is None:
        return True
    return hmac.compare_digest(f"Bearer {token}".encode(), (header or "").encode("utf-8", "surrogateescape"))
