"""Realized arrivals are compared with the requested process."""

import math

import numpy as np
import pytest

from loadgen.workload.arrival_check import gaps_ks, realized_arrivals
from loadgen.workload.arrivals import Points, Process, offsets, points_of, warped


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
@pytest.mark.parametrize("points", [None, [(0, 5), (100, 60)]])
def test_arrivals_of_the_requested_process_have_no_fault(process: Process, points: Points | None) -> None:
    arrivals_s = offsets(process, 20, rng(), burstiness=0.5, count=5000)
    if points:
        arrivals_s = warped(arrivals_s * 20, points)
    check = realized_arrivals(arrivals_s, process, None if points else 20, 0.5, points)
    assert check.faults == []
    assert check.rate == pytest.approx(len(arrivals_s) / arrivals_s[-1], rel=0.01)


def test_one_poisson_run_in_a_hundred_is_a_false_positive() -> None:
    faults = [
        realized_arrivals(offsets("poisson", 5, rng(seed), count=200), "poisson", 5).faults for seed in range(1000)
    ]
    assert 2 <= sum(map(bool, faults)) <= 22


@pytest.mark.parametrize(
    ("arrivals_s", "process", "fault"),
    [
        (np.arange(1000) / 20, "poisson", "not exponential"),
        (np.arange(1000) / 20, "gamma", "not of a gamma of shape 0.5"),
        (np.arange(1000) / 10, "constant", "10 requests/s instead of 20"),
        (np.cumsum(np.tile([0.01, 0.09], 500)), "constant", "gaps vary by 80%"),
        (np.cumsum(np.tile([0.01, 0.09], 500)), "trace", "not those scheduled"),
    ],
)
def test_other_arrivals_have_faults(arrivals_s: np.ndarray, process: str, fault: str) -> None:
    planned = np.arange(1000) / 20 if process == "trace" else None
    assert fault in "; ".join(realized_arrivals(arrivals_s, process, 20, 0.5, planned=planned).faults)


def test_a_shaped_trace_is_compared_with_its_own_gaps() -> None:
    points = points_of("ramp:1:19:100")
    arrivals_s = warped(np.cumsum(np.tile([0.1, 0.1, 0.1, 3.7], 100)), points)
    assert realized_arrivals(arrivals_s, "trace", None, points=points, planned=arrivals_s).faults == []
    assert realized_arrivals(np.round(arrivals_s), "trace", None, points=points, planned=arrivals_s).faults


def test_a_steady_rate_is_no_ramp() -> None:
    arrivals_s = offsets("poisson", 10, rng(), duration_s=100)
    assert realized_arrivals(arrivals_s, "poisson", None, points=points_of("ramp:1:19:100")).faults


def test_too_few_arrivals_are_not_judged() -> None:
    assert realized_arrivals(np.arange(5.0), "poisson", 1).rate is None


@pytest.mark.parametrize(("count", "judged"), [(1, False), (10, False), (11, True)])
def test_ten_gaps_are_judged_and_nine_are_not(count: int, judged: bool) -> None:
    check = realized_arrivals(np.arange(float(count)), "constant", 1)
    assert (check.rate is not None) == judged and check.count == count and check.faults == []


@pytest.mark.parametrize(("rate", "faults"), [(1.0, 0), (1.0099, 0), (1.0101, 1), (0.9901, 0), (0.9899, 1)])
def test_a_constant_rate_may_be_off_by_one_percent(rate: float, faults: int) -> None:
    assert len(realized_arrivals(np.arange(1000.0), "constant", rate).faults) == faults


@pytest.mark.parametrize(("spread", "faults"), [(0.104, 0), (0.106, 1)])
def test_constant_gaps_may_vary_by_a_tenth_and_5_ms(spread: float, faults: int) -> None:
    times = np.concatenate(([0.0], np.cumsum(np.tile([1 - spread, 1 + spread], 50))))
    check = realized_arrivals(times, "constant", 1)
    assert check.gap_cv == pytest.approx(spread) and len(check.faults) == faults


def test_arrivals_at_one_instant_are_not_judged_and_a_trace_without_a_plan_has_no_law() -> None:
    assert realized_arrivals(np.zeros(50), "poisson", 1).rate is None
    check = realized_arrivals(np.arange(50.0), "trace", None)
    assert (check.ks, check.ks_critical, check.faults) == (None, None, [])
    assert check.rate == pytest.approx(1)


@pytest.mark.parametrize(
    ("process", "n", "critical"),
    [
        # Stephens (1974), exponential with an estimated mean, 1 %: 1.308 / (sqrt(n) + 0.26 + 0.5 / sqrt(n)) + 0.2 / n
        ("poisson", 100, 1.308 / (10 + 0.26 + 0.05) + 0.2 / 100),
        # A fully specified law, 1 %: 1.628 / (sqrt(n) + 0.12 + 0.11 / sqrt(n))
        ("gamma", 100, 1.628 / (10 + 0.12 + 0.011)),
        ("gamma", 16, 1.628 / (4 + 0.12 + 0.0275)),
        # Two samples of n and 4 n: 1.628 sqrt(1 / n + 1 / (4 n))
        ("trace", 100, 1.628 * math.sqrt(0.0125)),
    ],
)
def test_critical_values_at_one_percent_by_hand(process: str, n: int, critical: float) -> None:
    gaps = rng().exponential(1.0, n)
    _, at_significance = gaps_ks(gaps, process, 1.0, 1.0, np.tile(gaps, 4))
    assert at_significance == pytest.approx(critical, rel=1e-9)


