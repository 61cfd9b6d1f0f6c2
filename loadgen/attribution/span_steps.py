"""Rebuild the engine's steps from spans: the phases of each request are known, but not its chunks.

A span records when a request's prefill began, when its first token came and when it ended. Two assumptions fill the
rest: a prefill is one step, which the streams being decoded wait for; and between prefills a decode goes on evenly, a
slot of time for each of its steps. Where that would be too many slots, one stands for several steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import EngineSteps, with_unknown_prompts
from loadgen.stats.arrays import Floats, Ints
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan


class Phases(NamedTuple):
    """Prefills and decodes of n requests: P rows of both kinds. A request without tokens has neither."""

    request: Ints
    start_ns: Ints
    end_ns: Ints
    prefilling: NDArray[np.bool_]
    tokens: Floats
    context: Floats
    """Tokens before the phase began: cached ones for a prefill, the prompt for a decode."""


def phases_of(requests: Sequence[RequestSpan]) -> Phases:
    """Return the phases of the requests that produced output tokens.

    A prompt of unknown length (TGI's spans say none) counts as long as its prefill took, at the rate of the known ones.
    """
    rows = [(i, request, request.output_tokens) for i, request in enumerate(requests) if request.output_tokens]
    index, first_ns = _ints(i for i, _, _ in rows), _ints(_first_ns(request, tokens) for _, request, tokens in rows)
    prefill_ns, end_ns = _ints(r.prefill_ns for _, r, _ in rows), _ints(r.end_ns for _, r, _ in rows)
    prompt = np.array([r.input_tokens for _, r, _ in rows], dtype=np.float64)  # NaN: unknown
    cached = np.array([r.cached_tokens or 0 for _, r, _ in rows], dtype=np.float64)
    computed = with_unknown_prompts(np.maximum(prompt - cached, 0.0), np.maximum(first_ns - prefill_ns, 0))
    prompt = np.where(np.isnan(prompt), cached + computed, prompt)
    later = _ints(tokens - 1 for _, _, tokens in rows)
    more = later > 0
    return Phases(
        request=np.concatenate((index, index[more])),
        start_ns=np.concatenate((np.minimum(prefill_ns, first_ns), first_ns[more])),
        end_ns=np.concatenate((first_ns, end_ns[more])),
        prefilling=np.arange(len(index) + np.count_nonzero(more)) < len(index),
        tokens=np.concatenate((computed, later[more])),
        context=np.concatenate((cached, prompt[more])),
    )


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int64)


def first_token_of(request: RequestSpan) -> int | None:
    """Return when the prefill ended; None without output tokens.

    Where no span records it (no stream), the prefill is taken to have lasted as long as one token.
    """
    return _first_ns(request, request.output_tokens) if request.output_tokens else None


def _first_ns(request: RequestSpan, output_tokens: int) -> int:
    if request.first_token_ns is not None:
        return request.first_token_ns
    return request.prefill_ns + (request.end_ns - request.prefill_ns) // output_tokens


LONGEST_PREFILL_NS = 250 * NS_PER_MS
"""A longer one is a wait in a queue, or a prefill in many chunks: other requests go on meanwhile."""
STALLED = 0.1
"""Speed of a decode beside a prefill, relative to one without."""
SHORTEST_SLOT_NS, LONGEST_SLOT_NS = 2 * NS_PER_MS, 100 * NS_PER_MS


def slot_steps(phases: Phases, start_ns: int, end_ns: int, slot_ns: int, unseen_ns: Ints) -> EngineSteps:
    """Return the work done in [start, end]: a step for each prefill and each slot between prefills."""
    begin, end = np.maximum(phases.start_ns, start_ns), np.minimum(phases.end_ns, end_ns)
    inside = end > begin
    edges, progress = slot_edges(phases, slot_ns)
    phase = np.flatnonzero(inside)
    start_cell = np.searchsorted(edges, begin[inside], side="right") - 1
    end_cell = np.searchsorted(edges, end[inside] - 1, side="right") - 1
    pieces = end_cell - start_cell + 1
    row = np.repeat(phase, pieces)
    cell = np.repeat(start_cell, pieces) + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    from_ns, to_ns = np.maximum(begin[row], edges[cell]), np.minimum(end[row], edges[cell + 1])
    prefilling = phases.prefilling[row]
    start_progress = np.interp(phases.start_ns, edges, progress)
    progress_made = np.interp(phases.end_ns, edges, progress) - start_progress
    length = np.where(phases.prefilling, phases.end_ns - phases.start_ns, progress_made)[row]
    speed = np.where(prefilling, 1.0, (np.diff(progress) / np.diff(edges))[cell])
    origin = np.where(prefilling, edges[cell] - phases.start_ns[row], progress[cell] - start_progress[row])
    # Share of its phase that each row has behind it at either end: both lie in its cell, where progress is a line.
    done_at_start = (origin + speed * (from_ns - edges[cell])) / length
    done_at_end = (origin + speed * (to_ns - edges[cell])) / length
    tokens = phases.tokens[row] * (done_at_end - done_at_start)
    present = np.bincount(cell, minlength=len(edges)) > 0
    used, step = np.flatnonzero(present), (np.cumsum(present) - 1)[cell]
    return EngineSteps(
        start_ns=_extreme(np.minimum, from_ns, step, len(used)),
        end_ns=_extreme(np.maximum, to_ns, step, len(used)),
        iterations=np.ones(len(used)),
        step=step.astype(np.int32),
        request=phases.request[row].astype(np.int32),
        prefilling=prefilling,
        prefill=np.where(prefilling, tokens, 0.0).astype(np.float32),
        decode=np.where(prefilling, 0.0, tokens).astype(np.float32),
        context=(phases.context[row] + phases.tokens[row] * (done_at_start + done_at_end) / 2).astype(np.float32),
        unseen_ns=unseen_ns,
    )


def slot_edges(phases: Phases, slot_ns: int) -> tuple[Ints, Floats]:
    """Return the increasing edges of the steps, and the progress of a decode at each, in ns of undisturbed time."""
    if not len(phases.start_ns):
        return np.zeros(1, np.int64), np.zeros(1)
    short = phases.prefilling & (phases.end_ns - phases.start_ns <= LONGEST_PREFILL_NS)
    short &= phases.end_ns > phases.start_ns
    by_start = np.argsort(phases.start_ns[short], kind="stable")
    starts, reach = phases.start_ns[short][by_start], np.maximum.accumulate(phases.end_ns[short][by_start])
    apart = starts[1:] > reach[:-1]  # prefills that overlap or touch are merged
    ends = reach[np.concatenate((apart, [True]))[: len(reach)]]
    starts = starts[np.concatenate(([True], apart))[: len(starts)]]
    gap_from = np.concatenate(([phases.start_ns.min()], ends))
    gap_to = np.concatenate((starts, [phases.end_ns.max()]))
    length = np.maximum(gap_to - gap_from, 0)
    slots = np.maximum(np.rint(length / slot_ns).astype(np.int64), 1)
    gap = np.repeat(np.arange(len(slots)), slots)
    nth = np.arange(len(gap)) - np.repeat(np.cumsum(slots) - slots, slots)
    between = gap_from[gap] + nth * length[gap] // slots[gap]
    edges = np.unique(np.concatenate((between, starts, ends, gap_to[-1:]))).astype(np.int64)
    stalled = np.isin(edges[:-1], starts)
    speed = np.where(stalled, STALLED, 1.0) * np.diff(edges)
    return edges, np.concatenate(([0.0], np.cumsum(speed)))


def _extreme(choose: np.ufunc, t_ns: Ints, step: Ints, steps: int) -> Ints:
    start = np.iinfo(np.int64).max if choose is np.minimum else np.iinfo(np.int64).min
    result = np.full(steps, start, dtype=np.int64)
    choose.at(result, step, t_ns)
    return result


def slot_for(phases: Phases, start_ns: int, end_ns: int, max_rows: int) -> int:
    """Return the median time of a decode step, or the multiple of it that limits the work to about `max_rows` rows."""
    decoding = ~phases.prefilling
    per_token = (phases.end_ns - phases.start_ns)[decoding] / phases.tokens[decoding]
    typical_ns = np.median(per_token) if len(per_token) else LONGEST_SLOT_NS
    step_ns = float(np.clip(typical_ns, SHORTEST_SLOT_NS, LONGEST_SLOT_NS))
    busy = np.minimum(phases.end_ns, end_ns) - np.maximum(phases.start_ns, start_ns)
    inside = busy[busy > 0]
    room = max(max_rows - 2 * len(inside), max_rows // 4)
    return int(step_ns * max(1, -(-float(inside.sum()) // (step_ns * room))))
