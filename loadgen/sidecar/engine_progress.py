"""Places an engine's iterations in time, by its counters and the spans of the requests that were in them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.sidecar.watermark import SpanTimes, queue_length
from loadgen.stats.arrays import in_order
from loadgen.telemetry.engine_sample import EngineSample, counter_growth, sample_times
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import Bools
    from loadgen.attribution.span_steps import Cadence, Phases
    from loadgen.stats.arrays import Floats, Ints

ITERATIONS_PER_S = 1e-6
"""Iterations at the least, so that progress always grows with time: too few to count."""


SURE_ITERATIONS = 10
"""Intervals with fewer are joined: a count is off by up to one at either end, and the time between prefills, which has
what they leave of it, can be short."""


class Intervals(NamedTuple):
    """K intervals between samples of an engine, and what it counted in each."""

    edges_ns: Ints
    generated: Floats
    """Output tokens."""
    prompts: Floats
    """Prompt tokens that it computed."""
    iterations: Floats
    """All 0 if the engine does not count them."""
    missing: Floats
    """float64[K+1]: requests in the engine, at each sample, that no span covers; 0 where the engine does not say."""
    announced: bool
    """True if the engine shows its queue and its prompts: no request of another client is then in neither."""

    @property
    def size(self) -> int:
        """K."""
        return len(self.generated)

    def part(self, start: int, stop: int) -> Intervals:
        """Return the intervals [start, stop)."""
        generated, prompts, iterations = (x[start:stop] for x in (self.generated, self.prompts, self.iterations))
        edges_ns, missing = self.edges_ns[start : stop + 1], self.missing[start : stop + 1]
        return Intervals(edges_ns, generated, prompts, iterations, missing, self.announced)


def intervals_of(samples: Sequence[EngineSample], spans: SpanTimes) -> Intervals:
    """Return the intervals between samples; `spans` are all those that may cover one."""
    edges_ns = sample_times(samples)
    queue = np.array([queue_length(sample) or 0.0 for sample in samples], dtype=np.float64)
    generated, prompts, cached, computed, iterations = (
        counter_growth(samples, name)
        for name in ("generation_tokens", "prompt_tokens", "cached_tokens", "computed_tokens", "iterations")
    )
    return Intervals(
        edges_ns,
        generated,
        computed if computed.any() else np.maximum(prompts - cached, 0.0),
        iterations,
        np.maximum(queue - spans.covering(edges_ns, edges_ns, 0), 0.0),
        all("running" in sample and "prompt_tokens" in sample for sample in samples),
    )


class Progress(NamedTuple):
    """Iterations over time, cumulative: iterations[i] at t_ns[i], and linear between."""

    t_ns: Ints
    iterations: Floats

    def at(self, t_ns: Ints) -> Floats:
        return np.asarray(np.interp(t_ns, self.t_ns, self.iterations))


def engine_progress(intervals: Intervals, phases: Phases, cadence: Cadence) -> Progress:
    """Return when the iterations ran: a short prefill is one, the others are spread over the time of decodes.

    Of the time that no span covers, an interval has as much as requests without a span were in the engine: all if at
    both of its samples, half if at one. Where the engine counts no iterations, each lasts as long as a step.
    """
    edges_ns = intervals.edges_ns
    spans = union(phases.start_ns, phases.end_ns)
    prefills = cadence.starts_ns, cadence.ends_ns
    t_ns = in_order(np.concatenate((edges_ns, *spans, cadence.edges_ns)))
    middle, length = (t_ns[1:] + t_ns[:-1]) // 2, np.diff(t_ns).astype(np.float64)
    interval = np.searchsorted(edges_ns, middle, side="right") - 1
    inside = (interval >= 0) & (interval < intervals.size)
    interval = np.where(inside, interval, 0)
    ones = np.zeros(len(length))
    if len(prefills[0]):
        nth = np.clip(np.searchsorted(cadence.edges_ns, middle, side="right") - 1, 0, len(cadence.edges_ns) - 2)
        ones = np.where(within(middle, prefills), length / np.diff(cadence.edges_ns)[nth], 0.0)
    others = ((intervals.missing[1:] > 0) + (intervals.missing[:-1] > 0).astype(np.float64)) / 2
    share = np.where(within(middle, spans), 1.0, np.where(inside, others[interval], 0.0))
    decoding_ns = np.where(ones > 0, 0.0, length * share)
    per_ns = np.full(len(length), 1 / cadence.step_ns)
    if intervals.iterations.any():
        counted_before = (np.cumsum(intervals.iterations) - intervals.iterations) // SURE_ITERATIONS
        joined = np.concatenate(([0], np.cumsum(counted_before[1:] > counted_before[:-1])))
        iterations, group = np.bincount(joined, intervals.iterations), joined[interval]
        sums = [np.bincount(group[inside], x[inside], minlength=len(iterations)) for x in (ones, decoding_ns)]
        left = np.maximum(iterations - sums[0], 0.0)
        counted = np.where((sums[1] > 0) & (left > 0), sums[0], iterations)  # in the time of prefills
        ones *= np.where(inside, np.divide(counted, sums[0], out=np.ones(len(left)), where=sums[0] > 0)[group], 1.0)
        mean = float(left.sum()) / max(float(sums[1].sum()), 1.0)
        known = np.divide(left, sums[1], out=np.full(len(left), mean), where=sums[1] > 0)
        per_ns = np.where(inside, known[group], mean)
    grown = ones + decoding_ns * per_ns + length * ITERATIONS_PER_S / NS_PER_S
    return Progress(t_ns, np.concatenate(([0.0], np.cumsum(grown))))


def union(start_ns: Ints, end_ns: Ints) -> tuple[Ints, Ints]:
    """Return starts and ends of the time that intervals cover, in order and apart."""
    some = end_ns > start_ns
    order = np.argsort(start_ns[some], kind="stable")
    starts, reach = start_ns[some][order], np.maximum.accumulate(end_ns[some][order])
    apart = starts[1:] > reach[:-1]
    first, last = np.concatenate(([True], apart))[: len(starts)], np.concatenate((apart, [True]))[: len(starts)]
    return starts[first], reach[last]


def within(t_ns: Ints, intervals: tuple[Ints, Ints]) -> Bools:
    """Return bool[n]: whether an instant is in one of the intervals, which are in order and apart."""
    starts, ends = intervals
    return np.searchsorted(starts, t_ns, side="right") > np.searchsorted(ends, t_ns, side="right")
