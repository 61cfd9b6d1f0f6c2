"""Streams of requests with a name each: who asks for what, how often, in sessions or alone; and their plan."""

import math
import tomllib
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.errors import LoadgenError
from loadgen.files import data_dir, profile_path
from loadgen.record import SLO_METRICS
from loadgen.units import NS_PER_S
from loadgen.workload import arrivals, token_bins
from loadgen.workload.schedule import (
    Arrival,
    ArrivalSpec,
    ArrivalTimes,
    Scale,
    Schedule,
    ScheduledRequest,
    instants,
    merged_schedule,
    relabel_for_pass,
    stable_hash63,
    truncated,
)
from loadgen.workload.trace import Trace, TraceRequest, read_trace

NEW_TOKENS = 8
"""That a turn says at least, beyond the turns before it."""

POOL = 10_000
"""Requests drawn from bins for a stream: enough to thread sessions through, and to hold each bin's share."""


class Stream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a streams file."""

    trace: str | None = None
    """A trace file. This or `bins`."""
    bins: str | None = None
    """Token bins: a name in profiles/workloads, or a file."""
    rps: float | None = None
    """Requests/s, in the mean. Default: the trace's own."""
    arrival: Arrival | None = None
    """Of requests, or of sessions when there are any. Default: the trace's own, or poisson for bins."""
    burstiness: float = 1.0
    scale: Scale = "compress"
    shape: str | None = None
    seed: int | None = None
    """Default: the run's."""
    goodput: dict[str, float] = {}
    """Limits in ms: ttft, tpot, e2el."""
    turns: float | Literal["trace"] | None = None
    """Mean turns of a session, threaded through the source's lengths; or the sessions of the trace; or none."""
    think: str | None = None
    """Seconds between an answer and the next turn: constant:MEAN, exponential:MEAN or lognormal:MEAN:SIGMA."""
    files: int | None = None
    """So many files, which are what prompts begin with."""
    popularity: float = 1.0
    """Zipf's exponent: the k-th file is used in proportion to k ** -popularity. 0: all alike."""
    shared: float = 0.8
    """Share of a prompt that is its file's beginning; the rest is unique."""


Streams = dict[str, Stream]


# -- from files and flags ---------------------------------------------------------------------------------------------


def shipped() -> Path:
    """The streams that names on the command line mean: a conversation and a code generation."""
    return data_dir("traces") / "mix.toml"


def read_streams(path: Path) -> Streams:
    """Every stream of a TOML file; paths in it are from the file's own folder. Raises LoadgenError."""
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
        if fault := _fault(stream):
            raise LoadgenError(f"{path}: stream {name}: {fault}")
    return {name: _beside(stream, path.parent) for name, stream in streams.items()}


def _beside(stream: Stream, folder: Path) -> Stream:
    trace = None if stream.trace is None else str(folder / stream.trace)
    bins = str(folder / stream.bins) if stream.bins and (folder / stream.bins).is_file() else stream.bins
    return msgspec.structs.replace(stream, trace=trace, bins=bins)


def _fault(stream: Stream) -> str | None:
    positive = {"rps": stream.rps, "burstiness": stream.burstiness, "files": stream.files}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            return f"{name} {value}: expected a number above 0"
    if (stream.trace is None) == (stream.bins is None):
        return "expected a trace, or bins, and not both"
    if stream.rps is not None and stream.shape is not None:
        return "rps and shape: expected one of them"
    if isinstance(stream.turns, float | int) and not (math.isfinite(stream.turns) and stream.turns >= 1):
        return f"turns {stream.turns}: expected a mean of 1 or more"
    if stream.turns == "trace" and stream.bins is not None:
        return 'turns = "trace": bins have no sessions; say a mean number of turns'
    if stream.turns is not None and stream.think is None:
        return 'turns without think: say how long a user thinks, such as think = "lognormal:10:1" (seconds)'
    if stream.turns is not None and stream.files is not None:
        return "turns and files: expected one of them"
    if stream.bins is not None and stream.arrival == "trace":
        return 'arrival = "trace": bins have no arrivals of their own'
    if not 0 <= stream.shared <= 1 or not 0 <= stream.popularity < math.inf:
        return "expected shared from 0 to 1, and popularity of 0 or more"
    if wrong := [f"{name}: {limit:g}" for name, limit in stream.goodput.items()
                 if name not in SLO_METRICS or not limit > 0]:  # fmt: skip
        return f"goodput {', '.join(wrong)}: expected milliseconds above 0 for ttft, tpot or e2el"
    return None


