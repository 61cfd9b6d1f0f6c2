"""The simulated server over HTTP: the routes of the OpenAI API, and pages of metrics, energy and true costs."""

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from loadgen import __version__
from loadgen.clock import monotonic_ns
from loadgen.energy.series import EnergyDomain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.record import PATHS, Endpoint
from loadgen.simulator.api import (
    ApiError,
    Ask,
    ask_of,
    chat_ids,
    check_model,
    decode_body,
    prompt_ids,
    whole_answer,
)
from loadgen.simulator.cost_model import CounterOptions, each_gpu
from loadgen.simulator.engine import Engine, EngineOptions
from loadgen.simulator.faults import Fault, Faults
from loadgen.simulator.player import EnginePlayer
from loadgen.simulator.served_request import ChunkedWriter, ServedRequest
from loadgen.telemetry.traceparent import TRACEPARENT, parse_traceparent
from loadgen.units import NS_PER_S, s_from_ns

COUNTER_KEEPS_S = 600.0
"""History of the energy counter that GET /energy can return."""


@dataclass(frozen=True)
class ServerOptions:
    host: str = "127.0.0.1"
    port: int = 8000
    """TCP port; 0 is any free port."""
    hardware: str = "h200"
    model: str = "llama-3.1-8b"
    engine: EngineOptions = field(default_factory=EngineOptions)
    counter: CounterOptions = field(default_factory=lambda: CounterOptions(keep_s=COUNTER_KEEPS_S))
    seed: int = 0
    api_key: str | None = None
    faults: Faults = field(default_factory=lambda: Faults({}))
    otlp_traces_endpoint: str | None = None
    """URL to which one span per request is sent, as vLLM does."""
    resource: Mapping[str, str] | None = None
    """Attributes of the spans' resource; None for those that OpenTelemetry's variables state."""


