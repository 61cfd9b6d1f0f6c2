"""Who was in which step of the engine, with how many tokens: from a client's records, and the engine's counters if any.

A client sees a step end: every stream that was in it gets its chunk. What it cannot see (chunks that carry no text,
prefill steps in which nobody else decodes, other clients) the engine's own counters fill in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.record import RequestRecord
from loadgen.stats.arrays import Floats, Ints
from loadgen.units import NS_PER_MS

Bools = NDArray[np.bool_]
Memberships = NDArray[np.int32]
Narrow = NDArray[np.float32]

BURST_GAP_NS = 1 * NS_PER_MS
"""Chunks closer than this can be of one step: a server writes its streams one after another when a step ends."""

SLICE = 100
"""vLLM hands on the outputs of a step in slices of 128 streams, with other work between: after this many streams in a
burst, the next burst may be of the same step."""
SLICED_NS = 100 * NS_PER_MS

MISSED_STEPS = 4
"""A stream that is left out of this many steps in a row was preempted, and computes its whole context again. Fewer can
be tokens without text: no character is cut into more pieces."""

FOREIGN_SHARE = 0.02
"""Less than this share of the engine's output tokens that is not ours is counting noise."""

EngineSample = Mapping[str, float]
"""One line of engine.jsonl: `t_ns`, and those of the engine's counters that its page has."""


@dataclass(frozen=True)
class Foreign:
    """What others had the engine do, in K intervals between two reads of its counters.

    edges_ns: int64[K+1]. members: float64[K], streams of others in an average step. steps: float64[K], steps in which
    nobody of ours was. prefill, decode: float64[K], tokens at no known instant. prefill_in_step: float64[S], prompt
    tokens that went into our steps. context: float64, mean context of a decoded token, taken to be as ours.
    """

    edges_ns: Ints
    members: Floats
    steps: Floats
    prefill: Floats
    decode: Floats
    prefill_in_step: Floats
    context: float


@dataclass(frozen=True)
class EngineSteps:
    """Who did what when: S steps, M memberships (one request in one step).

    start_ns, end_ns: int64[S], in time order, not overlapping. iterations: float64[S], engine iterations in the step:
    more than one where prefill chunks ran that no stream got anything from.
    step, request: int32[M], rows of steps and of records. prefilling: bool[M]. prefill, decode: float32[M], tokens
    computed (cached prompt tokens are none). context: float32[M], mean number of tokens before those. M is as large as
    the run's output, so these are the narrow types, and nothing of M rows is kept that can be computed again.
    unseen_ns: int64[k, 2], when a request was in flight that never got a chunk: it may have cost something.
    """

    start_ns: Ints
    end_ns: Ints
    iterations: Floats
    step: Memberships
    request: Memberships
    prefilling: Bools
    prefill: Narrow
    decode: Narrow
    context: Narrow
    unseen_ns: Ints
    foreign: Foreign | None = None

    @property
    def count(self) -> int:
        """S, the number of steps."""
        return len(self.start_ns)


def engine_steps_of(records: Sequence[RequestRecord], engine: Sequence[EngineSample] = ()) -> EngineSteps:
    """The first chunk of a request ends its prefill; every later one is a decode step, or the end of a second prefill
    after a preemption. Requests that got no chunk are in no step: what they cost is nobody's that we know of."""
    counts = np.array([len(record.chunk_ns) for record in records], dtype=np.int64)
    t_ns = np.concatenate(
        [np.zeros(0, np.int64), *(np.array(r.chunk_ns, dtype=np.int64) for r in records if r.chunk_ns)]
    )
    request = np.repeat(np.arange(len(records), dtype=np.int32), counts)
    step, end_ns = _steps(t_ns, request)
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    sent_ns = np.array([record.sent_ns or 0 for record in records], dtype=np.int64)
    prompt = np.array([float(record.input_tokens or 0) for record in records], dtype=np.float32)
    cached = _cached(records, t_ns[firsts], prompt, request[firsts], engine)
    del t_ns
    start_ns = _starts(step, end_ns, firsts, sent_ns[request[firsts]])
    last = _rows(records, counts, request, step, firsts, prompt, cached, engine)
    rows, iterations = _chunked(last, firsts, sent_ns, cached, start_ns, end_ns)
    return with_engine(EngineSteps(start_ns, end_ns, iterations, *rows, _unseen(records)), engine)


