"""Grid points are computed from whole waves and from repeats whose energy is known."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy_model.energy_profile import GridKey
from loadgen.energy_model.waves import Repeat, grid_point_of, wave_boundaries, wave_repeats
from loadgen.stats.intervals import half_width

KEY = GridKey(5, 6, 2)


def test_boundaries_are_ends_of_whole_waves_after_the_first() -> None:
    finished = [10, 11, 20, 21, 30, 31, 40]
    assert wave_boundaries(finished, 2, 1, 0) == [(11, 2), (21, 4), (31, 6)]
    assert wave_boundaries(finished, 2, 1, 15) == [(11, 2), (31, 6)]
    assert wave_boundaries(finished, 8, 1, 0) == []


def test_repeats_whose_energy_is_unknown_are_left_out() -> None:
    known = wave_repeats([(0, 2), (10**9, 4), (2 * 10**9, 6)], lambda start, _: 8.0 if start == 0 else None)
    assert known == [(2, 1.0, 8.0)]
    cell = grid_point_of(GridKey(5, 6, 2), known, 0.03)
    assert (cell.joules_per_request, cell.stderr, cell.settled) == (4.0, None, False)


BOUNDARIES = [
    ("a wave that is one completion short does not count", [1, 2, 3], 2, 1, 0, [(2, 2)]),
    ("a wave that is just complete counts", [1, 2, 3, 4], 2, 1, 0, [(2, 2), (4, 4)]),
    ("no completions", [], 2, 1, 0, []),
    ("two waves are skipped", [1, 2, 3, 4, 5, 6], 2, 2, 0, [(4, 4), (6, 6)]),
    ("a repeat of exactly the minimum duration counts", [10, 20, 30], 1, 1, 10, [(10, 1), (20, 2), (30, 3)]),
    ("a repeat one nanosecond short is extended by a wave", [10, 20, 30], 1, 1, 11, [(10, 1), (30, 3)]),
    ("the distance is from the last boundary, not from the last wave", [0, 6, 12, 18], 1, 1, 10, [(0, 1), (12, 3)]),
]


@pytest.mark.parametrize(
    ("rule", "finished", "batch", "skip", "minimum", "expected"), BOUNDARIES, ids=[row[0] for row in BOUNDARIES]
)
def test_boundaries(
    rule: str, finished: list[int], batch: int, skip: int, minimum: int, expected: list[tuple[int, int]]
) -> None:
    assert wave_boundaries(finished, batch, skip, minimum) == expected


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(1, 7), st.integers(1, 3), st.integers(0, 100))
def test_boundaries_are_whole_waves_at_least_the_minimum_apart(
    instants: list[int], batch: int, skip: int, minimum: int
) -> None:
    finished = sorted(instants)
    boundaries = wave_boundaries(finished, batch, skip, minimum)
    assert all(count % batch == 0 and count >= batch * skip for _, count in boundaries)
    assert all(finished[count - 1] == t_ns for t_ns, count in boundaries)
    assert all(b[0] - a[0] >= minimum for a, b in pairwise(boundaries))


def test_a_grid_point_is_the_mean_over_requests_not_over_repeats() -> None:
    """(10 + 50) J / (2 + 8) requests; repeats of 5 and 6.25 J/request: s = 0.8839, s / sqrt(2) = 0.625."""
    point = grid_point_of(KEY, [Repeat(2, 1.0, 10.0), Repeat(8, 2.5, 50.0)], 0.03)
    assert (point.key, point.joules_per_request, point.stderr) == (KEY, 6.0, 0.625)
    assert (point.repeats, point.requests, point.duration_s) == (2, 10, 3.5)


def test_a_point_is_settled_at_exactly_the_requested_half_width() -> None:
    repeats = [Repeat(1, 1.0, 9.0), Repeat(1, 1.0, 11.0)]
    width = half_width([9.0, 11.0])
    assert grid_point_of(KEY, repeats, width).settled
    assert not grid_point_of(KEY, repeats, width * (1 - 1e-12)).settled
