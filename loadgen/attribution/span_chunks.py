"""Find how much of a prompt each step computed, where its prefill crosses boundaries of steps. Pure.

An engine computes at most a budget of tokens in a step: one for each stream that decodes, then prompts, first come,
first served. So a step that leaves a prompt unfinished is full, and that prompt has what the decodes and the prompts
that end in the step leave of the budget. Spread evenly over the time of its prefill instead, a tenth of a budget or
more would be in the wrong steps. The budget is the one, of those that operators set, that nearly all such steps allow.
Where they allow none (other clients' prompts are in the steps too, or the engine has no budget) nothing is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.chunked_prefill import PRIOR
from loadgen.attribution.span_steps import SHORTEST_SLOT_NS, PrefillProgress

if TYPE_CHECKING:
    from loadgen.attribution.span_steps import Cadence, Phases
    from loadgen.stats.arrays import Floats, Ints

MIN_BOUNDARIES = 20
"""Boundaries that a prompt must cross for a budget to be learned."""
ALLOWED = 0.9
"""Share of them that must allow the budget."""


class Crossings(NamedTuple):
    """E boundaries of steps in time order, and the prompts of P prefills.

    tokens: float64[P]. owner: int64[E], the one prefill that goes on over the boundary; -1 for none, or several.
    steps, ended, decoded: float64[E], until the boundary: steps, tokens of the prompts that have ended, tokens decoded.
    """

    edges_ns: Ints
    tokens: Floats
    owner: Ints
    steps: Floats
    ended: Floats
    decoded: Floats


def prefill_progress(phases: Phases, cadence: Cadence, start_ns: int, end_ns: int) -> PrefillProgress | None:
    """Return the progress of all prefills by what the steps in [start, end] had room for; None without a known budget.

    phases: of all requests that ran in that time.
    """
    prefills = np.flatnonzero(phases.prefilling & (phases.end_ns > phases.start_ns))
    first, end = np.searchsorted(cadence.edges_ns, (start_ns, end_ns))
    if end - first < MIN_BOUNDARIES or not len(prefills):
        return None
    crossings = crossings_of(phases, prefills, cadence.edges_ns[first:end])
    budget = budget_of(crossings)
    if budget is None:
        return None
    begins_ns, ends_ns = phases.start_ns[prefills], phases.end_ns[prefills]
    crossed = np.flatnonzero(crossings.owner >= 0)
    owner = crossings.owner[crossed]
    first_ns = crossings.edges_ns[0]
    before = crossings.tokens * np.clip((first_ns - begins_ns) / (ends_ns - begins_ns), 0, 1)
    share = tokens_done(crossings, budget, before)[crossed] / np.maximum(crossings.tokens[owner], 1e-9)
    row = np.concatenate((prefills, prefills[owner], prefills))
    after_ns = np.concatenate((np.zeros(len(prefills), np.int64), crossings.edges_ns[crossed] - begins_ns[owner],
                               ends_ns - begins_ns))  # fmt: skip
    done = np.concatenate((np.zeros(len(prefills)), share, np.ones(len(prefills))))
    order = np.lexsort((after_ns, row))
    return PrefillProgress.of(row[order], after_ns[order], done[order])


def crossings_of(phases: Phases, prefills: Ints, edges_ns: Ints) -> Crossings:
    """Return which of the prefills cross these boundaries. Instants closer to one than the shortest slot are at it.

    Where a long prompt is alone in several steps no span shows what is between them. Full steps take about as long as
    one another, so their number follows from the time.
    """
    size = len(edges_ns)
    tokens = phases.tokens[prefills]
    first = np.searchsorted(edges_ns, phases.start_ns[prefills] + SHORTEST_SLOT_NS, side="right")
    last = np.searchsorted(edges_ns, phases.end_ns[prefills] - SHORTEST_SLOT_NS, side="left")
    crossed = np.maximum(last - first, 0)
    prefill = np.repeat(np.arange(len(prefills)), crossed)
    edge = first[prefill] + np.arange(len(prefill)) - (np.cumsum(crossed) - crossed)[prefill]
    owner = np.full(size, -1)
    owner[edge] = prefill
    owner[np.bincount(edge, minlength=size) > 1] = -1
    length_ns = np.diff(edges_ns)
    full = owner[1:] >= 0
    usual_ns = float(np.median(length_ns[full])) if full.any() else 1.0
    steps = np.where(full, np.maximum(np.rint(length_ns / usual_ns), 1.0), 1.0)
    decoding = ~phases.prefilling
    begun = np.searchsorted(np.sort(phases.start_ns[decoding]), edges_ns[:-1] + SHORTEST_SLOT_NS, side="right")
    over = np.searchsorted(np.sort(phases.end_ns[decoding]), edges_ns[1:] - SHORTEST_SLOT_NS, side="left")
    return Crossings(
        edges_ns,
        tokens,
        owner,
        _summed(steps),
        np.cumsum(np.bincount(last, tokens, minlength=size + 1))[:size].astype(np.float64),
        _summed(steps * np.maximum(begun - over, 0)),
    )


def _summed(of_steps: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(of_steps)))


def budget_of(crossings: Crossings) -> int | None:
    """Return the tokens that a step may compute; None where boundaries are too few or contradict one another.

    The tokens of the m full steps between two boundaries are m budgets. They are those of the decodes and of the
    prompts that ended there, without what the prompt across the first boundary had before, and with what the prompt
    across the second one has.
    """
    crossed = crossings.owner >= 0
    full = crossed[1:]
    if full.sum() < MIN_BOUNDARIES:
        return None
    prompt = np.where(crossed, crossings.tokens[crossings.owner], 0.0)
    work = np.diff(crossings.ended + crossings.decoded)[full]
    lower, upper = work - prompt[:-1][full], work + prompt[1:][full]
    steps = np.diff(crossings.steps)[full]
    allowed = [np.mean((lower <= budget * steps) & (budget * steps <= upper)) for budget in PRIOR.budgets]
    best = int(np.argmax(allowed))
    return PRIOR.budgets[best] if allowed[best] >= ALLOWED else None


def tokens_done(crossings: Crossings, budget: int, before: Floats) -> Floats:
    """Return float64[E]: what the prompt that crosses each boundary had computed by then.

    before: float64[P], what each prompt had at the first boundary.
    """
    room = np.diff(budget * crossings.steps - crossings.decoded - crossings.ended).tolist()
    owners, tokens = crossings.owner.tolist(), crossings.tokens.tolist()
    done = [0.0] * len(owners)
    done[0] = float(before[owners[0]]) if owners[0] >= 0 else 0.0
    for edge in range(1, len(owners)):
        if (owner := owners[edge]) >= 0:
            before_step = done[edge - 1] if owners[edge - 1] == owner else 0.0
            done[edge] = min(max(done[edge - 1] + room[edge - 1], before_step), tokens[owner])
    return np.array(done)
