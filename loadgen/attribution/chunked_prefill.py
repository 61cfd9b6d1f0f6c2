"""Spread prefills over the steps they took: estimate the engine's token budget per step from the steps' durations.

An engine computes at most a budget of tokens in a step: one for each stream that decodes, then prompts, first come,
first served. A client sees neither the budget nor how long its requests take into the engine's queue. Of all candidate
pairs (budget, delay), the one is chosen under which the durations of the steps follow best from the tokens computed in
them, unless the steps refute it by what they must have computed beyond the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.engine_steps import Members, Memberships, Narrow, Speculation, decoded_tokens
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints


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


class Piece(NamedTuple):
    """Prompt tokens of one request in one step. row: the membership of its first chunk."""

    row: int
    step: int
    tokens: float


class Candidate(NamedTuple):
    budget: int
    delay_ns: int


@dataclass(frozen=True)
class PrefillQueue:
    """P prompts in order of arrival, and the S steps that they were computed in.

    row: int64[P], membership of the first chunk. sent_ns: int64[P]. last_step: int32[P], the step of the first chunk.
    tokens, cached: float32[P], to compute, and before those in the cache. start_ns: int64[S]. length: float64[S], ns.
    decoding, reads: float64[S], decoded tokens, and the tokens of context that they read.
    """

    row: Ints
    sent_ns: Ints
    last_step: Memberships
    tokens: Narrow
    cached: Narrow
    start_ns: Ints
    length: Floats
    decoding: Floats
    reads: Floats


def spread_prefills(
    members: Members,
    first_rows: Ints,
    sent_ns: Ints,
    cached: Narrow,
    start_ns: Ints,
    end_ns: Ints,
    speculation: Speculation | None = None,
) -> tuple[Members, Floats, int | None]:
    """Return new memberships with every prefill spread over the steps it took, the iterations of each step, and the
    budget, if there are prompts enough to tell.

    first_rows: int64[P], the membership of each request's first chunk. sent_ns, cached: by request.
    """
    steps = len(start_ns)
    if not len(first_rows):
        return members, np.ones(steps), None
    row = first_rows[np.argsort(sent_ns[members.request[first_rows]], kind="stable")]
    computed = decoded_tokens(members.decode, speculation)
    decoding = np.bincount(members.step, computed, minlength=steps).astype(np.float64)
    reads = np.bincount(members.step, np.where(members.decode > 0, members.context, 0.0), minlength=steps)
    request = members.request[row]
    queue = PrefillQueue(
        row, sent_ns[request], members.step[row], members.prefill[row], cached[request],
        start_ns, (end_ns - start_ns).astype(np.float64), decoding, reads.astype(np.float64),
    )  # fmt: skip
    chosen = choose_candidate(queue)
    spread = cut_prefills(members, fill_steps(queue, chosen), cached)
    prefilled = np.bincount(spread.step, spread.prefill, minlength=steps)
    iterations = np.maximum(np.ceil((prefilled + decoding) / chosen.budget), 1.0)
    return spread, iterations, chosen.budget if len(row) >= PRIOR.min_prompts else None


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
        error = length_error(pieces, queue)
        room = np.where(queue.decoding > 0, candidate.budget - queue.decoding, np.inf)
        if error < prior.improvement * smallest and overflow(pieces, room) < prior.max_overflow:
            chosen, smallest = candidate, error
    return chosen


def overflow(pieces: list[Piece], room: Floats) -> float:
    """Return the share of the prompt tokens in steps without room for them: chunks that came together, or a wrong
    budget. A step in which no stream decodes has room for any number: steps before it may have left no chunk."""
    tokens = np.bincount([p.step for p in pieces], [p.tokens for p in pieces], minlength=len(room))
    return float(np.maximum(tokens - np.maximum(room, 0.0), 0.0).sum() / max(tokens.sum(), 1.0))


def length_error(pieces: list[Piece], queue: PrefillQueue) -> float:
    """Return the residual sum of squares of length = b0 + b1 p + b2 a + b3 d + b4 k over the steps of the pieces.

    p are the prompt tokens of a step, a their pairs with the tokens before them (attention), cached ones too, d its
    decoding streams and k the context that these read; the b's are fitted by least squares. Steps in which no stream
    decodes are no evidence: how many iterations they were, and how long a prompt waited before, cannot be seen. Lengths
    are cut at twice the 99.9th percentile: nor is a client that slept.
    """
    row, step = (np.array(column, dtype=np.int64) for column in zip(*((p.row, p.step) for p in pieces), strict=True))
    tokens = np.array([piece.tokens for piece in pieces])
    end = int(step.max()) + 1
    cached = np.zeros(int(max(queue.row.max(), row.max())) + 1)
    cached[queue.row] = queue.cached
    pairs = np.bincount(step, tokens * (cached[row] + done_before(row, tokens) + tokens / 2), minlength=end)
    prompts, decoding = np.bincount(step, tokens, minlength=end), queue.decoding[:end]
    x = np.column_stack((np.ones(end), prompts, pairs / 1e4, decoding, queue.reads[:end] / 1e4))
    seen = decoding > 0
    if not seen.any():
        return 0.0
    length = queue.length[:end][seen]
    x, y = x[seen], np.minimum(length, 2 * np.percentile(length, 99.9))
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def done_before(row: Ints, tokens: Floats) -> Floats:
    """Return the tokens of each piece's prompt that the pieces before it computed. Pieces of a row are together."""
    done = np.cumsum(tokens) - tokens
    new = np.concatenate(([True], row[1:] != row[:-1]))
    return np.asarray(done - np.maximum.accumulate(np.where(new, done, 0.0)))


