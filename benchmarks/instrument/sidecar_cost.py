"""Measure the sidecar's CPU time over a minute at 100 requests/s, and the share of each of its parts.

    python -m benchmarks.instrument.sidecar_cost [--rps 100] [--tokens 150] [--seconds 60] [--otlp]

It takes two and a half minutes: the history that the sidecar fits prices to is full before the measurement begins.
In this process a simulated server plays the requests (submitted to its engine directly, so that no stream costs
time), serves its counter and metrics, and sends a span per request every 5 s, as vLLM's exporter does. The sidecar is
a separate process; its metrics page is read every 5 s, as by Prometheus, and its feed is not read. Its CPU time is
user + system of all its threads. The shares of the parts are thread CPU times, taken around each call inside that
process. With --otlp the sidecar pushes its metrics every 10 s, and a span for each request, to a collector in this
process.

    python -m benchmarks.instrument.sidecar_cost --energy nvml [--energy-every 1]

reads the counters of this machine's GPUs instead, whose energy has nothing to do with the requests: only for the cost.

    python -m benchmarks.instrument.sidecar_cost --tgi

measures only how many of TGI's spans of tokens a core drops in a second.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from loadgen.simulator.api import Ask
from loadgen.simulator.app import ServerOptions, SimulatedServer, running_simulator
from loadgen.simulator.engine import EngineOptions
from loadgen.telemetry import otlp_export

SPANS_EVERY_S = 5.0
SETTLES_S = 90
"""Time before the measurement, in which the sidecar fills the minute of history that it fits prices to: until then it
fits them more often."""
SCRAPE_S = 5.0
INPUT_TOKENS = 100


# -- in the sidecar's process ---------------------------------------------------------------------------------------


def measured_sidecar(parts_file: str, arguments: list[str]) -> None:
    """Run `loadgen sidecar` and add up the time of its parts; an outer part does not count the time of inner ones."""
    from loadgen.cli import main
    from loadgen.energy.nvml import NvmlMeter
    from loadgen.energy.remote import EnergyFeed
    from loadgen.sidecar import app, ledger, otlp_push, settlement
    from loadgen.telemetry.engine_metrics import EnginePoller

    spent: Counter[str] = Counter()
    inner: list[int] = []

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*positional: Any, **named: Any) -> Any:
            start_ns = time.thread_time_ns()
            inner.append(0)
            try:
                return call(*positional, **named)
            finally:
                took_ns = time.thread_time_ns() - start_ns
                spent[part] += took_ns - inner.pop()
                if inner:
                    inner[-1] += took_ns

        return wrapped

    def apart(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Time calls on another thread, which nest in no part."""

        def wrapped(*positional: Any, **named: Any) -> Any:
            start_ns = time.thread_time_ns()
            try:
                return call(*positional, **named)
            finally:
                spent[part] += time.thread_time_ns() - start_ns

        return wrapped

    for owner, name, part in (
        (app.Sidecar, "receive", "spans: decode"),
        (app.Sidecar, "_add_spans", "spans: into ledger and feed"),
        (ledger.Ledger, "watermark", "ledger: watermark"),
        (ledger.Ledger, "_charge", "ledger: commit"),
        (ledger.Ledger, "_fit", "ledger: fit"),
        (ledger.Ledger, "_close", "ledger: close requests"),
        (settlement.Settlement, "take", "settled requests"),
        (app.Sidecar, "_pages", "snapshot"),
        (app, "text_page", "metrics page"),
    ):
        setattr(owner, name, timed(part, getattr(owner, name)))
    otlp_push.encode_metrics = apart("OTLP: encode metrics", otlp_push.encode_metrics)
    otlp_push.encode_spans = apart("OTLP: encode spans", otlp_push.encode_spans)
    EnergyFeed.read = apart("meter: read the feed", EnergyFeed.read)  # type: ignore[method-assign]
    EnginePoller._poll = apart("engine: read its page", EnginePoller._poll)  # type: ignore[method-assign]
    NvmlMeter.read = apart("meter: read NVML", NvmlMeter.read)  # type: ignore[method-assign]
    tell = Path(parts_file)
    signal.signal(signal.SIGUSR1, lambda *_: tell.write_text(json.dumps(spent)))
    sys.argv = ["loadgen", "sidecar", *arguments]
    main()


# -- around it ------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """User + system, all threads, to the nanosecond; /proc/PID/stat counts hundredths of a second."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(pid)
    return time.clock_gettime(clock.value)


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


async def drive(server: SimulatedServer, rps: float, tokens: int) -> None:
    """Submit requests with Poisson arrivals and lengths spread around the means."""
    rng = np.random.default_rng(0)
    due_s = time.monotonic()
    while True:
        due_s += rng.exponential(1 / rps)
        await asyncio.sleep(max(due_s - time.monotonic(), 0))
        prompt, answer = (max(1, int(rng.gamma(4, mean / 4))) for mean in (INPUT_TOKENS, tokens))
        ask = Ask("chat", [0] * prompt, answer, answer, True, None, False, False, False)
        server.player.admit(ask, None, None)


