"""The main job, from a trace to a finished run folder. Everything is settled before the first byte is sent."""

import asyncio
import gc
import importlib.metadata
import os
import platform
import resource
import secrets
import signal
import socket
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import uvloop

from loadgen import __version__, clock, rundir
from loadgen.analyse import analyse
from loadgen.client import Client
from loadgen.energy.discover import open_meter
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.sampler import Sampler, SamplerReport
from loadgen.engine_metrics import EnginePoller, EngineSample
from loadgen.errors import LoadgenError
from loadgen.lengths import vocabularies
from loadgen.openai_api import PATHS, Endpoint, payload
from loadgen.prompts import Kind, Vocabulary, kind_of, prompt_rng
from loadgen.record import RequestRecord
from loadgen.report import html
from loadgen.report.live import Progress, View
from loadgen.runner import Runner
from loadgen.schedule import Schedule, ScheduledRequest
from loadgen.server import ServerInfo, clean_url, find_dialect, find_model
from loadgen.spans import SpanSender
from loadgen.stats import seconds
from loadgen.units import NS_PER_S

LEAD_S = 0.2
"""Between the last preparation and the first request."""
TICK_S = 0.25
LOOP_PERIOD_S = 0.02


@dataclass(frozen=True)
class Options:
    """What a run is asked to be, beyond its schedule."""

    out: Path
    base_url: str
    api_key: str | None
    model: str | None
    endpoint: Endpoint
    headers: dict[str, str]
    extra_body: dict[str, Any]
    energy: str
    gpus: tuple[str, ...]
    max_concurrency: int | None
    timeout_s: float | None
    tokenizer: Path | None
    warmup: int
    idle_s: float
    """Recorded before the first request when there is a meter: what the resident model draws, doing nothing."""
    overwrite: bool
    config: dict[str, Any]
    """For run.json: every option as given, without secrets."""
    otlp: str | None = None
    """A sidecar that is told of every request."""


