"""Spread prefills over the steps they took: estimate the engine's token budget per step from the steps' durations.

An engine computes at most a budget of tokens in a step: one for each stream that decodes, then prompts, first come,
first served. A client sees neither the budget nor how long its requests take into the engine's queue. Of all candidate
pairs (budget, delay), the one is chosen under which the durations of the steps follow best from the tokens computed in
them, unless the steps refute it by what they must have computed beyond the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.cost_model import sum_by
from loadgen.attribution.engine_steps import Bools, Members, Narrow, Speculation, decoded_tokens
from loadgen.attribution.lost_prefills import lost_prefills
from loadgen.attribution.step_lengths import LengthLaw, Piece, PrefillQueue, done_before, length_law
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample


@dataclass(frozen=True)
class ChunkedPrefillPrior:
    """Candidates and thresholds of the choice. The thresholds are judgements, not derived from a model."""

    budgets: tuple[int, ...] = (32768, 16384, 8192, 4096, 2048, 1024, 512)
    """Tokens that one step may compute (vLLM: max_num_batched_tokens), in powers of two as operators set them."""
    delays_ns: tuple[int, ...] = (0, NS_PER_MS, 2 * NS_PER_MS, 4 * NS_PER_MS)
    """Delays of a request from the client's clock into the engine's queue."""
    late_steps: int = 3
    """Steps that a request may miss on top of the delay."""
    sample: int = 2000
    """Prompts that each candidate is fitted on."""
    min_prompts: int = 20
    """Fewest prompts from which a budget can be learned; with fewer the largest candidate stands, without delay."""
    improvement: float = 0.98
    """A candidate must reduce the residual sum of squares below this share of the best one before it."""
    max_overflow: float = 0.05
    """A larger share of the prompt tokens above a budget refutes it."""


PRIOR = ChunkedPrefillPrior()

LOOK_BACK = 16
"""Steps before the latest possible beginning of a prompt that waited, in which it may have begun."""


class Candidate(NamedTuple):
    budget: int
    delay_ns: int


class SpreadPrefills(NamedTuple):
    """Memberships with every prefill spread over the steps it took, and the steps: S of them, with those that left no
    chunk. start_ns, end_ns: int64[S]. iterations: float64[S], of the engine in each step. budget: None where too few
    prompts tell."""

    members: Members
    start_ns: Ints
    end_ns: Ints
    iterations: Floats
    budget: int | None


def spread_prefills(
    members: Members,
    first_rows: Ints,
    sent_ns: Ints,
    cached: Narrow,
    start_ns: Ints,
    end_ns: Ints,
    speculation: Speculation | None = None,
    engine: Sequence[EngineSample] = (),
) -> SpreadPrefills:
    """Spread every prefill over the steps it took, and find those that a preemption cost.

    first_rows: int64[P], the membership of each request's first chunk. sent_ns, cached: by request.
    """
    if not len(first_rows):
        return SpreadPrefills(members, start_ns, end_ns, np.ones(len(start_ns)), None)
    row = first_rows[np.argsort(sent_ns[members.request[first_rows]], kind="stable")]
    computed = decoded_tokens(members.decode, speculation)
    decoding = sum_by(members.step, computed, len(start_ns))
    reads = sum_by(members.step, np.where(members.decode > 0, members.context, np.float32(0)), len(start_ns))
    request = members.request[row]
    queue = PrefillQueue(
        row, sent_ns[request], members.step[row], members.prefill[row], cached[request],
        start_ns, (end_ns - start_ns).astype(np.float64), decoding, reads,
    )  # fmt: skip
    chosen = choose_candidate(queue)
    law, _ = length_law(fill_steps(queue, chosen, PRIOR.sample), queue)
    pieces = fill_steps(queue, chosen, law=law)
    lost = [] if law is None else lost_prefills(queue, pieces, law, chosen.budget, engine)
    further, pieces, lost = with_unseen_steps(queue, pieces, lost, chosen.budget, law)
    ends_ns = np.insert(end_ns, further.before, further.end_ns)
    starts_ns = np.insert(start_ns, further.before, start_ns[further.before])
    inserted = np.insert(np.zeros(len(start_ns), bool), further.before, True)
    after = np.asarray(np.flatnonzero(inserted) + 1)
    starts_ns[after] = np.maximum(ends_ns[after - 1], starts_ns[after])
    number = np.flatnonzero(~inserted).astype(np.int32)
    if len(further.before):
        members = members._replace(step=number[members.step])
    spread = cut_prefills(members, pieces, cached, lost)
    prefilled = sum_by(spread.step, spread.prefill, len(ends_ns))
    decoding = np.insert(decoding, further.before, 0.0)
    iterations = np.maximum(np.ceil((prefilled + decoding) / chosen.budget), 1.0)
    budget = chosen.budget if len(row) >= PRIOR.min_prompts else None
    return SpreadPrefills(spread, starts_ns, ends_ns, iterations, budget)


class UnseenSteps(NamedTuple):
    """Steps that no stream got a chunk from. before: int64[k], the step that each comes before. end_ns: int64[k]."""

    before: Ints
    end_ns: Ints


def with_unseen_steps(
    queue: PrefillQueue, pieces: list[Piece], lost: list[Piece], budget: int, law: LengthLaw | None
) -> tuple[UnseenSteps, list[Piece], list[Piece]]:
    """Cut each step in which no stream decodes, and that computed more than the budget, into one step for each budget
    of tokens -> (the further steps, the pieces and the lost ones in the new numbers of steps).

    Prompts are computed in order of arrival, so those behind a long one are in its last step only. The steps take what
    the law of lengths says, in proportion; without one, as long as their tokens are many.
    """
    tokens = np.bincount([p.step for p in pieces], [p.tokens for p in pieces], minlength=len(queue.length))
    several = (queue.decoding == 0) & (tokens > budget)
    counts = np.where(several, np.ceil(tokens / budget), 1.0).astype(np.int64)
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    cut = _cut_by_budget(pieces, several, counts, first, budget)
    work = np.array([piece.tokens for piece in cut]) if law is None else np.maximum(law.work_ns(cut, queue), 0.0)
    base_ns = 0.0 if law is None else max(law.base_ns, 0.0)
    took = np.cumsum(base_ns + np.bincount([piece.step for piece in cut], work, minlength=int(counts.sum())))
    before = np.repeat(np.arange(len(tokens)), counts - 1)
    begun = np.concatenate(([0.0], took))[first[before]]
    share = (took[np.setdiff1d(np.arange(len(took)), last)] - begun) / (took[last[before]] - begun)
    end_ns = queue.start_ns[before] + (share * queue.length[before]).astype(np.int64)
    return UnseenSteps(before, end_ns), cut, [Piece(p.row, int(last[p.step]), p.tokens) for p in lost]


def _cut_by_budget(pieces: list[Piece], several: Bools, counts: Ints, first: Ints, budget: int) -> list[Piece]:
    """Return the pieces in the new numbers of steps, those of steps that are `several` cut where a budget is full."""
    done = np.zeros(len(counts))
    cut: list[Piece] = []
    for row, step, tokens in pieces:
        remaining = tokens
        while several[step] and remaining > 0:
            nth = min(int(done[step] / budget), int(counts[step]) - 1)
            part = remaining if nth == counts[step] - 1 else min(remaining, (nth + 1) * budget - done[step])
            cut.append(Piece(row, int(first[step]) + nth, part))
            done[step] += part
            remaining -= part
        if not several[step]:
            cut.append(Piece(row, int(first[step]), tokens))
    return cut


def candidates(prompts: int, prior: ChunkedPrefillPrior = PRIOR) -> Iterator[Candidate]:
    """Yield the pairs worth trying for a number of prompts, larger budgets first."""
    for budget in prior.budgets if prompts >= prior.min_prompts else ():
        for delay_ns in prior.delays_ns:
            yield Candidate(budget, delay_ns)


def choose_candidate(queue: PrefillQueue, prior: ChunkedPrefillPrior = PRIOR) -> Candidate:
    """Return the candidate that explains the steps' durations best, among those that the steps do not refute."""
    chosen, smallest = Candidate(prior.budgets[0], prior.delays_ns[0]), np.inf
    for candidate in candidates(len(queue.row), prior):
        pieces = fill_steps(queue, candidate, prior.sample, prior.late_steps)
        _, error = length_law(pieces, queue)
        room = np.where(queue.decoding > 0, candidate.budget - queue.decoding, np.inf)
        if error < prior.improvement * smallest and overflow(pieces, room) < prior.max_overflow:
            chosen, smallest = candidate, error
    return chosen