async def scrape(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url + "/metrics") as response:
                await response.read()
            await asyncio.sleep(SCRAPE_S)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, Counter[str]]]:
    """Yield the URL of a collector that takes everything, and the bytes that came by path."""
    received: Counter[str] = Counter()

    async def take(request: web.Request) -> web.Response:
        received[request.path] += len(await request.read())
        return web.Response(content_type="application/x-protobuf")

    application = web.Application(client_max_size=64 << 20)
    application.add_routes([web.post("/v1/metrics", take), web.post("/v1/traces", take)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    finally:
        await runner.cleanup()


async def measure(options: argparse.Namespace) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    parts_file = Path(f"/tmp/sidecar-cost-{os.getpid()}.json")
    otlp_export.PAUSE_S = SPANS_EVERY_S
    roomy = EngineOptions(max_num_seqs=1024)
    simulated = ServerOptions(port=0, engine=roomy, otlp_traces_endpoint=url)
    async with running_simulator(simulated) as (server, engine), collector() as (address, received):
        energy = ("--energy", options.energy, "--energy-every", str(options.energy_every))
        pushed = ("--otlp-metrics-endpoint", address, "--otlp-traces-endpoint", address) if options.otlp else ()
        child = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--parts", str(parts_file), "--engine-url", engine, "--port", str(port),
            *energy, *pushed, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout
        await child.stdout.readline()  # printed once it serves
        tasks = [asyncio.create_task(drive(server, options.rps, options.tokens)), asyncio.create_task(scrape(url))]
        try:
            await asyncio.sleep(SETTLES_S)
            start = await _look(child.pid, parts_file, server)
            await asyncio.sleep(options.seconds)
            end = await _look(child.pid, parts_file, server)
            _report(start, end, options.tokens, resident_mb(child.pid))
            for path, count in received.items():
                print(f"  {path}: {count / 1e3:.0f} kB of OTLP in all")
        finally:
            for task in tasks:
                task.cancel()
            child.terminate()
            await child.wait()
            parts_file.unlink(missing_ok=True)


Look = tuple[float, float, int, dict[str, int]]


async def _look(pid: int, parts_file: Path, server: SimulatedServer) -> Look:
    """Return the time in s, CPU seconds, spans sent, and nanoseconds by part."""
    parts_file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    assert server.player.spans
    totals = (time.monotonic(), cpu_s(pid), server.player.spans.sent)
    while not parts_file.exists():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    return (*totals, json.loads(parts_file.read_text()))


def _report(start: Look, end: Look, tokens: int, memory_mb: float) -> None:
    wall_s, cpu, spans = (later - earlier for earlier, later in zip(start[:3], end[:3], strict=True))
    print(f"sidecar: {cpu:.2f} s CPU in {wall_s:.1f} s = {100 * cpu / wall_s:.2f} % of a core; {memory_mb:.0f} MB")
    print(f"  {spans / wall_s:.0f} spans/s of about {tokens} output tokens, simulated server")
    parts = {name: (end[3][name] - start[3].get(name, 0)) / 1e9 for name in end[3]}
    parts["the rest: HTTP, event loop, threads"] = cpu - sum(parts.values())
    for name, seconds in sorted(parts.items(), key=lambda pair: -pair[1]):
        print(f"  {name:<38} {100 * seconds / wall_s:5.3f} %")


def tgi_tokens(spans: int) -> bytes:
    """Return an export of TGI's spans of tokens, two for each, with as many attributes as its router writes."""
    request = otlp_export.trace_service().ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for k in range(spans):
        span = scope.spans.add()
        span.name, span.kind = ("infer", "send_generation")[k % 2], 1
        span.trace_id, span.span_id = (k % 32 + 1).to_bytes(16, "big"), (k + 1).to_bytes(8, "big")
        span.start_time_unix_nano, span.end_time_unix_nano = 10**18 + k, 10**18 + k + 10**7
        for key in ("code.filepath", "code.namespace", "thread.name"):
            otlp_export.set_attribute(span, key, "x" * 30)
        for key in ("code.lineno", "thread.id", "busy_ns", "idle_ns"):
            otlp_export.set_attribute(span, key, 1)
        if span.name == "send_generation":
            otlp_export.set_attribute(span, "generation", "Generation { tokens: Some(Tokens { ids: [1234] }) }" * 4)
    return bytes(request.SerializeToString())


def measure_tgi(seconds: float) -> None:
    from loadgen.telemetry.otlp_parse import parse_spans

    body, parsed = tgi_tokens(512), 0
    start_s = time.process_time()
    while time.process_time() < start_s + seconds:
        parsed += parse_spans(body).dropped["not_a_request"]
    print(f"TGI's spans of tokens: {parsed / (time.process_time() - start_s):,.0f} a second of CPU")


def main() -> None:
    if "--parts" in sys.argv:
        position = sys.argv.index("--parts")
        measured_sidecar(sys.argv[position + 1], sys.argv[position + 2 :])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rps", type=float, default=100.0)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--energy", default="auto", help="auto: the simulated counter; nvml costs what its driver does")
    parser.add_argument("--energy-every", type=float, default=0.0)
    parser.add_argument("--otlp", action="store_true", help="push metrics and spans to a collector")
    parser.add_argument("--tgi", action="store_true", help="measure only the dropping of TGI's spans of tokens")
    options = parser.parse_args()
    if options.tgi:
        measure_tgi(3.0)
    else:
        asyncio.run(measure(options))


if __name__ == "__main__":
    main()