def replay(schedule: Schedule, options: Options, view: View) -> rundir.RunResult:
    """Runs the schedule; gives the run with its analysis, both also in `options.out`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_record(schedule, options, view))
    return finish(options.out)


def finish(path: Path) -> rundir.RunResult:
    """Attribution, summary and report of a run folder, made anew from what was recorded."""
    result = analyse(rundir.read(path))
    assert result.summary is not None
    rundir.write_analysis(path, result.attribution, result.summary, html.render(result))
    return result


async def _record(schedule: Schedule, options: Options, view: View) -> None:
    """Everything that touches the world: asks the server, opens the meter, runs, writes."""
    async with Client(
        options.base_url, headers=options.headers, api_key=options.api_key, timeout_s=options.timeout_s
    ) as client:
        server = await find_model(client, options.model)
        dialect = await find_dialect(client, options.endpoint, server.model, options.extra_body)
        server = replace(server, dialect=dialect)
        _check_lengths(schedule, server)
        kinds = {kind_of(request.workload) for request in schedule.requests}
        lengths, vocabulary = await vocabularies(
            client, server, options.endpoint, kinds, options.tokenizer, options.extra_body
        )
        make_body = body_maker(schedule.seed, options, server, vocabulary)
        meter, reasons = await asyncio.to_thread(_open_meter, options, server)
        info = _run_info(schedule, options, server, lengths, meter, reasons)
        spans = SpanSender(options.otlp, info.run_id, server.model) if options.otlp else None
        writer = rundir.RunWriter(options.out, info, schedule, overwrite=options.overwrite)
        sampler = Sampler(meter, writer.energy) if meter else None
        try:
            await _warm_up(client, options, schedule, make_body)
            await _measure(schedule, options, client, server, make_body, meter, sampler, writer, info, view, spans)
        finally:
            writer.close()
            if meter and not (sampler and sampler.hangs):  # a driver call that never returned still holds it
                meter.close()


def body_maker(
    seed: int, options: Options, server: ServerInfo, vocabulary: dict[Kind, Vocabulary]
) -> Callable[[ScheduledRequest], bytes]:
    def make_body(request: ScheduledRequest) -> bytes:
        words = vocabulary[kind_of(request.workload)]
        prompt = words.prompt(
            request.input_tokens,
            prompt_rng(seed, request.index),
            request.prefix_ids,
            seed,
            request.text_id,
            request.text_tokens,
        )
        return payload(
            options.endpoint, server.model, prompt, request.output_tokens, server.dialect, options.extra_body
        )

    return make_body


async def _warm_up(
    client: Client, options: Options, schedule: Schedule, make_body: Callable[[ScheduledRequest], bytes]
) -> None:
    """The first `--warmup` requests one after another, unrecorded; with prompts of their own, so nothing is cached."""
    for request in schedule.requests[: options.warmup]:
        index = len(schedule.requests) + request.index
        body = make_body(msgspec.structs.replace(request, index=index, prefix_ids=(), text_id=None))
        record = await client.ask(PATHS[options.endpoint], body, "warmup")
        if record.error:
            raise LoadgenError(f"a warm-up request failed ({record.error}): {record.detail}")


async def _measure(
    schedule: Schedule,
    options: Options,
    client: Client,
    server: ServerInfo,
    make_body: Callable[[ScheduledRequest], bytes],
    meter: EnergyMeter | None,
    sampler: Sampler | None,
    writer: rundir.RunWriter,
    info: rundir.RunInfo,
    view: View,
    spans: SpanSender | None,
) -> None:
    path = PATHS[options.endpoint]

    async def send(request: ScheduledRequest, body: bytes, scheduled_ns: int) -> RequestRecord:
        return await client.send(
            path,
            body,
            index=request.index,
            workload=request.workload,
            scheduled_ns=scheduled_ns,
            request_id=f"{info.run_id}-{request.index}",
        )

    def on_record(record: RequestRecord) -> None:
        writer.record(record)
        if spans:
            spans.add(record)

    runner = Runner(schedule, make_body, send, on_record, options.max_concurrency)
    poller = EnginePoller(server.root_url, lambda sample: writer.engine(_engine_line(sample)))
    if sampler:
        sampler.start()
    await asyncio.to_thread(poller.read_now)
    poller.start()
    start_ns = clock.monotonic_ns() + round((LEAD_S + (options.idle_s if sampler else 0)) * NS_PER_S)
    cpu_s = _cpu_s()
    with _no_collections(), _signals(runner), view, spans or nullcontext():
        ticker = asyncio.create_task(_tick(schedule, runner, sampler, writer, view, start_ns))
        late_ns: array[int] = array("q")
        watcher = asyncio.create_task(_watch_loop(late_ns))
        try:
            await runner.run(start_ns)
        except* LoadgenError as failed:
            raise _first(failed) from failed
        finally:
            ticker.cancel()
            watcher.cancel()
    end_ns = clock.monotonic_ns()
    cpu_s = _cpu_s() - cpu_s
    await asyncio.to_thread(poller.stop)
    await asyncio.to_thread(poller.read_now)
    report = await asyncio.to_thread(sampler.stop) if sampler else None
    writer.write_info(
        msgspec.structs.replace(
            info,
            start_ns=start_ns,
            end_ns=end_ns,
            stopped_by=runner.stopped_by,
            domains=meter.domains if meter else [],
            energy_notes=meter.notes if meter else [],
            instrument=_instrument(cpu_s, report, late_ns) | ({"spans": spans.report()} if spans else {}),
        )
    )


async def _tick(
    schedule: Schedule, runner: Runner, sampler: Sampler | None, writer: rundir.RunWriter, view: View, start_ns: int
) -> None:
    """Four times a second: hand the lines to the kernel, show where we are."""
    last_offset_s = schedule.requests[-1].offset_ns / NS_PER_S
    while True:
        await asyncio.sleep(TICK_S)
        writer.flush()
        elapsed_s = (clock.monotonic_ns() - start_ns) / NS_PER_S
        tallies, power = runner.tallies, sampler.latest() if sampler else None
        joules = sum(power.joules.values()) if power and power.total_watts is not None else None
        view.update(
            Progress(
                scheduled=len(schedule.requests),
                sent=tallies.sent,
                in_flight=tallies.in_flight,
                completed=tallies.completed,
                failed=tallies.failed,
                output_tokens=tallies.output_tokens,
                tokens_per_s=tallies.output_tokens / elapsed_s if elapsed_s > 0 else None,
                watts=power.total_watts if power else None,
                joules_per_token=joules / tallies.output_tokens if joules and tallies.output_tokens else None,
                elapsed_s=max(elapsed_s, 0.0),
                remaining_s=max(last_offset_s - elapsed_s, 0.0),
            )
        )


async def _watch_loop(late_ns: "array[int]") -> None:
    """How late the loop wakes up, every 20 ms: what it keeps waiting, it also stamps late. Timers round up to 1 ms."""
    while True:
        due_ns = clock.monotonic_ns() + round(LOOP_PERIOD_S * NS_PER_S)
        await asyncio.sleep(LOOP_PERIOD_S)
        late_ns.append(max(0, clock.monotonic_ns() - due_ns))


@contextmanager
def _signals(runner: Runner) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM) stops sending and drains, the second aborts. Old handlers come back afterwards."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if runner.stopped_by == "completed":
            runner.stop("interrupted")
        else:
            runner.abort()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage collection pauses of the whole heap land in timestamps; records form no cycles, so nothing piles up."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _open_meter(options: Options, server: ServerInfo) -> tuple[EnergyMeter | None, list[str]]:
    """`auto` reads what is beside the server: its own simulated counter, or this machine's when it runs here."""
    choice = options.energy
    if choice == "auto" and server.simulated:
        choice = server.root_url
    elif choice == "auto" and not is_local(server.base_url):
        host = urlsplit(server.base_url).hostname
        return None, [f"the server is on another host: run `loadgen sidecar` there and add --energy http://{host}:9478"]
    return open_meter(choice, gpus=options.gpus or None)


