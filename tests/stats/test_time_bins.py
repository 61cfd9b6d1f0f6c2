"""Bins over time: what is counted in them adds up, and percentiles are those of the bin's own values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.stats.time_bins import MAX_BINS, TimeBins, bins_between

BINS = TimeBins(-1.0, 0.5, 8)  # -1 to 3 s
INSTANTS = st.lists(st.floats(-1, 3, allow_nan=False), max_size=30)


@pytest.mark.parametrize(
    ("first_s", "last_s", "width_s", "count"),
    [
        (0.0, 0.0, 0.1, 1),
        (0.0, 1.0, 0.1, 11),
        (0.0, 8.0, 0.2, 41),
        (-5.0, 7.0, 0.5, 25),
        (0.0, 60.0, 1, 61),
        (0.0, 600.0, 1, 601),
        (-3.0, 601.0, 2, 303),
        (0.0, 3_600.0, 10, 361),
        (0.0, 86_400.0, 300, 289),
    ],
)
def test_bins_have_round_widths_and_hold_both_ends(first_s: float, last_s: float, width_s: float, count: int) -> None:
    bins = bins_between(first_s, last_s)
    assert (bins.width_s, bins.count) == (width_s, count)
    assert bins.edges_s[0] <= first_s
    assert bins.edges_s[-1] > last_s
    assert bins.count <= MAX_BINS + 2
    assert bins.first_s % bins.width_s == pytest.approx(0)


@given(INSTANTS)
def test_counts_over_all_bins_are_the_number_of_events(instants: list[float]) -> None:
    assert BINS.sums(np.array(instants)).sum() == len(instants)


def test_an_event_counts_in_the_bin_that_it_is_in_and_one_outside_in_the_nearest() -> None:
    instants = np.array([-9.0, -1.0, -0.5, 2.99, 3.0, 99.0])
    assert BINS.place(instants).tolist() == [0, 0, 1, 7, 7, 7]
    assert BINS.sums(instants, np.arange(6.0)).tolist() == [1, 2, 0, 0, 0, 0, 0, 12]


@settings(deadline=None)
@given(st.integers(0, 200))
def test_percentiles_are_numpys_of_the_values_in_each_bin(size: int) -> None:
    rng = default_rng(size)
    at, values = rng.uniform(-1, 3, size), rng.exponential(size=size)
    p50, p99 = BINS.percentiles(at, values)
    for i in range(BINS.count):
        own = values[BINS.place(at) == i]
        if len(own):
            assert (p50[i], p99[i]) == pytest.approx(tuple(np.percentile(own, [50, 99])))
        else:
            assert np.isnan([p50[i], p99[i]]).all()


@given(INSTANTS, INSTANTS)
def test_an_integral_over_all_bins_is_the_length_of_all_intervals(one: list[float], other: list[float]) -> None:
    begins, ends = np.sort(np.array(list(zip(one, other, strict=False)) or np.zeros((0, 2))), axis=1).T
    total = BINS.integrals(begins, ends)
    assert total.sum() == pytest.approx((ends - begins).sum(), abs=1e-9)
    assert (total >= 0).all()


def test_an_integral_is_weighted_and_shared_by_the_bins_that_an_interval_is_in() -> None:
    total = BINS.integrals(np.array([0.25, 0.5]), np.array([1.0, 0.75]), np.array([2.0, 4.0]))
    assert total.tolist() == pytest.approx([0, 0, 0.5, 2.0, 0, 0, 0, 0])


def test_growth_between_two_readings_is_spread_evenly_and_unknown_outside_of_them() -> None:
    growth = BINS.growth(np.array([0.0, 1.0, 1.5]), np.array([4.0, 1.0]))
    assert np.nan_to_num(growth, nan=-1).tolist() == [-1, -1, 2, 2, 1, -1, -1, -1]
    assert np.isnan(BINS.growth(np.array([0.0]), np.array([]))).all()