def _rows(
    records: Sequence[RequestRecord],
    counts: Ints,
    request: Memberships,
    step: Memberships,
    firsts: Ints,
    prompt: Narrow,
    cached: Narrow,
    engine: Sequence[EngineSample],
) -> "_Rows":
    """A row for every chunk: what its stream computed in the step that the chunk ends."""
    is_first = np.zeros(len(request), bool)
    is_first[firsts] = True
    again = _preempted(step, is_first, engine)
    decode = np.repeat(np.array([_tokens_per_chunk(record) for record in records], dtype=np.float32), counts)
    position = np.arange(len(request), dtype=np.int32) - np.repeat(
        (np.cumsum(counts) - counts).astype(np.int32), counts
    )
    context: Narrow = np.maximum(position - 1, 0).astype(np.float32)
    del position
    context *= decode
    context += prompt[request]
    decode[is_first | again] = 0.0
    prefill = np.zeros(len(request), np.float32)
    prefill[firsts] = prompt[request[firsts]] - cached[request[firsts]]
    context[firsts] = (prompt[request[firsts]] + cached[request[firsts]]) / 2
    prefill[again] = context[again]
    context[again] /= 2.0
    return _Rows(step, request, is_first | again, prefill, decode, context)


class _Rows(NamedTuple):
    """The memberships of EngineSteps, under the same names."""

    step: Memberships
    request: Memberships
    prefilling: Bools
    prefill: Narrow
    decode: Narrow
    context: Narrow


def _tokens_per_chunk(record: RequestRecord) -> float:
    """Tokens in each chunk after the first: more than one under speculative decoding."""
    later, tokens = len(record.chunk_ns) - 1, record.output_tokens or 0
    return (tokens - 1) / later if later > 0 and tokens > 1 else 1.0


def _unseen(records: Sequence[RequestRecord]) -> Ints:
    intervals = [
        (record.sent_ns, record.finished_ns)
        for record in records
        if not record.chunk_ns and record.sent_ns is not None and record.finished_ns is not None
    ]
    return np.array(intervals, dtype=np.int64).reshape(-1, 2)


# -- steps ------------------------------------------------------------------------------------------------------------


