"""Estimates other clients' work on an engine: the tokens that it counted beyond those of spans. Pure.

The law, for each interval between two samples of the engine's counters:

    foreign tokens = max(0, engine's tokens - spans' tokens - tokens that spans claim too many in a neighbour)
    so that  0 <= foreign tokens <= engine's tokens in that interval

A span says when its tokens came to within an interval or so. What spans lack in one interval and have too many in the
next is one and the same, and is settled between neighbours, and only there: what is left is dropped. The estimate of an
interval depends on its neighbours and on no state. No burst, lost span or restart leaves a debt that is charged to
others later, nor a credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.cost_model import overlap
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.attribution.span_chunks import prefill_progress
from loadgen.attribution.span_steps import cadence_of, phases_of, slot_steps
from loadgen.sidecar.engine_progress import Intervals, Progress, engine_progress, intervals_of
from loadgen.sidecar.watermark import SpanTimes

if TYPE_CHECKING:
    from loadgen.attribution.span_steps import Phases
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample
    from loadgen.telemetry.otlp_parse import RequestSpan

STILL_SHARE = 0.2
"""An engine that counts tokens as they come stands still in a smaller share of intervals with decodes."""


def foreign_tokens(engine: Floats, spans: Floats) -> Floats:
    """Return float64[K]: other clients' tokens in each interval, by the law of this module."""
    excess, lack = np.maximum(engine - spans, 0.0), np.maximum(spans - engine, 0.0)
    for k in range(len(excess) - 1):
        for more, less in ((k, k + 1), (k + 1, k)):
            settled = min(excess[more], lack[less])
            excess[more] -= settled
            lack[less] -= settled
    return excess


class ForeignWork(NamedTuple):
    """Work in K intervals: output tokens of spans and of other clients, and prompts of other clients."""

    spans: Floats
    foreign: Floats
    prompts: Floats


def foreign_work(intervals: Intervals, phases: Phases, progress: Progress, *, at_end: bool) -> ForeignWork:
    """Return the tokens of spans and of other clients. at_end: the engine counts a request's tokens when it ends.

    Where the engine counts prompts and shows its queue, an interval without a prompt or a request beyond the spans' has
    no other client: what it counted too many is the spans' uneven pace.
    """
    spans = ended_tokens(intervals.edges_ns, phases) if at_end else spread_tokens(intervals.edges_ns, phases, progress)
    foreign = foreign_tokens(intervals.generated, spans)
    first_ns, prompts = phases.end_ns[phases.prefilling], phases.tokens[phases.prefilling]
    foreign_prompts = foreign_tokens(intervals.prompts, _by_interval(intervals.edges_ns, first_ns, prompts))
    if intervals.announced:
        there = (foreign_prompts > 0) | (intervals.missing[1:] > 0) | (intervals.missing[:-1] > 0)
        foreign = np.where(there, foreign, 0.0)
    return ForeignWork(spans, foreign, foreign_prompts)


def counts_at_end(intervals: Intervals, phases: Phases) -> bool:
    """Return True if the engine counts a request's output tokens when it ends (TGI), not as they come.

    Then its count stands still in many intervals through which a span decodes.
    """
    decoding = ~phases.prefilling
    starts, ends = np.sort(phases.start_ns[decoding]), np.sort(phases.end_ns[decoding])
    began = np.searchsorted(starts, intervals.edges_ns[:-1], side="right")
    through = began > np.searchsorted(ends, intervals.edges_ns[1:], side="left")
    return bool((intervals.generated[through] == 0).sum() > STILL_SHARE * through.sum())


def spread_tokens(edges_ns: Ints, phases: Phases, progress: Progress) -> Floats:
    """Return float64[K]: output tokens of spans, the first at the end of its prefill, the others one an iteration."""
    decoding = ~phases.prefilling
    begin, end = (progress.at(t_ns[decoding])[:, None] for t_ns in (phases.start_ns, phases.end_ns))
    done = np.clip((progress.at(edges_ns) - begin) / np.maximum(end - begin, 1e-12), 0.0, 1.0)
    firsts = _by_interval(edges_ns, phases.end_ns[phases.prefilling], np.ones(int(phases.prefilling.sum())))
    return np.asarray(np.diff((phases.tokens[decoding, None] * done).sum(axis=0)) + firsts)


def ended_tokens(edges_ns: Ints, phases: Phases) -> Floats:
    """Return float64[K]: output tokens of the spans that ended in each interval."""
    tokens = np.bincount(phases.request, np.where(phases.prefilling, 1.0, phases.tokens)).astype(np.float64)
    end_ns = np.zeros(len(tokens), np.int64)
    np.maximum.at(end_ns, phases.request, phases.end_ns)
    return _by_interval(edges_ns, end_ns, tokens)


