"""Features and cost shares of a few steps, computed by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.attribution.cost_model import (
    Coefficients,
    cost_shares,
    foreign_features,
    member_features,
    overlap,
)
from loadgen.attribution.engine_steps import ForeignLoad
from loadgen.units import NS_PER_S
from support.attribution_runs import prices, two_steps


def test_features_by_hand() -> None:
    assert member_features(two_steps()).tolist() == [
        [2.0, 40, 1200, 0, 0],
        [0.5, 0, 0, 1, 50],
        [0.5, 20, 200, 0, 0],
    ]


def test_cost_shares_by_hand() -> None:
    shares = cost_shares(two_steps(), prices(4.0, 0.5, 0.01, 3.0, 0.02))
    assert shares.tolist() == pytest.approx([8 + 20 + 12, 2 + 3 + 1, 2 + 10 + 2])


@pytest.mark.parametrize("coefficients", [None, prices(0, 0, 0, 0, 0)])
def test_without_prices_a_step_costs_its_duration_in_equal_parts(coefficients: Coefficients | None) -> None:
    assert cost_shares(two_steps(), coefficients, fallback_w=10.0).tolist() == [20, 5, 5]
    assert cost_shares(two_steps(), coefficients).tolist() == [2, 0.5, 0.5]


def test_a_step_that_the_prices_make_free_costs_its_duration_beside_others_that_they_do_not() -> None:
    """Input tokens alone have a price: a step that only decodes has none, and what is measured in it is not idle."""
    decoding_beside_a_prefill = cost_shares(two_steps(), prices(0, 0.5, 0, 0, 0), fallback_w=10.0)
    assert decoding_beside_a_prefill.tolist() == [20, 0, 10]
    only_the_first_is_priced = cost_shares(two_steps(), prices(0, 0, 0.01, 0, 0), fallback_w=10.0)
    assert only_the_first_is_priced.tolist() == [12, 0, 2]
    only_decoding_is_priced = cost_shares(two_steps(), prices(0, 0, 0, 3, 0), fallback_w=10.0)
    assert only_decoding_is_priced.tolist() == [20, 3, 0]


def test_other_clients_streams_share_a_step_and_owe_their_part() -> None:
    """Two foreign streams in the second step: each of its four members brings a quarter of it."""
    foreign = ForeignLoad(
        edges_ns=np.array([NS_PER_S + 1, 3 * NS_PER_S]),
        members=np.array([2.0]),
        steps=np.array([0.0]),
        prefill=np.array([0.0]),
        decode=np.array([6.0]),
        context=50.0,
    )
    steps = two_steps(foreign)
    assert member_features(steps)[:, 0].tolist() == [2.0, 0.25, 0.25]
    features = foreign_features(steps, np.array([0, NS_PER_S + 1, 3 * NS_PER_S]))
    assert features.sum(axis=0).tolist() == pytest.approx([0.5, 0, 0, 6, 300])
    assert features[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("start", "end", "pieces"), [
    (0, 10, [(0, 1.0)]),
    (5, 15, [(0, 0.5), (1, 0.5)]),
    (-10, 10, [(0, 0.5)]),
    (15, 25, [(1, 0.5)]),
    (10, 10, [(1, 1.0)]),
    (20, 20, []),
    (-5, 25, [(0, 1 / 3), (1, 1 / 3)]),
])  # fmt: skip
def test_intervals_are_cut_at_window_edges(start: int, end: int, pieces: list[tuple[int, float]]) -> None:
    _, window, share = overlap(np.array([0, 10, 20]), np.array([start]), np.array([end]))
    assert list(zip(window.tolist(), share.tolist(), strict=True)) == [(w, pytest.approx(s)) for w, s in pieces]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(-20, 300), st.integers(0, 80)), max_size=10),
)
def test_overlap_is_the_length_in_common(lengths: list[int], spans: list[tuple[int, int]]) -> None:
    edges = np.concatenate(([0], np.cumsum(lengths)))
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    ends = starts + np.array([length for _, length in spans], dtype=np.int64)
    interval, _, share = overlap(edges, starts, ends)
    for i, (start, length) in enumerate(spans):
        if length:
            common = max(0, min(start + length, int(edges[-1])) - max(start, 0))
            assert share[interval == i].sum() * length == pytest.approx(common)
    assert ((share >= 0) & (share <= 1)).all()
