"""Reads of experts: concave in the tokens of a step, and divided by Shapley values."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.cost_model import Coefficients, cost_shares, foreign_features
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.attribution.expert_reads import ExpertReads, member_computed, member_reads, step_computed, step_reads
from loadgen.units import NS_PER_S
from support.attribution_runs import prices, two_steps

experts = st.builds(ExpertReads, st.floats(0.01, 0.9), st.floats(0, 2), st.none() | st.floats(1, 4000))
prompts = st.lists(st.integers(1, 3000), max_size=3)
NOBODY = np.zeros(1)


def one_step(decodes: int, prompts: list[int]) -> EngineSteps:
    """One step of so many streams that decode a token each, and of prefills."""
    size = decodes + len(prompts)
    return EngineSteps(
        start_ns=np.array([0]), end_ns=np.array([NS_PER_S]), iterations=np.ones(1), step=np.zeros(size, np.int32),
        request=np.arange(size, dtype=np.int32), prefilling=np.arange(size) >= decodes,
        prefill=np.array([0] * decodes + prompts, np.float32),
        decode=np.array([1] * decodes + [0] * len(prompts), np.float32),
        context=np.zeros(size, np.float32), unseen_ns=np.zeros((0, 2), np.int64),
    )  # fmt: skip


def test_tokens_that_choose_1_of_4_read_7_of_16_together() -> None:
    assert ExpertReads(0.25, 0.0).share(np.array([0.0, 1, 2, 1000])) == pytest.approx([0, 1 / 4, 7 / 16, 1])


@given(experts)
def test_reads_grow_with_tokens_but_less_and_less(experts: ExpertReads) -> None:
    share = experts.share(np.arange(300.0))
    assert (np.diff(share) >= 0).all()
    assert (np.diff(share, 2) <= 1e-12).all()
    assert share[-1] <= 1 + 1e-12


def test_experts_of_unequal_popularity_are_read_less() -> None:
    even, skewed = (ExpertReads(0.06, spread).share(np.array([1.0, 16])) for spread in (0.0, 1.0))
    assert skewed[0] == pytest.approx(even[0], rel=0.01), "one token reads as many"
    assert skewed[1] < 0.95 * even[1]


@given(experts, st.integers(0, 40), prompts)
def test_the_parts_of_a_step_sum_to_its_reads_and_to_its_tokens(
    experts: ExpertReads, decodes: int, prompts: list[int]
) -> None:
    step = one_step(decodes, prompts)
    reads = step_reads(step, experts, NOBODY)
    assert member_reads(step, experts, NOBODY).sum() == pytest.approx(reads[0])
    assert member_computed(step, experts, NOBODY).sum() == pytest.approx(step_computed(step, experts, NOBODY)[0])
    assert (member_reads(step, experts, NOBODY) >= 0).all()


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("decodes", "prompts"), [(4, []), (3, [1]), (2, [5, 60]), (0, [7, 7, 2000]), (5, [300])])
def test_parts_are_the_shapley_values_of_the_reads(spread: float, decodes: int, prompts: list[int]) -> None:
    experts = ExpertReads(1 / 16, spread)
    tokens = [1.0] * decodes + [float(prompt) for prompt in prompts]
    parts, orders = np.zeros(len(tokens)), list(permutations(range(len(tokens))))
    for order in orders:
        before = np.concatenate(([0.0], np.cumsum([tokens[i] for i in order])))
        parts[list(order)] += np.diff(experts.share(before)) / len(orders)
    assert member_reads(one_step(decodes, prompts), experts, NOBODY) == pytest.approx(parts, rel=2e-3)


@given(experts, st.integers(2, 40), prompts)
def test_members_with_the_same_work_read_the_same(experts: ExpertReads, decodes: int, prompts: list[int]) -> None:
    parts = member_reads(one_step(decodes, prompts + prompts), experts, NOBODY)
    assert np.ptp(parts[:decodes]) == 0
    assert parts[decodes : decodes + len(prompts)] == pytest.approx(parts[decodes + len(prompts) :])


def test_experts_that_nobody_else_touches_are_paid_by_their_user() -> None:
    """Of ten thousand experts each token chooses one: no two choose alike, and a prompt pays for all of its own."""
    rare = ExpertReads(1e-4, 0.0)
    assert member_reads(one_step(3, [20]), rare, NOBODY) == pytest.approx([1e-4, 1e-4, 1e-4, 20e-4], rel=5e-3)


def test_a_dense_model_is_a_mixture_whose_tokens_choose_all_experts() -> None:
    """All is read in each step, and each member pays an equal part of it, as of the fixed part of a step."""
    mixture = Coefficients(
        step_j=4.0, prefill_token_j=0.5, prefill_context_j=0.01, decode_token_j=3.0, decode_context_j=0.02,
        expert_j=3.0, computed_token_j=0.0, idle_w=None, expert_chosen_share=1.0, expert_spread=0.0,
    )  # fmt: skip
    steps = two_steps()
    shares = cost_shares(replace(steps, experts=mixture.experts), mixture)
    assert shares == pytest.approx(cost_shares(steps, prices(7.0, 0.5, 0.01, 3.0, 0.02)), rel=1e-3)


def test_tokens_are_computed_while_experts_are_read_and_after() -> None:
    """An eighth of the experts is read: 50 of 400 hidden tokens hide behind that."""
    experts = ExpertReads(1 / 8, 0.0, hidden_tokens=400.0)
    assert experts.computed(np.array([40.0, 60]), np.array([1 / 8, 1 / 8])) == pytest.approx([0, 10])
    assert ExpertReads(1 / 8, 0.0).computed(np.array([1e6]), np.ones(1)).tolist() == [0]


def test_other_clients_read_what_is_left_of_a_step_and_their_own_steps() -> None:
    """Two foreign streams in each of our steps, and three steps of theirs alone."""
    foreign = ForeignLoad(
        edges_ns=np.array([0, 4 * NS_PER_S]), members=np.array([2.0]), steps=np.array([3.0]), prefill=np.zeros(1),
        decode=np.zeros(1), context=0.0,
    )  # fmt: skip
    experts = ExpertReads(0.1, 0.5, hidden_tokens=2.0)
    steps = replace(two_steps(foreign), experts=experts)
    members = np.array([2.0, 2.0])
    alone = 3 * experts.share(np.array([2.0]))[0]
    theirs = foreign_features(steps, np.array([0, 4 * NS_PER_S]))[0, 5:]
    whole = step_reads(steps, experts, members), step_computed(steps, experts, members)
    ours = member_reads(steps, experts, members), member_computed(steps, experts, members)
    assert theirs[0] == pytest.approx(whole[0].sum() - ours[0].sum() + alone)
    assert theirs[1] == pytest.approx(whole[1].sum() - ours[1].sum())
    assert min(theirs) > 0