def chosen_streams(asked: Sequence[str], file: Path | None) -> Streams:
    """The streams that `--stream` asks for: NAME, NAME:RATE or NAME=SOURCE:RATE.

    A name is looked for in `file` (the shipped streams without one), then among the workload profiles; a source is a
    trace file, a file of bins, or a workload profile. Without any asked, all of `file`.
    """
    known = read_streams(file or shipped())
    if not asked:
        return known
    streams: Streams = {}
    for text in asked:
        name, stream = _one(text, known)
        if name in streams:
            raise LoadgenError(f"--stream {text}: there are two streams called {name!r}; give one another NAME=")
        streams[name] = stream
    return streams


def _one(text: str, known: Streams) -> tuple[str, Stream]:
    label, mark, rate = text.rpartition(":")
    rps: float | None = None
    if not mark:
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
    name, mark, source = label.partition("=")
    stream = known.get(name) if not mark else None
    if stream is None:
        stream = _from_source(source or name, text, known)
        name = Path(name).name.split(".")[0]
    if rps is not None:
        stream = msgspec.structs.replace(stream, rps=rps, shape=None)
    return name, stream


def _from_source(source: str, text: str, known: Streams) -> Stream:
    path = Path(source)
    if path.is_file():
        return Stream(bins=source) if path.suffix == ".json" else Stream(trace=source)
    try:
        profile_path("workloads", source, "json")
    except LoadgenError as err:
        raise LoadgenError(
            f"--stream {text}: no stream, file or workload {source!r}; streams: {', '.join(known)}; {err}"
        ) from err
    return Stream(bins=source)


# -- the plan ---------------------------------------------------------------------------------------------------------


def schedule_streams(streams: Streams, *, seed: int, duration_s: float | None, num_requests: int | None) -> Schedule:
    """One schedule of all streams. A stream's instants and lengths depend on itself and its seed, on no other stream.

    `duration_s` ends the sending of what is planned by then; `num_requests` keeps the first so many of all.
    """
    parts = [plan_one(name, stream, seed, duration_s, num_requests) for name, stream in streams.items()]
    whole = merged_schedule(parts, seed)
    return whole if num_requests is None else truncated(whole, num_requests)


def plan_one(name: str, stream: Stream, seed: int, duration_s: float | None, num_requests: int | None) -> Schedule:
    """The plan of one stream: sessions that come by its arrival process, and their turns."""
    if stream.bins is not None and stream.shape is None and duration_s is None and num_requests is None:
        raise LoadgenError(f"stream {name}: bins have no end; say one with --duration or --num-requests")
    own = [seed if stream.seed is None else stream.seed, stable_hash63(name)]
    draw_lengths, draw_instants, draw_turns = (np.random.default_rng([*own, k]) for k in range(3))
    source = _source(name, stream, draw_lengths)
    sessions = _sessions(name, stream, source.requests, draw_turns)
    starts = Trace(name, tuple(turns[0] for turns in sessions), "")
    mean_turns = len(source.requests) / len(sessions)
    asked = _asked(name, stream, source, mean_turns)
    found = instants(
        starts,
        draw_instants,
        rps=asked.rate_rps,
        arrival=asked.process,
        burstiness=asked.burstiness,
        duration_s=duration_s,
        num_requests=None if num_requests is None else min(num_requests, _most(stream, starts)),
        scale=stream.scale,
        shape=asked.shape,
    )
    requests = _planned(name, stream, sessions, found, duration_s, draw_turns)
    rate_rps = None if found.rate_rps is None else found.rate_rps * mean_turns
    asked = msgspec.structs.replace(asked, rate_rps=found.rate_rps)
    return merged_schedule([Schedule(requests, asked.process, rate_rps, own[0], (asked,))], own[0])


