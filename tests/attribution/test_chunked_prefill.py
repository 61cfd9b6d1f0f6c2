"""Prompts are computed first come, first served, in the room beside the decodes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.chunked_prefill import (
    PRIOR,
    Candidate,
    ChunkedPrefillPrior,
    candidates,
    choose_candidate,
    cut_prefills,
    fill_steps,
    late_begins,
    overflow,
    with_unseen_steps,
)
from loadgen.attribution.engine_steps import Members
from loadgen.attribution.step_lengths import LengthLaw, Piece, PrefillQueue
from loadgen.units import NS_PER_MS
from support.attribution_runs import request


def queue(prompts: list[tuple[int, int, float]], decoding: list[float]) -> PrefillQueue:
    """Prompts as (sent, step of the first chunk, tokens); step k runs from 10 k to 10 (k + 1)."""
    steps = len(decoding)
    return PrefillQueue(
        row=np.arange(len(prompts)),
        sent_ns=np.array([sent for sent, _, _ in prompts], dtype=np.int64),
        last_step=np.array([last for _, last, _ in prompts], dtype=np.int32),
        tokens=np.array([tokens for _, _, tokens in prompts], dtype=np.float32),
        cached=np.zeros(len(prompts), np.float32),
        start_ns=10 * np.arange(steps, dtype=np.int64),
        length=np.full(steps, 10.0),
        decoding=np.array(decoding),
        reads=np.zeros(steps),
    )


@pytest.mark.parametrize(
    ("prompts", "decoding", "pieces"),
    [
        ([(0, 0, 80)], [0, 0], [(0, 0, 80)]),
        ([(0, 1, 150)], [0, 0], [(0, 0, 100), (0, 1, 50)]),
        ([(0, 1, 150)], [40, 0], [(0, 0, 60), (0, 1, 90)]),
        ([(0, 0, 60), (0, 1, 90)], [0, 0], [(0, 0, 60), (1, 0, 40), (1, 1, 50)]),
        ([(0, 1, 80)], [0, 0], [(0, 1, 80)]),  # it fits in the step of its chunk: it began there
        ([(0, 0, 130)], [0, 0], [(0, 0, 130)]),  # no room, and no earlier step: it is computed there anyway
        ([(0, 2, 150)], [40, 100, 0], [(0, 0, 60), (0, 2, 90)]),  # nothing of it in a step without room
        ([(0, 2, 50)], [90, 90, 0], [(0, 0, 10), (0, 1, 10), (0, 2, 30)]),  # from the first step on that it fits
        ([(0, 5, 105)], [0, 0, 0, 90, 90, 0], [(0, 3, 10), (0, 4, 10), (0, 5, 85)]),  # three steps late
        ([(0, 6, 105)], [0, 0, 0, 0, 90, 90, 0], [(0, 5, 10), (0, 6, 95)]),  # it waited: as late as it fits
        ([(0, 2, 80)], [0, 100, 50], [(0, 0, 80), (0, 2, 0)]),  # room before the last step only
        ([(0, 1, 100)], [0, 0], [(0, 1, 100)]),  # it fits exactly
        ([(0, 9, 100)], [0] * 10, [(0, 9, 100)]),
        ([(0, 9, 180)], [0] * 10, [(0, 8, 100), (0, 9, 80)]),
    ],
)
def test_steps_are_filled_up_in_order_of_arrival(
    prompts: list[tuple[int, int, float]], decoding: list[float], pieces: list[tuple[int, int, float]]
) -> None:
    assert fill_steps(queue(prompts, decoding), Candidate(100, 0)) == [Piece(*piece) for piece in pieces]


@pytest.mark.parametrize(("sent", "pieces"), [(2, [(1, 0, 70), (1, 1, 80)]), (8, [(1, 1, 150)])])
def test_the_last_iteration_of_a_prompt_alone_has_room_for_the_next_that_came_before_it(
    sent: int, pieces: list[tuple[int, int, float]]
) -> None:
    """130 tokens alone are two iterations of 100, and the second one begins about where half of the step is over."""
    prompts = queue([(0, 0, 130), (sent, 1, 150)], [0, 0])
    expected = [Piece(0, 0, 130), *(Piece(*piece) for piece in pieces)]
    assert fill_steps(prompts, Candidate(100, 0)) == expected


def test_a_delay_moves_the_first_step_that_a_prompt_can_be_in() -> None:
    late = queue([(0, 2, 150)], [0, 0, 0])
    assert fill_steps(late, Candidate(100, 0)) == fill_steps(late, Candidate(100, 10))
    assert fill_steps(late, Candidate(100, 20)) == [Piece(0, 2, 150)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 500)), min_size=1, max_size=12),
    st.sampled_from([16, 64, 512]),
)
def test_pieces_sum_to_the_prompts_and_end_in_the_step_of_the_first_chunk(
    prompts: list[tuple[int, int, int]], budget: int
) -> None:
    arrivals = queue([(sent, last, float(tokens)) for sent, last, tokens in prompts], [3.0] * 10)
    pieces = fill_steps(arrivals, Candidate(budget, 0))
    for row, (_, last, tokens) in enumerate(prompts):
        own = [piece for piece in pieces if piece.row == row]
        assert sum(piece.tokens for piece in own) == tokens
        assert own[-1].step == last and all(piece.tokens >= 0 for piece in own)


LAW = LengthLaw(base_ns=5.0, token_ns=1.0, pair_ns=0.0, stream_ns=0.1, read_ns=0.0)


@pytest.mark.parametrize(
    ("first_ns", "pieces"),
    [
        (5 + 0.1 * 40 + 60, [(0, 0, 60), (1, 6, 70)]),  # what the first step took is its own prompt's
        (5 + 0.1 * 40 + 60 + 60, [(0, 0, 60), (1, 0, 60), (1, 6, 10)]),  # the second one began in it
    ],
)
def test_a_prompt_that_waited_for_a_place_began_where_the_lengths_of_steps_show_it(
    first_ns: float, pieces: list[tuple[int, int, float]]
) -> None:
    """Both steps have room for it. The steps between are full."""
    waited = queue([(0, 0, 60), (0, 6, 70)], [40, *[160.0] * 5, 40])
    length = np.array([first_ns, *[21.0] * 5, 5 + 4 + 190 - first_ns + 4])
    placed = fill_steps(replace(waited, length=length), Candidate(160, 0), late_steps=-1, law=LAW)
    assert placed == [Piece(*piece) for piece in pieces]


@pytest.mark.parametrize(
    ("room", "tokens", "begins"),
    [
        ([100, 100, 100], 80, [2]),
        ([100, 50, 100], 80, [2, 1]),
        ([30, 40, 100], 80, [2, 1, 0]),
        ([30, 0, 100], 80, [2, 0]),
        ([100, 100, 100], 150, [1]),
        ([10, 10, 10], 150, [0]),  # it fits nowhere
    ],
)
def test_a_prompt_can_begin_where_it_is_done_in_its_last_step(
    room: list[float], tokens: float, begins: list[int]
) -> None:
    assert late_begins(room, 0, 2, tokens) == begins


@pytest.mark.parametrize("law", [None, LAW])
def test_prompts_behind_a_long_one_are_in_its_last_step_only(law: LengthLaw | None) -> None:
    """230 tokens and 40 behind them, 100 at a time; nobody decodes. A stream decodes in the steps around them."""
    alone = queue([(0, 1, 230), (1, 1, 40), (2, 2, 130)], [1, 0, 1])
    long = replace(alone, start_ns=np.array([0, 10, 295]), length=np.array([10.0, 285.0, 10.0]))
    pieces = [Piece(0, 1, 230.0), Piece(1, 1, 40.0), Piece(2, 2, 130.0)]
    further, cut, lost = with_unseen_steps(long, pieces, [Piece(2, 1, 30.0)], 100, law)
    assert further.before.tolist() == [1, 1]
    assert further.end_ns.tolist() == ([115, 220] if law else [10 + 285 * 100 // 270, 10 + 285 * 200 // 270])
    assert cut == [Piece(0, 1, 100), Piece(0, 2, 100), Piece(0, 3, 30), Piece(1, 3, 40), Piece(2, 4, 130)]
    assert lost == [Piece(2, 3, 30)]


def test_overflow_is_the_share_of_tokens_beyond_the_room() -> None:
    pieces = [Piece(0, 0, 120.0), Piece(1, 1, 80.0)]
    assert overflow(pieces, np.array([100.0, 100.0])) == pytest.approx(0.1)
    assert overflow(pieces, np.array([120.0, 80.0])) == 0
    assert overflow(pieces, np.array([-5.0, 80.0])) == pytest.approx(0.6)


def test_a_prompt_of_many_chunks_that_left_no_trace_does_not_refute_a_budget() -> None:
    """Twelve of thirteen steps of a prompt that nobody decodes beside have no chunk: all of it is in the last one."""
    arrivals = cut_in_two([160, 164, 172, 176])
    alone = queue([(20 * i, 2 * i + 1, 160.0 + 4 * i) for i in range(4)] + [(85, 9, 1300.0)], [10.0] * 8 + [0.0, 0.0])
    lengths = np.append(arrivals.length, [0.0, 1300.0])
    prior = ChunkedPrefillPrior(budgets=(1000, 100), delays_ns=(0,), min_prompts=4)
    assert choose_candidate(replace(alone, length=lengths), prior) == Candidate(100, 0)


def test_few_prompts_try_no_candidate() -> None:
    assert not list(candidates(PRIOR.min_prompts - 1))
    assert len(list(candidates(PRIOR.min_prompts))) == len(PRIOR.budgets) * len(PRIOR.delays_ns)
    assert [delay_ns / NS_PER_MS for _, delay_ns in candidates(PRIOR.min_prompts)][:5] == [0, 1, 2, 4, 0]


def cut_in_two(prompts: list[int]) -> PrefillQueue:
    """Two steps for each prompt, beside ten decodes: lengths as if 90 tokens of it were computed in the first one."""
    arrivals = queue([(20 * i, 2 * i + 1, tokens) for i, tokens in enumerate(prompts)], [10.0] * 2 * len(prompts))
    lengths = [5.0 + tokens for prompt in prompts for tokens in (90, prompt - 90)]
    return replace(arrivals, length=np.array(lengths))


@pytest.mark.parametrize(
    ("prompts", "max_overflow", "budget"),
    [
        ([160, 164, 172, 176], 0.05, 100),
        ([184, 188, 196, 200], 0.05, 1000),  # 48 of 768 tokens are above the 90 that there is room for
        ([184, 188, 196, 200], 48 / 768, 1000),
        ([184, 188, 196, 200], 49 / 768, 100),
    ],
)
def test_the_budget_is_the_one_that_explains_the_lengths_unless_the_tokens_refute_it(
    prompts: list[int], max_overflow: float, budget: int
) -> None:
    prior = ChunkedPrefillPrior(budgets=(1000, 100), delays_ns=(0,), min_prompts=4, max_overflow=max_overflow)
    assert choose_candidate(cut_in_two(prompts), prior) == Candidate(budget, 0)


def test_of_two_budgets_that_explain_as_much_the_larger_stands() -> None:
    prior = ChunkedPrefillPrior(budgets=(1000, 500), delays_ns=(0, 1), min_prompts=4, improvement=1.0)
    assert choose_candidate(cut_in_two([160, 164, 172, 177]), prior) == Candidate(1000, 0)


@pytest.mark.parametrize(("prompt", "iterations"), [(PRIOR.budgets[0] - 1, 1), (PRIOR.budgets[0], 2)])
def test_a_step_with_more_tokens_than_the_budget_took_several_iterations(prompt: int, iterations: int) -> None:
    """The prompt is sent after the step before began, and shares its own with a decode."""
    steps = engine_steps_of([request(0, 0, [10, 20, 30]), request(1, 15, [20], prompt=prompt)])
    assert steps.iterations.tolist() == [1, iterations, 1]


@pytest.mark.parametrize("budget", [8192, 2048, 512])
def test_no_prompt_token_is_made_or_lost(budget: int) -> None:
    """400 prompts at once, each computed under a budget that the tokens of its step give away, or refute."""
    rng = np.random.default_rng(budget)
    prompts = rng.integers(50, 3000, 400)
    ends = np.ceil(np.cumsum(prompts) / budget)
    waves = [
        request(i, 0, [200 * e + 7 * k for k in range(30)], prompt=int(p))
        for i, (e, p) in enumerate(zip(ends, prompts, strict=True))
    ]
    work = engine_steps_of(waves)
    assert work.prefill.sum() == pytest.approx(prompts.sum())
    assert work.prefill.min() >= 0


def test_prompts_that_exceed_the_budget_are_spread_over_the_steps_they_took() -> None:
    """Pairs of prompts that come together; an engine that computes 8,192 tokens a step, in 6 ms and 36 us a token. The
    second prompt fills up the first one's step and ends in the next: only that budget explains the steps' lengths."""
    rng = np.random.default_rng(0)
    records, overhang = [], []
    for pair in range(30):
        at, first, second = pair * 1000.0, int(rng.integers(5000, 8000)), int(rng.integers(3500, 8000))
        rest = first + second - 8192
        one = at + 6 + 0.036 * 8192
        two = one + 6 + 0.036 * rest
        records.append(request(2 * pair, at, [one, two, two + 6], prompt=first))
        records.append(request(2 * pair + 1, at, [two, two + 6], prompt=second))
        overhang.append(rest)
    work = engine_steps_of(records)
    for pair, rest in enumerate(overhang):
        rows = work.prefilling & (work.request == 2 * pair + 1)
        order = np.argsort(work.step[rows])
        prompt = records[2 * pair + 1].input_tokens or 0
        assert work.prefill[rows][order].tolist() == [prompt - rest, rest]
        assert work.context[rows][order].tolist() == [(prompt - rest) / 2, prompt - rest / 2]
    assert work.prefill.sum() == sum(record.input_tokens or 0 for record in records)


def test_a_prefill_is_cut_with_the_context_of_each_piece() -> None:
    """90 tokens after 10 cached ones: 60 in step 0, 30 in step 1. The second request is computed in one step."""
    members = Members(
        step=np.array([1, 2, 1], np.int32),
        request=np.array([0, 0, 1], np.int32),
        prefilling=np.array([True, False, True]),
        prefill=np.array([90, 0, 40], np.float32),
        decode=np.array([0, 1, 0], np.float32),
        context=np.array([55, 100, 20], np.float32),
    )
    pieces = [Piece(0, 0, 60.0), Piece(0, 1, 30.0), Piece(2, 1, 40.0)]
    cut = cut_prefills(members, pieces, np.array([10, 0], np.float32))
    assert cut.step.tolist() == [1, 2, 1, 0]
    assert cut.request.tolist() == [0, 0, 1, 0]
    assert cut.prefilling.tolist() == [True, False, True, True]
    assert cut.prefill.tolist() == [30, 0, 40, 60]
    assert cut.decode.tolist() == [0, 1, 0, 0]
    assert cut.context.tolist() == [10 + 60 + 15, 100, 20, 10 + 30]
    assert members.prefill.tolist() == [90, 0, 40]
