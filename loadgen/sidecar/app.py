"""The sidecar's edges: an energy sampler, an engine poller, OTLP over HTTP and gRPC, and the pages.

Threads only put what they saw into bounded queues; one task, on the event loop, keeps the books.
"""

import asyncio
import gc
import hmac
import http.client
import logging
import signal
import ssl
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as text_page
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_page

from loadgen import __version__
from loadgen.clock import anchor, monotonic_ns
from loadgen.energy.choose import open_meter
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import EnergySample
from loadgen.errors import LoadgenError, MeterError
from loadgen.sidecar.exporter import Exporter, Page
from loadgen.sidecar.ledger import AllowedLateness, Ledger
from loadgen.sidecar.wallclock import WallClock
from loadgen.telemetry.engine_metrics import EnginePoller, EngineSample
from loadgen.telemetry.otlp_parse import MalformedError, RequestSpan, parse_spans
from loadgen.units import NS_PER_S, s_from_ns

TICK_S = 1.0
ENGINE_PERIOD_S = 1.0
MAX_BODY_BYTES = 4 << 20
QUEUE_SPANS = 50_000
FEED_SAMPLES = 20_000
"""Of /energy: half an hour of one GPU."""
FEED_PORTION = 5_000
STALE_S = 30.0
"""A meter that was silent this long is away."""
GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics_page

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_PATHS = ("/healthz",)
"""Answered without a token: they tell nothing."""


@dataclass(frozen=True)
class SidecarOptions:
    """What a sidecar is asked to be."""

    host: str = "127.0.0.1"
    port: int = 9478
    grpc_port: int | None = None
    engine_url: str | None = None
    energy: str = "auto"
    gpus: tuple[str, ...] = ()
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    energy_token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    hold: AllowedLateness = field(default_factory=AllowedLateness)


