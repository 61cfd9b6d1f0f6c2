"""Streams: named workloads that run together, each with its own source, rate and sessions; and their schedule."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import data_dir, profile_path
from loadgen.record import SLO_METRICS
from loadgen.units import NS_PER_S
from loadgen.workload import arrivals
from loadgen.workload.length_laws import POOL, drawn_trace
from loadgen.workload.length_source import shipped_sources, source_path
from loadgen.workload.schedule import (
    Arrival,
    ArrivalSpec,
    ArrivalTimes,
    Scale,
    Schedule,
    ScheduledRequest,
    Stop,
    arrival_times,
    block_size_of,
    build_schedule,
    ends_naturally,
    merged_schedule,
    relabel_for_pass,
    stable_hash63,
    truncated,
)
from loadgen.workload.sessions import are_conversations, group_sessions, text_numbers, waits_ns
from loadgen.workload.sources import read_source
from loadgen.workload.token_bins import bins_trace, is_bins, read_bins
from loadgen.workload.trace import Trace, TraceRequest, read_trace
from loadgen.workload.words import WordsFile


class Stream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a file of streams."""

    trace: str | None = None
    """Path of a trace, of lengths or of words; or the name of a shipped one."""
    bins: str | None = None
    """Token bins: a name in profiles/workloads, or a path."""
    input: int | str | None = None
    output: int | str | None = None
    """Laws of the lengths of prompts and answers, see `length_laws`: give both, or a trace, or bins."""
    model: str | None = None
    """The model that is requested. Default: the run's. A trace's own comes first."""
    rps: float | None = None
    """Mean requests/s. Default: the trace's own."""
    weight: float | None = None
    """Share of the run's rate, in proportion to the weights of the others; in place of `rps`."""
    arrival: Arrival | None = None
    """Arrival process of requests, or of sessions if there are any. Default: the trace's own, or poisson for bins."""
    burstiness: float = 1.0
    scale: Scale = "compress"
    shape: str | None = None
    """Rate that changes: see `arrivals.points_of`."""
    seed: int | None = None
    """Seed of the stream. Default: the run's."""
    goodput: dict[str, float] = {}
    """Limits in ms: ttft, tpot, e2el."""
    turns: float | Literal["trace"] | None = None
    """Mean turns of sessions threaded through the source's lengths; or the sessions of the trace; None: no sessions,
    but for conversations with words of their own."""
    think: str | None = None
    """Seconds between an answer and the next turn: constant:MEAN, exponential:MEAN, lognormal:MEAN:SIGMA, or "trace",
    the time between the timestamps. Default for sessions of the trace: none."""
    files: int | None = None
    """Number of files that prompts begin with; None: prompts begin with no file."""
    popularity: float = 1.0
    """Zipf's exponent: the k-th file is used in proportion to k ** -popularity. 0: all files equally."""
    shared: float = 0.8
    """Share of a prompt that is the beginning of its file; the remainder is unique."""


Streams = dict[str, Stream]


# -- from files and flags ---------------------------------------------------------------------------------------------


def shipped_streams() -> Path:
    """Return the file of the streams that are known by name: a conversation and a code generation."""
    return data_dir("traces") / "mix.toml"


