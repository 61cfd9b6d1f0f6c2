"""The intervals of attributed joules against the simulated engine's own account."""

import numpy as np
import pytest

from benchmarks.accuracy.attribution_oracle import Scenario, score, simulated
from loadgen.simulator.cost_model import CounterOptions


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("plain", {"chat": 3.0, "code": 3.0}),
        Scenario("noise", {"chat": 3.0, "code": 3.0}, counter=CounterOptions(noise=0.05)),
        Scenario("heavy", {"chat": 14.0}),
        Scenario("another GPU", {"chat": 1.5, "code": 1.5}, hardware="h100"),
    ],
    ids=lambda scenario: scenario.name,
)
def test_intervals_hold_the_truth_and_are_narrow(scenario: Scenario) -> None:
    """Over runs that nothing was chosen by, 1.96 standard errors hold about 95 % of the requests."""
    scores = [score(simulated(scenario, 60, seed), scenario, "shapley") for seed in (101, 102, 103)]
    covered = np.mean([of["covered"] for of in scores])
    half_width = np.median([of["half_width"] for of in scores])
    assert 0.88 <= covered <= 1.0
    assert half_width < 4.5 * max(np.median([of["median"] for of in scores]), 0.003)
