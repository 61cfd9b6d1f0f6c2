"""Rebuild the engine's steps from spans: the phases of each request are known, but not its chunks.

A span records when a request's prefill began, when its first token came and when it ended: at each of these instants
a step of the engine begins or ends. Two assumptions fill the rest: while prefills run, there are no other steps than
those between such instants; and in the time between prefills a slot of time is a step. A decode has a token of each
step, by the engine's own count of iterations where there is one. Where that would be too many steps, one stands for
several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.engine_steps import EngineSteps, with_unknown_prompts
from loadgen.stats.arrays import Floats, Ints, in_order
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import Bools
    from loadgen.telemetry.otlp_parse import RequestSpan


IterationsAt = Callable[[Ints], Floats]


class PrefillProgress(NamedTuple):
    """Shares of prefills that are done at instants, and linear between."""

    place: Floats
    """Instants: time after the beginning of a prefill, all of which are one after another here."""
    done: Floats
    length_ns: float
    """Time that each prefill has there."""

    @classmethod
    def of(cls, row: Ints, after_ns: Ints, done: Floats) -> PrefillProgress:
        """Return the progress of prefills, which are rows of phases, in the order of these and of time."""
        length_ns = float(after_ns.max()) + 1
        return cls(np.asarray(row * length_ns + after_ns), done, length_ns)

    def at(self, row: Ints, after_ns: Ints) -> Floats:
        """Return the share of prefills that is done so long after they began."""
        return np.asarray(np.interp(row * self.length_ns + after_ns, self.place, self.done))


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
    rows = [
        (i, r.prefill_ns, _first_ns(r, tokens) if r.first_token_ns is None else r.first_token_ns, r.end_ns, tokens,
         -1 if r.input_tokens is None else r.input_tokens, r.cached_tokens or 0)
        for i, r in enumerate(requests)
        if (tokens := r.output_tokens)
    ]  # fmt: skip
    table = np.array(rows, dtype=np.int64).reshape(-1, 7).T  # one array of all rows takes a third of the time of seven
    index, prefill_ns, first_ns, end_ns, tokens_out, prompt_tokens, cached_tokens = table
    prompt = np.where(prompt_tokens < 0, np.nan, prompt_tokens)
    cached = cached_tokens.astype(np.float64)
    computed = with_unknown_prompts(np.maximum(prompt - cached, 0.0), np.maximum(first_ns - prefill_ns, 0))
    prompt = np.where(np.isnan(prompt), cached + computed, prompt)
    later = tokens_out - 1
    more = later > 0
    return Phases(
        request=np.concatenate((index, index[more])),
        start_ns=np.concatenate((np.minimum(prefill_ns, first_ns), first_ns[more])),
        end_ns=np.concatenate((first_ns, end_ns[more])),
        prefilling=np.arange(len(index) + np.count_nonzero(more)) < len(index),
        tokens=np.concatenate((computed, later[more])),
        context=np.concatenate((cached, prompt[more])),
    )


def first_token_of(request: RequestSpan) -> int | None:
    """Return when the prefill ended; None without output tokens.

    Where no span records it (no stream), the prefill is taken to have lasted as long as one token.
    """
    return _first_ns(request, request.output_tokens) if request.output_tokens else None


def _first_ns(request: RequestSpan, output_tokens: int) -> int:
    if request.first_token_ns is not None:
        return request.first_token_ns
    return request.prefill_ns + (request.end_ns - request.prefill_ns) // output_tokens


LONGEST_PREFILL_NS = 1000 * NS_PER_MS
"""A longer one is a wait in a queue, or a prefill in many chunks: other requests go on meanwhile."""
PLAIN_SHARE = 0.25
"""Share of the time of decodes outside of prefills that shows how long a step takes there."""
SHORTEST_SLOT_NS, LONGEST_SLOT_NS = 2 * NS_PER_MS, 100 * NS_PER_MS


def slot_steps(
    phases: Phases,
    cadence: Cadence,
    start_ns: int,
    end_ns: int,
    slot_ns: int,
    unseen_ns: Ints,
    iterations: IterationsAt | None = None,
    prefills: PrefillProgress | None = None,
    max_rows: int | None = None,
) -> EngineSteps:
    """Return the work done in [start, end]: a step for each prefill and each slot between prefills, or for several.

    iterations: number of iterations until each instant, by which decodes go on, of which these phases may be a part.
    prefills: progress of the prefills; None: it is even. max_rows: limit of the rows, by `fewer_edges`.
    """
    begin, end = np.maximum(phases.start_ns, start_ns), np.minimum(phases.end_ns, end_ns)
    phase = np.flatnonzero(end > begin)
    begin, end = begin[phase], end[phase]
    all_edges, own_progress = slot_edges(phases, cadence, slot_ns)
    edges = all_edges if max_rows is None else fewer_edges(all_edges, begin, end, max_rows)

    def progress_at(t_ns: Ints) -> Floats:
        return np.asarray(iterations(t_ns) if iterations else np.interp(t_ns, all_edges, own_progress))

    start_cell = np.searchsorted(edges, begin, side="right") - 1
    pieces = np.searchsorted(edges, end - 1, side="right") - start_cell
    row, until = np.repeat(phase, pieces), np.cumsum(pieces)
    first, last = until - pieces, until - 1
    cell = np.arange(len(row)) + np.repeat(start_cell - first, pieces)
    progress, start_progress = progress_at(edges), progress_at(phases.start_ns)
    length = np.maximum(progress_at(phases.end_ns) - start_progress, 1e-12)[row]
    prefilling = phases.prefilling[row]
    own = np.flatnonzero(prefilling)
    own_start_ns, own_length_ns = phases.start_ns[row[own]], (phases.end_ns - phases.start_ns)[row[own]]

    def cut_at(edge: Ints, place: Ints, t_ns: Ints) -> tuple[Ints, Floats]:
        """Return the instants of edges, or of an end of a phase, and the share of its phase that is done there."""
        at_ns, at = edges[edge], progress[edge]
        at_ns[place], at[place] = t_ns, progress_at(t_ns)
        done = (at - start_progress[row]) / length
        after_ns = at_ns[own] - own_start_ns
        done[own] = prefills.at(row[own], after_ns) if prefills else after_ns / own_length_ns
        return at_ns, done

    (from_ns, done_at_start), (to_ns, done_at_end) = cut_at(cell, first, begin), cut_at(cell + 1, last, end)
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


def fewer_edges(edges: Ints, begin: Ints, end: Ints, max_rows: int) -> Ints:
    """Return the edges, or as many of them, evenly spread, as keep the rows of phases in [begin, end] to `max_rows`.

    An edge inside a phase cuts it into one row more. Of a share of the edges, a phase has that share of its cuts and at
    the most two rows more. Where two rows for each phase leave less than a quarter of max_rows, the cuts have a quarter
    all the same, and there are more rows than that.
    """
    inside = np.searchsorted(edges, end, side="left") - np.searchsorted(edges, begin, side="right")
    rows = int(inside.sum())
    if rows + len(begin) <= max_rows:
        return edges
    share = max(max_rows - 2 * len(begin), max_rows // 4) / rows
    kept: Bools = np.diff(np.floor(np.arange(len(edges) + 1) * share)) > 0
    kept[[0, -1]] = True
    return edges[kept]


class Cadence(NamedTuple):
    """The boundaries of steps that phases show: where a phase begins or ends, a step does.

    starts_ns, ends_ns: of the stretches of time that prefills cover; those that overlap or touch are one stretch.
    edges_ns: boundaries in the stretches, at the least SHORTEST_SLOT_NS apart, and the ends of the stretches.
    """

    starts_ns: Ints
    ends_ns: Ints
    edges_ns: Ints
    step_ns: float
    """Duration of a step outside of the stretches."""

    def inside(self, t_ns: Ints) -> NDArray[np.bool_]:
        """Return bool[n]: whether a stretch begins at an instant, or before it and does not end there."""
        started = np.searchsorted(self.starts_ns, t_ns, side="right")
        return started > np.searchsorted(self.ends_ns, t_ns, side="right")

    def stalled(self, t_ns: Ints) -> tuple[Floats, Floats]:
        """Return, for each instant, the steps of the stretches that have ended until then, and their time in ns."""
        if not len(self.edges_ns):
            return np.zeros(len(t_ns)), np.zeros(len(t_ns))
        inside = self.inside(self.edges_ns[:-1])
        columns = (np.where(inside, column, 0.0) for column in (1.0, np.diff(self.edges_ns)))
        steps, time_ns = (np.interp(t_ns, self.edges_ns, np.concatenate(([0.0], np.cumsum(x)))) for x in columns)
        return steps, time_ns

    def steps_between(self, start_ns: Ints, end_ns: Ints) -> Floats:
        """Return the steps in each interval."""
        (first, first_ns), (last, last_ns) = self.stalled(start_ns), self.stalled(end_ns)
        return np.asarray(last - first + (end_ns - start_ns - (last_ns - first_ns)) / self.step_ns)


def cadence_of(phases: Phases) -> Cadence:
    """Return the cadence of the steps of these phases."""
    short = phases.prefilling & (phases.end_ns - phases.start_ns <= LONGEST_PREFILL_NS)
    short &= phases.end_ns > phases.start_ns
    by_start = np.argsort(phases.start_ns[short], kind="stable")
    starts, reach = phases.start_ns[short][by_start], np.maximum.accumulate(phases.end_ns[short][by_start])
    apart = starts[1:] > reach[:-1]
    ends = reach[np.concatenate((apart, [True]))[: len(reach)]]
    starts = starts[np.concatenate(([True], apart))[: len(starts)]]
    marks = in_order(np.concatenate((phases.start_ns[phases.prefilling], phases.end_ns)))
    marks = marks[np.concatenate(([True], np.diff(marks) >= SHORTEST_SLOT_NS))[: len(marks)]]
    before, after = (np.searchsorted(starts, marks + sign * SHORTEST_SLOT_NS, side="right") for sign in (-1, 1))
    ended = np.searchsorted(ends, marks + SHORTEST_SLOT_NS, side="right")
    marks = marks[(before == after) & (after > ended)]  # well within a stretch
    cadence = Cadence(starts, ends, in_order(np.concatenate((starts, marks, ends))), float(LONGEST_SLOT_NS))
    return cadence._replace(step_ns=_plain_step_ns(phases, cadence))


def _plain_step_ns(phases: Phases, cadence: Cadence) -> float:
    """Return the median time of a decoded token outside of the stretches, where decodes spend PLAIN_SHARE of their time
    there, else that of any."""
    decoding = ~phases.prefilling
    begin, end, tokens = phases.start_ns[decoding], phases.end_ns[decoding], phases.tokens[decoding]
    if not len(tokens):
        return float(LONGEST_SLOT_NS)
    (first, first_ns), (last, last_ns) = cadence.stalled(begin), cadence.stalled(end)
    plain_ns, plain = (end - begin) - (last_ns - first_ns), tokens - (last - first)
    some = (plain >= 1) & (plain_ns >= PLAIN_SHARE * (end - begin))
    per_token = plain_ns[some] / plain[some] if some.any() else (end - begin) / tokens
    return float(np.clip(np.median(per_token), SHORTEST_SLOT_NS, LONGEST_SLOT_NS))


def slot_edges(phases: Phases, cadence: Cadence, slot_ns: int) -> tuple[Ints, Floats]:
    """Return the increasing edges of the steps, and the progress of a decode at each, in ns of undisturbed time.

    Decodes get a token in each step of a stretch. slot_ns: duration of a slot outside of the stretches.
    """
    if not len(phases.start_ns):
        return np.zeros(1, np.int64), np.zeros(1)
    gap_from = np.concatenate(([phases.start_ns.min()], cadence.ends_ns))
    gap_to = np.concatenate((cadence.starts_ns, [phases.end_ns.max()]))
    length = np.maximum(gap_to - gap_from, 0)
    slots = np.maximum(np.rint(length / slot_ns).astype(np.int64), 1)
    gap = np.repeat(np.arange(len(slots)), slots)
    nth = np.arange(len(gap)) - np.repeat(np.cumsum(slots) - slots, slots)
    between = gap_from[gap] + nth * length[gap] // slots[gap]
    edges = in_order(np.concatenate((between, cadence.edges_ns, gap_to[-1:])))
    steps = cadence.steps_between(edges[:-1], edges[1:])
    return edges, np.concatenate(([0.0], np.cumsum(np.maximum(steps, 1e-9) * cadence.step_ns)))


def _extreme(choose: np.ufunc, t_ns: Ints, step: Ints, steps: int) -> Ints:
    start = np.iinfo(np.int64).max if choose is np.minimum else np.iinfo(np.int64).min
    result = np.full(steps, start, dtype=np.int64)
    choose.at(result, step, t_ns)
    return result