def read_streams(path: Path) -> Streams:
    """Read every stream of a TOML file. Paths in it are relative to its folder. Raises LoadgenError."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
        streams = {name: msgspec.convert(table, Stream) for name, table in tables.items()}
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a file of streams: {err}") from err
    if not streams:
        raise LoadgenError(f"{path}: no streams in it: expected a table [NAME] for each")
    for name, stream in streams.items():
        if fault := stream_fault(stream):
            raise LoadgenError(f"{path}: stream {name}: {fault}")
    resolved: Streams = {}
    for name, stream in streams.items():
        trace = stream.trace
        if trace and ((path.parent / trace).is_file() or trace not in shipped_sources()):
            trace = str(path.parent / trace)
        bins = path.parent / stream.bins if stream.bins else None
        local_bins = str(bins) if bins and bins.is_file() else stream.bins
        resolved[name] = msgspec.structs.replace(stream, trace=trace, bins=local_bins)
    return resolved


def stream_fault(stream: Stream) -> str | None:
    """Return what makes the table invalid, None if nothing does."""
    positive = {"rps": stream.rps, "weight": stream.weight, "burstiness": stream.burstiness, "files": stream.files}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            return f"{name} {value}: expected a number above 0"
    if (stream.input is None) != (stream.output is None):
        return "input and output: expected both of them"
    if (stream.trace, stream.bins, stream.input).count(None) != 2:
        return "expected one of a trace, bins, or input and output"
    if (stream.rps, stream.shape, stream.weight).count(None) < 2:
        return "rps, weight and shape: expected one of them"
    if isinstance(stream.turns, float | int) and not (math.isfinite(stream.turns) and stream.turns >= 1):
        return f"turns {stream.turns}: expected a mean of 1 or more"
    if stream.turns == "trace" and stream.trace is None:
        return 'turns = "trace": bins and laws have no sessions; say a mean number of turns'
    if isinstance(stream.turns, float | int) and stream.think is None:
        return 'turns without think: say how long a user thinks, such as think = "lognormal:10:1" (seconds)'
    if stream.turns is not None and stream.files is not None:
        return "turns and files: expected one of them"
    if stream.trace is None and stream.arrival == "trace":
        return 'arrival = "trace": bins and laws have no arrivals of their own'
    if not 0 <= stream.shared <= 1 or not 0 <= stream.popularity < math.inf:
        return "expected shared from 0 to 1, and popularity of 0 or more"
    if invalid := [f"{name}: {limit:g}" for name, limit in stream.goodput.items()
                 if name not in SLO_METRICS or not limit > 0]:  # fmt: skip
        return f"goodput {', '.join(invalid)}: expected milliseconds above 0 for ttft, tpot or e2el"
    return None


def chosen_streams(texts: Sequence[str], file: Path | None) -> Streams:
    """Return the streams that `--stream` selects, each as NAME, NAME:RATE or NAME=SOURCE:RATE.

    A name is looked up in `file` (by default the shipped streams), then among the workload profiles; a source is a
    trace file, a file of bins, or a workload profile. Without a selection, all streams of `file` are returned.
    """
    named = read_streams(file or shipped_streams())
    if not texts:
        return named
    streams: Streams = {}
    for text in texts:
        name, stream = _parse_choice(text, named)
        if name in streams:
            raise LoadgenError(f"--stream {text}: there are two streams called {name!r}; give one another NAME=")
        streams[name] = stream
    return streams


def _parse_choice(text: str, named: Streams) -> tuple[str, Stream]:
    """Return the name and the stream of one NAME, NAME:RATE or NAME=SOURCE:RATE."""
    label, colon, rate = text.rpartition(":")
    rps: float | None = None
    if not colon:
        label = rate
    else:
        try:
            rps = float(rate)
        except ValueError:
            rps = math.nan
        if not (math.isfinite(rps) and rps > 0):
            raise LoadgenError(
                f"--stream {text}: {rate!r} is not a rate in requests/s; write NAME:RATE or NAME=PATH:RATE"
            )
    name, equals, source = label.partition("=")
    stream = named.get(name) if not equals else None
    if stream is None:
        source = source or name
        try:
            path = source_path(source)
        except LoadgenError as err:
            raise LoadgenError(f"--stream {text}: {err}; streams: {', '.join(named)}") from err
        stream = Stream(bins=source) if is_bins(path) else Stream(trace=source)
        name = Path(name).name.split(".")[0]
    if rps is not None:
        stream = msgspec.structs.replace(stream, rps=rps, shape=None, weight=None)
    return name, stream


def share_rate(streams: Streams, rps: float | None) -> Streams:
    """Return the streams with the rates that their weights give them of `rps`, the run's; without it, as they are."""
    weighted = [name for name, stream in streams.items() if stream.weight is not None]
    if rps is None:
        if weighted:
            raise LoadgenError(f"stream {weighted[0]} has a weight, its share of the run's rate: give that with --rps")
        return streams
    if len(weighted) < len(streams):
        name = next(name for name in streams if name not in weighted)
        raise LoadgenError(f"--rps is shared out by weight, and stream {name} has none; or give each stream its rate")
    total = sum(stream.weight or 0.0 for stream in streams.values())
    return {
        name: msgspec.structs.replace(stream, rps=rps * (stream.weight or 0.0) / total, weight=None)
        for name, stream in streams.items()
    }


# -- schedule ---------------------------------------------------------------------------------------------------------


