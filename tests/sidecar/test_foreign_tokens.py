"""Other clients' tokens: what the engine counted beyond the spans, less a tolerance of two intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.sidecar.foreign_tokens import RECENT, TokenBalance, foreign_shares, generated_tokens


def test_the_excess_over_two_intervals_is_foreign() -> None:
    shares, balance = foreign_shares([100.0] * 4, [0.0] * 4, TokenBalance())
    assert shares == [0.0, 0.0, 1.0, 1.0]
    assert (balance.carried, balance.foreign) == (200.0, 200.0)


def test_half_the_tokens_are_foreign_by_half() -> None:
    shares, balance = foreign_shares([100.0] * 6, [50.0] * 6, TokenBalance())
    assert shares == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]
    assert balance.foreign == 100.0


def test_spans_ahead_of_the_engine_are_credited_up_to_two_intervals() -> None:
    _, balance = foreign_shares([100.0] * 3, [400.0] * 3, TokenBalance())
    assert (balance.carried, balance.foreign) == (-200.0, 0.0)
    shares, _ = foreign_shares([100.0] * 5, [0.0] * 5, balance)
    assert shares == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_no_interval_is_more_foreign_than_the_engine_worked_in_it() -> None:
    shares, balance = foreign_shares([10.0], [0.0], TokenBalance(carried=1000.0))
    assert shares == [1.0]
    assert (balance.carried, balance.foreign) == (1000.0, 10.0)


def test_an_engine_that_made_nothing_has_no_foreign_share() -> None:
    assert foreign_shares([0.0], [0.0], TokenBalance(carried=50.0))[0] == [0.0]
    assert foreign_shares([1.0], [0.0], TokenBalance(carried=50.0))[0] == [1.0]


def test_the_largest_interval_is_remembered_for_so_many_and_no_more() -> None:
    _, balance = foreign_shares([500.0, *[1.0] * (RECENT - 1)], [0.0] * RECENT, TokenBalance())
    assert len(balance.recent) == RECENT and max(balance.recent) == 500.0
    assert balance.foreign == 0.0
    _, balance = foreign_shares([1.0], [0.0], balance)
    assert max(balance.recent) == 1.0
    assert balance.foreign == 1.0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=40), st.integers(1, 39))
def test_the_estimate_does_not_depend_on_where_commits_cut_it(rows: list[tuple[int, int]], cut: int) -> None:
    engine, ours = [float(a) for a, _ in rows], [float(b) for _, b in rows]
    shares, balance = foreign_shares(engine, ours, TokenBalance())
    head, between = foreign_shares(engine[:cut], ours[:cut], TokenBalance())
    tail, end = foreign_shares(engine[cut:], ours[cut:], between)
    assert (head + tail, end) == (shares, balance)
    assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.mark.parametrize(("earlier", "later", "tokens"), [(5, 9, 4), (5, 5, 0), (5, 3, 3), (5, 0, 0)])
def test_a_count_that_went_down_began_again_at_zero(earlier: float, later: float, tokens: float) -> None:
    samples = [{"t_ns": t, "generation_tokens": value} for t, value in enumerate((earlier, later))]
    assert generated_tokens(*samples) == tokens


def test_an_engine_without_a_count_made_nothing() -> None:
    assert generated_tokens({"t_ns": 0}, {"t_ns": 1}) == 0.0
