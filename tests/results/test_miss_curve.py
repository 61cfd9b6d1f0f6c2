import math

import numpy as np
import pytest
from msgspec.structs import replace

from loadgen.results.miss_curve import logit, miss_curve, quasi_likelihood
from loadgen.results.search_result import Block, Probe
from support.probes_of_curves import counted_probe, drawn_probe, even_probe, share_at

RATES = (8.0, 9.0, 9.5, 10.0, 10.5, 11.0)


def drawn(seed: int, clumping: float, steepness: float = 12.0, requests: int = 2000) -> list[Probe]:
    rng = np.random.default_rng(seed)
    return [drawn_probe(rate, requests, share_at(rate, steepness=steepness), rng, clumping) for rate in RATES]


def even(scale: float = 1.0, rates: tuple[float, ...] = RATES, requests: int = 2000) -> list[Probe]:
    return [even_probe(rate, requests, round(scale * requests * share_at(rate))) for rate in rates]


def width(probes: list[Probe]) -> float:
    relative = miss_curve(probes, 0.05).rate(0.95).relative_width
    assert relative is not None
    return relative


@pytest.mark.parametrize(("clumping", "steepness"), [(0, 12), (100, 12), (400, 12), (100, 4), (100, 35)])
def test_about_95_of_100_intervals_hold_the_rate(clumping: float, steepness: float) -> None:
    seeds = 24
    estimates = [miss_curve(drawn(seed, clumping, steepness), 0.05).rate(0.95) for seed in range(seeds)]
    inside = sum((e.low or 0) <= 10 <= (e.high or math.inf) for e in estimates)
    assert inside >= 0.83 * seeds  # of 95 %, fewer in one of 30 tables


def test_the_derivative_of_the_quasi_likelihood_is_the_distance_over_the_variance() -> None:
    logits, step = np.array([-5.0, -3.0, -1.0, 0.5, 3.0]), 1e-5
    missed = 1 / (1 + np.exp(-logits))
    for clumping in (0.0, 7.0, 900.0):
        rise = quasi_likelihood(0.1, logits + step, clumping) - quasi_likelihood(0.1, logits - step, clumping)
        by_logit = (0.1 - missed) / (1 + clumping * missed)  # dm / dlogit = m (1 - m)
        np.testing.assert_allclose(rise / (2 * step), by_logit, rtol=1e-4)


def test_without_clumps_the_likelihood_is_the_binomial_one() -> None:
    logits = np.array([-3.0, 0.0, 1.0])
    missed = 1 / (1 + np.exp(-logits))
    expected = 0.2 * np.log(missed) + 0.8 * np.log(1 - missed)
    np.testing.assert_allclose(quasi_likelihood(0.2, logits, 0.0), expected)


def test_more_requests_narrow_the_interval() -> None:
    assert width(even(requests=8000)) < width(even(requests=2000)) < width(even(requests=500))


def test_blocks_that_vary_more_widen_the_interval() -> None:
    steady = even()
    clumped = [
        counted_probe(
            probe.rate_rps, tuple(Block(n, 16 * y if i == 7 else 0) for i, (n, y) in enumerate(blocks(probe)))
        )
        for probe in steady
    ]
    assert [probe.requests for probe in clumped] == [probe.requests for probe in steady]
    assert miss_curve(clumped, 0.05).dispersion > 5 * miss_curve(steady, 0.05).dispersion
    assert width(clumped) > 1.5 * width(steady)


def blocks(probe: Probe) -> list[tuple[int, int]]:
    return [(block.requests, block.missed) for block in probe.blocks]


def test_the_more_requests_miss_the_lower_is_the_rate() -> None:
    rates = [miss_curve(even(scale), 0.05).rate_rps for scale in (0.3, 0.6, 1.0, 1.6, 2.2)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)


def test_the_smaller_the_share_that_may_miss_the_lower_is_the_rate() -> None:
    rates = [miss_curve(even(), missed).rate_rps for missed in (0.02, 0.05, 0.1, 0.2)]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    "extra",
    [
        even_probe(14.0, 3000, 3000, stopped_early=True),
        even_probe(12.5, 3000, 2400),
        even_probe(4.0, 30, 0, stage="bracket"),
        even_probe(10.5, 40, 12, stage="bracket"),
        even_probe(14.0, 60, 3, stage="bracket"),
    ],
    ids=["overloaded", "most missed", "bracketing below", "bracketing near", "bracketing looks too good"],
)
def test_overloaded_and_bracketing_probes_hardly_move_the_rate(extra: Probe) -> None:
    without, beside = miss_curve(even(), 0.05), miss_curve([*even(), extra], 0.05)
    assert abs(math.log(beside.rate_rps / without.rate_rps)) < without.log_sd


def test_an_overloaded_probe_says_that_the_rate_is_below_its_own() -> None:
    below = even(rates=(8.0, 9.0))
    overloaded = even_probe(11.0, 500, 450, stopped_early=True)
    high = miss_curve([*below, overloaded], 0.05).rate(0.95).high
    assert high is not None
    assert high < 14.5 < (miss_curve(below, 0.05).rate(0.95).high or math.inf)


def test_a_few_misses_far_below_a_knee_leave_the_rate_at_the_knee() -> None:
    floor = [even_probe(rate, 5000, 5) for rate in (13.0, 15.0, 17.0)]
    knee = [even_probe(rate, 5000, missed) for rate, missed in ((18.0, 35), (18.6, 90), (19.5, 700))]
    assert miss_curve(floor + knee, 0.01).rate_rps == pytest.approx(18.2, rel=0.02)


def test_rates_far_beyond_all_probes_are_unknown() -> None:
    assert miss_curve([even_probe(5.0, 50, 0)], 0.05).rate(0.95).high is None


def test_the_share_at_the_rate_is_the_wanted_one_and_grows_with_the_rate() -> None:
    curve = miss_curve(even(), 0.05)
    shares = [curve.share_at(curve.rate_rps * factor) for factor in (0.7, 0.9, 1.0, 1.1, 1.3, 3.0)]
    assert shares[2] == pytest.approx(0.05)
    assert shares == sorted(shares)
    assert logit(shares[2]) == pytest.approx(logit(0.05))


def test_the_clumping_of_runs_of_misses_is_found() -> None:
    rng = np.random.default_rng(5)
    probes = [drawn_probe(rate, 40_000, share_at(rate), rng, 300.0) for rate in RATES]
    assert 200 < miss_curve(probes, 0.05).clumping < 600  # the largest of three block sizes, so rather too large


def test_the_clumping_is_that_of_the_probes_with_about_as_many_misses() -> None:
    rng = np.random.default_rng(1)
    few = [drawn_probe(rate, 8000, 0.01, rng, clumping=800) for rate in (9.0, 9.5)]
    many = [drawn_probe(rate, 8000, 0.1, rng, clumping=100) for rate in (10.5, 11.0)]
    assert miss_curve(few + many, 0.01).clumping > 2 * miss_curve(few + many, 0.1).clumping


def test_the_order_of_the_probes_does_not_matter() -> None:
    probes = [replace(probe, number=i) for i, probe in enumerate(drawn(1, 100))]
    there, back = miss_curve(probes, 0.05), miss_curve(probes[::-1], 0.05)
    assert there.rate_rps == pytest.approx(back.rate_rps, rel=1e-9)