def _steps(t_ns: Ints, request: Memberships) -> tuple[Memberships, Ints]:
    """Chunk times -> (step of each chunk, end of each step).

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
    nth = _occurrence(burst, request)
    most = np.zeros(int(burst.max()) + 1, np.int32)
    np.maximum.at(most, burst, nth)
    step = ((np.cumsum(most + 1) - most - 1).astype(np.int32))[burst] + nth
    end_ns = np.full(int(step.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(end_ns, step, t_ns)
    by_time = np.argsort(end_ns, kind="stable")
    rank = np.empty(len(end_ns), np.int32)
    rank[by_time] = np.arange(len(by_time))
    return rank[step], end_ns[by_time]


def _joined(burst: Memberships, request: Memberships, begins_ns: Ints) -> Memberships:
    """The bursts with the slices of one step made one: after SLICE streams or more, a burst with none of them in it."""
    size = np.bincount(burst, minlength=len(begins_ns))
    before = np.concatenate((np.full(1, -1, np.int32), burst[:-1]))
    before[np.concatenate(([True], request[1:] != request[:-1]))] = -1
    seen = np.full(len(begins_ns), -1, np.int32)
    np.maximum.at(seen, burst, before)
    joins = np.zeros(len(begins_ns), bool)
    first = 0
    for b in np.flatnonzero((size[:-1] >= SLICE) & (seen[1:] < np.arange(len(begins_ns) - 1))).tolist():
        first = first if joins[b] else b
        joins[b + 1] = seen[b + 1] < first and begins_ns[b + 1] - begins_ns[first] < SLICED_NS
    return (burst - np.cumsum(joins).astype(np.int32)[burst]).astype(np.int32)


def _occurrence(burst: Memberships, request: Memberships) -> Memberships:
    """int[M]: number of chunks of the same stream before each one in its burst. Rows of a request are in time order."""
    row = np.arange(len(burst), dtype=np.int32)
    new = np.concatenate(([True], (burst[1:] != burst[:-1]) | (request[1:] != request[:-1])))
    return row - np.maximum.accumulate(np.where(new, row, 0).astype(np.int32))


def _starts(step: Memberships, end_ns: Ints, firsts: Ints, sent_ns: Ints) -> Ints:
    """A step starts when the one before ends, or, if nobody was being decoded, when its first newcomer was sent."""
    earliest = np.full(len(end_ns), np.iinfo(np.int64).max)
    np.minimum.at(earliest, step[firsts], sent_ns)
    newcomers = np.bincount(step[firsts], minlength=len(end_ns))
    earliest[np.bincount(step, minlength=len(end_ns)) > newcomers] = 0  # somebody was there already
    before = np.concatenate((np.zeros(1, np.int64), end_ns[:-1]))[: len(end_ns)]
    return np.asarray(np.minimum(np.maximum(before, earliest), end_ns), dtype=np.int64)


def _preempted(step: Memberships, is_first: Bools, engine: Sequence[EngineSample]) -> Bools:
    """bool[M]: rows that come after a pause of steps which other streams had. Not if the engine says there was none."""
    totals = _column(engine, "preemptions")
    if totals is not None and totals[-1] == totals[0]:
        return np.zeros(len(step), bool)
    missed = np.diff(step, prepend=step[:1]) > MISSED_STEPS
    return np.asarray(~is_first & missed)


# -- chunked prefill ---------------------------------------------------------------------------------------------------

BUDGETS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
"""Tokens that one step may compute (vLLM: max_num_batched_tokens), as people set them."""

DELAYS_NS = (0, 1 * NS_PER_MS, 2 * NS_PER_MS, 4 * NS_PER_MS)
"""How long a request may take from the client's clock into the engine's queue."""

LATE_STEPS = 3
"""How many more steps it may miss there."""

SAMPLE = 2000
MIN_PROMPTS = 20
"""Fewer say nothing of a budget."""
CLEARLY = 0.98
REFUTED = 0.05
"""More of the prompts than this above a budget, and the engine has another."""


class _Asked(NamedTuple):
    """A prompt to be computed: the row of its first chunk, the first step it can be in, the last, its tokens."""

    row: int
    low: int
    last: int
    tokens: float


def _chunked(
    rows: _Rows, firsts: Ints, sent_ns: Ints, cached: Narrow, start_ns: Ints, end_ns: Ints
) -> tuple[_Rows, Floats]:
    """The rows with every prefill spread over the steps it took, and the iterations of each step.

    An engine computes at most a budget of tokens in a step: one for each stream that decodes, then prompts, first come,
    first served. Nobody tells a client the budget, nor how long its requests take into the queue. The pair is taken
    under which the lengths of the steps follow best from the tokens computed in them, of those that the steps do not
    refute by what they must have computed beyond the budget.
    """
    steps = len(start_ns)
    if not len(firsts):
        return rows, np.ones(steps)
    decoding = np.bincount(rows.step, rows.decode, minlength=steps).astype(np.float64)
    queue = firsts[np.argsort(sent_ns[rows.request[firsts]], kind="stable")]
    length = (end_ns - start_ns).astype(np.float64)

    def pieces(budget: int, delay_ns: int, limit: int | None = None) -> list[tuple[int, int, float]]:
        some = queue[:limit]
        low = np.minimum(np.searchsorted(start_ns, sent_ns[rows.request[some]] + delay_ns), rows.step[some])
        asked = zip(some.tolist(), low.tolist(), rows.step[some].tolist(), rows.prefill[some].tolist(), strict=True)
        return _fill([_Asked(*one) for one in asked], budget - decoding)

    best, least = (BUDGETS[0], DELAYS_NS[0]), np.inf
    for budget in BUDGETS if len(firsts) >= MIN_PROMPTS else ():
        for delay_ns in DELAYS_NS:
            tried = pieces(budget, delay_ns, SAMPLE)
            error = _misfit(tried, length, decoding)
            if error < CLEARLY * least and _beyond(tried, budget - decoding) < REFUTED:
                best, least = (budget, delay_ns), error
    spread = _spread(rows, pieces(*best), cached)
    computed = np.bincount(spread.step, spread.prefill, minlength=steps)
    return spread, np.maximum(np.ceil((computed + decoding) / best[0]), 1.0)


def _beyond(pieces: list[tuple[int, int, float]], room: Floats) -> float:
    """Share of the prompt tokens that lie in steps without room for them: chunks that came together, or a budget that
    is none."""
    tokens = np.bincount([step for _, step, _ in pieces], [part for _, _, part in pieces], minlength=len(room))
    return float(np.maximum(tokens - np.maximum(room, 0.0), 0.0).sum() / max(tokens.sum(), 1.0))


def _misfit(pieces: list[tuple[int, int, float]], length: Floats, decoding: Floats) -> float:
    """Residual sum of squares of the steps' lengths on a constant, prompt tokens, their square, and streams decoding.

    Over the steps that the pieces span. Lengths are cut at twice the 99.9th percentile: a client that slept says
    nothing about an engine.
    """
    steps = np.array([step for _, step, _ in pieces])
    end = int(steps.max()) + 1
    tokens = np.bincount(steps, [part for _, _, part in pieces], minlength=end)
    y = np.minimum(length[:end], 2 * np.percentile(length[:end], 99.9))
    x = np.column_stack((np.ones(end), tokens, tokens**2 / 1e4, decoding[:end]))
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def _fill(asked: list[_Asked], room: Floats) -> list[tuple[int, int, float]]:
    """Prompts in order of arrival -> [(row, step, tokens)]. room: float64[S], tokens that fit beside the decodes."""
    left = np.maximum(room, 0.0).tolist()
    pieces: list[tuple[int, int, float]] = []
    for row, low, last, tokens in asked:
        begins = range(low, min(low + LATE_STEPS, last) + 1)
        first = next((step for step in begins if _end(left, step, last, tokens) == last), None)
        for step in range(_latest_start(left, low, last, tokens) if first is None else first, last + 1):
            part = tokens if step == last else min(tokens, max(left[step], 0.0))
            left[step] -= part
            tokens -= part
            if part > 0 or step == last:
                pieces.append((row, step, part))
    return pieces


def _end(left: list[float], step: int, last: int, tokens: float) -> int:
    """The step in which a prompt begun in `step` is done; last + 1 when it would not be by `last`."""
    while step <= last and tokens > left[step]:
        tokens -= max(left[step], 0.0)
        step += 1
    return step


def _latest_start(left: list[float], low: int, last: int, tokens: float) -> int:
    """Where a prompt that is done in `last` began, if it waited for something else than room: as late as fits."""
    step = last
    while step > low and tokens > left[step]:
        tokens -= max(left[step], 0.0)
        step -= 1
    return step


def _spread(rows: _Rows, pieces: list[tuple[int, int, float]], cached: Narrow) -> _Rows:
    """The rows with each first chunk's prefill cut into its pieces: the last one in place, the others added."""
    row = np.array([piece[0] for piece in pieces], dtype=np.int64)
    step = np.array([piece[1] for piece in pieces], dtype=np.int32)
    tokens = np.array([piece[2] for piece in pieces])
    new = np.concatenate(([True], row[1:] != row[:-1]))
    done = np.cumsum(tokens) - tokens
    done -= np.maximum.accumulate(np.where(new, done, 0.0))
    context = cached[rows.request[row]] + done + tokens / 2
    last = step == rows.step[row]
    rows.prefill[row[last]], rows.context[row[last]] = tokens[last], context[last]
    if (more := ~last).sum() == 0:
        return rows
    added = _Rows(
        step[more], rows.request[row[more]], np.ones(int(more.sum()), bool), tokens[more].astype(np.float32),
        np.zeros(int(more.sum()), np.float32), context[more].astype(np.float32),
    )  # fmt: skip
    return _Rows(*(np.concatenate(both) for both in zip(rows, added, strict=True)))


