"""The simulated server over HTTP: it plays the engine in real time.

A step is decided at its start and told at its end: one write per stream, at the planned instant. The next step
starts at the *planned* end, not when this process woke up, so that lateness never adds up; `/stats` reports it.
"""

import asyncio
import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from aiohttp import HttpVersion11, web

from loadgen import __version__
from loadgen.clock import anchor, monotonic_ns
from loadgen.energy.series import EnergyDomain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.simulator.api import (
    DONE,
    ERROR_EVENT,
    ApiError,
    Ask,
    Events,
    ask_of,
    chat_ids,
    check_model,
    decode_body,
    prompt_ids,
    usage_json,
    whole_answer,
)
from loadgen.simulator.cost_model import CounterOptions, each_gpu
from loadgen.simulator.engine import Engine, EngineOptions, Sequence, Step
from loadgen.simulator.faults import Fault, Faults
from loadgen.simulator.metrics import Metrics
from loadgen.simulator.spans import Finished, engine_id, export
from loadgen.simulator.tokens import answer_words, block_hashes
from loadgen.telemetry.otlp_export import BatchSender
from loadgen.units import NS_PER_MS, NS_PER_S, s_from_ns

log = logging.getLogger(__name__)

MEAN_ANSWER_TOKENS = 200
"""Without ignore_eos, answers have a geometric length of this mean, cut at max_tokens."""

ORACLE_KEEPS = 1_000_000
COUNTER_KEEPS_S = 600.0


@dataclass(frozen=True)
class ServerOptions:
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    hardware: str = "h200"
    model: str = "llama-3.1-8b"
    engine: EngineOptions = field(default_factory=EngineOptions)
    counter: CounterOptions = field(default_factory=lambda: CounterOptions(keep_s=COUNTER_KEEPS_S))
    seed: int = 0
    api_key: str | None = None
    faults: Faults = field(default_factory=lambda: Faults({}))
    otlp_traces_endpoint: str | None = None
    """Where to send a span for each request, as vLLM does."""


class OracleLine(msgspec.Struct, frozen=True):
    """What one request truly cost. Joules are of the simulated GPU, not of its counter."""

    request_id: str
    prefill_joules: float
    decode_joules: float
    joules: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    preemptions: int
    finish_reason: str
    simulated: bool = True


class ChunkedWriter:
    """A prepared streaming response, written to past aiohttp's per-write coroutine: one call, one packet."""

    def __init__(self, request: web.Request) -> None:
        self._transport = request.transport
        self._chunked = request.version >= HttpVersion11

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False, slots=True)
class ServedRequest:
    """One request being served."""

    ask: Ask
    seq: Sequence
    request_id: str
    response_id: str
    created_s: int
    finish_reason: str
    word_seed: int
    fault: Fault | None
    done: asyncio.Future[None]
    """Set when there is nothing more to send."""
    wire: ChunkedWriter | None = None
    events: Events | None = None
    words: Any = None
    told: int = 0
    """Tokens whose step has ended, as the client may know."""
    muted: bool = False
    first_ns: int = 0
    last_ns: int = 0

    @property
    def text(self) -> str:
        return "".join(islice(answer_words(self.word_seed), self.told))

    @property
    def finished(self) -> Finished:
        """For a span, once its last token is told."""
        assert self.seq.started_ns is not None
        return Finished(
            engine_id(self.request_id, self.ask.chat),
            self.seq.arrival_ns,
            self.seq.started_ns,
            self.first_ns,
            self.last_ns,
            self.seq.input_tokens,
            self.told,
        )

    @property
    def usage(self) -> bytes:
        return usage_json(self.seq.input_tokens, self.told, self.seq.cached_tokens)

    def tell(self, end_ns: int) -> None:
        """One more token, at the end of its step."""
        if self.told == 0:
            self.first_ns = end_ns
        self.last_ns = end_ns
        self.told += 1
        if self.wire is not None and not self.muted:
            self._send(self.wire)

    def _send(self, wire: ChunkedWriter) -> None:
        assert self.events is not None
        if self.fault is not None and self.told > self.seq.output_tokens // 2 and self._fail(wire):
            return
        last = self.told == self.seq.output_tokens
        usage = self.usage if self.ask.continuous_usage else None
        data = self.events.token(next(self.words), self.finish_reason if last else None, usage)
        if self.told == 1:
            data = self.events.role + data
        if last and self.ask.include_usage and self.fault != "no_usage":
            data += self.events.usage(self.usage)
        if last and self.fault != "no_done":
            data += DONE
        wire.write(data)

    def _fail(self, wire: ChunkedWriter) -> bool:
        """Do what the fault says, at the first token past half; whether nothing more is to be sent."""
        assert self.events is not None
        match self.fault:
            case "bad_json":
                self.fault = None
                wire.write(self.events.broken())
                return False
            case "stall":
                self.muted = True
            case "truncate":
                self._cut()
            case "error_event":
                wire.write(ERROR_EVENT + DONE)
                self._cut()
            case "disconnect":
                self._cut()
                wire.reset()
        return self.muted

    def _cut(self) -> None:
        self.muted = True
        if not self.done.done():
            self.done.set_result(None)