def is_local(url: str) -> bool:
    """Whether the URL's host is this machine by name: its meters are then the server's."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1", socket.gethostname()) or host.startswith("127.")


def _check_lengths(schedule: Schedule, server: ServerInfo) -> None:
    if (limit := server.max_model_len) is None:
        return
    for request in schedule.requests:
        if request.input_tokens + request.output_tokens > limit:
            raise LoadgenError(
                f"request {request.index} needs {request.input_tokens} + {request.output_tokens} tokens, "
                f"but {server.model} takes {limit}: start the server with a longer context, or choose another trace"
            )


def _run_info(
    schedule: Schedule,
    options: Options,
    server: ServerInfo,
    lengths: Literal["/tokenize", "tokenizer file", "probe"],
    meter: EnergyMeter | None,
    reasons: list[str],
) -> rundir.RunInfo:
    anchor = clock.anchor()
    return rundir.RunInfo(
        run_id=secrets.token_hex(6),
        loadgen_version=__version__,
        config=options.config,
        seed=schedule.seed,
        requested_rps=schedule.rate_rps,
        schedule_sha256=schedule.sha256,
        asked=list(schedule.asked),
        anchor=anchor,
        host={
            "hostname": socket.gethostname(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        versions={name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop", "msgspec", "numpy")},
        server={
            "base_url": clean_url(options.base_url),
            "model": server.model,
            "engine": server.engine,
            "simulated": server.simulated,
            "max_model_len": server.max_model_len,
            "ignore_eos": server.dialect.ignore_eos,
            "min_tokens": server.dialect.min_tokens,
            "prompt_lengths_from": lengths,
        },
        domains=meter.domains if meter else [],
        energy_reasons=reasons if meter is None else [],
    )


def _engine_line(sample: EngineSample) -> dict[str, Any]:
    return {"t_ns": sample.t_ns, **sample.values}


def _instrument(cpu_s: float, report: SamplerReport | None, late_ns: "array[int]") -> dict[str, Any]:
    return {
        "loop_delay_s": msgspec.to_builtins(seconds(late_ns)),
        "cpu_s": cpu_s,
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sampler_period_s": report.period_s if report else None,
        "sampler": msgspec.to_builtins(report) if report else None,
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _first(group: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