def schedule_streams(
    streams: Streams,
    *,
    seed: int,
    duration_s: float | None,
    num_requests: int | None,
    stop: Stop = "auto",
    words: WordsFile | None = None,
    sources: Mapping[str, Trace] = MappingProxyType({}),
) -> Schedule:
    """Schedule all streams together. Arrivals and lengths of a stream depend on itself and its seed, not on the others.

    `duration_s` ends the arrivals; `num_requests` keeps the first requests of the merged schedule. `words` stores the
    words of the requests that have their own. `sources` are traces that have been read, by the names of their streams.
    """
    parts = [
        schedule_stream(name, stream, seed, duration_s, num_requests, stop, words, sources.get(name))
        for name, stream in streams.items()
    ]
    merged = merged_schedule(parts, seed)
    return merged if num_requests is None else truncated(merged, num_requests)


def schedule_stream(
    name: str,
    stream: Stream,
    seed: int,
    duration_s: float | None,
    num_requests: int | None,
    stop: Stop = "auto",
    words: WordsFile | None = None,
    source: Trace | None = None,
) -> Schedule:
    """Schedule one stream: sessions that come by its arrival process, and their turns."""
    if stream.trace is None and stream.shape is None and duration_s is None and num_requests is None:
        raise LoadgenError(f"stream {name}: bins and laws have no end; say one with --duration or --num-requests")
    own_seed = seed if stream.seed is None else stream.seed
    # Three generators, so that a stream's lengths do not depend on how many arrivals or turns it draws.
    rng_lengths, rng_arrivals, rng_turns = (np.random.default_rng([own_seed, stable_hash63(name), k]) for k in range(3))
    source = source or _read_source(name, stream, rng_lengths, words)
    if stream.turns is None and are_conversations(source.requests):
        stream = msgspec.structs.replace(stream, turns="trace")
    return _schedule_source(name, stream, source, (rng_arrivals, rng_turns), own_seed, duration_s, num_requests, stop)


def schedule_trace(
    source: Trace,
    *,
    seed: int,
    rps: float | None,
    arrival: Arrival,
    burstiness: float,
    scale: Scale,
    shape: str | None,
    duration_s: float | None,
    num_requests: int | None,
    stop: Stop = "auto",
    think: str | None = None,
) -> Schedule:
    """Schedule one trace. Of conversations with words of their own the arrival process brings the first turns, and a
    later turn follows the answer before it; other requests come at the times of the process."""
    if not are_conversations(source.requests):
        if think is not None:
            raise LoadgenError(f"--think: {source.name} has no sessions of several turns with words of their own")
        return build_schedule(
            source,
            seed=seed,
            rps=rps,
            arrival=arrival,
            burstiness=burstiness,
            duration_s=duration_s,
            num_requests=num_requests,
            scale=scale,
            shape=arrivals.points_of(shape) if shape else None,
            stop=stop,
        )
    stream = Stream(
        turns="trace", think=think, rps=rps, arrival=arrival, burstiness=burstiness, scale=scale, shape=shape
    )
    rngs = np.random.default_rng(seed), np.random.default_rng([seed, 2])
    schedule = _schedule_source(None, stream, source, rngs, seed, duration_s, num_requests, stop)
    return schedule if num_requests is None else truncated(schedule, num_requests)


def _schedule_source(
    name: str | None,
    stream: Stream,
    source: Trace,
    rngs: tuple[np.random.Generator, np.random.Generator],
    seed: int,
    duration_s: float | None,
    num_requests: int | None,
    stop: Stop,
) -> Schedule:
    """Schedule the sessions of a source, the arrivals and the turns of which are drawn by `rngs`.

    Requests get the workload `name`; without it they keep the source's.
    """
    rng_arrivals, rng_turns = rngs
    if stream.think == "trace" and not source.timed:
        raise LoadgenError(f"think trace: {source.name} has no timestamps")
    sessions = group_sessions(name or source.name, source.requests, stream.turns, rng_turns)
    starts = Trace(source.name, tuple(turns[0] for turns in sessions), "", source.timed)
    # Sessions are rarer than requests by their mean turns.
    mean_turns = len(source.requests) / len(sessions)
    process = stream.arrival or "trace"
    if process == "trace" and not source.timed:
        process = "poisson"
    shape = [(second, rps / mean_turns) for second, rps in arrivals.points_of(stream.shape)] if stream.shape else None
    rps = stream.rps if process == "trace" or stream.rps is not None else source.mean_rps
    spec = ArrivalSpec(
        workload=name,
        process=process,
        rate_rps=None if rps is None or shape else rps / mean_turns,
        burstiness=stream.burstiness,
        shape=shape,
        sessions=stream.turns is not None,
        turns=mean_turns,
    )
    # A trace's own arrivals end with it; drawn ones start over.
    available = len(starts.requests) if spec.process == "trace" else arrivals.MAX_ARRIVALS
    limit = None if num_requests is None else min(num_requests, available)
    times = arrival_times(starts, spec, rng_arrivals, stream.scale, duration_s, limit)
    requests = _scheduled_turns(name, stream, sessions, times, duration_s, rng_turns, stop)
    rate_rps = None if times.rate_rps is None else times.rate_rps * mean_turns
    spec = msgspec.structs.replace(spec, rate_rps=times.rate_rps)
    return merged_schedule([Schedule(requests, spec.process, rate_rps, seed, (spec,))], seed)


