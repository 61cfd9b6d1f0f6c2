"""Quantiles within one percent, from counts that do not grow with the stream."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.log_histogram import ACCURACY, LogHistogram

VALUES = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=60)


def histogram(values: list[float]) -> LogHistogram:
    counted = LogHistogram()
    for value in values:
        counted.add(value)
    return counted


@given(VALUES, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_value_of_its_rank(values: list[float], share: float) -> None:
    exact = sorted(values)[int(share * (len(values) - 1))]
    assert histogram(values).quantile(share) == pytest.approx(exact, rel=ACCURACY * 1.001)


@given(VALUES, VALUES)
def test_the_sum_of_two_is_the_histogram_of_all_values(first: list[float], second: list[float]) -> None:
    assert histogram(first) + histogram(second) == histogram(first + second)


def test_without_a_value_there_is_no_quantile_and_zero_is_no_latency() -> None:
    assert LogHistogram().quantile(0.5) is None
    assert histogram([0.0, -1.0]).quantile(0.5) is None


def test_a_million_latencies_take_less_than_twenty_kilobytes() -> None:
    wide = histogram([1e-6 * 1.001**i for i in range(22_000)])
    assert len(wide.counts) < 1_150
    assert len(pickle.dumps(wide)) < 20_000
