"""Make records of other clients' requests from the engine's counters: few requests that explain what it counted.

Between two reads of the counters are known: the output tokens, prompt tokens and steps of others, by what the engine
counted beyond ours; and at each read, how many of their requests were running. Our own chunks show the steps in which
we were, and how long each took:

* A step that took longer than its own work explains had a prefill of others in it (step_durations.py). That is the
  instant and the length of their prompt, as far as the interval's prompt tokens allow it.
* Each such prefill is a request more. How many ended is then known from those running at both reads, and when they
  ended, on average, from the tokens: a stream has one in every step from its prefill to its end.

Steps in which none of our requests was leave no trace in our chunks. The work of others in them is in the right
interval, at an instant that is guessed.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.engine_steps import BURST_GAP_NS, EngineSteps
from loadgen.attribution.step_durations import ForeignPrefills, foreign_prefills
from loadgen.record import RequestRecord
from loadgen.telemetry.engine_sample import computed_prompt_tokens, counter_values, sample_times
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample

FOREIGN_SHARE = 0.02
"""A smaller share of the engine's output tokens that is not ours is counting noise."""
LATE_NS = NS_PER_MS // 2
"""A chunk comes about this long after the end of its step, when the engine has counted it already."""
MIN_PROMPT = 16
"""A shorter prompt is noise of the counts."""
UNCOUNTED_NS = 3600 * NS_PER_S
"""Time beyond the reads of the counters that a run may have."""
MAX_STREAMS = 4_096
"""No engine runs more at a time, whatever its page says."""


class Counts(NamedTuple):
    """Counts of the engine beyond our own, in K intervals. edges_ns: int64[K+1], on the clock of chunks. tokens,
    prompts, iterations: float64[K]. streams: int64[K+1], requests running at each edge."""

    edges_ns: Ints
    tokens: Floats
    prompts: Floats
    iterations: Floats
    streams: Ints


class Slots(NamedTuple):
    """N steps in order of time, of ours and of others alone. start_ns, end_ns: int64[N]. tokens, variance: float64[N],
    of others' prompts by the duration. bounds: int64[K+1], the first slot of each interval."""

    start_ns: Ints
    end_ns: Ints
    tokens: Floats
    variance: Floats
    bounds: Ints


class Life(NamedTuple):
    """A request of others: the slots of its first and its last token, its prompt, and the slot in which that began."""

    first: int
    last: int
    prompt: float
    begin: int


def counted_records(
    records: Sequence[RequestRecord], steps: EngineSteps, engine: Sequence[EngineSample]
) -> tuple[list[RequestRecord], Ints]:
    """Return records of other clients' requests, numbered after ours, and when their work is guessed: int64[k, 2].

    steps: of our `records`. There are none if the engine lacks the counters, or counted less than FOREIGN_SHARE beyond
    ours.
    """
    counts = foreign_counts(records, steps, engine) if steps.count else None
    if counts is None:
        return [], np.zeros((0, 2), np.int64)
    streams = np.interp(steps.end_ns, counts.edges_ns, counts.streams)
    slots, guessed_ns = step_slots(steps, counts, foreign_prefills(steps, streams))
    return _records(request_lives(slots, counts), slots, len(records)), guessed_ns


