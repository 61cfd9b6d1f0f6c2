"""Settings race: a challenger ends as soon as it is worse than the best setting with the confidence asked for."""

from typing import Any

import pytest

from loadgen.load_search.plan import Question
from loadgen.load_search.race import is_worse, race, share_of_budget
from loadgen.results.search_result import Estimate, Objective
from support.search_results import probe, probes, setting


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("best", "challenger", "objective", "worse"),
    [
        ((10, 9, 11), (8, 7.5, 8.5), "rate", True),
        ((10, 9, 11), (10, 9, 11), "rate", False),
        ((10, 9, 11), (9, 8, 10), "rate", False),  # the intervals overlap, and the difference is no larger than both
        ((10, 9.5, 10.5), (9, 8.5, 9.5), "rate", True),  # they touch: independent errors rarely add up
        ((8, 7.5, 8.5), (10, 9, 11), "rate", False),
        ((10, None, 11), (1, 0.9, 1.1), "rate", False),
        ((10, 9, None), (8, None, 8.5), "rate", True),  # ends that point away do not matter
        ((10, 9, 11), (8, 7.5, None), "rate", False),
        ((10, 9, 11), (13, 12, 14), "joules_per_good_request", True),
        ((10, 9, 11), (8, 7.5, 8.5), "joules_per_good_request", False),
        ((10, 9, None), (13, 12, 14), "joules_per_good_request", False),
        ((10, None, 11), (13, 12, None), "joules_per_good_request", True),
    ],
)
def test_a_challenger_is_worse_where_the_interval_of_the_difference_is_above_zero(
    best: Any, challenger: Any, objective: Objective, worse: bool
) -> None:
    assert is_worse(estimate(*best), estimate(*challenger), objective) is worse


QUESTION = Question(limits_ms={"ttft": 200.0, "tpot": 10.0}, attainment=0.99)
JOULES = Question(limits_ms={"ttft": 200.0, "tpot": 10.0}, attainment=None, objective="joules_per_good_request")


@pytest.mark.parametrize("question", [QUESTION, JOULES])
def test_a_setting_of_half_the_rate_loses_and_the_better_one_never_does(question: Question) -> None:
    best, other = setting("b", 1.0), setting("a", 0.5)
    assert "b" in (race(best, other.probes, question) or "")
    assert race(other, best.probes, question) is None
    assert race(best, setting("c", 1.0).probes, question) is None


def test_a_challenger_is_not_judged_before_it_has_refined_twice() -> None:
    slow = probes(0.5)
    refined = [count for count in range(len(slow) + 1) if race(setting("b"), _mild(slow[:count]), QUESTION)]
    assert min(refined) >= 8  # six probes bracket


def _mild(made: Any) -> tuple[Any, ...]:
    """Leave out the probes that a challenger loses by at once."""
    return tuple(each for each in made if each.stage == "refine" or not each.overloaded or each.rate_rps > 12.8)


def test_a_challenger_loses_by_two_probes_that_were_overloaded_at_rates_that_the_best_takes() -> None:
    lost = [probe(i, rate, stage="bracket", stopped_early=True, good=0) for i, rate in enumerate((12.7, 9.0, 12.9))]
    assert race(setting("b"), lost[:1], QUESTION) is None
    assert "most of its requests miss" in (race(setting("b"), lost[:2], QUESTION) or "")
    assert race(setting("b"), [lost[0], lost[2]], QUESTION) is None
    unknown = setting("b", rate=estimate(13.4, None, 14.0))
    assert race(unknown, lost, QUESTION) is None


def test_against_a_bound_the_bound_counts_and_not_the_curve() -> None:
    at_least = setting("b", probes=probes()[:4], ended="client", rate=estimate(8.0, 8.0, None))
    assert race(at_least, probes(0.4), QUESTION) is not None
    assert race(at_least, probes(0.8), QUESTION) is None


def test_the_budget_is_shared_evenly_and_what_is_left_over_passes_on() -> None:
    assert share_of_budget(600, [0, 0, 0]) == 200
    assert share_of_budget(600 - 50, [0, 0]) == 275  # the first ended early
    assert share_of_budget(600 - 120, [120, 0, 0]) == 80  # goes on after it was killed
    assert share_of_budget(600, [200, 200, 200]) == 200  # goes on with twice the budget
    assert share_of_budget(40, [0]) == 40
