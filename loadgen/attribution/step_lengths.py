"""Lengths of an engine's steps, and what follows from them about the prompts that were computed in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import Memberships, Narrow
    from loadgen.stats.arrays import Floats, Ints


class Piece(NamedTuple):
    """Prompt tokens of one request in one step. row: the membership of its first chunk."""

    row: int
    step: int
    tokens: float


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


class LengthLaw(NamedTuple):
    """Length of a step: base_ns + token_ns p + pair_ns a + stream_ns d + read_ns k, with p to k as in `length_law`."""

    base_ns: float
    token_ns: float
    pair_ns: float
    stream_ns: float
    read_ns: float

    def piece_ns(self, tokens: float, before: float) -> float:
        """Return what so many prompt tokens take after those before them."""
        return tokens * (self.token_ns + self.pair_ns * (before + tokens / 2))

    def work_ns(self, pieces: list[Piece], queue: PrefillQueue) -> Floats:
        """Return what each piece takes. Pieces of a row are together."""
        tokens = np.array([piece.tokens for piece in pieces])
        return np.asarray(tokens * self.token_ns + self.pair_ns * pairs_of(pieces, queue))

    def decoding_ns(self, queue: PrefillQueue) -> Floats:
        """Return what each step takes without prompts."""
        return np.asarray(self.base_ns + self.stream_ns * queue.decoding + self.read_ns * queue.reads)


def pairs_of(pieces: list[Piece], queue: PrefillQueue) -> Floats:
    """Return the pairs of each piece's tokens with those before them (attention), cached ones too."""
    row = np.array([piece.row for piece in pieces], dtype=np.int64)
    tokens = np.array([piece.tokens for piece in pieces])
    cached = np.zeros(int(max(queue.row.max(), row.max(initial=0))) + 1)
    cached[queue.row] = queue.cached
    return np.asarray(tokens * (cached[row] + done_before(row, tokens) + tokens / 2))


def length_law(pieces: list[Piece], queue: PrefillQueue) -> tuple[LengthLaw | None, float]:
    """Return the law length = b0 + b1 p + b2 a + b3 d + b4 k of the steps of the pieces, and its residual sum of
    squares; None and 0 without evidence.

    p are the prompt tokens of a step, a their pairs with the tokens before them (attention), cached ones too, d its
    decoding streams and k the context that these read; the b's are fitted by least squares. Steps in which no stream
    decodes are no evidence: how many iterations they were, and how long a prompt waited before, cannot be seen. Lengths
    are cut at twice the 99.9th percentile: nor is a client that slept.
    """
    step, tokens = np.array([piece.step for piece in pieces]), np.array([piece.tokens for piece in pieces])
    end = int(step.max()) + 1
    pairs = np.bincount(step, pairs_of(pieces, queue), minlength=end)
    prompts, decoding = np.bincount(step, tokens, minlength=end), queue.decoding[:end]
    x = np.column_stack((np.ones(end), prompts, pairs / 1e4, decoding, queue.reads[:end] / 1e4))
    seen = decoding > 0
    if not seen.any():
        return None, 0.0
    length = queue.length[:end][seen]
    x, y = x[seen], np.minimum(length, 2 * np.percentile(length, 99.9))
    b = np.linalg.lstsq(x, y, rcond=None)[0]
    base, token, pair, stream, read = b.tolist()
    return LengthLaw(base, token, pair / 1e4, stream, read / 1e4), float(((y - x @ b) ** 2).sum())


def done_before(row: Ints, tokens: Floats) -> Floats:
    """Return the tokens of each piece's prompt that the pieces before it computed. Pieces of a row are together."""
    done = np.cumsum(tokens) - tokens
    new = np.concatenate(([True], row[1:] != row[:-1]))
    return np.asarray(done - np.maximum.accumulate(np.where(new, done, 0.0)))
