"""The length of a step follows from the tokens that it computes."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.chunked_prefill import PRIOR
from loadgen.attribution.step_lengths import LengthLaw, Piece, PrefillQueue, done_before, length_law


def long_steps(prompts: int, length: np.ndarray, decoding: np.ndarray) -> PrefillQueue:
    """Steps of these lengths beside so many decodes, in which prompts of nothing begin."""
    nothing = np.zeros(prompts, np.int64)
    return PrefillQueue(
        np.arange(prompts), nothing, nothing.astype(np.int32), nothing.astype(np.float32), nothing.astype(np.float32),
        np.arange(len(length)), length, decoding, np.zeros(len(length)),
    )  # fmt: skip


def test_lengths_that_follow_from_the_tokens_leave_no_error() -> None:
    tokens, decoding = np.array([0.0, 10.0, 50.0, 20.0, 70.0, 5.0]), np.array([1.0, 4.0, 2.0, 8.0, 3.0, 9.0])
    pieces = [Piece(k, k, float(t)) for k, t in enumerate(tokens)]
    length = 5 + 2 * tokens + 0.1 * decoding
    assert length_law(pieces, long_steps(6, length, decoding))[1] == pytest.approx(0, abs=1e-12)
    unlike = length + np.array([1, -1, 1, -1, 1, -1])
    assert length_law(pieces, long_steps(6, unlike, decoding))[1] > 0.1


def test_the_fit_of_lengths_holds_for_many_long_prompts() -> None:
    """6 ms and 36 us a token: tokens and their squares differ by many orders of magnitude from the constant."""
    tokens = np.linspace(0, PRIOR.budgets[0], PRIOR.sample)
    pieces = [Piece(k, k, float(t)) for k, t in enumerate(tokens)]
    length = 6e6 + 36e3 * tokens
    assert length_law(pieces, long_steps(len(tokens), length, np.ones(len(tokens))))[1] < 1e-6 * (6e6**2)


def test_the_chunks_of_a_long_prompt_take_the_longer_the_later_they_are() -> None:
    """Ten chunks of one prompt, each with its attention over those before it, and ten prompts of one chunk."""
    pieces = [*(Piece(0, k, 100.0) for k in range(10)), *(Piece(k, k, 100.0) for k in range(10, 20))]
    before = np.array([100.0 * k for k in range(10)] + [0.0] * 10)
    assert done_before(np.array([p.row for p in pieces]), np.full(20, 100.0)).tolist() == before.tolist()
    length = 5 + 100.0 + 0.01 * 100 * (before + 50)
    assert length_law(pieces, long_steps(20, length, np.ones(20)))[1] == pytest.approx(0, abs=1e-12)


def test_a_prompt_attends_to_its_cached_tokens_too_and_decodes_read_their_context() -> None:
    """Equal chunks of new tokens on 0 to 100,000 cached ones, beside streams of any context."""
    cached, reads = np.linspace(0, 1e5, 12), np.array([5e4, 0.0, 1e5] * 4)
    pieces = [Piece(k, k, 500.0) for k in range(12)]
    decoding = np.array([1.0, 2.0] * 6)
    length = 6e6 + 36e3 * 500 + 0.5 * 500 * (cached + 250) + 7e4 * decoding + 40 * reads
    steps = long_steps(12, length, decoding)
    known = replace(steps, cached=cached.astype(np.float32), reads=reads)
    assert length_law(pieces, known)[1] < 1e-9 * length_law(pieces, steps)[1]


def test_steps_in_which_no_stream_decodes_are_no_evidence() -> None:
    """How long a prompt waited, and for how many iterations, cannot be seen in them."""
    pieces = [Piece(k, k, float(10 * k % 70)) for k in range(12)]
    tokens = np.array([piece.tokens for piece in pieces])
    decoding = np.array([1.0, 2.0, 3.0, 0.0] * 3)
    length = 5 + 2 * tokens + decoding
    length[3::4] += [1000, 0, 5000]
    assert length_law(pieces, long_steps(12, length, decoding))[1] == pytest.approx(0, abs=1e-9)
    assert length_law(pieces, long_steps(12, length, decoding * 0))[1] == 0


def test_the_law_prices_each_piece_after_those_before_it() -> None:
    law = LengthLaw(base_ns=7.0, token_ns=2.0, pair_ns=0.5, stream_ns=1.0, read_ns=0.0)
    steps = replace(long_steps(2, np.ones(2), np.ones(2)), cached=np.array([0, 20], np.float32))
    assert law.work_ns([Piece(0, 0, 10.0), Piece(0, 1, 4.0), Piece(1, 1, 2.0)], steps).tolist() == [45.0, 32.0, 25.0]
    assert law.work_ns([], steps).tolist() == []
