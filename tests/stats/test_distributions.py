"""Statistics of samples: exact values by hand, and agreement with numpy and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.stats.distributions import (
    RANKS,
    Counts,
    count_values,
    curve_of_counts,
    curve_of_sample,
    gamma_cdf,
    index_of_dispersion,
    ks_distance,
    ks_exponential,
    ks_to_law,
    spearman,
)

SAMPLES = st.lists(st.integers(1, 30), min_size=1, max_size=50)


@settings(deadline=None)
@given(SAMPLES)
def test_counted_values_have_the_mean_spread_and_percentiles_of_the_sample(sample: list[int]) -> None:
    counts = count_values(sample)
    assert np.repeat(counts.values, counts.counts).tolist() == sorted(sample)
    assert counts.mean == pytest.approx(np.mean(sample))
    assert counts.std == pytest.approx(np.std(sample))
    for percent in (0, 10, 50, 99, 100):
        assert counts.percentile(percent) == pytest.approx(np.percentile(sample, percent))


def test_a_percentile_of_counts_by_hand() -> None:
    counts = Counts(np.array([1.0, 5.0, 9.0]), np.array([1, 2, 1]))  # 1 5 5 9
    assert [counts.percentile(p) for p in (0, 50, 100)] == [1, 5, 9]
    assert counts.percentile(25) == 4  # rank 0.75: three quarters of the way from 1 to 5


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [([1, 2, 3], [1, 2, 3], 0.0), ([1, 2], [3, 4], 1.0), ([1, 1, 2, 3], [1, 2, 2, 3], 0.25), ([5], [5, 6], 0.5)],
)
def test_ks_distance_by_hand(a: list[int], b: list[int], distance: float) -> None:
    assert ks_distance(count_values(a), count_values(b)) == pytest.approx(distance)


@pytest.mark.parametrize(("tolerance", "distance"), [(0.0, 0.75), (0.05, 0.75), (0.2, 0.25), (2.0, 0.0)])
def test_values_within_the_tolerance_are_the_same(tolerance: float, distance: float) -> None:
    a, b = count_values([1.0, 1.0, 1.0, 2.0]), count_values([1.1, 1.1, 1.1, 3.5])
    assert ks_distance(a, b, tolerance) == ks_distance(b, a, tolerance) == pytest.approx(distance)


@settings(deadline=None)
@given(SAMPLES, SAMPLES)
def test_ks_distance_is_symmetric_and_that_of_brute_force(a: list[int], b: list[int]) -> None:
    brute = max(abs(np.mean(np.array(a) <= v) - np.mean(np.array(b) <= v)) for v in {*a, *b})
    assert ks_distance(count_values(a), count_values(b)) == pytest.approx(brute)
    assert ks_distance(count_values(a), count_values(b)) == ks_distance(count_values(b), count_values(a))


@pytest.mark.parametrize(
    ("cdf", "distance"),
    [
        ([0.5], 0.5),
        ([0.25], 0.75),  # above the law: 1 - 0.25
        ([0.75], 0.75),  # below the law: 0.75 - 0
        ([0.25, 0.75], 0.25),
        ([0.9, 0.95], 0.9),
        ([0.05, 0.1], 0.9),
    ],
)
def test_the_distance_to_a_law_is_taken_on_both_sides_of_each_step(cdf: list[float], distance: float) -> None:
    assert ks_to_law(np.array(cdf)) == pytest.approx(distance)


def test_exponential_distance_and_critical_value_by_hand() -> None:
    """Gaps 1, 1: F(1) = 1 - 1/e = 0.632 where the sample jumps from 0 to 1."""
    distance, critical = ks_exponential(np.array([1.0, 1.0]))
    assert distance == pytest.approx(1 - math.exp(-1))
    assert critical == pytest.approx(0.1 + 1.094 / (math.sqrt(2) + 0.26 + 0.5 / math.sqrt(2)))


@pytest.mark.parametrize("gaps", [[], [1.0], [0.0, 0.0]])
def test_the_exponential_distance_needs_two_gaps_not_all_0(gaps: list[float]) -> None:
    with pytest.raises(ValueError, match="two gaps"):
        ks_exponential(np.array(gaps))


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 7.0, 300.0])
def test_the_gamma_cdf_is_the_share_of_gamma_draws(shape: float) -> None:
    drawn = np.sort(default_rng(5).gamma(shape, 1, 20_000))
    share = np.arange(1, len(drawn) + 1) / len(drawn)
    assert np.max(np.abs(gamma_cdf(shape, drawn) - share)) < 1.63 / math.sqrt(len(drawn))


def test_the_gamma_cdf_of_whole_shapes_by_hand() -> None:
    x = np.array([0.0, 1.0, 3.0, 1e9])
    assert gamma_cdf(1.0, x) == pytest.approx([0, 1 - math.exp(-1), 1 - math.exp(-3), 1])
    assert gamma_cdf(2.0, x) == pytest.approx([0, 1 - 2 * math.exp(-1), 1 - 4 * math.exp(-3), 1])


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1, 2, 3], [10, 200, 3000], 1.0),  # any rising function
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0.0),  # ties share their mean rank
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 3], [7, 7, 7], None),
        ([7, 7, 7], [1, 2, 3], None),
    ],
)
def test_spearman_by_hand(x: list[int], y: list[int], rho: float | None) -> None:
    got = spearman(np.array(x), np.array(y), np.ones(len(x), np.int64))
    assert got is None if rho is None else got == pytest.approx(rho)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=12))
def test_spearman_of_counted_pairs_is_that_of_the_repeated_pairs(rows: list[tuple[int, int, int]]) -> None:
    x, y, counts = np.array(rows).T
    many_x, many_y = np.repeat(x, counts), np.repeat(y, counts)
    rho, repeated = spearman(x, y, counts), spearman(many_x, many_y, np.ones(len(many_x), np.int64))
    assert rho is None or repeated is None or rho == pytest.approx(repeated, abs=1e-9)


@pytest.mark.parametrize(
    ("times", "window_s", "index"),
    [
        ([], 1, None),  # no arrivals
        ([0.0, 1.5], 1, None),  # one whole window only
        ([0.0, 1.0, 2.0, 3.0], 1, 0.0),  # constant gaps: 1, 1, 1
        ([0.0, 0.1, 1.0, 1.5, 2.0], 1, 0.0),  # 2, 2 and a window that is not over
        ([0.0, 0.1, 2.5], 1, 2.0),  # 2, 0: variance 2, mean 1; empty windows count
        ([0.0, 0.1, 2.5], 0.5, 2.0),  # 2, 0, 0, 0, 0: mean 0.4, variance (4 - 5 * 0.16) / 4 = 0.8
        ([50.0, 50.1, 52.5], 1, 2.0),  # windows begin at the first arrival
        ([0.0, 1e12], 1, 1.0),  # an age of empty windows, in no memory
    ],
)
def test_index_of_dispersion_is_variance_over_mean(times: list[float], window_s: float, index: float | None) -> None:
    got = index_of_dispersion(np.array(times), window_s)
    assert got == index if index is None else got == pytest.approx(index)


@pytest.mark.parametrize("count", [1, 7, 1_000, 25_000])
def test_a_curve_ends_at_the_whole_sample_and_has_its_percentiles(count: int) -> None:
    sample = default_rng(count).exponential(size=count)
    curve = curve_of_sample(sample)
    assert curve is not None
    assert (curve.values[0], curve.values[-1], curve.shares[-1]) == (sample.min(), sample.max(), 1)
    assert len(curve.values) <= RANKS
    assert (np.diff(curve.shares) > 0).all()
    for value, share in zip(curve.values[::97], curve.shares[::97], strict=True):
        assert share == pytest.approx(np.mean(sample <= value))
    assert curve.percentiles[99] == pytest.approx(np.percentile(sample, 99))


@given(SAMPLES)
def test_a_curve_of_counted_values_is_that_of_the_sample_where_the_values_change(sample: list[int]) -> None:
    counted, ranked = curve_of_counts(count_values(sample)), curve_of_sample(sample)
    assert ranked is not None
    assert dict(zip(counted.values, counted.shares, strict=True)) == dict(
        zip(ranked.values, ranked.shares, strict=True)
    )
    assert counted.percentiles == pytest.approx(ranked.percentiles)


def test_a_curve_of_many_values_is_denser_above_its_99_percent() -> None:
    curve = curve_of_sample(default_rng(1).exponential(size=100_000))
    assert curve is not None
    assert (curve.shares >= 0.99).sum() > 70
    assert curve.shares[-2] == pytest.approx(0.99999)


def test_no_value_has_no_curve() -> None:
    assert curve_of_sample([]) is None