def _asked(name: str, stream: Stream, source: Trace, mean_turns: float) -> ArrivalSpec:
    """What comes are sessions: less often than requests, by their mean turns."""
    process = arrival_of(stream)
    shape = [(second, rps / mean_turns) for second, rps in arrivals.points_of(stream.shape)] if stream.shape else None
    rps = stream.rps if process == "trace" or stream.rps is not None else source.mean_rps
    return ArrivalSpec(
        workload=name,
        process=process,
        rate_rps=None if rps is None or shape else rps / mean_turns,
        burstiness=stream.burstiness,
        shape=shape,
        sessions=stream.turns is not None,
    )


def _most(stream: Stream, starts: Trace) -> int:
    """A trace's own arrivals end; drawn ones go round."""
    return len(starts.requests) if arrival_of(stream) == "trace" else arrivals.MAX_ARRIVALS


def arrival_of(stream: Stream) -> Arrival:
    return stream.arrival or ("trace" if stream.bins is None else "poisson")


def _source(name: str, stream: Stream, rng: np.random.Generator) -> Trace:
    if stream.trace is not None:
        return read_trace(Path(stream.trace))
    assert stream.bins is not None
    if stream.rps is None and stream.shape is None:
        raise LoadgenError(f"stream {name}: bins have no rate of their own; say one, such as --stream {name}:2")
    inputs, outputs = token_bins.sample_lengths(
        token_bins.read_bins(profile_path("workloads", stream.bins, "json")), POOL, rng
    )
    pairs = zip(inputs.tolist(), outputs.tolist(), strict=True)
    return Trace(name, tuple(TraceRequest(arrival_s=0.0, input_tokens=i, output_tokens=o) for i, o in pairs), "")


def _sessions(
    name: str, stream: Stream, requests: Sequence[TraceRequest], rng: np.random.Generator
) -> list[list[TraceRequest]]:
    """Turns in their order. Sessions are in order of their first turn, or for threaded ones in random order."""
    if stream.turns is None:
        return [[request] for request in requests]
    if stream.turns == "trace":
        groups: dict[str, list[TraceRequest]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.session_id or f"\0{i}", []).append(request)
        return list(groups.values())
    if any(request.prefix_ids or request.session_id for request in requests):
        raise LoadgenError(f'stream {name}: the trace says itself what belongs together; use turns = "trace", or none')
    rows = threaded([(r.input_tokens, r.output_tokens) for r in requests], stream.turns, rng)
    starts_s = sorted(requests[turns[0]].arrival_s for turns in rows)
    order = rng.permutation(len(rows))
    chains = [[requests[row] for row in rows[i]] for i in order]
    return [
        [msgspec.structs.replace(chain[0], arrival_s=at), *chain[1:]]
        for at, chain in zip(starts_s, chains, strict=True)
    ]


def threaded(lengths: Sequence[tuple[int, int]], turns: float, rng: np.random.Generator) -> list[list[int]]:
    """Every (input, output) pair, by number, in exactly one session of a mean of `turns`; a turn's input is longer than
    the input and output before it, which it holds, by NEW_TOKENS at least.

    From the shortest input up, each pair goes on a random session that it can hold, or begins one with a probability
    that is found by halving: so the lengths of the whole stay exactly what they were. LoadgenError when so many turns
    do not fit into these lengths.
    """
    draws = rng.random((len(lengths), 2))
    longest = _thread(lengths, 0.0, draws)
    if len(longest) * turns > len(lengths) * 1.005:
        most = len(lengths) / len(longest)
        raise LoadgenError(f"{turns:g} turns a session: these lengths hold {most:.3g} in the mean at most")
    low, high, sessions = 0.0, 1.0, longest
    for _ in range(14):
        middle = (low + high) / 2
        sessions = _thread(lengths, middle, draws)
        low, high = (middle, high) if len(sessions) * turns < len(lengths) else (low, middle)
    return sessions


def _thread(lengths: Sequence[tuple[int, int]], begin: float, draws: NDArray[np.float64]) -> list[list[int]]:
    sessions: list[list[int]] = []
    ends: list[tuple[int, int]] = []  # (tokens so far, session), sorted
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        tokens, answer = lengths[row]
        fitting = bisect_left(ends, (tokens - NEW_TOKENS + 1, -1))
        whether, which = draws[row]
        if fitting and whether >= begin:
            _, session = ends.pop(int(which * fitting))
            sessions[session].append(row)
        else:
            session = len(sessions)
            sessions.append([row])
        insort(ends, (tokens + answer, session))
    return sessions


