"""Realized arrivals are compared with the requested process."""

import numpy as np
import pytest

from loadgen.workload.arrival_check import realized_arrivals
from loadgen.workload.arrivals import Points, Process, offsets, points_of, warped


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


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


@pytest.mark.parametrize(("count", "judged"), [(1, False), (10, False), (11, True)])
def test_ten_gaps_are_judged_and_nine_are_not(count: int, judged: bool) -> None:
    check = realized_arrivals(np.arange(float(count)), "constant", 1)
    assert (check.rate is not None) == judged and check.count == count and check.faults == []


@pytest.mark.parametrize(("rate", "faults"), [(1.0, 0), (1.0099, 0), (1.0101, 1), (0.9901, 0), (0.9899, 1)])
def test_a_constant_rate_may_be_off_by_one_percent(rate: float, faults: int) -> None:
    assert len(realized_arrivals(np.arange(1000.0), "constant", rate).faults) == faults


@pytest.mark.parametrize(("spread", "faults"), [(0.099, 0), (0.101, 1)])
def test_constant_gaps_may_vary_by_a_tenth(spread: float, faults: int) -> None:
    times = np.concatenate(([0.0], np.cumsum(np.tile([1 - spread, 1 + spread], 50))))
    check = realized_arrivals(times, "constant", 1)
    assert check.gap_cv == pytest.approx(spread) and len(check.faults) == faults


def test_arrivals_at_one_instant_are_not_judged_and_a_trace_without_a_plan_has_no_law() -> None:
    assert realized_arrivals(np.zeros(50), "poisson", 1).rate is None
    check = realized_arrivals(np.arange(50.0), "trace", None)
    assert (check.ks, check.ks_critical, check.faults) == (None, None, [])
    assert check.rate == pytest.approx(1)