def foreign_counts(
    records: Sequence[RequestRecord], steps: EngineSteps, engine: Sequence[EngineSample]
) -> Counts | None:
    """Return the counts beyond our own; None if the engine lacks the counters or there is nobody else.

    Cached prompt tokens are no work. An engine that does not count them has them among its prompt tokens.
    """
    generated, counted = counter_values(engine, "generation_tokens"), counter_values(engine, "prompt_tokens")
    computed = computed_prompt_tokens(engine)
    prompts = counted if computed is None else computed
    if generated is None or prompts is None:
        return None
    edges_ns = sample_times(engine) + LATE_NS
    streaming = [(i, record) for i, record in enumerate(records) if record.chunk_ns]
    index = np.array([i for i, _ in streaming], dtype=np.int64)
    first_ns = np.array([record.chunk_ns[0] for _, record in streaming], dtype=np.int64)
    last_ns = np.array([record.chunk_ns[-1] for _, record in streaming], dtype=np.int64)
    tokens = np.diff(generated) - _by_interval(edges_ns, first_ns, np.ones(len(index)))
    tokens -= _by_interval(edges_ns, steps.end_ns, np.bincount(steps.step, steps.decode).astype(np.float64))
    if tokens.sum() <= FOREIGN_SHARE * (generated[-1] - generated[0]):  # 0 of 0 where no answer has tokens
        return None
    rows = np.flatnonzero(steps.prefilling)
    own = np.bincount(steps.request[rows], steps.prefill[rows], minlength=len(records))[index].astype(np.float64)
    if computed is None:
        own += np.array([record.cached_tokens or 0 for _, record in streaming])
    begin_ns = np.full(len(records), np.iinfo(np.int64).max)
    np.minimum.at(begin_ns, steps.request[rows], steps.start_ns[steps.step[rows]])
    our_streams = np.searchsorted(np.sort(begin_ns[index]), edges_ns, side="right")
    our_streams -= np.searchsorted(np.sort(last_ns), edges_ns, side="left")
    our_steps = _by_interval(edges_ns, steps.end_ns, np.ones(steps.count))
    counted_steps = counter_values(engine, "iterations")
    unknown = np.full(len(tokens), np.nan)
    iterations = unknown if counted_steps is None else np.maximum(np.diff(counted_steps) - our_steps, 0.0)
    tokens /= steps.speculation.emitted if steps.speculation else 1.0
    if all("running" in sample for sample in engine):
        streams = np.array([sample["running"] for sample in engine]) - our_streams
    else:  # a stream has a token in each step
        per_step = tokens / np.maximum(our_steps + np.nan_to_num(iterations), 1.0)
        streams = (np.append(per_step[:1], per_step) + np.append(per_step, per_step[-1:])) / 2
    return Counts(
        edges_ns,
        tokens,
        np.maximum(np.diff(prompts) - _by_interval(edges_ns, first_ns, own), 0.0),
        iterations,
        np.clip(np.rint(streams), 0, MAX_STREAMS).astype(np.int64),
    )


def _by_interval(edges_ns: Ints, t_ns: Ints, values: Floats) -> Floats:
    """Return the sum of `values` by the interval that t_ns falls in; values outside all intervals are left out."""
    interval = np.searchsorted(edges_ns, t_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(edges_ns) - 1)
    return np.bincount(interval[inside], values[inside], minlength=len(edges_ns) - 1).astype(np.float64)


def step_slots(steps: EngineSteps, counts: Counts, prefills: ForeignPrefills) -> tuple[Slots, Ints]:
    """Return all steps, and when the work of others is guessed: int64[k, 2].

    As many steps as the engine counted and we were not in are spread evenly over the time of an interval that no step
    of ours covers. An engine that does not count steps had one there for each that ours took on average. Before the
    first read of the counters and after the last one, nothing is known of others.
    """
    edges_ns = counts.edges_ns
    inside = (steps.end_ns >= edges_ns[0]) & (steps.end_ns < edges_ns[-1])
    start_ns = steps.start_ns + prefills.wait_ns.astype(np.int64)
    cuts = np.unique(np.concatenate((edges_ns, start_ns[inside], steps.end_ns[inside])))
    begin, end = cuts[:-1], cuts[1:]
    ours = np.searchsorted(start_ns, begin, side="right") > np.searchsorted(steps.end_ns, begin, side="right")
    interval = np.searchsorted(edges_ns, begin, side="right") - 1
    there = (counts.tokens > 0) | (counts.prompts > 0) | (counts.streams[1:] > 0) | (counts.streams[:-1] > 0)
    alone = ~ours & (end - begin >= BURST_GAP_NS) & there[interval]
    begin, end, interval = begin[alone], end[alone], interval[alone]
    length_ns = (end - begin).astype(np.float64)
    in_interval = np.bincount(interval, length_ns, minlength=len(there))
    typical_ns = float(np.median(steps.end_ns - steps.start_ns))
    hidden = np.where(np.isnan(counts.iterations), in_interval / max(typical_ns, 1.0), counts.iterations)
    hidden = np.minimum(hidden, in_interval / BURST_GAP_NS)
    until = np.rint(np.cumsum(hidden[interval] * length_ns / in_interval[interval]))
    number = np.diff(until, prepend=0.0).astype(np.int64)
    piece = np.repeat(np.arange(len(number)), number)
    nth = np.arange(len(piece)) - np.repeat(np.cumsum(number) - number, number) + 1
    part_ns = (end - begin)[piece] // number[piece]
    hidden_ns = begin[piece] + (end - begin)[piece] * nth // number[piece] - 1
    end_ns = np.concatenate((steps.end_ns[inside], hidden_ns))
    order = np.argsort(end_ns, kind="stable")
    nothing = np.zeros(len(hidden_ns))
    tokens = np.concatenate((prefills.tokens[inside], nothing))[order]
    variance = np.concatenate((prefills.variance[inside], nothing))[order]
    starts_ns = np.concatenate((start_ns[inside], hidden_ns - part_ns))[order]
    bounds = np.searchsorted(end_ns[order], edges_ns)
    begin = np.concatenate(([edges_ns[0] - UNCOUNTED_NS], begin, edges_ns[-1:]))
    end = np.concatenate((edges_ns[:1], end, [edges_ns[-1] + UNCOUNTED_NS]))
    return Slots(starts_ns, end_ns[order], tokens, variance, bounds), np.stack((begin, end), axis=1)