def overflow(pieces: list[Piece], room: Floats) -> float:
    """Return the share of the prompt tokens in steps without room for them: chunks that came together, or a wrong
    budget. A step in which no stream decodes has room for any number: steps before it may have left no chunk."""
    tokens = np.bincount([p.step for p in pieces], [p.tokens for p in pieces], minlength=len(room))
    return float(np.maximum(tokens - np.maximum(room, 0.0), 0.0).sum() / max(tokens.sum(), 1.0))


def fill_steps(
    queue: PrefillQueue,
    candidate: Candidate,
    limit: int | None = None,
    late_steps: int = PRIOR.late_steps,
    law: LengthLaw | None = None,
) -> list[Piece]:
    """Place the first `limit` prompts in order of arrival into the steps' room beside the decodes.

    A prompt ends in the step of its first chunk, and begins no earlier than its delay after it was sent. Where one
    waited for something else than room (a place among the sequences that run, or room in the KV cache), it begins where
    the lengths of the steps follow best from the tokens in them; without their law, as late as fits.

    A step in which no stream decodes is as many iterations as its prompts take. The room in the last of these is the
    next prompt's, if that came before it began.
    """
    rest_ns: list[float] = []
    if law is not None:
        rest_ns = np.where(queue.decoding > 0, queue.length - law.decoding_ns(queue), np.nan).tolist()
    room = np.maximum(candidate.budget - queue.decoding, 0.0).tolist()
    ready_ns = queue.sent_ns[:limit] + candidate.delay_ns
    earliest = np.minimum(np.searchsorted(queue.start_ns, ready_ns), queue.last_step[:limit])
    alone, filled = (queue.decoding == 0).tolist(), [0.0] * len(room)
    columns = (queue.row, ready_ns, earliest, queue.last_step, queue.tokens, queue.cached)
    pieces: list[Piece] = []
    for row, ready, low, last, tokens, cached in zip(*(column[:limit].tolist() for column in columns), strict=True):
        if low and alone[low - 1] and filled[low - 1] and room[low - 1] > 0:
            more = min(room[low - 1], tokens)
            share = (filled[low - 1] % candidate.budget + more) / (filled[low - 1] + more)
            low -= ready <= queue.start_ns[low - 1] + queue.length[low - 1] * (1 - share)
        begin = _begin_step(room, low, last, tokens, late_steps)
        if begin is None:
            begins = late_begins(room, low, last, tokens)
            begin = begins[0] if law is None else _best_begin(begins, room, rest_ns, law, last, tokens, cached)
        done = cached
        for step in range(begin, last + 1):
            part = tokens if step == last else min(tokens, max(room[step], 0.0))
            room[step] -= part
            if alone[step] and room[step] < 0:
                room[step] %= candidate.budget
            filled[step] += part
            tokens -= part
            if law is not None:
                rest_ns[step] -= law.piece_ns(part, done)
            done += part
            if part > 0 or step == last:
                pieces.append(Piece(row, step, part))
    return pieces