def _read_source(name: str, stream: Stream, rng: np.random.Generator, words: WordsFile | None) -> Trace:
    """Read the trace of a stream, or draw POOL requests from its bins or laws."""
    if stream.trace is not None:
        path = source_path(stream.trace)
        source = read_trace(path) if words is None else read_source(path, words, model=stream.model)
    elif stream.bins is not None:
        bins = read_bins(profile_path("workloads", stream.bins, "json"))
        source = bins_trace(bins, POOL, rng)
    else:
        source = drawn_trace(name, str(stream.input), str(stream.output), POOL, rng)
    if not source.timed and stream.rps is None and stream.shape is None:
        raise LoadgenError(f"stream {name}: its source has no rate; say one, such as --stream {name}:2")
    return source


def _scheduled_turns(
    name: str | None,
    stream: Stream,
    sessions: list[list[TraceRequest]],
    times: ArrivalTimes,
    duration_s: float | None,
    rng: np.random.Generator,
    stop: Stop,
) -> tuple[ScheduledRequest, ...]:
    """Schedule session by session, each turn at its earliest instant: as if answers took no time.

    Turns that are then due after the end of the run are left out.
    """
    end_ns = math.inf if duration_s is None else duration_s * NS_PER_S
    requests: list[ScheduledRequest] = []
    offsets_ns = np.rint(times.offsets_s * NS_PER_S).astype(np.int64).tolist()
    files: list[int] | list[None] = [None] * len(offsets_ns)
    if stream.files is not None:
        weight = np.arange(1, stream.files + 1, dtype=np.float64) ** -stream.popularity
        files = rng.choice(stream.files, size=len(offsets_ns), p=weight / weight.sum()).tolist()
    for offset_ns, pick, lap, file in zip(offsets_ns, times.picks.tolist(), times.laps.tolist(), files, strict=True):
        turns = sessions[pick]
        due_ns, previous = offset_ns, None
        for turn, text, wait_ns in zip(turns, text_numbers(turns), waits_ns(stream.think, turns, rng), strict=True):
            due_ns += wait_ns
            if due_ns >= end_ns:
                break
            request = ScheduledRequest(
                index=len(requests),
                offset_ns=due_ns,
                workload=name or turn.workload,
                input_tokens=turn.input_tokens,
                output_tokens=turn.output_tokens,
                model=turn.model or stream.model,
                words=turn.words,
                natural=ends_naturally(turn, stop),
                after=previous,
                think_ns=wait_ns,
                **_shared_text(name, stream, turn, pick, lap, text, file),
            )
            requests.append(request)
            previous = request.index
    return tuple(requests)


def _shared_text(
    name: str | None, stream: Stream, turn: TraceRequest, pick: int, lap: int, text: int, file: int | None
) -> dict[str, Any]:
    """Return the fields of a scheduled request that name what its prompt shares with others of its stream."""
    if file is not None:
        if turn.input_tokens is None or turn.words:
            raise LoadgenError(f"stream {name}: files are shared by made-up prompts only, and this source has words")
        return {"text_id": stable_hash63(f"{name}/file {file}"), "text_tokens": int(stream.shared * turn.input_tokens)}
    relabeled = relabel_for_pass(turn, lap)
    ids = tuple(stable_hash63(f"{name}/{block}") for block in relabeled.prefix_ids)
    if stream.turns is None or ids or turn.words:
        session_id = relabeled.session_id and (f"{name}/{relabeled.session_id}" if name else relabeled.session_id)
        return {"session_id": session_id, "prefix_ids": ids, "block_size": block_size_of(relabeled)}
    session = f"{name}/{pick}" if lap == 0 else f"{name}/{pick}+{lap}"
    return {"session_id": session, "text_id": stable_hash63(f"{session}/{text}"), "text_tokens": turn.input_tokens}