def _by_interval(edges_ns: Ints, t_ns: Ints, tokens: Floats) -> Floats:
    """Return the tokens in each interval, by their instants; one at an edge is of the interval that it ends."""
    interval = np.searchsorted(edges_ns, t_ns, side="left") - 1
    inside = (interval >= 0) & (interval < len(edges_ns) - 1)
    return np.bincount(interval[inside], tokens[inside], minlength=max(len(edges_ns) - 1, 0)).astype(np.float64)


class EngineView(NamedTuple):
    """An engine between its samples around a portion of time."""

    intervals: Intervals
    work: ForeignWork
    progress: Progress


def engine_view(
    samples: Sequence[EngineSample], requests: Sequence[RequestSpan], start_ns: int, end_ns: int, *, at_end: bool
) -> EngineView | None:
    """Return the intervals that touch [start, end], with one more on either side, and what was done in them.

    requests: all that ran around that time and are known. None without a count of output tokens.
    """
    if len(samples) < 2 or "generation_tokens" not in samples[-1]:
        return None
    phases = phases_of(requests)
    whole = intervals_of(samples, SpanTimes.of(requests))
    progress = engine_progress(whole, phases, cadence_of(phases))
    first = max(int(np.searchsorted(whole.edges_ns, start_ns, side="right")) - 2, 0)
    part = whole.part(first, int(np.searchsorted(whole.edges_ns, end_ns, side="left")) + 1)
    return EngineView(part, foreign_work(part, phases, progress, at_end=at_end), progress)


def rebuilt_steps(
    requests: Sequence[RequestSpan],
    view: EngineView | None,
    start_ns: int,
    end_ns: int,
    unseen_ns: Ints,
    max_rows: int,
    *,
    at_end: bool,
    chunked: bool = False,
) -> EngineSteps:
    """Return the engine's steps in [start, end] by the spans, and other clients' work by the engine's counters.

    chunked: place the parts of a prompt where the steps had room for them.
    """
    phases = phases_of(requests)
    cadence, progress = cadence_of(phases), view.progress.at if view else None
    prefills = prefill_progress(phases, cadence, start_ns, end_ns) if chunked else None
    slot_ns = int(cadence.step_ns)
    steps = slot_steps(phases, cadence, start_ns, end_ns, slot_ns, unseen_ns, progress, prefills, max_rows)
    return with_foreign(steps, view, at_end=at_end) if view else steps


def with_foreign(steps: EngineSteps, view: EngineView, *, at_end: bool) -> EngineSteps:
    """Return the same steps with the engine's iterations in each, and with the work of other clients.

    Of an engine that counts at the end of a request, the count says how many tokens others had, not when: its queue
    does, a token an iteration for each request without a span.
    """
    intervals, work, progress = view
    edges_ns = intervals.edges_ns
    steps = replace(steps, iterations=progress.at(steps.end_ns) - progress.at(steps.start_ns))
    length_ns = (steps.end_ns - steps.start_ns).astype(np.float64)
    step, interval, share = overlap(edges_ns, steps.start_ns, steps.end_ns)
    ours = np.bincount(interval, share * steps.iterations[step], minlength=intervals.size)
    free_ns = np.diff(edges_ns) - np.bincount(interval, share * length_ns[step], minlength=intervals.size)
    iterations = np.maximum(np.diff(progress.at(edges_ns)), ours)
    missing = intervals.missing
    streams = (missing[1:] + missing[:-1]) / 2
    decode = np.where(streams > 0, streams * iterations, work.foreign) if at_end else work.foreign
    there = (decode > 0) | (work.prompts > 0)
    if not there.any():
        return steps
    alone = np.where(there, iterations - ours, 0.0)
    plain = np.bincount(steps.step, steps.prefilling, minlength=steps.count) == 0
    ran = float(steps.iterations[plain].sum())
    alone_ns = alone * float(length_ns[plain].sum()) / ran if ran > 0 else free_ns
    alone_ns = np.where((missing[1:] > 0) & (missing[:-1] > 0), free_ns, np.minimum(alone_ns, free_ns))
    decoded = steps.decode > 0
    foreign = ForeignLoad(
        edges_ns=edges_ns,
        members=decode / np.maximum(iterations, 1.0),
        steps=alone,
        prefill=work.prompts,
        decode=decode,
        context=float(steps.context[decoded].mean()) if decoded.any() else 0.0,
        alone_ns=np.where(there, np.maximum(alone_ns, 0.0), 0.0),
    )
    return replace(steps, foreign=foreign)