def fill_steps(
    queue: PrefillQueue, candidate: Candidate, limit: int | None = None, late_steps: int = PRIOR.late_steps
) -> list[Piece]:
    """Place the first `limit` prompts in order of arrival into the steps' room beside the decodes.

    A prompt ends in the step of its first chunk, and begins no earlier than its delay after it was sent.
    """
    room = np.maximum(candidate.budget - queue.decoding, 0.0).tolist()
    earliest = np.searchsorted(queue.start_ns, queue.sent_ns[:limit] + candidate.delay_ns)
    earliest = np.minimum(earliest, queue.last_step[:limit])
    columns = (queue.row[:limit], earliest, queue.last_step[:limit], queue.tokens[:limit])
    pieces: list[Piece] = []
    for row, low, last, tokens in zip(*(column.tolist() for column in columns), strict=True):
        for step in range(_begin_step(room, low, last, tokens, late_steps), last + 1):
            part = tokens if step == last else min(tokens, max(room[step], 0.0))
            room[step] -= part
            tokens -= part
            if part > 0 or step == last:
                pieces.append(Piece(row, step, part))
    return pieces


def _begin_step(room: list[float], low: int, last: int, tokens: float, late_steps: int) -> int:
    """Return the first step, from `low` to `late_steps` later, from which a prompt is done exactly in step `last`.

    If there is none, the prompt waited for something else than room, and begins as late as fits.
    """
    for begin in range(low, min(low + late_steps, last) + 1):
        step, remaining = begin, tokens
        while step <= last and remaining > room[step]:
            remaining -= max(room[step], 0.0)
            step += 1
        if step == last:
            return begin
    step = last
    while step > low and tokens > room[step]:
        tokens -= max(room[step], 0.0)
        step -= 1
    return step


def cut_prefills(members: Members, pieces: list[Piece], cached: Narrow) -> Members:
    """Return the memberships with each first chunk's prefill cut into its pieces: the last one in place, others added.

    The context of a piece is the cached tokens, those of the pieces before, and half of its own.
    """
    row = np.array([piece.row for piece in pieces], dtype=np.int64)
    step = np.array([piece.step for piece in pieces], dtype=np.int32)
    tokens = np.array([piece.tokens for piece in pieces])
    context = cached[members.request[row]] + done_before(row, tokens) + tokens / 2
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