class Sidecar:
    """One meter, one engine, one set of books."""

    def __init__(self, options: SidecarOptions, meter: EnergyMeter, model: str | None) -> None:
        self.options, self.meter = options, meter
        self.ledger = Ledger(meter.domains, hold=options.hold, model=model)
        self.wall = WallClock(anchor())
        self.sampler = Sampler(meter, self._on_energy)
        self.poller = _poller(options.engine_url, self._on_engine)
        self._energy: deque[EnergySample] = deque(maxlen=FEED_SAMPLES)
        self._feed: deque[EnergySample] = deque(maxlen=FEED_SAMPLES)
        self._engine: deque[EngineSample] = deque(maxlen=1000)
        self._spans: deque[RequestSpan] = deque()
        self._dropped: Counter[str] = Counter()
        self._dropping = threading.Lock()
        self._last_engine: EngineSample | None = None
        self._engine_restarts = 0
        self.page = self._page()
        registry = CollectorRegistry()
        registry.register(Exporter(lambda: self.page))
        self._registry = registry

    # -- called from threads: only put things down -------------------------------------------------------------

    def _on_energy(self, samples: list[EnergySample]) -> None:
        self._energy.extend(samples)
        self._feed.extend(samples)

    def _on_engine(self, sample: EngineSample) -> None:
        self._engine.append(sample)

    def receive(self, body: bytes) -> None:
        """OTLP bytes, from any thread. Raises MalformedError; what is too much is counted."""
        try:
            parsed = parse_spans(body)
        except MalformedError:
            self.drop("malformed")
            raise
        for reason, count in parsed.dropped.items():
            self.drop(reason, count)
        room = QUEUE_SPANS - len(self._spans)
        self._spans.extend(parsed.spans[:room])
        if len(parsed.spans) > room:
            self.drop("overflow", len(parsed.spans) - room)

    def drop(self, reason: str, count: int = 1) -> None:
        with self._dropping:
            self._dropped[reason] += count

    # -- the books ---------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Everything that came in goes into the books; then a new page is shown."""
        now_ns = monotonic_ns()
        self.wall.observe(anchor())
        self.ledger.energy(_drained(self._energy))
        for sample in _drained(self._engine):
            self._take_engine(sample)
        for span in _drained(self._spans):
            self.ledger.span(span.moved(self.wall.monotonic_ns), now_ns)
        with self._dropping:
            counts, self._dropped = self._dropped, Counter()
        self.ledger.dropped.update(counts)
        self.ledger.settle(now_ns)
        self.page = self._page()

    def _take_engine(self, sample: EngineSample) -> None:
        last, self._last_engine = self._last_engine, sample
        name = "generation_tokens"
        if last is not None and sample.values.get(name, 0.0) < last.values.get(name, 0.0):
            self._engine_restarts += 1
        self.ledger.engine(sample)

    def _page(self) -> Page:
        now_ns, at = monotonic_ns(), anchor()
        report = self.sampler.report()
        newest = self._feed[-1].t_ns if self._feed else None
        return Page(
            books=self.ledger.snapshot(now_ns),
            watts=self.sampler.latest().watts,
            resets=report.resets,
            read_errors=sum(report.errors.values()),
            last_read_s=None if newest is None else s_from_ns(newest + at.wall_ns - at.monotonic_ns),
            engine_up=self._engine_up(now_ns) if self.poller else None,
            engine_restarts=self._engine_restarts,
        )

    def _engine_up(self, now_ns: int) -> bool:
        last = self._last_engine
        return last is not None and now_ns - last.t_ns < 5 * ENGINE_PERIOD_S * NS_PER_S

    # -- pages -------------------------------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/metrics", self.metrics),
                web.get("/energy", self.energy),
                web.get("/healthz", self.healthz),
                web.post("/v1/traces", self.traces),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in OPEN_PATHS and not authorized(self.options.token, request.headers.get("Authorization")):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="this sidecar wants its token\n")
        return await handler(request)

    async def metrics(self, request: web.Request) -> web.Response:
        if "application/openmetrics-text" in request.headers.get("Accept", ""):
            return web.Response(body=_openmetrics(self._registry), headers={"Content-Type": OPENMETRICS})
        return web.Response(body=text_page(self._registry), headers={"Content-Type": TEXT})

    async def traces(self, request: web.Request) -> web.Response:
        if request.content_type != "application/x-protobuf":
            raise web.HTTPUnsupportedMediaType(
                text="send application/x-protobuf (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)\n"
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
        """?since=NS of this machine's monotonic clock: the meter's samples after it, the oldest of them first."""
        try:
            since_ns = int(request.query.get("since", "0"))
        except ValueError as err:
            raise web.HTTPBadRequest(text="since must be an integer: nanoseconds of this server's clock\n") from err
        at = anchor()
        newer = [sample for sample in list(self._feed) if sample.t_ns > since_ns][:FEED_PORTION]
        feed = {
            "now_ns": monotonic_ns(),
            "anchor": {"wall_ns": at.wall_ns, "monotonic_ns": at.monotonic_ns},
            "domains": self.meter.domains,
            "samples": [(s.t_ns, s.domain, s.joules) for s in newer],
            "slack_ns": [s.slack_ns for s in newer],
            "gaps": [s.gap for s in newer],
            "simulated": all("simulated" in domain.source for domain in self.meter.domains),
        }
        return web.Response(body=msgspec.json.encode(feed), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        """200 while the meter answers; the engine may come and go."""
        silent = self._silent_s()
        health = {
            "ok": silent < STALE_S,
            "version": __version__,
            "meter": "answers" if silent < STALE_S else f"silent for {silent:.0f} s",
            "engine": {None: "none named", True: "answers", False: "away"}[self.page.engine_up],
        }
        return web.json_response(health, status=200 if health["ok"] else 503)

    def _silent_s(self) -> float:
        return (
            min(self.sampler.report().silence_s.values(), default=0.0)
            if not self._feed
            else s_from_ns(monotonic_ns() - self._feed[-1].t_ns)
        )


def _poller(url: str | None, on_sample: Callable[[EngineSample], None]) -> EnginePoller | None:
    if url is None:
        return None
    try:
        return EnginePoller(url, on_sample, period_s=ENGINE_PERIOD_S)
    except MeterError as err:
        raise LoadgenError(f"--engine-url: {err}") from err


T = TypeVar("T")


def _drained(queue: "deque[T]") -> list[T]:
    """What is there now. Other threads may append meanwhile."""
    return [queue.popleft() for _ in range(len(queue))]


def authorized(token: str | None, header: str | None) -> bool:
    """Whether the header carries the token, in time that does not tell how much of it was right."""
    if token is None:
        return True
    return hmac.compare_digest(f"Bearer {token}".encode(), (header or "").encode("utf-8", "surrogateescape"))


# -- gRPC -----------------------------------------------------------------------------------------------------------


def start_grpc(sidecar: Sidecar, host: str, port: int) -> tuple[Any, int]:
    """An OTLP/gRPC server and its port. Raises LoadgenError when grpcio is missing or the port is taken."""
    try:
        import grpc
    except ImportError as err:
        raise LoadgenError("--grpc-port needs grpcio: pip install 'loadgen[sidecar]'") from err
    from concurrent.futures import ThreadPoolExecutor

    def export(body: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        if not authorized(sidecar.options.token, metadata.get("authorization")):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this sidecar wants its token")
        try:
            sidecar.receive(body)
        except MalformedError as err:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(err))
        return b""

    handler = grpc.unary_unary_rpc_method_handler(export)
    service, method = GRPC_METHOD.strip("/").split("/")
    server = grpc.server(
        ThreadPoolExecutor(2, "grpc"),
        handlers=[grpc.method_handlers_generic_handler(service, {method: handler})],
        options=[("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=16,
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        options = sidecar.options
        if options.tls_cert and options.tls_key:
            pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
            bound = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            bound = server.add_insecure_port(address)
    except (RuntimeError, OSError) as err:
        raise LoadgenError(f"cannot listen for gRPC on {address}: choose another --grpc-port") from err
    server.start()
    return server, bound


# -- start and end --------------------------------------------------------------------------------------------------


def ask_engine(url: str) -> tuple[str | None, bool]:
    """(its only model, whether it is the simulated server); (None, False) when it does not say."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", parts.path + "/v1/models")
        answer = connection.getresponse()
        simulated = answer.getheader("X-Simulated") == "true"
        page = msgspec.json.decode(answer.read(1 << 20))
        models = [entry["id"] for entry in page["data"]]
    except (OSError, http.client.HTTPException, msgspec.DecodeError, LookupError, TypeError):
        return None, False
    finally:
        connection.close()
    return (str(models[0])[:64] if len(models) == 1 else None), simulated


def choose_meter(options: SidecarOptions, simulated: bool) -> EnergyMeter:
    """`auto` beside a simulated engine is its simulated counter. Raises LoadgenError when there is nothing to read."""
    choice = options.energy
    if choice == "auto" and simulated:
        assert options.engine_url is not None
        choice = options.engine_url
    meter, reasons = open_meter(choice, gpus=options.gpus or None, token=options.energy_token)
    if meter is None:
        raise LoadgenError(f"a sidecar needs an energy source: {'; '.join(reasons) or 'none was found'}")
    return meter


def _tls(options: SidecarOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as err:
        raise LoadgenError(f"the TLS certificate cannot be used: {err}") from err
    return context


@asynccontextmanager
async def running(options: SidecarOptions) -> AsyncIterator[tuple[Sidecar, str, int | None]]:
    """The sidecar, its URL and its gRPC port while it serves. Raises LoadgenError when it cannot."""
    model, simulated = await asyncio.to_thread(ask_engine, options.engine_url) if options.engine_url else (None, False)
    tls = _tls(options)
    meter = await asyncio.to_thread(choose_meter, options, simulated)
    try:
        sidecar = Sidecar(options, meter, options.model or model)
    except LoadgenError:
        meter.close()
        raise
    runner = web.AppRunner(sidecar.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    grpc_server, grpc_port = None, None
    keeper: asyncio.Task[None] | None = None
    try:
        try:
            await web.TCPSite(runner, options.host, options.port, ssl_context=tls).start()
        except OSError as err:
            raise LoadgenError(
                f"cannot listen on {options.host}:{options.port}: {err.strerror or err}; choose another --port"
            ) from err
        if options.grpc_port is not None:
            grpc_server, grpc_port = start_grpc(sidecar, options.host, options.grpc_port)
        sidecar.sampler.start()
        if sidecar.poller:
            sidecar.poller.start()
        keeper = asyncio.create_task(sidecar.keep())
        host = f"[{options.host}]" if ":" in options.host else options.host
        yield sidecar, f"{'https' if tls else 'http'}://{host}:{runner.addresses[0][1]}", grpc_port
    finally:
        if keeper:
            keeper.cancel()
            await asyncio.wait([keeper])
            await asyncio.to_thread(_stop, sidecar)
        if grpc_server:
            grpc_server.stop(0.5)
        await runner.cleanup()
        if not sidecar.sampler.hangs:
            meter.close()


def _stop(sidecar: Sidecar) -> None:
    sidecar.sampler.stop()
    if sidecar.poller:
        sidecar.poller.stop()


async def serve_sidecar(options: SidecarOptions) -> None:
    """Until SIGINT or SIGTERM; a fault in the books ends it too, loudly."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(options) as (sidecar, url, grpc_port):
        sources = ", ".join(f"{domain.name} ({domain.source})" for domain in sidecar.meter.domains)
        also = f", OTLP/gRPC on port {grpc_port}" if grpc_port is not None else ""
        print(f"sidecar: {url}/metrics, OTLP on {url}/v1/traces{also}; energy of {sources}", flush=True)
        await stop.wait()


def run_sidecar(options: SidecarOptions) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    gc.freeze()  # what is imported by now stays: no collection need look at it
    with asyncio.Runner() as runner:
        runner.run(serve_sidecar(options))