class SimulatedServer:
    """The engine in real time and the routes to it."""

    playing: asyncio.Task[None]
    """Runs the steps while the server is running."""

    def __init__(self, options: ServerOptions) -> None:
        """Raises LoadgenError for profiles that do not exist or do not fit."""
        hardware, model = read_hardware(options.hardware), read_model(options.model)
        self.options, self.model_name, self.hardware_name = options, model.name, hardware.name
        card = f"GPU-simulated-{hardware.name}-{options.port or secrets.token_hex(3)}"
        self.gpu_uuids = [f"{card}-{i}" for i in range(options.engine.tensor_parallel)]
        self.faults_rng, counter_rng, rng = np.random.default_rng(options.seed).spawn(3)
        self.engine = Engine(hardware, model, options.engine, options.counter, start_ns=monotonic_ns(), rng=counter_rng)
        self.player = EnginePlayer(
            self.engine,
            model.name,
            self.gpu_uuids,
            seed=options.seed,
            rng=rng,
            otlp_traces_endpoint=options.otlp_traces_endpoint,
            resource=options.resource,
        )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._errors_as_json], client_max_size=64 * 1024**2)
        app.on_response_prepare.append(_mark_simulated)
        app.router.add_get("/v1/models", self.models)
        for endpoint, path in PATHS.items():
            app.router.add_post(f"/v1{path}", partial(self._generate, endpoint))
        app.router.add_post("/rerank", partial(self._generate, "rerank"))
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_get("/health", self.health)
        app.router.add_get("/version", self.version)
        app.router.add_get("/metrics", self.metrics_page)
        app.router.add_get("/stats", self.stats)
        app.router.add_get("/energy", self.energy)
        app.router.add_get("/oracle/requests", self.oracle_requests)
        return app

    async def _generate(self, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        self._authorize(request)
        body = decode_body(await request.read())
        ask = ask_of(body, endpoint, self.model_name, self.engine.max_model_len)
        fault = self.options.faults.draw(self.faults_rng)
        if fault in ("http_500", "http_503", "http_429"):
            raise ApiError(int(fault[-3:]), f"simulated fault: {fault}", "SimulatedFault")
        if not ask.stream:
            return await self._whole(ask, request, fault)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        answer = self._admit(request, ask, fault)
        answer.wire = ChunkedWriter(request)
        try:
            await answer.done
        finally:
            self.player.leave(answer)
        return response

    def _admit(self, request: web.Request, ask: Ask, fault: Fault | None) -> ServedRequest:
        parent = parse_traceparent(request.headers.get(TRACEPARENT, ""))
        return self.player.admit(ask, request.headers.get("X-Request-Id"), fault, parent)

    async def _whole(self, ask: Ask, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        answer = self._admit(request, ask, fault)
        try:
            await answer.done
        finally:
            self.player.leave(answer)
        usage = None if fault == "no_usage" else answer.usage
        body = whole_answer(
            ask, answer.response_id, self.model_name, answer.created_s, answer.text, answer.finish_reason, usage
        )
        match fault:
            case "error_event":
                raise ApiError(500, "simulated fault: error_event", "InternalServerError")
            case "bad_json":
                body = body[: len(body) // 2]
            case "truncate" | "disconnect":
                return await _send_half(request, body, reset=fault == "disconnect")
        return web.Response(body=body, content_type="application/json")

    async def models(self, request: web.Request) -> web.Response:
        self._authorize(request)
        card = {
            "id": self.model_name,
            "object": "model",
            "created": self.player.anchor.wall_ns // NS_PER_S,
            "owned_by": "loadgen-simulator",
            "root": self.model_name,
            "max_model_len": self.engine.max_model_len,
        }
        return _json({"object": "list", "data": [card]})

    async def tokenize(self, request: web.Request) -> web.Response:
        self._authorize(request)
        body = decode_body(await request.read())
        check_model(body, self.model_name)
        ids = chat_ids(body) if body.messages is not None else prompt_ids(body.prompt)
        return _json({"count": len(ids), "max_model_len": self.engine.max_model_len, "tokens": ids.tolist()})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return _json({"version": f"{__version__}+simulated", "simulated": True, "hardware": self.hardware_name})

    async def metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self.player.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def stats(self, request: web.Request) -> web.Response:
        """Report the delays of the server itself, over its last 10,000 steps."""
        scheduler = self.engine.scheduler
        return _json(
            {
                "simulated": True,
                "steps": self.player.metrics.totals.iterations,
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "lateness_ms": self.player.lateness_ms(),
            }
        )

    async def energy(self, request: web.Request) -> web.Response:
        """Return the counter's updates after the instant ?since=NS, each with the exact instant of the update."""
        try:
            since_ns = int(request.query.get("since", "-1"))
        except ValueError as err:
            raise ApiError(400, "since must be an integer: nanoseconds of this server's monotonic clock") from err
        now_ns = self.player.now_ns()
        counter, gpus = self.engine.gpu.counter, self.options.engine.tensor_parallel
        period_s = s_from_ns(counter.options.period_ns)
        limit_w = self.engine.gpu.law.hardware.limit_w / gpus
        domains = [
            EnergyDomain(name=f"gpu:{i}", source="simulated", uuid=uuid, period_s=period_s, limit_w=limit_w)
            for i, uuid in enumerate(self.gpu_uuids)
        ]
        updates = each_gpu((s for s in counter.samples if since_ns < s.t_ns <= now_ns), gpus)
        return _json(
            {
                "simulated": True,
                "now_ns": now_ns,
                "anchor": {"wall_ns": self.player.anchor.wall_ns, "monotonic_ns": self.player.anchor.monotonic_ns},
                "domains": domains,
                "samples": [[s.t_ns, s.domain, s.joules] for s in updates],
                "capped_ns": [s.capped_ns for s in updates],
            }
        )

    async def oracle_requests(self, request: web.Request) -> web.StreamResponse:
        """Return the true cost of each completed request, in order of completion."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines = iter(list(self.player.oracle))
        # In portions, so that a long response does not delay tokens.
        while portion := list(islice(lines, 500)):
            await response.write(b"".join(msgspec.json.encode(line) + b"\n" for line in portion))
            await asyncio.sleep(0)
        return response

    def _authorize(self, request: web.Request) -> None:
        if self.options.api_key and request.headers.get("Authorization") != f"Bearer {self.options.api_key}":
            raise ApiError(401, "Unauthorized", "AuthenticationError")

    @web.middleware
    async def _errors_as_json(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as err:
            return web.Response(status=err.status, body=err.body(), content_type="application/json")
        except web.HTTPError as err:
            plain = ApiError(err.status, f"{err.reason}: {request.method} {request.path}", "InvalidRequest")
            return web.Response(status=err.status, body=plain.body(), content_type="application/json")


async def _send_half(request: web.Request, body: bytes, reset: bool) -> web.StreamResponse:
    """Send half of a body that was announced whole, then close or reset the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        (request.transport.abort if reset else request.transport.close)()
    return response


async def _mark_simulated(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Simulated"] = "true"


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


@asynccontextmanager
async def running_simulator(options: ServerOptions) -> AsyncIterator[tuple[SimulatedServer, str]]:
    """Run a server; yield it and its base URL (without /v1). Raises LoadgenError if it cannot listen."""
    server = SimulatedServer(options)
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    server.playing = asyncio.create_task(server.player.play())
    try:
        try:
            await web.TCPSite(runner, options.host, options.port).start()
        except OSError as err:
            raise LoadgenError(
                f"cannot listen on {options.host}:{options.port}: {err.strerror or err}; choose another --port (0: any)"
            ) from err
        port = runner.addresses[0][1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        if server.player.spans:
            server.player.spans.start()
        yield server, f"http://{host}:{port}"
    finally:
        server.playing.cancel()
        await asyncio.wait([server.playing])
        if server.player.spans:
            await asyncio.to_thread(server.player.spans.close)
        await runner.cleanup()


async def _serve(options: ServerOptions, exit_with_parent: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or, with exit_with_parent, until the parent process is gone."""
    parent = os.getppid()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_simulator(options) as (server, url):
        print(f"simulated server: {url}/v1  ({server.model_name}, {server.hardware_name})", flush=True)
        while not stop.is_set() and not (exit_with_parent and os.getppid() != parent):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.25)
            if server.playing.done():
                server.playing.result()


def run_simulator(options: ServerOptions, exit_with_parent: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, on uvloop if it is installed."""
    try:
        import uvloop

        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        new_loop = None
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve(options, exit_with_parent))
