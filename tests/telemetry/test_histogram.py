"""The cumulative histogram: exact edges, and copies that stay as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.telemetry.histogram import MAX_EXEMPLAR_ID, Exemplar, Histogram


@pytest.mark.parametrize(
    ("value", "cumulative"),
    [(0.0, [1, 1, 1]), (1.0, [1, 1, 1]), (1.0000001, [0, 1, 1]), (2.5, [0, 1, 1]), (2.6, [0, 0, 1]), (1e9, [0, 0, 1])],
)
def test_a_value_equal_to_a_bound_is_in_its_bucket(value: float, cumulative: list[int]) -> None:
    histogram = Histogram([1, 2.5])
    histogram.observe(value)
    assert [(bound, count) for bound, count, _ in histogram.buckets()] == list(
        zip(["1.0", "2.5", "+Inf"], cumulative, strict=True)
    )
    assert histogram.sum == value


def test_each_bucket_keeps_its_newest_exemplar() -> None:
    histogram = Histogram([1.0])
    histogram.observe(0.5, "a")
    histogram.observe(0.7, "b")
    histogram.observe(0.9)
    histogram.observe(3.0, "c" * 100)
    assert histogram.buckets() == [
        ("1.0", 3, Exemplar("b", 0.7)),
        ("+Inf", 4, Exemplar("c" * MAX_EXEMPLAR_ID, 3.0)),
    ]


def test_a_copy_stays_as_it_was() -> None:
    histogram = Histogram([1.0])
    histogram.observe(0.5, "a")
    copy = histogram.copy()
    histogram.observe(0.6, "b")
    assert copy.buckets() == [("1.0", 1, Exemplar("a", 0.5)), ("+Inf", 1, None)]
    assert copy.sum == 0.5


@given(st.lists(st.floats(0, 100)))
def test_every_bucket_counts_the_values_at_or_below_its_bound(values: list[float]) -> None:
    histogram = Histogram([1, 5, 50])
    for value in values:
        histogram.observe(value)
    assert [count for _, count, _ in histogram.buckets()] == [
        sum(value <= bound for value in values) for bound in (1, 5, 50, float("inf"))
    ]
