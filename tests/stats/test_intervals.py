"""Intervals and reductions of repeats, against tables and by their laws."""

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.intervals import combined_error, half_width, interval, paired_reduction, pareto, reduction, t95

POSITIVE = st.floats(1e-3, 1e6)
REPEATS = st.lists(POSITIVE, min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (30, 2.042), (120, 1.980)]
)
def test_students_t_is_the_one_in_the_tables(freedom: int, quantile: float) -> None:
    assert t95(freedom) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1.5, 6.017), (2.5, 3.575), (4.5, 2.659), (9.5, 2.244), (10.5, 2.214)]
)
def test_students_t_of_degrees_of_freedom_that_are_not_whole_is_within_3_percent(
    freedom: float, quantile: float
) -> None:
    assert t95(freedom) == pytest.approx(quantile, rel=0.03)
    assert t95(int(freedom) + 1) < t95(freedom) < t95(int(freedom))


@given(POSITIVE, st.floats(1, 20), POSITIVE, st.floats(1, 20))
def test_a_combined_error_has_the_freedom_of_the_larger_one_and_at_most_of_both(
    a: float, freedom_a: float, b: float, freedom_b: float
) -> None:
    error, freedom = combined_error(a, freedom_a, b, freedom_b)
    assert error == pytest.approx((a**2 + b**2) ** 0.5)
    assert min(freedom_a, freedom_b) * (1 - 1e-9) <= freedom <= (freedom_a + freedom_b) * (1 + 1e-9)
    assert combined_error(a, freedom_a, 0.0, freedom_b) == pytest.approx((a, freedom_a))


def test_the_interval_of_three_repeats_by_hand() -> None:
    found = interval([9.0, 10.0, 11.0])  # s = 1, t(2) = 4.303, sqrt(3) = 1.732
    assert found.mean == 10
    assert found.high == pytest.approx(10 + 4.303 / 3**0.5)
    assert found.low == pytest.approx(10 - 4.303 / 3**0.5)


def test_one_repeat_has_no_interval() -> None:
    found = interval([5.0])
    assert (found.mean, found.low, found.high, found.count) == (5.0, None, None, 1)


@pytest.mark.parametrize(
    ("values", "lowest", "highest", "is_known"),
    [
        ([3.0, 3.8], 0.0, float("inf"), False),
        ([3.3, 3.4], 0.0, float("inf"), True),
        ([0.9, 0.95, 1.0], 0.0, 1.0, False),
        ([1.0, 1.0], 0.0, 1.0, True),
        ([0.0, 0.0], 0.0, 1.0, True),
    ],
)
def test_an_interval_that_leaves_the_range_of_its_quantity_is_unknown(
    values: list[float], lowest: float, highest: float, is_known: bool
) -> None:
    found = interval(values, lowest, highest)
    assert (found.low is not None, found.high is not None, found.count) == (is_known, is_known, len(values))


def test_a_quarter_of_the_energy_is_three_quarters_less() -> None:
    found = reduction([4.0, 4.0], [1.0, 1.0])
    assert isclose(found.mean, 0.75)
    assert found.low == pytest.approx(0.75) and found.high == pytest.approx(0.75)


def test_welch_by_hand() -> None:
    """log b = 0 ± 0.1, log x = -1 ± 0.1: u = v = 0.01, 2 degrees, half = 4.303 sqrt(0.02)."""
    from math import exp

    found = reduction([exp(-0.1), exp(0.1)], [exp(-1.1), exp(-0.9)])
    half = 4.303 * 0.02**0.5
    assert found.mean == pytest.approx(1 - exp(-1))
    assert found.low == pytest.approx(1 - exp(-1 + half))
    assert found.high == pytest.approx(1 - exp(-1 - half))


@given(REPEATS, REPEATS, POSITIVE)
def test_a_reduction_has_no_unit_and_lies_in_its_interval(b: list[float], x: list[float], factor: float) -> None:
    found, scaled = reduction(b, x), reduction([v * factor for v in b], [v * factor for v in x])
    assert isclose(found.mean, scaled.mean, rel_tol=1e-6, abs_tol=1e-6)
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean + 1e-9 and found.mean <= found.high + 1e-9
    assert found.high <= 1


def test_what_two_servers_share_in_a_repeat_is_no_noise_of_their_ratio() -> None:
    """Arrivals that make both dearer by ten leave the saving as it was: pairs see that, Welch cannot."""
    base, saved = [1.0, 10.0, 100.0], [0.5, 5.0, 50.0]
    pairs, welch = paired_reduction(base, saved), reduction(base, saved)
    assert pairs.mean == pytest.approx(0.5) and welch.mean == pytest.approx(0.5)
    assert pairs.low == pytest.approx(0.5) and pairs.high == pytest.approx(0.5)
    assert welch.low is not None and welch.low < 0


@given(st.lists(st.tuples(POSITIVE, POSITIVE), max_size=30))
def test_the_front_is_exactly_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    front = {points[i] for i in pareto(points)}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert front == set(points) - beaten


def test_the_half_width_is_that_of_the_interval_over_the_mean() -> None:
    values = [9.0, 10.0, 12.0]
    span = interval(values)
    assert span.high is not None
    assert half_width(values) == pytest.approx((span.high - span.mean) / span.mean)
    assert half_width([5.0]) == float("inf")


def test_of_equal_points_and_of_ties_in_one_coordinate_one_is_on_the_front() -> None:
    assert pareto([(1.0, 2.0), (1.0, 2.0)]) == [0]
    assert pareto([(1.0, 3.0), (1.0, 2.0)]) == [1]
    assert pareto([(1.0, 2.0), (3.0, 2.0)]) == [0]
    assert pareto([(2.0, 1.0), (1.0, 2.0)]) == [1, 0]