def _begin_step(room: list[float], low: int, last: int, tokens: float, late_steps: int) -> int | None:
    """Return the first step, from `low` to `late_steps` later, from which a prompt is done exactly in step `last`.

    If there is none, the prompt waited for something else than room.
    """
    for begin in range(low, min(low + late_steps, last) + 1):
        step, remaining = begin, tokens
        while step <= last and remaining > room[step]:
            remaining -= max(room[step], 0.0)
            step += 1
        if step == last:
            return begin
    return None


def late_begins(room: list[float], low: int, last: int, tokens: float) -> list[int]:
    """Return the steps from `low` on from which a prompt is done exactly in step `last`, the latest first; at most
    LOOK_BACK steps before that one. If there is none, `low`."""
    begins: list[int] = []
    before, step = 0.0, last
    while step >= low and before < tokens and (not begins or begins[0] - step <= LOOK_BACK):
        if tokens <= before + max(room[last], 0.0) and (step == last or room[step] > 0):
            begins.append(step)
        step -= 1
        before += max(room[step], 0.0) if step >= low else 0.0
    return begins or [low]


def _best_begin(
    begins: list[int], room: list[float], rest_ns: list[float], law: LengthLaw, last: int, tokens: float, cached: float
) -> int:
    """Return the step in which a prompt begins so that the squared lengths that nothing explains are least.

    rest_ns: what the work that is placed does not explain of each step; not a number where no stream decodes.
    """
    changes: list[float] = []
    for begin in begins:
        change, done = 0.0, 0.0
        for step in range(begin, last + 1):
            part = tokens - done if step == last else min(tokens - done, max(room[step], 0.0))
            took_ns = law.piece_ns(part, cached + done)
            change += 0.0 if isnan(rest_ns[step]) else took_ns * (took_ns - 2 * rest_ns[step])
            done += part
        changes.append(change)
    return begins[changes.index(min(changes))]


def cut_prefills(members: Members, pieces: list[Piece], cached: Narrow, lost: Sequence[Piece] = ()) -> Members:
    """Return the memberships with each first chunk's prefill cut into its pieces: the last one in place, others added.

    The context of a piece is the cached tokens, those of the pieces before, and half of its own. lost: beginnings of
    prefills that were computed again.
    """
    row = np.array([piece.row for piece in pieces], dtype=np.int64)
    before = np.concatenate((done_before(row, np.array([piece.tokens for piece in pieces])), np.zeros(len(lost))))
    pieces = [*pieces, *lost]
    row = np.array([piece.row for piece in pieces], dtype=np.int64)
    step = np.array([piece.step for piece in pieces], dtype=np.int32)
    tokens = np.array([piece.tokens for piece in pieces])
    context = cached[members.request[row]] + before + tokens / 2
    is_final = step == members.step[row]
    prefill, contexts = members.prefill.copy(), members.context.copy()
    prefill[row[is_final]], contexts[row[is_final]] = tokens[is_final], context[is_final]
    members = members._replace(prefill=prefill, context=contexts)
    earlier = ~is_final
    if not earlier.any():
        return members
    count = int(earlier.sum())
    added = Members(
        step=step[earlier],
        request=members.request[row[earlier]],
        prefilling=np.ones(count, bool),
        prefill=tokens[earlier].astype(np.float32),
        decode=np.zeros(count, np.float32),
        context=context[earlier].astype(np.float32),
    )
    return Members(*(np.concatenate(columns) for columns in zip(members, added, strict=True)))
