"""Other rates from given arrivals, rates that change, and whether arrivals came as asked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.workload.arrivals import (
    Points,
    Process,
    expected,
    gamma_below,
    index_of_dispersion,
    offsets,
    points_of,
    realized_arrivals,
    superposed,
    thinned,
    warped,
)

BURSTY = offsets("gamma", 50, np.random.default_rng(5), burstiness=0.1, duration_s=2000)


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def each(offsets_s: np.ndarray) -> np.ndarray:
    return np.arange(len(offsets_s))


def test_thinning_lowers_the_rate_and_the_dispersion_as_the_law_says() -> None:
    left = BURSTY[thinned(each(BURSTY), 0.2, rng())]
    before, after = index_of_dispersion(BURSTY, 1.0), index_of_dispersion(left, 1.0)
    assert before is not None and after == pytest.approx(1 + 0.2 * (before - 1), rel=0.15)
    assert len(left) == pytest.approx(0.2 * len(BURSTY), rel=0.03)


@given(st.lists(st.integers(0, 20), max_size=50), st.floats(0.01, 1), st.integers(0, 99))
def test_a_group_stays_whole_or_goes(groups: list[int], keep: float, seed: int) -> None:
    mask = thinned(np.array(groups, dtype=np.int64), keep, rng(seed))
    assert len(mask) == len(groups)
    assert all(len({bool(m) for m, g in zip(mask, groups, strict=True) if g == group}) == 1 for group in set(groups))


@pytest.mark.parametrize("times", [0.5, 1.0, 2.5, 4.0])
def test_superposition_adds_rates_and_keeps_the_dispersion(times: float) -> None:
    more = superposed(BURSTY, each(BURSTY), times, rng())
    assert len(more.offsets_s) == pytest.approx(times * len(BURSTY), rel=0.05)
    assert more.offsets_s[-1] <= (BURSTY[-1] - BURSTY[0]) * (1 + 1 / (len(BURSTY) - 1))
    if times >= 1:
        before, after = index_of_dispersion(BURSTY, 1.0), index_of_dispersion(more.offsets_s, 1.0)
        assert before is not None and after == pytest.approx(before, rel=0.2)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.integers(1, 5), st.integers(0, 99))
def test_whole_copies_hold_every_arrival_once_each_and_in_its_order(times: list[float], copies: int, seed: int) -> None:
    source = np.sort(np.array(times))
    if source[0] == source[-1]:
        return
    more = superposed(source, each(source), copies, rng(seed))
    assert np.all(np.diff(more.offsets_s) >= 0)
    assert sorted(more.picks.tolist()) == sorted(list(range(len(source))) * copies)
    for lap in range(2 * copies):
        mine = more.laps == lap
        assert np.all(np.diff(more.picks[mine]) > 0)
        np.testing.assert_allclose(np.diff(more.offsets_s[mine]), np.diff(source[more.picks[mine]]), atol=1e-9)
    np.testing.assert_allclose(more.offsets_s[more.laps == 0], source - source[0])


def test_thinning_and_superposition_of_nothing_are_said() -> None:
    for keep in (0.0, 1.1):
        with pytest.raises(LoadgenError, match="expected above 0"):
            thinned(np.arange(3), keep, rng())
    with pytest.raises(LoadgenError, match="same instant"):
        superposed(np.zeros(3), np.arange(3), 2, rng())
    with pytest.raises(LoadgenError, match="expected at most"):
        superposed(np.arange(3.0), np.arange(3), 1e9, rng())


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("ramp:1:8:60", [(0, 1), (60, 8)]),
        ("ramp:0:8:0.5", [(0, 0), (0.5, 8)]),
        ("step:1:4:20", [(0, 1), (20, 1), (20, 4), (40, 4)]),
        ("step:1:0:2:10", [(0, 1), (10, 1), (10, 0), (20, 0), (20, 2), (30, 2)]),
    ],
)
def test_shapes_are_points(shape: str, points: list[tuple[float, float]]) -> None:
    assert points_of(shape) == points


@pytest.mark.parametrize(
    "shape",
    ["", "ramp", "ramp:1:8", "ramp:1:2:3:60", "step:1:60", "ramp:-1:8:60", "ramp:1:8:0", "ramp:a:b:c", "sine:1:2:3",
     "ramp:0:0:9", "ramp:nan:1:9", "ramp:1:inf:9"],
)  # fmt: skip
def test_what_is_no_shape_is_said(shape: str) -> None:
    with pytest.raises(LoadgenError, match="expected ramp:FROM:TO:SECONDS"):
        points_of(shape)


def test_a_ramp_has_the_rate_of_every_moment_and_a_step_jumps() -> None:
    def shaped(points: Points) -> np.ndarray:
        total = float(expected(np.array([points[-1][0]]), points)[0])
        return warped(offsets("poisson", 1, rng(), duration_s=total), points)

    ramp = shaped([(0, 0), (1000, 100)])
    assert len(ramp) == pytest.approx(50_000, rel=0.02)
    assert (ramp < 500).sum() == pytest.approx(12_500, rel=0.04)
    step = shaped(points_of("step:10:50:100"))
    assert (step < 100).sum() == pytest.approx(1000, rel=0.1) and (step >= 100).sum() == pytest.approx(5000, rel=0.05)


RATES = st.floats(0, 50).map(lambda rate: round(rate, 2))


@given(st.lists(RATES, min_size=2, max_size=5).filter(any), st.floats(0.5, 100), st.sampled_from(["ramp", "step"]))
def test_warping_is_the_inverse_of_expecting(rates: list[float], length_s: float, kind: str) -> None:
    rates = rates[:2] if kind == "ramp" else rates
    if not any(rates):
        return
    points = points_of(":".join([kind, *map(str, rates), str(length_s)]))
    total = float(expected(np.array([points[-1][0]]), points)[0])
    counts = np.linspace(0, total * 0.999, 40)
    at = warped(counts, points)
    assert np.all(np.diff(at) >= -1e-9)
    np.testing.assert_allclose(expected(at, points), counts, atol=1e-6 * max(total, 1))


def test_after_the_last_point_its_rate_goes_on_and_a_rate_of_0_ends_it() -> None:
    assert warped(np.array([10.0, 14.0]), [(0, 1), (10, 1), (10, 2), (11, 2)]).tolist() == [10.0, 12.0]
    assert warped(np.array([0.5, 3.0]), [(0, 2), (1, 0)]) == pytest.approx([1 - math.sqrt(0.5)])


# -- as asked? --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 7.0, 300.0])
def test_the_incomplete_gamma_function(burstiness: float) -> None:
    drawn = np.sort(rng().gamma(burstiness, 1, 20_000))
    share = np.arange(1, len(drawn) + 1) / len(drawn)
    assert np.max(np.abs(gamma_below(burstiness, drawn) - share)) < 1.63 / math.sqrt(len(drawn))
    assert gamma_below(1.0, np.array([0.0, 1.0, 1e9])) == pytest.approx([0, 1 - math.exp(-1), 1])


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
@pytest.mark.parametrize("points", [None, [(0, 5), (100, 60)]])
def test_what_came_as_asked_has_no_fault(process: Process, points: Points | None) -> None:
    came = offsets(process, 20, rng(), burstiness=0.5, count=5000)
    if points:
        came = warped(came * 20, points)
    found = realized_arrivals(came, process, None if points else 20, 0.5, points)
    assert found.faults == []
    assert found.rate == pytest.approx(len(came) / came[-1], rel=0.01)


def test_a_poisson_run_is_wrongly_accused_once_in_a_hundred() -> None:
    faults = [
        realized_arrivals(offsets("poisson", 5, rng(seed), count=200), "poisson", 5).faults for seed in range(1000)
    ]
    assert 2 <= sum(map(bool, faults)) <= 22


@pytest.mark.parametrize(
    ("came", "process", "said"),
    [
        (np.arange(1000) / 20, "poisson", "not exponential"),
        (np.arange(1000) / 20, "gamma", "not of a gamma of shape 0.5"),
        (np.arange(1000) / 10, "constant", "10 requests/s instead of 20"),
        (np.cumsum(np.tile([0.01, 0.09], 500)), "constant", "gaps vary by 80%"),
        (np.cumsum(np.tile([0.01, 0.09], 500)), "trace", "not those scheduled"),
    ],
)
def test_other_arrivals_have_faults(came: np.ndarray, process: str, said: str) -> None:
    planned = np.arange(1000) / 20 if process == "trace" else None
    assert said in "; ".join(realized_arrivals(came, process, 20, 0.5, planned=planned).faults)


def test_a_shaped_trace_is_held_to_its_own_gaps() -> None:
    points = points_of("ramp:1:19:100")
    came = warped(np.cumsum(np.tile([0.1, 0.1, 0.1, 3.7], 100)), points)
    assert realized_arrivals(came, "trace", None, points=points, planned=came).faults == []
    assert realized_arrivals(np.round(came), "trace", None, points=points, planned=came).faults


def test_a_steady_rate_is_no_ramp() -> None:
    came = offsets("poisson", 10, rng(), duration_s=100)
    assert realized_arrivals(came, "poisson", None, points=points_of("ramp:1:19:100")).faults


def test_too_few_arrivals_say_nothing() -> None:
    assert realized_arrivals(np.arange(5.0), "poisson", 1).rate is None
