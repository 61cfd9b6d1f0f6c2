"""Replay from a program: the run of `loadgen replay`, in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from loadgen.api.in_thread import awaited, wait_for, with_parameters_of
from loadgen.api.plain_options import plain_options
from loadgen.api.record_run import record_run
from loadgen.api.run import Run

if TYPE_CHECKING:
    from loadgen.attribution.host_share import ShareHost
    from loadgen.client.word_counts import Count
    from loadgen.record import Endpoint
    from loadgen.run.interrupts import Interruption
    from loadgen.workload.schedule import Arrival, Scale, SessionStart, Stop, Timing, TooLong
    from loadgen.workload.sessions import History
    from loadgen.workload.trace import Trace, TraceRequest

Requests: TypeAlias = "str | os.PathLike[str] | Trace | Iterable[TraceRequest | Mapping[str, Any]]"


def replay(
    trace: Requests | None = None,
    *,
    streams: Sequence[str] = (),
    input: int | str | None = None,
    output: int | str | None = None,
    rps: float | None = None,
    scale: Scale = "compress",
    shape: str | None = None,
    arrival: Arrival = "trace",
    burstiness: float = 1.0,
    duration_s: float | None = None,
    num_requests: int | None = None,
    max_concurrency: int | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    count: Count = "auto",
    stop: Stop = "auto",
    max_tokens: int | None = None,
    history: History | None = None,
    think: str | None = None,
    timing: Timing | None = None,
    speedup: float = 1.0,
    sessions_rate: float | None = None,
    concurrent_sessions: int | None = None,
    session_start: SessionStart = "beginning",
    tags: Mapping[str, str] | None = None,
    too_long: TooLong = "refuse",
    max_context: int | None = None,
    base_url: str | None = None,
    serve: str | None = None,
    api_key: str | None = None,
    model: str | None = None,
    endpoint: Endpoint = "chat",
    headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    timeout_s: float = 600.0,
    goodput: Mapping[str, float] | None = None,
    max_failed: str = "1%",
    warmup: int = 0,
    processes: int = 1,
    otlp: str | None = None,
    energy: str = "auto",
    gpus: Sequence[str] = (),
    engines: Sequence[str] = (),
    engine_headers: Sequence[str] = (),
    idle_s: float = 2.0,
    share_host: ShareHost = "time",
    pue: float | None = None,
    grid_intensity: float | None = None,
    grid_source: str | None = None,
    price: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    keep_bodies: bool = False,
    keep_answers: bool = False,
    ui: Literal["none", "plain", "live", "auto"] = "none",
) -> Run:
    """Replay requests against a server, measure the latency and the joules of each, and return the run.

    A parameter does what the option of `loadgen replay` with its name does (`loadgen replay --help`), and has the same
    default. Durations are in seconds, rates in requests/s, and the limits of `goodput`, as in vLLM, in milliseconds:
    `{"ttft": 200, "tpot": 50, "e2el": 5000}`.

    trace: a file of any format, the name of a shipped trace, a `Trace`, or requests: `TraceRequest`s, or the fields of
        a line of a trace each, such as `{"timestamp": 0, "input_length": 512, "output_length": 128}` or
        `{"messages": [{"role": "user", "content": "What is a watt?"}]}`.
    base_url: the server's API; None is $OPENAI_BASE_URL, or else http://localhost:8000/v1.
    serve: name of a server that is started for this run, such as "sim", in place of `base_url`.
    api_key: None is $OPENAI_API_KEY. It is written nowhere.
    out: the run folder; None is runs/TIME-TRACE.
    ui: view of the progress on standard error; the only default that is not the command's.

    Failed requests are part of the result: `run.verdict.stands` is False where the command exits with 1.
    LoadgenError: invalid options, or a server or environment that does not fit.
    KeyboardInterrupt: the first Ctrl-C stops sending and waits for the answers, the second aborts; the run folder is
    complete both times. Elsewhere than in a terminal or a notebook, `areplay` can be cancelled.
    """
    options = dict(locals())
    return wait_for(lambda interruption: _run(options, interruption))


@with_parameters_of(replay)
async def areplay(*arguments: Any, **options: Any) -> Run:
    """Do what `replay` does, with the same parameters, while the event loop that awaits it goes on.

    Cancelling it aborts the run: requests in flight are closed, and the run folder is complete.
    """
    bound = signature(replay).bind(*arguments, **options)
    bound.apply_defaults()
    return await awaited(lambda interruption: _run(dict(bound.arguments), interruption))


def _run(options: dict[str, Any], interruption: Interruption) -> Run:
    """Record and analyse a run. Raises LoadgenError, and KeyboardInterrupt after an interrupt."""
    from rich.console import Console

    from loadgen.report.progress_view import view
    from loadgen.report.write import finish
    from loadgen.run.progress import announcer

    plain, source = plain_options(options)
    with view(options["ui"], Console(stderr=True), "replay") as progress:
        folder, schedule = record_run(plain, progress, source=source, interruption=interruption)
        result = finish(folder, schedule, announcer(progress))
    if interruption.requested:
        raise KeyboardInterrupt(f"the run is {result.info.stopped_by}; what it did is in {folder}")
    return Run(folder, result)
