"""Rebuild the engine's steps from a client's records, with the engine's counters if there are any.

A client sees a step end: every stream that was in it gets its chunk. Other clients' requests are in the steps if there
are records of them, as `beside_others` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.chunked_prefill import spread_prefills
from loadgen.attribution.engine_steps import (
    BURST_GAP_NS,
    EngineSteps,
    Members,
    Memberships,
    Narrow,
    with_unknown_prompts,
)
from loadgen.attribution.late_tokens import with_late_prefills_joined
from loadgen.attribution.speculation import speculation_of
from loadgen.telemetry.engine_sample import EngineSample, counter_values, sample_times
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Ints

SLICE = 100
"""vLLM hands on the outputs of a step in slices of 128 streams, with other work between: after this many streams in a
burst, the next burst may be of the same step."""
SLICED_NS = 100 * NS_PER_MS
"""Slices of one step lie within this duration."""

MISSED_STEPS = 4
"""A stream that is left out of this many steps in a row was preempted, and computes its whole context again. Fewer can
be tokens without text: no character is cut into more pieces."""


def engine_steps_of(records: Sequence[RequestRecord], engine: Sequence[EngineSample] = ()) -> EngineSteps:
    """Return the steps of a run. A request's first chunk ends its prefill; every later one is a decode step, or the end
    of a second prefill after a preemption. An answer that came whole ends a step that computed its prompt. Other
    requests that got no chunk are in no step: their cost is unattributed."""
    times = _step_times(records)
    counts = np.array([len(own_ns) for own_ns in times], dtype=np.int64)
    t_ns = np.concatenate([np.zeros(0, np.int64), *times])
    del times
    request = np.repeat(np.arange(len(records), dtype=np.int32), counts)
    step, end_ns = _steps(t_ns, request)
    first_rows = (np.cumsum(counts) - counts)[counts > 0]
    sent_ns = np.array([record.sent_ns or 0 for record in records], dtype=np.int64)
    first_ns = t_ns[first_rows]
    prompt = _prompts(records, first_ns, request[first_rows])
    cached = _cached(records, first_ns, prompt, request[first_rows], engine)
    del t_ns
    # A step starts at the end of the one before, or, if no stream was decoding, when the first newcomer was sent.
    earliest = np.full(len(end_ns), np.iinfo(np.int64).max)
    np.minimum.at(earliest, step[first_rows], sent_ns[request[first_rows]])
    newcomers = np.bincount(step[first_rows], minlength=len(end_ns))
    earliest[np.bincount(step, minlength=len(end_ns)) > newcomers] = 0  # a stream was decoding already
    previous_end = np.concatenate((np.zeros(1, np.int64), end_ns[:-1]))[: len(end_ns)]
    start_ns = np.asarray(np.minimum(np.maximum(previous_end, earliest), end_ns), dtype=np.int64)
    members = _members(records, counts, request, step, first_rows, prompt, cached, engine)
    last_rows = np.cumsum(counts)[counts > 0] - 1
    output = np.array([record.output_tokens or 0 for record in records], dtype=np.int64)
    speculation = speculation_of(
        engine, counts[counts > 0] - 1, output[counts > 0] - 1, step[last_rows] - step[first_rows]
    )
    spread = spread_prefills(members, first_rows, sent_ns, cached, start_ns, end_ns, speculation, engine)
    unseen_ns = _unseen(records, spread.start_ns, spread.end_ns)
    return with_late_prefills_joined(
        EngineSteps(
            spread.start_ns, spread.end_ns, spread.iterations, *spread.members, unseen_ns,
            speculation=speculation, budget=spread.budget,
        )
    )  # fmt: skip


def _step_times(records: Sequence[RequestRecord]) -> list[Ints]:
    """Return, for each record, when the steps ended that it got a token from: at its chunks, and after the last of them
    at instants that are estimated.

    Tokens without a chunk after the last one were decoded until `last_token_ns`, at the pace of those before. Where
    another stream got a chunk near such an instant, that was the step.
    """
    ends = [[record.finished_ns] if record.came_whole else record.chunk_ns for record in records]
    seen = [np.array(end, dtype=np.int64) for end in ends]
    tails = [_tail(record) for record in records]
    if not any(len(tail) for tail in tails):
        return seen
    every_ns = np.sort(np.concatenate(seen))
    return [np.concatenate((own, _snapped(tail, every_ns))) for own, tail in zip(seen, tails, strict=True)]


def _tail(record: RequestRecord) -> Ints:
    """Return when the tokens came that have no chunk and follow the last one, as many as fit at the pace before it."""
    chunk_ns, last_ns, missing = record.chunk_ns, record.last_token_ns, record.tokens_without_chunk or 0
    if not chunk_ns or not missing or last_ns is None or last_ns - chunk_ns[-1] < BURST_GAP_NS:
        return np.zeros(0, np.int64)
    length_ns = last_ns - chunk_ns[-1]
    pace_ns = (chunk_ns[-1] - chunk_ns[0]) / (len(chunk_ns) - 1) if len(chunk_ns) > 1 else 0.0
    count = min(missing, max(1, round(length_ns / max(pace_ns, BURST_GAP_NS))))
    return np.asarray(chunk_ns[-1] + length_ns * np.arange(1, count + 1) // count, dtype=np.int64)


def _snapped(tail_ns: Ints, every_ns: Ints) -> Ints:
    """Return the instants of a tail, each moved to the nearest one of `every_ns` within half its pace; no two alike."""
    if len(tail_ns) < 2:
        return tail_ns
    after = np.clip(np.searchsorted(every_ns, tail_ns), 1, len(every_ns) - 1)
    before_ns, after_ns = every_ns[after - 1], every_ns[after]
    nearest = np.where(tail_ns - before_ns < after_ns - tail_ns, before_ns, after_ns)
    near = 2 * np.abs(nearest - tail_ns) < tail_ns[1] - tail_ns[0]
    return np.unique(np.where(near, nearest, tail_ns))


def _unseen(records: Sequence[RequestRecord], start_ns: Ints, end_ns: Ints) -> Ints:
    """Return int64[k, 2]: when a request was in flight, sent and not finished, and no step ran."""
    spans = [(r.sent_ns, r.finished_ns) for r in records if r.sent_ns is not None and r.finished_ns is not None]
    sent_ns, finished_ns = np.sort(np.array(spans, dtype=np.int64).reshape(-1, 2), axis=0).T
    edges = np.unique(np.concatenate((sent_ns, finished_ns, start_ns, end_ns)))
    begin, stop = edges[:-1], edges[1:]
    in_flight = np.searchsorted(sent_ns, begin, "right") > np.searchsorted(finished_ns, begin, "right")
    in_step = np.searchsorted(start_ns, begin, "right") > np.searchsorted(end_ns, begin, "right")
    unseen = np.concatenate(([False], in_flight & ~in_step, [False]))
    begins, ends = begin[unseen[1:-1] & ~unseen[:-2]], stop[unseen[1:-1] & ~unseen[2:]]
    long_enough = ends - begins >= BURST_GAP_NS
    return np.stack((begins[long_enough], ends[long_enough]), axis=1)


def _members(
    records: Sequence[RequestRecord],
    counts: Ints,
    request: Memberships,
    step: Memberships,
    first_rows: Ints,
    prompt: Narrow,
    cached: Narrow,
    engine: Sequence[EngineSample],
) -> Members:
    """Return a membership for every chunk: what its stream computed in the step that the chunk ends.

    A chunk that follows a pause of more than MISSED_STEPS steps ends a second prefill, of the whole context; there is
    none if the engine counts no preemption. Every chunk after the first stands for the same number of tokens: more than
    one under speculative decoding.
    """
    is_first = np.zeros(len(request), bool)
    is_first[first_rows] = True
    preemptions = counter_values(engine, "preemptions")
    if preemptions is not None and preemptions[-1] == preemptions[0]:
        preempted = np.zeros(len(step), bool)
    else:
        preempted = ~is_first & (np.diff(step, prepend=step[:1]) > MISSED_STEPS)
    later = [
        (count - 1, (record.output_tokens or 0) - 1) for count, record in zip(counts.tolist(), records, strict=True)
    ]
    per_chunk = [tokens / chunks if chunks > 0 and tokens > 0 else 1.0 for chunks, tokens in later]
    decode = np.repeat(np.array(per_chunk, dtype=np.float32), counts)
    position = np.arange(len(request), dtype=np.int32) - np.repeat(
        (np.cumsum(counts) - counts).astype(np.int32), counts
    )
    context: Narrow = np.maximum(position - 1, 0).astype(np.float32)
    del position
    context *= decode
    context += prompt[request]
    decode[is_first | preempted] = 0.0
    prefill = np.zeros(len(request), np.float32)
    prefill[first_rows] = prompt[request[first_rows]] - cached[request[first_rows]]
    prefill[preempted] = context[preempted]
    context[preempted] /= 2.0
    return Members(step, request, is_first | preempted, prefill, decode, context)


def _steps(t_ns: Ints, request: Memberships) -> tuple[Memberships, Ints]:
    """Group chunk times into steps -> (step of each chunk, end of each step).

    Chunks less than BURST_GAP_NS apart form a burst. A stream gets one chunk a step, so its k-th chunk inside a burst
    is of the burst's k-th step; a burst has several steps when the client was late to read. A step of many streams
    can take several bursts.
    """
    if not len(t_ns):
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    order = np.argsort(t_ns)
    burst = np.empty(len(t_ns), np.int32)
    burst[order] = np.concatenate(([0], np.cumsum(np.diff(t_ns[order]) >= BURST_GAP_NS)))
    begins_ns = t_ns[order][np.searchsorted(burst[order], np.arange(int(burst.max()) + 1))]
    del order
    burst = _joined(burst, request, begins_ns)
    row = np.arange(len(burst), dtype=np.int32)  # rows are by request, then time
    new = np.concatenate(([True], (burst[1:] != burst[:-1]) | (request[1:] != request[:-1])))
    nth = row - np.maximum.accumulate(np.where(new, row, 0).astype(np.int32))  # chunks of the stream before, in a burst
    del row, new
    max_nth = np.zeros(int(burst.max()) + 1, np.int32)
    np.maximum.at(max_nth, burst, nth)
    step = ((np.cumsum(max_nth + 1) - max_nth - 1).astype(np.int32))[burst] + nth
    end_ns = np.full(int(step.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(end_ns, step, t_ns)
    by_time = np.argsort(end_ns, kind="stable")
    rank = np.empty(len(end_ns), np.int32)
    rank[by_time] = np.arange(len(by_time))
    return rank[step], end_ns[by_time]


def _joined(burst: Memberships, request: Memberships, begins_ns: Ints) -> Memberships:
    """Merge the slices of one step: a burst of SLICE streams or more, and the next one if it has none of those streams.

    begins_ns: the first chunk of each burst. All slices of a step lie within SLICED_NS.
    """
    size = np.bincount(burst, minlength=len(begins_ns))
    previous = np.roll(burst, 1)
    previous[np.concatenate(([True], request[1:] != request[:-1]))] = -1
    latest = np.full(len(begins_ns), -1, np.int32)
    np.maximum.at(latest, burst, previous)
    joins = np.zeros(len(begins_ns), bool)
    joined_to = 0
    for b in np.flatnonzero(size[:-1] >= SLICE).tolist():
        joined_to = joined_to if joins[b] else b
        joins[b + 1] = latest[b + 1] < joined_to and begins_ns[b + 1] - begins_ns[joined_to] < SLICED_NS
    return (burst - np.cumsum(joins).astype(np.int32)[burst]).astype(np.int32)


def _prompts(records: Sequence[RequestRecord], first_ns: Ints, request: Memberships) -> Narrow:
    """Return float32[n]: prompt tokens of each request; of one whose length is unknown, by the time to its first token.

    first_ns: int64[P], the first chunk of each of the requests `request` that have one.
    """
    sent_ns = np.array([records[i].sent_ns or 0 for i in request.tolist()], dtype=np.int64)
    counted = np.array([records[i].input_tokens for i in request.tolist()], dtype=np.float64)  # NaN: unknown
    prompt = np.zeros(len(records), np.float32)
    prompt[request] = with_unknown_prompts(counted, np.maximum(first_ns - sent_ns, 0))
    return prompt


def _cached(
    records: Sequence[RequestRecord],
    first_ns: Ints,
    prompt: Narrow,
    request: Memberships,
    engine: Sequence[EngineSample],
) -> Narrow:
    """Return float32[n]: cached prompt tokens of each request, from its own usage, else the engine's share in that
    interval."""
    reported = np.array([np.nan if r.cached_tokens is None else r.cached_tokens for r in records], dtype=np.float32)
    cached, prompts = counter_values(engine, "cached_tokens"), counter_values(engine, "prompt_tokens")
    if not np.isnan(reported).any() or cached is None or prompts is None:
        return np.where(np.isnan(reported), 0.0, reported)
    grown = np.diff(prompts)
    share = np.divide(np.diff(cached), grown, out=np.zeros(len(grown)), where=grown > 0)
    interval = np.searchsorted(sample_times(engine), first_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(share))
    estimate = np.zeros(len(records), np.float32)
    estimate[request[inside]] = prompt[request[inside]] * np.clip(share[interval[inside]], 0, 1)
    return np.where(np.isnan(reported), estimate, reported)
