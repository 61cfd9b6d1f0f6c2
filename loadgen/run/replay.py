"""The main job, from a trace to a finished run folder. Everything is settled before the first byte is sent."""

import asyncio
import importlib.metadata
import os
import platform
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import uvloop

from loadgen import __version__, clock
from loadgen.client.client import Client
from loadgen.client.openai_api import PATHS, Endpoint
from loadgen.client.server_probe import ServerInfo, clean_url, find_dialect, find_model
from loadgen.client.socket_poller import reads_tokens
from loadgen.client.token_counts import vocabularies
from loadgen.energy.choose import open_meter, source_beside
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.sampler import Sampler, SamplerReport
from loadgen.errors import LoadgenError
from loadgen.results import run_folder
from loadgen.results.metrics import distribution_s
from loadgen.run.processes import Shards, shards, split_cap
from loadgen.run.progress import Progress, View
from loadgen.run.sender import Cost, Job, Sender, bodies_of
from loadgen.telemetry.engine_metrics import EnginePoller, EngineSample
from loadgen.telemetry.otlp_export import check_endpoint as check_spans
from loadgen.units import NS_PER_S
from loadgen.workload.prompts import PromptKind, Vocabulary, prompt_kind
from loadgen.workload.schedule import Schedule, ScheduledRequest

LEAD_S = 0.1
"""Between the last preparation and the first request."""
TICK_S = 0.25


@dataclass(frozen=True)
class RunConfig:
    """What a run is asked to be, beyond its schedule."""

    out: Path
    base_url: str
    api_key: str | None = None
    model: str | None = None
    endpoint: Endpoint = "chat"
    headers: dict[str, str] = field(default_factory=dict)
    extra_body: dict[str, Any] = field(default_factory=dict)
    energy: str = "auto"
    gpus: tuple[str, ...] = ()
    max_concurrency: int | None = None
    timeout_s: float | None = 600.0
    tokenizer: Path | None = None
    warmup: int = 0
    idle_s: float = 2.0
    """Recorded before the first request when there is a meter: what the resident model draws, doing nothing."""
    overwrite: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    """For run.json: every option as given, without secrets."""
    otlp: str | None = None
    """A sidecar that is told of every request."""
    processes: int = 1
    """How many share the sending."""


