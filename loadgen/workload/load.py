"""The load of a run, as the options of `loadgen replay` describe it, and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import sha256_of
from loadgen.workload.length_source import source_path
from loadgen.workload.schedule import Arrival, Scale, Schedule, SessionStart, Stop, Timing
from loadgen.workload.session_graphs import are_graphs
from loadgen.workload.sources import open_source, source_sha256
from loadgen.workload.stream_schedule import schedule_streams, schedule_trace
from loadgen.workload.streams import OF_SESSIONS, Stream, Streams, chosen_streams, option, share_rate
from loadgen.workload.tags import tagged

if TYPE_CHECKING:
    from loadgen.workload.trace import Trace
    from loadgen.workload.words import WordsFile

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that describe the requests of a run and their instants. A field has the name of its click option."""

    trace: str | None = None
    streams: tuple[str, ...] = ()
    input: str | None = None
    output: str | None = None
    """Laws of the lengths of made-up prompts and of their answers."""
    rps: Positive | None = None
    scale: Scale = "compress"
    shape: str | None = None
    arrival: Arrival = "trace"
    burstiness: Positive = 1.0
    duration_s: Positive | None = None
    num_requests: Count | None = None
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    stop: Stop = "auto"
    think: str | None = None
    timing: Timing | None = None
    speedup: Positive = 1.0
    sessions_rate: Positive | None = None
    concurrent_sessions: Count | None = None
    session_start: SessionStart = "beginning"
    tags: dict[str, str] = {}
    """Tags of all requests; a stream's and a trace's own come first."""

    @property
    def laws(self) -> tuple[str | None, str | None] | None:
        return None if self.input is self.output is None else (self.input, self.output)

    @property
    def arrivals(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rps", "arrival", "burstiness", "scale")}

    @property
    def sessions(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OF_SESSIONS}

    @property
    def limits(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seed", "duration_s", "num_requests")}


OF_ONE_TRACE = ("arrival", "burstiness", "scale", "shape", "think", "input", "output", *OF_SESSIONS)
"""Options that each stream has for itself."""


def planned_schedule(
    load: Load,
    words: WordsFile,
    model: str | None,
    *,
    source: Trace | None = None,
    stated: Collection[str] | None = None,
    say: Callable[[str], None],
) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule of a trace, of made-up prompts or of streams, and how it was made. Raises LoadgenError.

    source: requests that are in memory, in place of a trace. stated: options that the user named; None: those that
    differ from their defaults. say: called with a line that the user should read.
    """
    return with_tags(load, *_planned(load, words, model, source, stated, say))


def with_tags(load: Load, schedule: Schedule, plan: dict[str, Any]) -> tuple[Schedule, dict[str, Any]]:
    """Return a schedule with the tags of the load on each request, and its plan with them. Raises LoadgenError."""
    return tagged(schedule, load.tags), plan | ({"tags": load.tags} if load.tags else {})


def _planned(
    load: Load,
    words: WordsFile,
    model: str | None,
    source: Trace | None,
    stated: Collection[str] | None,
    say: Callable[[str], None],
) -> tuple[Schedule, dict[str, Any]]:
    path = source_path(load.trace) if load.trace else None
    if source is not None:
        check_alone(load)
    if load.streams or (path and path.suffix == ".toml"):
        return _schedule_streams(load, path, words, stated)
    laws = load.laws
    if source is None:
        source = open_source(path, laws, words, load.arrivals, load.limits, model)
    stream = Stream(**load.arrivals, **load.sessions, shape=load.shape, think=load.think)
    schedule = schedule_trace(source, stream, **load.limits, stop=load.stop)
    if not laws and not source.timed and load.arrival == "trace":
        say(f"{load.trace or source.name} has no timestamps: its requests come as a Poisson process")
    plan = {"trace": load.trace or source.name} | ({"input": load.input, "output": load.output} if laws else {})
    made = load.arrivals | {"arrival": schedule.arrival, "trace_sha256": source_sha256(path) if path else None}
    made |= load.limits | {"shape": load.shape, "think": load.think}
    if are_graphs(source.requests) or load.sessions != Load().sessions:
        made |= load.sessions | {"timing": load.timing or "think", "unstreamed": say_streamed(schedule, say)}
        made |= {"warmed": len(schedule.warmed)} if schedule.warmed else {}
    return schedule, plan | made


def say_streamed(schedule: Schedule, say: Callable[[str], None]) -> int:
    """Return how many requests were recorded with answers that came as a whole, and say that theirs are streamed."""
    whole = sum(request.streamed is False for request in schedule.requests)
    if whole:
        say(f"{whole:,} requests were recorded without streaming; they are streamed, so that their tokens are timed")
    return whole


def check_alone(load: Load) -> None:
    """Raise LoadgenError for a load that has requests of its own, beside those that are in memory."""
    if load.trace is not None or load.laws is not None or load.streams:
        raise LoadgenError("requests are given: leave out the trace, the streams, and the lengths of made-up prompts")


def streams_of(load: Load, file: Path | None) -> Streams:
    """Return the streams of a load, those of `file` among them. LoadgenError where that is a trace."""
    if file and file.suffix != ".toml":
        raise LoadgenError(f"{file} and --stream: give a trace, or streams; a trace is a stream as NAME={file}:RATE")
    return chosen_streams(load.streams, file)


def stated_options(streams: Streams) -> dict[str, dict[str, Any]]:
    """Return the options of each stream as run.json states them."""
    return {
        name: {field: value for field, value in msgspec.to_builtins(stream).items() if value is not None}
        for name, stream in streams.items()
    }


def _schedule_streams(
    load: Load, file: Path | None, words: WordsFile, stated: Collection[str] | None
) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule of several streams, and how it was made. LoadgenError for an option that each stream has."""
    plain = Load()
    for name in OF_ONE_TRACE:
        if name in stated if stated is not None else getattr(load, name) != getattr(plain, name):
            raise LoadgenError(f"{option(name)} is for one trace; each stream has its own in the TOML file")
    streams = share_rate(streams_of(load, file), load.rps)
    plan: dict[str, Any] = {"trace": "+".join(streams), "streams": stated_options(streams)}
    if file and not load.streams:
        plan |= {"trace": str(file), "trace_sha256": sha256_of(file)}
    return schedule_streams(streams, **load.limits, stop=load.stop, words=words), plan