# -- the engine's counters -------------------------------------------------------------------------------------------


def _column(engine: Sequence[EngineSample], name: str) -> Floats | None:
    """One counter over time; None when it is not in every sample, or went back (the engine restarted)."""
    if len(engine) < 2 or any(name not in sample for sample in engine):
        return None
    values = np.array([sample[name] for sample in engine], dtype=np.float64)
    return values if bool((np.diff(values) >= 0).all()) else None


def _edges(engine: Sequence[EngineSample]) -> Ints:
    return np.array([int(sample["t_ns"]) for sample in engine], dtype=np.int64)


def _cached(
    records: Sequence[RequestRecord],
    first_ns: Ints,
    prompt: Narrow,
    request: Memberships,
    engine: Sequence[EngineSample],
) -> Narrow:
    """float32[n]: cached prompt tokens of each request: its own usage's, else the engine's share in that interval."""
    said = np.array([np.nan if r.cached_tokens is None else r.cached_tokens for r in records], dtype=np.float32)
    cached, prompts = _column(engine, "cached_tokens"), _column(engine, "prompt_tokens")
    if not np.isnan(said).any() or cached is None or prompts is None:
        return np.where(np.isnan(said), 0.0, said)
    grown = np.diff(prompts)
    share = np.divide(np.diff(cached), grown, out=np.zeros(len(grown)), where=grown > 0)
    interval = np.searchsorted(_edges(engine), first_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(share))
    guess = np.zeros(len(records), np.float32)
    guess[request[inside]] = prompt[request[inside]] * np.clip(share[interval[inside]], 0, 1)
    return np.where(np.isnan(said), guess, said)