def replay(schedule: Schedule, options: RunConfig, view: View) -> None:
    """Run the schedule and record it in the folder `options.out`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_record(schedule, options, view))


async def _record(schedule: Schedule, options: RunConfig, view: View) -> None:
    """Everything that touches the world: asks the server, opens the meter, runs, writes."""
    async with Client(
        options.base_url, headers=options.headers, api_key=options.api_key, timeout_s=options.timeout_s
    ) as client:
        server = await find_model(client, options.model)
        dialect = await find_dialect(client, options.endpoint, server.model, options.extra_body)
        server = replace(server, dialect=dialect)
        _check_lengths(schedule, server)
        kinds = {prompt_kind(request.workload) for request in schedule.requests}
        lengths, vocabulary = await vocabularies(
            client, server, options.endpoint, kinds, options.tokenizer, options.extra_body
        )
        meter, reasons = await asyncio.to_thread(_open_meter, options, server)
        info = _run_info(schedule, options, server, lengths, meter, reasons)
        job = _job(info.run_id, options, server, vocabulary)
        processes = min(options.processes, len(schedule.requests))
        split_cap(job.max_concurrency, processes)
        if job.otlp:
            check_spans(job.otlp)
        writer = run_folder.RunWriter(options.out, info, schedule, overwrite=options.overwrite)
        sampler = Sampler(meter, writer.energy) if meter else None
        try:
            await _warm_up(client, options, schedule, bodies_of(job, schedule.seed))
            async with _sender(schedule, job, client, writer, processes) as sender:
                await _measure(schedule, options, sender, server, meter, sampler, writer, info, view)
        finally:
            writer.close()
            if meter and not (sampler and sampler.hangs):  # a driver call that never returned still holds it
                meter.close()


@asynccontextmanager
async def _sender(
    schedule: Schedule, job: Job, client: Client, writer: run_folder.RunWriter, processes: int
) -> AsyncIterator[Sender | Shards]:
    if processes == 1:
        yield Sender(schedule, job, client, writer.record)
    else:
        async with shards(schedule, job, writer, processes) as several:
            yield several


async def _warm_up(
    client: Client, options: RunConfig, schedule: Schedule, make_body: Callable[[ScheduledRequest], bytes]
) -> None:
    """The first `--warmup` requests one after another, unrecorded; with prompts of their own, so nothing is cached."""
    for request in schedule.requests[: options.warmup]:
        index = len(schedule.requests) + request.index
        body = make_body(msgspec.structs.replace(request, index=index, prefix_ids=(), text_id=None))
        record = await client.post(PATHS[options.endpoint], body, workload="warmup")
        if record.error:
            raise LoadgenError(f"a warm-up request failed ({record.error}): {record.detail}")


async def _measure(
    schedule: Schedule,
    options: RunConfig,
    sender: Sender | Shards,
    server: ServerInfo,
    meter: EnergyMeter | None,
    sampler: Sampler | None,
    writer: run_folder.RunWriter,
    info: run_folder.RunInfo,
    view: View,
) -> None:
    poller = EnginePoller(server.root_url, lambda sample: writer.engine(_engine_line(sample)))
    if sampler:
        sampler.start()
    await asyncio.to_thread(poller.read_now)
    poller.start()
    start_ns = clock.monotonic_ns() + round((LEAD_S + (options.idle_s if sampler else 0)) * NS_PER_S)
    with _signals(sender), view:
        ticker = asyncio.create_task(_tick(schedule, sender, sampler, writer, view, start_ns))
        try:
            cost = await sender.run(start_ns)
        finally:
            ticker.cancel()
    end_ns = clock.monotonic_ns()
    await asyncio.to_thread(poller.stop)
    await asyncio.to_thread(poller.read_now)
    report = await asyncio.to_thread(sampler.stop) if sampler else None
    writer.write_info(
        msgspec.structs.replace(
            info,
            start_ns=start_ns,
            end_ns=end_ns,
            stopped_by=sender.stopped_by,
            domains=meter.domains if meter else [],
            energy_notes=meter.notes if meter else [],
            instrument=_instrument(cost, report, sender.processes),
        )
    )


async def _tick(
    schedule: Schedule,
    sender: Sender | Shards,
    sampler: Sampler | None,
    writer: run_folder.RunWriter,
    view: View,
    start_ns: int,
) -> None:
    """Four times a second: hand the lines to the kernel, show where we are."""
    last_offset_s = schedule.requests[-1].offset_ns / NS_PER_S
    while True:
        await asyncio.sleep(TICK_S)
        writer.flush()
        elapsed_s = (clock.monotonic_ns() - start_ns) / NS_PER_S
        tallies, power = sender.tallies, sampler.latest() if sampler else None
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


@contextmanager
def _signals(sender: Sender | Shards) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM) stops sending and drains, the second aborts. Old handlers come back afterwards."""
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if sender.stopped_by == "completed":
            sender.stop("interrupted")
        else:
            sender.abort()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _open_meter(options: RunConfig, server: ServerInfo) -> tuple[EnergyMeter | None, list[str]]:
    choice = source_beside(server.base_url, options.energy, simulated_at=server.root_url if server.simulated else None)
    if choice is None:
        host = urlsplit(server.base_url).hostname
        return None, [f"the server is on another host: run `loadgen sidecar` there and add --energy http://{host}:9478"]
    return open_meter(choice, gpus=options.gpus or None)


def _check_lengths(schedule: Schedule, server: ServerInfo) -> None:
    if (limit := server.max_model_len) is None:
        return
    for request in schedule.requests:
        if request.input_tokens + request.output_tokens > limit:
            raise LoadgenError(
                f"request {request.index} needs {request.input_tokens} + {request.output_tokens} tokens, "
                f"but {server.model} takes {limit}: start the server with a longer context, or choose another trace"
            )


def _job(run_id: str, options: RunConfig, server: ServerInfo, vocabulary: dict[PromptKind, Vocabulary]) -> Job:
    return Job(
        run_id=run_id,
        base_url=options.base_url,
        api_key=options.api_key,
        headers=options.headers,
        timeout_s=options.timeout_s,
        endpoint=options.endpoint,
        extra_body=options.extra_body,
        max_concurrency=options.max_concurrency,
        otlp=options.otlp,
        server=server,
        vocabulary=vocabulary,
    )


def _run_info(
    schedule: Schedule,
    options: RunConfig,
    server: ServerInfo,
    lengths: Literal["/tokenize", "tokenizer file", "probe"],
    meter: EnergyMeter | None,
    reasons: list[str],
) -> run_folder.RunInfo:
    anchor = clock.anchor()
    return run_folder.RunInfo(
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


def _instrument(cost: Cost, report: SamplerReport | None, processes: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {
        "loop_delay_s": msgspec.to_builtins(distribution_s(cost.late_ns)),
        "waited_s": cost.waited_s,
        "stamped_by": cost.stamped_by,
        "compiled": reads_tokens(),
        "cpu_s": cost.cpu_s,
        "max_rss_bytes": cost.max_rss_bytes,
        "sampler_period_s": report.period_s if report else None,
        "sampler": msgspec.to_builtins(report) if report else None,
        **({"spans": cost.spans} if cost.spans else {}),
        **({"processes": processes} if processes else {}),
    }