def test_the_distance_of_gaps_from_their_process_by_hand() -> None:
    gaps = np.array([1.0, 2.0, 3.0, 4.0])
    assert gaps_ks(gaps, "trace", None, 1.0, np.array([3.0, 4.0]))[0] == 0.5
    distance, _ = gaps_ks(np.full(4, 1.0), "gamma", 2.0, 1.0, None)  # exponential of mean 1/2
    assert distance == pytest.approx(1 - math.exp(-2.0))


@pytest.mark.parametrize(
    ("process", "rate", "planned"),
    [("constant", 1.0, [1.0]), ("gamma", None, None), ("trace", 1.0, None), ("trace", 1.0, [])],
)
def test_a_process_without_a_law_or_a_plan_has_no_distance(
    process: str, rate: float | None, planned: list[float] | None
) -> None:
    assert gaps_ks(np.ones(9), process, rate, 1.0, None if planned is None else np.array(planned)) == (None, None)


def test_gaps_that_sum_to_little_are_judged() -> None:
    assert realized_arrivals(np.arange(20.0) / 40, "constant", 40).rate == pytest.approx(40)


@pytest.mark.parametrize(("error", "faults"), [(0.98, 0), (1.02, 1)])
def test_a_mean_gap_may_be_off_by_four_standard_errors(error: float, faults: int) -> None:
    """400 gaps of CV 1: the standard error of their mean is 1 / 20, and four of them are 1 / 5."""
    gaps = np.array([0.0, 2.0] * 200)
    times_s = np.concatenate(([0.0], np.cumsum(gaps)))
    rate = 1 + 0.2 * error
    wrong = [fault for fault in realized_arrivals(times_s, "gamma", rate).faults if "requests/s" in fault]
    assert len(wrong) == faults
    assert all(fault == f"1 requests/s instead of {rate:.4g}" for fault in wrong)


def test_the_rate_of_a_shape_is_the_mean_over_the_arrivals_and_a_fault_states_it() -> None:
    """Sent at 3/s from second 100 on, where the shape rises from 1/s to 2/s."""
    points = points_of("ramp:1:2:200")
    times_s = 100 + np.arange(301.0) / 3
    check = realized_arrivals(times_s, "constant", None, points=points)
    assert check.rate == pytest.approx(3)
    assert check.faults[0] == "3 requests/s instead of 1.75 (the mean of the shape so far)"


@pytest.mark.parametrize("process", ["constant", "trace"])
def test_without_a_requested_rate_no_rate_is_wrong(process: str) -> None:
    assert realized_arrivals(np.arange(100.0) * 7, process, None).faults == []


def test_a_mean_gap_of_exactly_four_standard_errors_is_no_fault() -> None:
    """256 gaps of mean 1 and CV 1: four standard errors are 4 / 16, all of them exact in binary."""
    times_s = np.concatenate(([0.0], np.cumsum(np.array([0.0, 2.0] * 128))))
    assert not any("requests/s" in fault for fault in realized_arrivals(times_s, "gamma", 1.25).faults)
    assert any("requests/s" in fault for fault in realized_arrivals(times_s, "gamma", 1.2501).faults)


def test_the_dispersion_is_that_of_the_counts_in_seconds() -> None:
    """Seconds with 3 arrivals and with 1 in turn: windows of 2 s would all hold 4."""
    times_s = np.array([second + k / 4 for second in range(21) for k in range(3 if second % 2 == 0 else 1)])
    dispersion = realized_arrivals(times_s, "trace", None).dispersion
    assert dispersion == pytest.approx(np.var([3, 1] * 10, ddof=1) / 2)


TICKS_S = np.repeat(np.arange(0.0, 42, 3), 5)
"""Five requests on each tick of 3 s, as in traces of coarse clocks."""
EVEN_S = np.arange(60) / 5


@pytest.mark.parametrize(
    ("process", "planned"), [("trace", TICKS_S), ("trace", EVEN_S), ("constant", EVEN_S)], ids=["ticks", "even", "all"]
)
@pytest.mark.parametrize(("jitter_s", "faults"), [(0.0002, 0), (0.002, 0), (1.0, 1)])
def test_ties_ticks_and_even_spacing_are_kept_within_the_jitter_of_a_clock(
    process: str, planned: np.ndarray, jitter_s: float, faults: int
) -> None:
    sent = np.sort(planned + rng().uniform(0, jitter_s, len(planned)))
    check = realized_arrivals(sent, process, None, planned=planned)
    assert bool(check.faults) == bool(faults), check.faults


def test_one_late_request_leaves_constant_gaps_constant() -> None:
    times_s = np.arange(1000.0) / 1000
    times_s[500] += 0.0009
    assert realized_arrivals(times_s, "constant", 1000).faults == []


@pytest.mark.parametrize(("last_s", "has_dispersion"), [(9.9, False), (10.1, True)])
def test_a_dispersion_needs_ten_seconds(last_s: float, has_dispersion: bool) -> None:
    check = realized_arrivals(np.linspace(0, last_s, 50), "constant", None)
    assert (check.dispersion is not None) is has_dispersion


def test_the_ratio_of_the_rates_is_that_to_the_requested_one() -> None:
    assert realized_arrivals(np.arange(100.0) / 3, "constant", 2).rate_ratio == pytest.approx(1.5)
    assert realized_arrivals(np.arange(100.0) / 3, "constant", None).rate_ratio is None
    shaped = realized_arrivals(100 + np.arange(301.0) / 3, "constant", None, points=points_of("ramp:1:2:200"))
    assert shaped.rate_ratio == pytest.approx(3 / 1.75)