def with_engine(work: EngineSteps, engine: Sequence[EngineSample]) -> EngineSteps:
    """The same work with what the engine's counters add: unseen iterations, and other clients' tokens."""
    generated, prompts = _column(engine, "generation_tokens"), _column(engine, "prompt_tokens")
    if generated is None or prompts is None or not work.count:
        return work
    edges = _edges(engine)
    ours = _in_intervals(edges, work.end_ns[work.step], work.decode)
    ours += _in_intervals(edges, _first_ends(work), np.ones(len(_first_ends(work))))
    ours_in = _in_intervals(edges, work.end_ns[work.step], work.prefill)
    decode = np.maximum(np.diff(generated) - ours, 0.0)
    if float(np.diff(generated).sum() - ours.sum()) < FOREIGN_SHARE * float(np.diff(generated).sum()):
        return work
    cached = _column(engine, "cached_tokens")
    computed = np.diff(prompts) - (np.diff(cached) if cached is not None else 0.0)
    seen = _in_intervals(edges, work.end_ns, np.ones(work.count))
    counted = _column(engine, "iterations")
    steps = np.maximum(np.diff(counted), seen) if counted is not None else np.maximum(seen, 1.0)
    decoded = work.decode > 0
    prefill = np.maximum(computed - ours_in, 0.0)
    in_step = _prefill_in_steps(work, edges, prefill)
    foreign = Foreign(
        edges_ns=edges,
        members=decode / np.maximum(steps, 1.0),
        steps=np.where(decode > 0, steps - seen, 0.0),
        prefill=np.maximum(prefill - _in_intervals(edges, work.end_ns, in_step), 0.0),
        decode=decode,
        prefill_in_step=in_step,
        context=float(work.context[decoded].mean()) if decoded.any() else 0.0,
    )
    return replace(work, foreign=foreign)


def _prefill_in_steps(work: EngineSteps, edges_ns: Ints, prefill: Floats) -> Floats:
    """float64[S]: of the others' prompt tokens, those that explain why a step of ours took longer than it should have.

    What a step should take: the median step without a prefill, and for its own prompt tokens the median time of one.
    """
    own = np.bincount(work.step, work.prefill, minlength=work.count)
    length = (work.end_ns - work.start_ns).astype(np.float64)
    if not (own == 0).any() or not (own > 0).any():
        return np.zeros(work.count)
    plain = float(np.median(length[own == 0]))
    per_token = float(np.median((length[own > 0] - plain) / own[own > 0]))
    excess = np.maximum(length - 1.5 * plain - own * per_token, 0.0)
    if per_token <= 0:
        return np.zeros(work.count)
    found = _in_intervals(edges_ns, work.end_ns, excess / per_token)
    scale = np.divide(prefill, found, out=np.zeros(len(found)), where=found > prefill)
    scale[(found > 0) & (found <= prefill)] = 1.0
    interval = np.clip(np.searchsorted(edges_ns, work.end_ns, side="right") - 1, 0, len(scale) - 1)
    outside = (work.end_ns < edges_ns[0]) | (work.end_ns >= edges_ns[-1])
    return np.where(outside, 0.0, excess / per_token * scale[interval])


def _first_ends(work: EngineSteps) -> Ints:
    """int64[requests with a chunk]: the end of each one's first prefill, where its first token came."""
    order = np.lexsort((work.step, work.request))
    request, prefilling = work.request[order], work.prefilling[order]
    ends = prefilling & np.concatenate((~prefilling[1:] | (request[1:] != request[:-1]), [True]))
    _, first = np.unique(request[ends], return_index=True)
    return np.asarray(work.end_ns[work.step[order]][ends][first], dtype=np.int64)


def _in_intervals(edges_ns: Ints, t_ns: Ints, values: Floats | Narrow) -> Floats:
    """Sum of `values` by the interval that t_ns falls in; outside all of them, not at all."""
    interval = np.searchsorted(edges_ns, t_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(edges_ns) - 1)
    return np.bincount(interval[inside], values[inside], minlength=len(edges_ns) - 1).astype(np.float64)