def located_prompts(slots: Slots, counts: Counts) -> tuple[Floats, Floats, dict[int, float]]:
    """Return float64[N], prompt tokens of others in each slot; float64[K], those of each interval at no known instant;
    and the tokens in the last slot of an interval that belong to a prompt that ended in the next.

    The engine counts a prompt when its first token comes. What a last step had too many and the next interval lacks is
    one and the same. What else is too many is noise, and taken off by the variance of each.
    """
    bounds = slots.bounds
    placed, missing = np.zeros(len(slots.end_ns)), np.zeros(len(counts.prompts))
    seen = np.array([slots.tokens[a:b].sum() for a, b in pairwise(bounds.tolist())])
    lacking = np.append(np.maximum(counts.prompts - seen, 0.0)[1:], 0.0)
    carried: dict[int, float] = {}
    before = 0.0
    for k, (start, stop) in enumerate(pairwise(bounds.tolist())):
        if start == stop:
            continue
        tokens, variance = slots.tokens[start:stop], slots.variance[start:stop]
        excess = seen[k] - (counts.prompts[k] - before)
        noise = float(np.sqrt(variance[tokens > 0].sum()))
        carry = min(excess, tokens[-1], lacking[k]) if excess > 2 * noise else 0.0
        total = max(counts.prompts[k] - before + carry, 0.0)
        fitted = reduced(tokens, variance, total)
        placed[start:stop] = np.where(fitted >= MIN_PROMPT, fitted, 0.0)
        missing[k] = total - placed[start:stop].sum()
        before = min(carry, placed[stop - 1])
        if before >= MIN_PROMPT and stop < len(placed):
            carried[stop] = before
    return placed, missing, carried


def reduced(values: Floats, variance: Floats, total: float) -> Floats:
    """Return `values` reduced to a sum of at most `total`: argmin sum (v - x)^2 / variance, x >= 0."""
    if values.sum() <= total:
        return values
    if total <= 0:
        return np.zeros(len(values))
    ratio = np.where(values > 0, values / np.maximum(variance, 1e-9), 0.0)
    order = np.argsort(-ratio)
    sums, variances = np.cumsum(values[order]), np.cumsum(variance[order])
    cuts = (sums - total) / np.maximum(variances, 1e-9)
    last = np.flatnonzero(ratio[order] >= cuts)[-1]  # the first always is
    return np.asarray(np.maximum(values - cuts[last] * variance, 0.0))


