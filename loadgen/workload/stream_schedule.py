"""The schedule of streams: arrivals of requests or of sessions, and the turns of each session."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import profile_path
from loadgen.units import NS_PER_S
from loadgen.workload import arrivals
from loadgen.workload.length_laws import POOL, drawn_trace
from loadgen.workload.length_source import source_path
from loadgen.workload.schedule import (
    ArrivalSpec,
    ArrivalTimes,
    Schedule,
    ScheduledRequest,
    Stop,
    after_all,
    arrival_times,
    block_size_of,
    build_schedule,
    ends_naturally,
    merged_schedule,
    relabel_for_pass,
    stable_hash63,
    truncated,
)
from loadgen.workload.session_graphs import Lanes, Turn, are_graphs, chain, from_middle, graph
from loadgen.workload.sessions import are_conversations, group_sessions, text_numbers, waits_ns
from loadgen.workload.sources import read_source, read_stored
from loadgen.workload.streams import OF_SESSIONS, Stream, Streams, option
from loadgen.workload.token_bins import bins_trace, read_bins
from loadgen.workload.trace import Trace, TraceRequest
from loadgen.workload.words import WordsFile


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
    if stream.turns is None and (are_conversations(source.requests) or are_graphs(source.requests)):
        stream = msgspec.structs.replace(stream, turns="trace")
    return _schedule_source(name, stream, source, (rng_arrivals, rng_turns), own_seed, duration_s, num_requests, stop)


def schedule_trace(
    source: Trace,
    stream: Stream,
    *,
    seed: int,
    duration_s: float | None,
    num_requests: int | None,
    stop: Stop = "auto",
) -> Schedule:
    """Schedule one trace as `stream` says. Of conversations with words of their own, and of sessions that are graphs,
    the arrival process brings the first requests, and a later one follows the answers before it; other requests come
    at the times of the process."""
    if are_conversations(source.requests) or are_graphs(source.requests):
        stream = msgspec.structs.replace(stream, turns="trace")
        rngs = np.random.default_rng(seed), np.random.default_rng([seed, 2])
        schedule = _schedule_source(None, stream, source, rngs, seed, duration_s, num_requests, stop)
        return schedule if num_requests is None else truncated(schedule, num_requests)
    if stream.think is not None:
        raise LoadgenError(f"--think: {source.name} has no sessions of several turns with words of their own")
    check_sessions(stream, source)
    return build_schedule(
        source,
        seed=seed,
        rps=stream.rps,
        arrival=stream.arrival or "trace",
        burstiness=stream.burstiness,
        duration_s=duration_s,
        num_requests=num_requests,
        scale=stream.scale,
        shape=arrivals.points_of(stream.shape) if stream.shape else None,
        stop=stop,
    )


def check_sessions(stream: Stream, source: Trace) -> None:
    """Raise LoadgenError for an option of sessions that the source has no sessions for, or that contradicts another."""
    is_graph = are_graphs(source.requests)
    plain = Stream()
    given = {name: option(name) for name in OF_SESSIONS if getattr(stream, name) != getattr(plain, name)}
    of_graphs = [given[name] for name in ("timing", "speedup", "session_start") if name in given]
    if of_graphs and not is_graph:
        raise LoadgenError(f"{of_graphs[0]}: no request of {source.name} states which others it comes after")
    if given and not is_graph and stream.turns is None:
        raise LoadgenError(f"{next(iter(given.values()))}: {source.name} has no sessions of several turns")
    if is_graph and stream.think is not None:
        raise LoadgenError(f"--think: {source.name} has the think times of its requests; see --timing and --speedup")
    if stream.timing == "afap" and "speedup" in given:
        raise LoadgenError("--timing afap waits for answers only: leave out --speedup")
    if stream.concurrent_sessions is not None:
        if stream.rps is not None or stream.shape or stream.arrival not in (None, "trace") or stream.sessions_rate:
            raise LoadgenError("--concurrent-sessions: a session starts when another is over; leave out the arrivals")
        if stream.timing == "recorded":
            raise LoadgenError("--timing recorded: it is not known before when a session on a lane starts; use think")
    elif stream.sessions_rate is not None and (stream.rps is not None or stream.shape):
        raise LoadgenError("--sessions-rate and --rps or --shape: give one rate")


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
    check_sessions(stream, source)
    if stream.think == "trace" and not source.timed:
        raise LoadgenError(f"think trace: {source.name} has no timestamps")
    sessions = group_sessions(name or source.name, source.requests, stream.turns, rng_turns)
    if stream.concurrent_sessions is not None:
        times = _places_on_lanes(sessions, num_requests)
        requests, warmed = _scheduled_turns(name, stream, sessions, times, duration_s, rng_turns, stop)
        return merged_schedule([Schedule(requests, None, None, seed, (), warmed)], seed)
    first_turns = [msgspec.structs.replace(s[0], arrival_s=s[0].arrival_s / stream.speedup) for s in sessions]
    starts = Trace(source.name, tuple(first_turns), "", source.timed)
    spec = _arrivals_of(name, stream, source, starts)
    # A trace's own arrivals end with it; drawn ones start over.
    available = len(starts.requests) if spec.process == "trace" else arrivals.MAX_ARRIVALS
    limit = None if num_requests is None else min(num_requests, available)
    times = arrival_times(starts, spec, rng_arrivals, stream.scale, duration_s, limit)
    requests, warmed = _scheduled_turns(name, stream, sessions, times, duration_s, rng_turns, stop)
    rate_rps = None if times.rate_rps is None else times.rate_rps * spec.turns
    spec = msgspec.structs.replace(spec, rate_rps=times.rate_rps)
    return merged_schedule([Schedule(requests, spec.process, rate_rps, seed, (spec,), warmed)], seed)


def _arrivals_of(name: str | None, stream: Stream, source: Trace, starts: Trace) -> ArrivalSpec:
    """Return the arrivals of sessions that a stream requests."""
    # Sessions are rarer than requests by their mean turns.
    mean_turns = len(source.requests) / len(starts.requests)
    process = stream.arrival or "trace"
    is_drawn = stream.sessions_rate is not None or (stream.rps is not None and starts.mean_rps is None)
    if process == "trace" and (not source.timed or (is_drawn and stream.turns is not None)):
        process = "poisson"
    shape = [(second, rps / mean_turns) for second, rps in arrivals.points_of(stream.shape)] if stream.shape else None
    rps = stream.rps if process == "trace" or stream.rps is not None else source.mean_rps
    rate_rps = stream.sessions_rate or (None if rps is None else rps / mean_turns)
    return ArrivalSpec(
        workload=name,
        process=process,
        rate_rps=None if shape else rate_rps,
        burstiness=stream.burstiness,
        shape=shape,
        sessions=stream.turns is not None,
        turns=mean_turns,
    )


def _places_on_lanes(sessions: list[list[TraceRequest]], num_requests: int | None) -> ArrivalTimes:
    """Return every session once, or as many, going round, as have `num_requests`. Their lanes say when each starts."""
    count = len(sessions)
    if num_requests is not None:
        sizes = np.cumsum([len(turns) for turns in sessions])
        laps, more = divmod(num_requests, int(sizes[-1]))
        count = laps * len(sessions) + (int(np.searchsorted(sizes, more)) + 1 if more else 0)
    order = np.arange(count)
    return ArrivalTimes(np.zeros(count), order % len(sessions), order // len(sessions), None)


def _read_source(name: str, stream: Stream, rng: np.random.Generator, words: WordsFile | None) -> Trace:
    """Read the trace of a stream, or draw POOL requests from its bins or laws."""
    if stream.trace is not None:
        path = source_path(stream.trace)
        source = read_stored(path) if words is None else read_source(path, words, model=stream.model)
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
) -> tuple[tuple[ScheduledRequest, ...], tuple[ScheduledRequest, ...]]:
    """Schedule session by session, each request at its earliest instant: as if answers took no time.

    Requests that are then due after the end of the run are left out. Returns those of the run, and those whose prompts
    are in the server's cache before it.
    """
    end_ns = math.inf if duration_s is None else duration_s * NS_PER_S
    requests: list[ScheduledRequest] = []
    warmed: list[ScheduledRequest] = []
    offsets_ns = np.rint(times.offsets_s * NS_PER_S).astype(np.int64).tolist()
    files: list[int] | list[None] = [None] * len(offsets_ns)
    if stream.files is not None:
        weight = np.arange(1, stream.files + 1, dtype=np.float64) ** -stream.popularity
        files = rng.choice(stream.files, size=len(offsets_ns), p=weight / weight.sum()).tolist()
    lanes = Lanes(stream.concurrent_sessions) if stream.concurrent_sessions is not None else None
    has_graphs = any(are_graphs(turns) for turns in sessions)
    for offset_ns, pick, lap, file in zip(offsets_ns, times.picks.tolist(), times.laps.tolist(), files, strict=True):
        start_ns, before = (offset_ns, ()) if lanes is None else lanes.start()
        turns: Sequence[TraceRequest] = sessions[pick]
        cached: list[TraceRequest] = []
        if stream.session_start == "middle" and not before:
            turns, cached = from_middle(turns, rng)
        if has_graphs:
            planned = graph(turns, stream.timing or "think", stream.speedup)
        else:
            planned = chain(turns, waits_ns(stream.think, turns, rng))
        shared = [
            _shared_text(name, stream, turn, pick, lap, text, file)
            for turn, text in zip([*cached, *turns], _texts([*cached, *turns]), strict=True)
        ]
        for request in cached:
            warmed.append(_scheduled(name, stream, request, stop, index=0, offset_ns=0, **shared.pop(0)))
        played = _played(name, stream, planned, shared, stop, len(requests), start_ns, before, end_ns)
        requests += played
        if lanes is not None:
            lanes.play(played)
    return tuple(requests), tuple(warmed)


def _played(
    name: str | None,
    stream: Stream,
    planned: Sequence[Turn],
    shared: Sequence[Mapping[str, Any]],
    stop: Stop,
    first: int,
    start_ns: int,
    before: tuple[int, ...],
    end_ns: float,
) -> list[ScheduledRequest]:
    """Return the requests of a session that starts at `start_ns`, when those of `before` are over, without those that
    are due from `end_ns` on. `first` is the index of the first; `shared` are the fields of `_shared_text` of each."""
    played: list[ScheduledRequest] = []
    index: dict[int, int] = {}
    for position, turn in enumerate(planned):
        due_ns = start_ns + turn.offset_ns
        if due_ns >= end_ns:  # and so is whatever waits for it
            continue
        index[position] = first + len(played)
        parents = [index[parent] for parent in turn.parents] or before
        think_ns = turn.wait_ns if turn.parents or not before else turn.offset_ns
        fields = {"index": index[position], "offset_ns": due_ns, "after": after_all(parents), "think_ns": think_ns}
        played.append(_scheduled(name, stream, turn.request, stop, **fields, **shared[position]))
    return played


def _scheduled(name: str | None, stream: Stream, request: TraceRequest, stop: Stop, **planned: Any) -> ScheduledRequest:
    return ScheduledRequest(
        workload=name or request.workload,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        model=request.model or stream.model,
        words=request.words,
        natural=ends_naturally(request, stop),
        task=request.task,
        streamed=msgspec.UNSET if request.streamed else False,
        tags={**stream.tags, **request.tags} or msgspec.UNSET,
        **planned,
    )


def _texts(turns: Sequence[TraceRequest]) -> list[str | None]:
    """Return the name of the text that each turn of a session opens with: that of its thread, with a new number where
    the trace cut the history off. None where the trace names the blocks of prompts."""
    if any(turn.prefix_ids for turn in turns):
        return [None] * len(turns)
    names: list[str | None] = [None] * len(turns)
    for task in {turn.task for turn in turns}:
        positions = [position for position, turn in enumerate(turns) if turn.task == task]
        for position, number in zip(positions, text_numbers([turns[i] for i in positions]), strict=True):
            names[position] = f"{number}" if task is None else f"{task}/{number}"
    return names


def _shared_text(
    name: str | None, stream: Stream, turn: TraceRequest, pick: int, lap: int, text: str | None, file: int | None
) -> dict[str, Any]:
    """Return the fields of a scheduled request that name what its prompt shares with others of its stream."""
    if file is not None:
        if turn.input_tokens is None or turn.words:
            raise LoadgenError(f"stream {name}: files are shared by made-up prompts only, and this source has words")
        return {"text_id": stable_hash63(f"{name}/file {file}"), "text_tokens": int(stream.shared * turn.input_tokens)}
    relabeled = relabel_for_pass(turn, lap)
    ids = relabeled.prefix_ids
    if name:
        ids = tuple(stable_hash63(f"{name}/{block}") for block in ids)
    session_id = relabeled.session_id and (f"{name}/{relabeled.session_id}" if name else relabeled.session_id)
    if stream.turns is None or text is None or turn.words:
        return {"session_id": session_id, "prefix_ids": ids, "block_size": block_size_of(relabeled)}
    if session_id is None:
        session_id = f"{name}/{pick}" if lap == 0 else f"{name}/{pick}+{lap}"
    text_id = stable_hash63(f"{session_id}/{text}")
    return {"session_id": session_id, "text_id": text_id, "text_tokens": turn.input_tokens}
