"""The sidecar: a meter and engines' counters are read, OTLP is received over HTTP, and the pages are served.

Threads only append to bounded queues; one task, on the event loop, owns the ledgers: one of each engine.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as text_page
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_page

from loadgen import __version__
from loadgen.clock import anchor, monotonic_ns
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import accelerators
from loadgen.sidecar.clock_sync import ClockSync
from loadgen.sidecar.exporter import Exporter, PushCounts, SidecarPage
from loadgen.sidecar.settlement import Settlement
from loadgen.sidecar.span_feed import SpanFeed
from loadgen.sidecar.span_router import SpanRouter
from loadgen.sidecar.watched_engine import ROUTING_SHARE, WatchedEngine, drained, watched_engines
from loadgen.telemetry.otlp_parse import MalformedError, RequestSpan, SpanLabels, parse_spans
from loadgen.units import ns_from_s, s_from_ns

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy.series import EnergyDomain, EnergySample
    from loadgen.sidecar.options import SidecarOptions

_log = logging.getLogger(__name__)

TICK_S = 1.0
MAX_OTLP_BYTES = 4 << 20
BODY_S = 30.0
"""Limit of the time that a body takes to arrive."""
SEND_S = 30.0
"""Limit of the time that a client takes to read an answer."""
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


class Sidecar:
    """One meter, and a ledger for each engine."""

    def __init__(self, options: SidecarOptions, meter: EnergyMeter, models: Sequence[str | None]) -> None:
        """Raise LoadgenError: an engine's URL is none (MeterError), or the ledger cannot be written.

        models: of each engine, for spans that name none.
        """
        self.options, self.meter = options, meter
        self.authorized = partial(authorized, options.token)
        self.engines = watched_engines(options, meter.domains, models)
        self.router: SpanRouter | None = None
        """Is None where there is one engine, which has all spans."""
        if len(options.engines) > 1:
            self.router = SpanRouter(options.engines, ns_from_s(ROUTING_SHARE * options.lateness.blind_s))
        self.clock = ClockSync(anchor())
        self._energy: deque[EnergySample] = deque(maxlen=MAX_FEED_SAMPLES)
        self._feed: deque[EnergySample] = deque(maxlen=MAX_FEED_SAMPLES)
        self._read_ns: dict[str, int] = {}
        """Domain -> instant of its newest sample."""
        self._spans: deque[RequestSpan] = deque()
        self._span_feed = SpanFeed()
        self._first_tokens: deque[tuple[bytes, int]] = deque(maxlen=MAX_QUEUED_SPANS)
        self._span_labels: deque[SpanLabels] = deque(maxlen=MAX_QUEUED_SPANS)
        self._dropped: Counter[str] = Counter()
        self._dropping = threading.Lock()
        self.sampler = Sampler(meter, self._on_energy)
        self.settlement = Settlement(
            self.engines, self.router, options.engines, folder=options.ledger, kept=options.kept_requests,
            kept_s=options.kept_s, wait_s=options.lateness.max_s,
        )  # fmt: skip
        self._warned = False
        """True once an engine's spans named none."""
        self.pushes = PushCounts()
        self.pages = self._pages(meter.domains)
        self._registry = CollectorRegistry()
        self._registry.register(Exporter(lambda: self.pages))

    @property
    def page(self) -> SidecarPage:
        """The page of the first engine, which is the only one unless several have names."""
        return self.pages[0]

    # -- called from threads: append only ----------------------------------------------------------------------

    def _on_energy(self, samples: list[EnergySample]) -> None:
        self._energy.extend(samples)
        self._feed.extend(samples)
        self._read_ns |= {sample.domain: sample.t_ns for sample in samples}

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

    # -- the ledgers -------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep the ledgers until cancelled."""
        writing: asyncio.Task[None] | None = None
        while True:
            self.tick()
            if writing is None or writing.done():  # a disk that does not answer holds up nothing else
                if writing is not None:
                    writing.result()
                writing = asyncio.create_task(self.settlement.write())
            await asyncio.sleep(TICK_S)

    def tick(self, *, last: bool = False) -> None:
        """Move everything received into the ledgers, commit, and replace the pages. last: nothing more is received."""
        now_ns = monotonic_ns()
        self.clock.observe(anchor())
        energy, domains, labels = drained(self._energy), self.meter.domains, drained(self._span_labels)
        moved_labels = [span.moved(self.clock.monotonic_ns) for span in labels]
        first_tokens = [(trace, self.clock.monotonic_ns(first_ns)) for trace, first_ns in drained(self._first_tokens)]
        for engine in self.engines:
            engine.take_domains(domains)
            engine.ledger.add_energy(energy)
            engine.take_counters()
            engine.ledger.add_first_tokens(first_tokens)
            engine.ledger.add_labels(moved_labels)
        self._add_spans(drained(self._spans), now_ns)
        with self._dropping:
            counts, self._dropped = self._dropped, Counter()
        self.engines[0].ledger.dropped.update(counts)
        for engine in self.engines:
            engine.ledger.commit(now_ns)
        self.pages = self._pages(domains)
        self.settlement.take([page.ledger for page in self.pages], self.clock.unix_ns, now_ns, last=last)

    def _add_spans(self, spans: list[RequestSpan], now_ns: int) -> None:
        """Give spans to the ledgers of their engines, and to the feed."""
        moved = [span.moved(self.clock.monotonic_ns) for span in spans]
        if self.router is None:
            self._span_feed.add(spans, self.engines[0].name)
            for span in moved:
                self.engines[0].ledger.add_span(span, now_ns)
            return
        router = self.router
        routed = [one for span in moved for one in router.add(span, now_ns)]
        decided, unplaced = router.due(now_ns, lambda number: self.engines[number].ledger.engine_samples)
        for number, span, copy in (*routed, *decided):
            self.engines[number].ledger.add_span(span, now_ns, copy=copy)
            if not copy:
                self._span_feed.add([span.moved(self.clock.unix_ns)], self.engines[number].name)
        self._span_feed.add([span.moved(self.clock.unix_ns) for span in unplaced], None)
        self.drop("no_engine", len(unplaced))
        if not self._warned and any(not span.client for span in unplaced):
            self._warned = True
            names = ", ".join(engine.name or "" for engine in self.engines)
            _log.warning(
                "spans of an engine name none of %s: start it with OTEL_RESOURCE_ATTRIBUTES=service.instance.id=NAME",
                names[:300],
            )

    def _pages(self, domains: Sequence[EnergyDomain]) -> tuple[SidecarPage, ...]:
        """Return the pages. domains: the meter's, of which the engines have taken their own."""
        now_ns, clocks = monotonic_ns(), anchor()
        report, live = self.sampler.report(), self.sampler.latest()
        ledgers = [engine.ledger.snapshot(now_ns) for engine in self.engines]
        dropped = {reason: sum(ledger.dropped[reason] for ledger in ledgers) for reason in ledgers[0].dropped}
        accounted = {energy.domain.name for ledger in ledgers for energy in ledger.domains}
        beside = {d: live.joules[d.name] for d in domains if d.name in live.joules.keys() - accounted}
        pages = []
        for engine, ledger in zip(self.engines, ledgers, strict=True):
            health, read_ns = engine.health(now_ns), self._last_read_ns(engine)
            pages.append(
                SidecarPage(
                    engine=engine.name,
                    ledger=ledger,
                    dropped=dropped,
                    watts=live.watts,
                    beside=beside,
                    resets=report.resets,
                    read_errors=sum(report.errors.values()),
                    last_read_s=None if read_ns is None else s_from_ns(read_ns + clocks.offset_ns),
                    engine_up=health.up,
                    engine_understood=health.understood,
                    engine_restarts=health.restarts,
                    pushes=self.pushes.copy(),
                )
            )
        return tuple(pages)

    def _last_read_ns(self, engine: WatchedEngine) -> int | None:
        return max(
            (self._read_ns[d.name] for d in accelerators(engine.domains) if d.name in self._read_ns), default=None
        )

    # -- pages -------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_OTLP_BYTES, middlewares=[sent_in_time, self._guard])
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
            async with asyncio.timeout(BODY_S):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self.drop("oversized")
            raise
        except TimeoutError as err:
            self.drop("malformed")
            request.content.feed_eof()  # aiohttp would wait for the rest
            raise web.HTTPRequestTimeout(
                text=f"the body took longer than {BODY_S:g} s\n", headers={"Connection": "close"}
            ) from err
        except web.RequestPayloadError as err:  # it is not compressed as its headers state
            self.drop("malformed")
            request.content.feed_eof()  # aiohttp would read on, and log its own error
            raise web.HTTPBadRequest(text="the body cannot be read\n", headers={"Connection": "close"}) from err
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
        domains = self.meter.domains
        samples = [sample for sample in list(self._feed) if sample.t_ns > since_ns][:FEED_PORTION]
        feed = {
            "now_ns": monotonic_ns(),
            "anchor": {"wall_ns": clocks.wall_ns, "monotonic_ns": clocks.monotonic_ns},
            "domains": domains,
            "samples": [(s.t_ns, s.domain, s.joules) for s in samples],
            "slack_ns": [s.slack_ns for s in samples],
            "capped_ns": [s.capped_ns for s in samples],
            "sm_mhz": [s.sm_mhz for s in samples],
            "gaps": [s.gap for s in samples],
            "simulated": bool(domains) and all("simulated" in domain.source for domain in domains),
        }
        return web.Response(body=msgspec.json.encode(feed), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer 200 while the meter answers, that of one engine at least; engines may come and go."""
        now_ns = monotonic_ns()
        silence_s = [self._silence_s(engine, now_ns) for engine in self.engines]
        engines = [
            {
                "meter": meter_words(silent_s),
                "engine": {None: "none named", True: "answers", False: "away"}[page.engine_up],
                "engine_metrics": engine.health(now_ns).metrics if page.engine_up else None,
            }
            for engine, page, silent_s in zip(self.engines, self.pages, silence_s, strict=True)
        ]
        named = {engine.name: shown for engine, shown in zip(self.engines, engines, strict=True) if engine.name}
        health = {
            "ok": min(silence_s) < STALE_S,
            "version": __version__,
            **({"engines": named} if named else engines[0]),
            "domains": {
                domain.name: f"{domain.source}, {'answers' if domain.name in self.pages[0].watts else 'silent'}"
                for domain in self.meter.domains
            },
            "ledger": self.settlement.health,
        }
        return web.json_response(health, status=200 if health["ok"] else 503)

    def _silence_s(self, engine: WatchedEngine, now_ns: int) -> float:
        """Return the time since the newest sample of the engine's energy: infinite before its source first answers."""
        if not engine.domains:
            return math.inf
        if (read_ns := self._last_read_ns(engine)) is not None:
            return s_from_ns(now_ns - read_ns)
        silence_s = self.sampler.report().silence_s
        own = accelerators(engine.domains)
        return min((silence_s[domain.name] for domain in own if domain.name in silence_s), default=0.0)


def meter_words(silent_s: float) -> str:
    """Describe a meter by the time since its newest sample."""
    if silent_s < STALE_S:
        return "answers"
    return "has not answered yet" if math.isinf(silent_s) else f"silent for {silent_s:.0f} s"


@web.middleware
async def sent_in_time(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Send the answer, or end the connection of a client that does not read it."""
    response = await handler(request)
    try:
        async with asyncio.timeout(SEND_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


def authorized(token: str | None, header: str | None) -> bool:
    """Return True if the header carries the token; takes the same time however much of the token is right."""
    if token is None:
        return True
    return hmac.compare_digest(f"Bearer {token}".encode(), (header or "").encode("utf-8", "surrogateescape"))