class SimulatedServer:
    """The engine, the answers under way, and the routes."""

    player: asyncio.Task[None]
    """Runs the steps, from `running` on."""

    def __init__(self, options: ServerOptions) -> None:
        """Raises LoadgenError for profiles that do not exist or do not fit."""
        hardware, model = read_hardware(options.hardware), read_model(options.model)
        self.options, self.model_name, self.hardware_name = options, model.name, hardware.name
        self.gpu_uuids = [f"GPU-simulated-{hardware.name}-{i}" for i in range(options.engine.tensor_parallel)]
        self.anchor = anchor()
        self.faults_rng, counter_rng, self.rng = np.random.default_rng(options.seed).spawn(3)
        self.engine = Engine(hardware, model, options.engine, options.counter, start_ns=monotonic_ns(), rng=counter_rng)
        self.metrics = Metrics(self.engine, model.name, self.gpu_uuids, self.now_ns)
        self.answers: dict[Sequence, ServedRequest] = {}
        self.oracle: deque[OracleLine] = deque(maxlen=ORACLE_KEEPS)
        self.lateness_ns: deque[int] = deque(maxlen=10_000)
        self.count = 0
        self.spans = (
            BatchSender(options.otlp_traces_endpoint, partial(export, self.model_name))
            if options.otlp_traces_endpoint
            else None
        )
        self._work = asyncio.Event()
        self._warned_ns = 0

    def now_ns(self) -> int:
        """Now, with the GPU's idling accounted for up to now."""
        now_ns = monotonic_ns()
        if self.engine.next_start_ns() is None:
            self.engine.gpu.idle_until(now_ns)
        return now_ns

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._errors_as_json], client_max_size=64 * 1024**2)
        app.on_response_prepare.append(_say_simulated)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_get("/health", self.health)
        app.router.add_get("/version", self.version)
        app.router.add_get("/metrics", self.metrics_page)
        app.router.add_get("/stats", self.stats)
        app.router.add_get("/energy", self.energy)
        app.router.add_get("/oracle/requests", self.oracle_requests)
        return app

    # -- real time ---------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Run steps for ever, each told at its planned end."""
        while True:
            start_ns = self.engine.next_start_ns()
            if start_ns is None:
                self._work.clear()
                await self._work.wait()
                continue
            step = self.engine.step(start_ns)
            assert step is not None, "whoever was admitted fits"
            await _sleep_until(step.end_ns)
            self._note_lateness(monotonic_ns(), step.end_ns)
            self._tell(step)

    def _tell(self, step: Step) -> None:
        end_ns = step.end_ns
        self.metrics.step(step)
        for seq in step.emitted:
            answer = self.answers.get(seq)
            if answer is None:
                continue
            if answer.told:
                self.metrics.observe("inter_token_latency_seconds", s_from_ns(end_ns - answer.last_ns))
            answer.tell(end_ns)
        for seq in step.finished:
            if (answer := self.answers.get(seq)) is not None:
                self._finish(answer)

    def _note_lateness(self, now_ns: int, planned_ns: int) -> None:
        self.lateness_ns.append(now_ns - planned_ns)
        if now_ns - self._warned_ns > 10 * NS_PER_S and len(self.lateness_ns) >= 100:
            self._warned_ns = now_ns
            late_ms = self._lateness_ms()["p99"]
            if late_ms is not None and late_ms > 5:
                log.warning("simulated server: tokens leave late: p99 %.1f ms; this machine is too busy", late_ms)

    def _lateness_ms(self) -> dict[str, float | None]:
        late = sorted(self.lateness_ns)
        ranks = {"p50": len(late) // 2, "p99": len(late) * 99 // 100, "max": -1}
        return {name: round(late[rank] / NS_PER_MS, 3) if late else None for name, rank in ranks.items()}

    # -- one answer --------------------------------------------------------------------------------------------

    def _admit(self, ask: Ask, request: web.Request, fault: Fault | None) -> ServedRequest:
        self.count += 1
        rng = self.rng if ask.seed is None else np.random.default_rng(ask.seed % 2**64)
        length, reason = _answer_length(ask, rng)
        response_id = f"{'chatcmpl' if ask.chat else 'cmpl'}-simulated-{self.options.seed}-{self.count}"
        hashes = block_hashes(ask.input_ids) if self.options.engine.prefix_caching else ()
        now_ns = self.now_ns()
        answer = ServedRequest(
            ask=ask,
            seq=Sequence(now_ns, len(ask.input_ids), length, hashes),
            request_id=request.headers.get("X-Request-Id", response_id),
            response_id=response_id,
            created_s=(now_ns - self.anchor.monotonic_ns + self.anchor.wall_ns) // NS_PER_S,
            finish_reason=reason,
            word_seed=int(rng.integers(2**31)),
            fault=fault,
            done=asyncio.get_running_loop().create_future(),
        )
        if ask.stream:
            answer.events = Events(ask.chat, response_id, self.model_name, answer.created_s)
            answer.words = answer_words(answer.word_seed)
        self.answers[answer.seq] = answer
        self.engine.add(answer.seq)
        self._work.set()
        return answer

    def _finish(self, answer: ServedRequest) -> None:
        """Its last token has been told: it leaves the books, whether or not a fault keeps its connection open."""
        seq, observe = answer.seq, self.metrics.observe
        assert seq.started_ns is not None
        observe("time_to_first_token_seconds", s_from_ns(answer.first_ns - seq.arrival_ns))
        observe("e2e_request_latency_seconds", s_from_ns(answer.last_ns - seq.arrival_ns))
        observe("request_queue_time_seconds", s_from_ns(seq.started_ns - seq.arrival_ns))
        observe("request_prefill_time_seconds", s_from_ns(answer.first_ns - seq.started_ns))
        observe("request_decode_time_seconds", s_from_ns(answer.last_ns - answer.first_ns))
        observe("request_prompt_tokens", seq.input_tokens)
        observe("request_generation_tokens", answer.told)
        if self.spans:
            self.spans.add(answer.finished)
        self._close(answer, answer.finish_reason)
        if answer.fault != "stall" and not answer.done.done():
            answer.done.set_result(None)

    def _leave(self, answer: ServedRequest) -> None:
        """The client has its answer, or is gone: then its sequence ends here, and owes what it used."""
        if answer.seq in self.answers:
            self.engine.abort(answer.seq)
            self._close(answer, "abort")

    def _close(self, answer: ServedRequest, reason: str) -> None:
        seq = self.answers.pop(answer.seq).seq
        self.metrics.finished[reason] += 1
        self.oracle.append(
            OracleLine(
                answer.request_id,
                seq.prefill_j,
                seq.decode_j,
                seq.prefill_j + seq.decode_j,
                seq.input_tokens,
                answer.told,
                seq.cached_tokens,
                seq.preemptions,
                reason,
            )
        )

    # -- routes ------------------------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, chat: bool) -> web.StreamResponse:
        self._authorize(request)
        body = decode_body(await request.read())
        ask = ask_of(body, chat, self.model_name, self.engine.max_model_len)
        fault = self.options.faults.draw(self.faults_rng)
        if fault in ("http_500", "http_503", "http_429"):
            raise ApiError(int(fault[-3:]), f"simulated fault: {fault}", "SimulatedFault")
        return await (self._stream if ask.stream else self._whole)(ask, request, fault)

    async def _stream(self, ask: Ask, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        answer = self._admit(ask, request, fault)
        answer.wire = ChunkedWriter(request)
        try:
            await answer.done
        finally:
            self._leave(answer)
        return response

    async def _whole(self, ask: Ask, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        answer = self._admit(ask, request, fault)
        try:
            await answer.done
        finally:
            self._leave(answer)
        usage = None if fault == "no_usage" else answer.usage
        body = whole_answer(
            ask.chat, answer.response_id, self.model_name, answer.created_s, answer.text, answer.finish_reason, usage
        )
        match fault:
            case "error_event":
                raise ApiError(500, "simulated fault: error_event", "InternalServerError")
            case "bad_json":
                body = body[: len(body) // 2]
            case "truncate" | "disconnect":
                return await _half_an_answer(request, body, reset=fault == "disconnect")
        return web.Response(body=body, content_type="application/json")

    async def models(self, request: web.Request) -> web.Response:
        self._authorize(request)
        card = {
            "id": self.model_name,
            "object": "model",
            "created": self.anchor.wall_ns // NS_PER_S,
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
        return _json({"count": len(ids), "max_model_len": self.engine.max_model_len, "tokens": ids})

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return _json({"version": f"{__version__}+simulated", "simulated": True, "hardware": self.hardware_name})

    async def metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def stats(self, request: web.Request) -> web.Response:
        """How well the server itself keeps time, over its last 10,000 steps."""
        scheduler = self.engine.scheduler
        return _json(
            {
                "simulated": True,
                "steps": self.metrics.totals.iterations,
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "lateness_ms": self._lateness_ms(),
            }
        )

    async def energy(self, request: web.Request) -> web.Response:
        """?since=NS: the counter's moves after that instant, each with the exact instant at which it moved."""
        try:
            since_ns = int(request.query.get("since", "-1"))
        except ValueError as err:
            raise ApiError(400, "since must be an integer: nanoseconds of this server's monotonic clock") from err
        now_ns = self.now_ns()
        counter, gpus = self.engine.gpu.counter, self.options.engine.tensor_parallel
        period_s = s_from_ns(counter.options.period_ns)
        domains = [
            EnergyDomain(name=f"gpu:{i}", source="simulated", uuid=uuid, period_s=period_s)
            for i, uuid in enumerate(self.gpu_uuids)
        ]
        moved = each_gpu((s for s in counter.samples if since_ns < s.t_ns <= now_ns), gpus)
        return _json(
            {
                "simulated": True,
                "now_ns": now_ns,
                "anchor": {"wall_ns": self.anchor.wall_ns, "monotonic_ns": self.anchor.monotonic_ns},
                "domains": domains,
                "samples": [[s.t_ns, s.domain, s.joules] for s in moved],
            }
        )

    async def oracle_requests(self, request: web.Request) -> web.StreamResponse:
        """What each request that has ended truly cost, in the order they ended."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines = iter(list(self.oracle))
        # In portions, so that a long answer does not make tokens late.
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


def _answer_length(ask: Ask, rng: np.random.Generator) -> tuple[int, str]:
    """(output tokens, finish reason)."""
    drawn = max(ask.min_tokens, int(rng.geometric(1 / MEAN_ANSWER_TOKENS)), 1)
    if ask.ignore_eos or drawn >= ask.max_tokens:
        return ask.max_tokens, "length"
    return drawn, "stop"


async def _half_an_answer(request: web.Request, body: bytes, reset: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        (request.transport.abort if reset else request.transport.close)()
    return response


async def _say_simulated(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Simulated"] = "true"


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _sleep_until(t_ns: int) -> None:
    """Whole milliseconds, rounded up: the event loop's timers have no finer grain. Yields at least once."""
    await asyncio.sleep(0)
    while (left_ns := t_ns - monotonic_ns()) > 0:
        await asyncio.sleep(math.ceil(left_ns / NS_PER_MS) / 1000)


@asynccontextmanager
async def running(options: ServerOptions) -> AsyncIterator[tuple[SimulatedServer, str]]:
    """The server and its base URL (without /v1), while it serves. Raises LoadgenError when it cannot."""
    server = SimulatedServer(options)
    runner = web.AppRunner(server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    server.player = asyncio.create_task(server.play())
    try:
        try:
            await web.TCPSite(runner, options.host, options.port).start()
        except OSError as err:
            raise LoadgenError(
                f"cannot listen on {options.host}:{options.port}: {err.strerror or err}; choose another --port (0: any)"
            ) from err
        port = runner.addresses[0][1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        if server.spans:
            server.spans.start()
        yield server, f"http://{host}:{port}"
    finally:
        server.player.cancel()
        await asyncio.wait([server.player])
        if server.spans:
            await asyncio.to_thread(server.spans.close)
        await runner.cleanup()


async def serve(options: ServerOptions, exit_with_parent: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or, if asked to, until the parent process is gone."""
    parent = os.getppid()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(options) as (server, url):
        print(f"simulated server: {url}/v1  ({server.model_name}, {server.hardware_name})", flush=True)
        while not stop.is_set() and not (exit_with_parent and os.getppid() != parent):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.25)
            if server.player.done():
                server.player.result()


def run_simulator(options: ServerOptions, exit_with_parent: bool = False) -> None:
    """`serve` on uvloop where there is one."""
    try:
        import uvloop

        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        new_loop = None
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(options, exit_with_parent))