def _planned(
    name: str,
    stream: Stream,
    sessions: list[list[TraceRequest]],
    found: ArrivalTimes,
    duration_s: float | None,
    rng: np.random.Generator,
) -> tuple[ScheduledRequest, ...]:
    """Session by session, each at its earliest: as if answers took no time. What that puts after the end of the run is
    left out."""
    end_ns = math.inf if duration_s is None else duration_s * NS_PER_S
    requests: list[ScheduledRequest] = []
    offsets_ns = np.rint(found.offsets_s * NS_PER_S).astype(np.int64).tolist()
    files = _popular(stream, len(offsets_ns), rng)
    for offset_ns, pick, lap, file in zip(offsets_ns, found.picks.tolist(), found.laps.tolist(), files, strict=True):
        turns = sessions[pick]
        waits_ns = [0, *thinking(stream.think, len(turns) - 1, rng)] if stream.think else [0] * len(turns)
        due_ns, after = offset_ns, None
        for turn, text, wait_ns in zip(turns, _texts(turns), waits_ns, strict=True):
            due_ns += wait_ns
            if due_ns >= end_ns:
                break
            request = ScheduledRequest(
                index=len(requests),
                offset_ns=due_ns,
                workload=name,
                input_tokens=turn.input_tokens,
                output_tokens=turn.output_tokens,
                after=after,
                think_ns=wait_ns,
                **_shared(name, stream, turn, pick, lap, text, file),
            )
            requests.append(request)
            after = request.index
    return tuple(requests)


def _texts(turns: Sequence[TraceRequest]) -> list[int]:
    """Which text of its session each turn is: another one where the trace cut the history off."""
    cut = [after.input_tokens <= before.input_tokens + before.output_tokens for before, after in pairwise(turns)]
    return [0, *accumulate(map(int, cut))]


def _shared(
    name: str, stream: Stream, turn: TraceRequest, pick: int, lap: int, text: int, file: int | None
) -> dict[str, Any]:
    """What of its prompt a request has in common with others of its stream."""
    if file is not None:
        return {"text_id": stable_hash63(f"{name}/file {file}"), "text_tokens": int(stream.shared * turn.input_tokens)}
    same = relabel_for_pass(turn, lap)
    ids = tuple(stable_hash63(f"{name}/{block}") for block in same.prefix_ids)
    if stream.turns is None or ids:
        return {"session_id": same.session_id and f"{name}/{same.session_id}", "prefix_ids": ids}
    session = f"{name}/{pick}" if lap == 0 else f"{name}/{pick}+{lap}"
    return {"session_id": session, "text_id": stable_hash63(f"{session}/{text}"), "text_tokens": turn.input_tokens}


def _popular(stream: Stream, count: int, rng: np.random.Generator) -> list[int] | list[None]:
    """A file for each of `count` requests, if the stream has files."""
    if stream.files is None:
        return [None] * count
    weight = np.arange(1, stream.files + 1, dtype=np.float64) ** -stream.popularity
    chosen: list[int] = rng.choice(stream.files, size=count, p=weight / weight.sum()).tolist()
    return chosen


def thinking(law: str, count: int, rng: np.random.Generator) -> list[int]:
    """`count` think times in ns. exponential:MEAN, constant:MEAN, or lognormal:MEAN:SIGMA, whose logarithm has standard
    deviation SIGMA (mean of the logarithm: ln MEAN - SIGMA**2 / 2)."""
    kind, *numbers = law.split(":")
    try:
        mean_s, *rest = map(float, numbers)
    except ValueError:
        mean_s, rest = math.nan, []
    if not (math.isfinite(mean_s) and mean_s >= 0 and all(math.isfinite(x) and x >= 0 for x in rest)):
        kind = ""
    match kind, rest:
        case "constant", []:
            drawn = np.full(count, mean_s)
        case "exponential", []:
            drawn = rng.exponential(mean_s, count)
        case "lognormal", [sigma] if mean_s > 0:
            drawn = rng.lognormal(math.log(mean_s) - sigma**2 / 2, sigma, count)
        case _:
            raise LoadgenError(
                f"think {law!r}: expected constant:SECONDS, exponential:MEAN or lognormal:MEAN:SIGMA, in seconds"
            )
    return [int(ns) for ns in np.rint(drawn * NS_PER_S).astype(np.int64)]
