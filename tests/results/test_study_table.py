"""Rows of one configuration are its repeats, and what two configurations share is paired."""

import random

import pytest

from loadgen.results.study_table import ConfigurationKey, Group, groups, reduction_between
from loadgen.stats.intervals import paired_reduction, reduction
from support.study_rows import row

JOULES = "joules_per_output_token"


def test_repeats_are_grouped_whatever_their_order() -> None:
    rows = [row(server, repeat, batch=batch) for server in "ab" for batch in (1, 8) for repeat in range(3)]
    random.Random(1).shuffle(rows)
    found = groups(rows)
    assert [(group.key.server, group.key.batch) for group in found] == [("a", 1), ("a", 8), ("b", 1), ("b", 8)]
    assert all([member.repeat for member in group.rows] == [0, 1, 2] for group in found)


@pytest.mark.parametrize("field", ["server", "model", "workload", "batch", "rps"])
def test_rows_that_differ_in_any_part_of_the_key_are_apart(field: str) -> None:
    other = 9 if field in ("batch", "rps") else "z"
    assert len(groups([row(), row(repeat=1)])) == 1
    assert len(groups([row(), row(**{field: other})])) == 2


def test_open_loops_come_before_closed_ones_and_loads_in_numerical_order() -> None:
    loads = [(32, None), (None, 16.0), (8, None), (None, 2.0)]
    found = groups([row(batch=batch, rps=rps) for batch, rps in loads])
    assert [(group.key.batch, group.key.rps) for group in found] == [(None, 2.0), (None, 16.0), (8, None), (32, None)]


def test_unknown_values_are_left_out_and_zero_is_known() -> None:
    rows = tuple(row(repeat=i, **{JOULES: value}) for i, value in enumerate((0.0, None, 3.0)))
    group = Group(ConfigurationKey("a", "m", "w", 8, None), rows)
    assert group.values(JOULES) == [0.0, 3.0]
    assert group.mean(JOULES) == 1.5
    interval = group.interval(JOULES)
    assert interval is not None and interval.count == 2
    assert group.mean("mean_watts") is None and group.interval("mean_watts") is None


def test_an_interval_that_leaves_the_range_of_its_field_has_no_ends() -> None:
    """3.4 ± 5.1 good requests per joule, and a share of 97 % ± 25 %, are no claims."""
    wild = groups([row(repeat=0, good_requests_per_joule=3.0), row(repeat=1, good_requests_per_joule=3.8)])[0]
    share = groups([row(repeat=0, goodput_ratio=0.95), row(repeat=1, goodput_ratio=0.99)])[0]
    for found in (wild.interval("good_requests_per_joule"), share.interval("goodput_ratio")):
        assert found is not None and (found.low, found.high, found.count) == (None, None, 2)


@pytest.mark.parametrize(
    ("per_joule", "cost"), [([0.5, 0.25], 3.0), ([0.5, 0.0], None), ([0.5, None], 2.0), ([None, None], None)]
)
def test_a_good_request_costs_nothing_known_where_a_repeat_has_none(
    per_joule: list[float | None], cost: float | None
) -> None:
    (group,) = groups(row(repeat=i, good_requests_per_joule=good) for i, good in enumerate(per_joule))
    found = group.joules_per_good_request
    assert (None if found is None else found.mean) == cost


def test_failed_requests_are_misses_of_the_attainment() -> None:
    shares = {"goodput_ratio": 0.7, "ttft_met_ratio": 0.8}
    rows = [row(repeat=repeat, batch=None, rps=4.0, completed=8, failed=2, **shares) for repeat in range(2)]
    found = groups(rows)[0].attainment
    assert (found.load, found.share, found.by_limit, found.requests) == (4.0, 0.7, {"ttft": 0.8}, 20)
    assert rows[0].good_per_s == pytest.approx(0.7 * 10 / 5.0)


def group_of(server: str, values: dict[int, float | None], batch: int | None, rps: float | None) -> Group:
    (group,) = groups(row(server, repeat, batch=batch, rps=rps, **{JOULES: v}) for repeat, v in values.items())
    return group


def test_open_loops_are_paired_by_repeat_and_closed_loops_are_not() -> None:
    before, after = {0: 1.0, 1: 10.0, 2: 100.0}, {2: 50.0, 0: 0.5, 1: 5.0}
    paired = reduction_between(group_of("a", before, None, 4.0), group_of("b", after, None, 4.0), JOULES)
    assert paired == paired_reduction([1.0, 10.0, 100.0], [0.5, 5.0, 50.0])
    unpaired = reduction_between(group_of("a", before, 8, None), group_of("b", after, 8, None), JOULES)
    assert unpaired == reduction([1.0, 10.0, 100.0], [0.5, 5.0, 50.0])
    mixed = reduction_between(group_of("a", before, 8, None), group_of("b", after, None, 4.0), JOULES)
    assert mixed == unpaired


def test_only_repeats_that_both_know_are_pairs() -> None:
    base = group_of("a", {0: 1.0, 1: 2.0, 2: 4.0}, None, 4.0)
    known = reduction_between(base, group_of("b", {0: 0.5, 1: None, 2: 1.0, 3: 9.0}, None, 4.0), JOULES)
    assert known == paired_reduction([1.0, 4.0], [0.5, 1.0])
    without_common = reduction_between(base, group_of("b", {7: 0.5, 8: 0.7}, None, 4.0), JOULES)
    assert without_common == reduction([1.0, 2.0, 4.0], [0.5, 0.7])