def request_lives(slots: Slots, counts: Counts) -> list[Life]:
    """Return the requests of others. Where several end in an interval, they end evenly around the mean instant."""
    placed, missing, carried = located_prompts(slots, counts)
    for slot, tokens in carried.items():
        placed[slot - 1] -= tokens
        placed[slot] += tokens
    first = int(slots.bounds[0])
    alive = int(counts.streams[0])
    births: list[tuple[int, float]] = [(first, 0.0)] * alive
    deaths: list[int] = []
    for k, (start, stop) in enumerate(pairwise(slots.bounds.tolist())):
        if start == stop:
            continue
        prompts = {start + int(i): float(placed[start + i]) for i in np.flatnonzero(placed[start:stop] >= MIN_PROMPT)}
        at_edge = int(stop < len(placed) and placed[stop] >= MIN_PROMPT)
        change = int(counts.streams[k + 1]) - at_edge - alive - len(prompts)
        tokens = alive * (stop - start) + sum(stop - slot for slot in prompts)
        surplus = tokens - float(counts.tokens[k])
        instants = _instants(abs(change), (surplus if change < 0 else -surplus), stop - start)
        new: list[tuple[int, float]] = list(prompts.items())
        if change < 0:
            deaths += [start + max(i, 1) for i in instants]
        elif change > 0:
            new = _with_more(new, [start + min(i, stop - start - 1) for i in instants], missing[k])
        if not new and missing[k] >= MIN_PROMPT:  # it came and went
            middle = (start + stop) // 2
            new, deaths = [(middle, missing[k])], [*deaths, middle + 1]
        located = sum(tokens for _, tokens in new)
        if located > 0:
            scale = (placed[start:stop].sum() + missing[k]) / located
            new = [(slot, tokens * scale) for slot, tokens in new]
        births += new
        alive += len(prompts) + change
    return _paired(births, deaths, len(placed), carried)


def _instants(count: int, tokens: float, length: int) -> list[int]:
    """Return `count` slots in an interval of `length`, evenly around a mean that leaves so many tokens after them."""
    if not count:
        return []
    after = min(max(tokens / count, 0.0), length)
    half = min(length - after, after) if count > 1 else 0.0
    spread = (2 * np.arange(count) + 1) / count - 1
    return [round(instant) for instant in (length - after + half * spread).tolist()]


def _with_more(new: list[tuple[int, float]], slots: list[int], missing: float) -> list[tuple[int, float]]:
    """Add requests to those that began in an interval: their prompts are the missing one, or part of one that was
    seen."""
    if missing >= MIN_PROMPT * len(slots) or not new:
        return [*new, *((slot, missing / len(slots)) for slot in slots)]
    for slot in slots:
        i = min(range(len(new)), key=lambda i: (new[i][1] < 2 * MIN_PROMPT, abs(new[i][0] - slot)))
        begin, tokens = new[i]
        new = [*new[:i], (begin, tokens / 2), (begin, tokens / 2), *new[i + 1 :]]
    return new


def _paired(births: list[tuple[int, float]], deaths: list[int], slots: int, carried: dict[int, float]) -> list[Life]:
    """Return a life for each birth. Who ends is not known: the oldest, or if there is none, the next that begins."""
    lives: list[Life] = []
    running: deque[tuple[int, float]] = deque()
    ends = deque(sorted(deaths))
    for first, prompt in [*sorted(births), (slots, 0.0)]:
        while ends and ends[0] <= first and running:
            began, tokens = running.popleft()
            lives.append(Life(began, max(ends.popleft() - 1, began), tokens, began - (began in carried)))
        running.append((first, prompt))
    running.pop()
    lives += [Life(began, slots - 1, tokens, began - (began in carried)) for began, tokens in running]
    return [life for life in lives if life.first < slots]


def _records(lives: list[Life], slots: Slots, index: int) -> list[RequestRecord]:
    """Return a record for each life. A prompt of no tokens was computed before, or at no known instant: its context
    counts as long as the others' on average."""
    known = [life.prompt for life in lives if life.prompt > 0]
    typical = round(sum(known) / len(known)) if known else 0
    end_ns = slots.end_ns
    records = []
    for i, life in enumerate(lives):
        chunk_ns = array("q", end_ns[life.first : life.last + 1].tobytes())
        sent_ns = int(slots.start_ns[life.begin])
        prompt = round(life.prompt)
        records.append(
            RequestRecord(
                index=index + i, workload="", scheduled_ns=sent_ns, sent_ns=sent_ns, first_token_ns=chunk_ns[0],
                last_token_ns=chunk_ns[-1], finished_ns=chunk_ns[-1], chunk_ns=chunk_ns,
                input_tokens=prompt or typical, cached_tokens=0 if prompt else typical, output_tokens=len(chunk_ns),
                token_source="usage",
            )
        )  # fmt: skip
    return records
