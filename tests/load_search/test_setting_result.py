"""The answer of one setting follows from its probes."""

import pytest

from loadgen.load_search.plan import Question
from loadgen.load_search.setting_result import best_rate, binding_limits, setting_result
from loadgen.results.search_result import Ended, Estimate, Probe
from support.probes_of_curves import even_probe
from support.search_results import probe, probes

QUESTION = Question(limits_ms={"ttft": 200.0, "tpot": 10.0}, attainment=0.99)
LOOSE = Question(limits_ms={"ttft": 200.0}, attainment=0.95)
HELD = probes()[:4]  # 1 to 8 requests/s
MISSED = probes()[4:6]  # 16 and 32 requests/s


@pytest.mark.parametrize(
    ("made", "ended", "bounds"),
    [
        ((), None, None),
        (MISSED, "fails", None),
        (HELD, None, (8.0, 8.0, None)),  # nothing has missed: at least that
        (HELD[:1], "budget", (1.0, 1.0, None)),
        (probes(), "client", (8.0, 8.0, None)),  # beyond it, the misses may be this client's
    ],
)
def test_the_rate_is_unknown_or_a_bound_until_the_bracket_is_closed(
    made: tuple[Probe, ...], ended: Ended | None, bounds: tuple[float, float, None] | None
) -> None:
    rate = best_rate(QUESTION, made, ended)
    assert (rate and (rate.value, rate.low, rate.high)) == bounds


def test_with_a_closed_bracket_the_rate_has_both_ends_of_its_interval() -> None:
    rate = best_rate(QUESTION, probes(), "interval")
    assert rate is not None and rate.low is not None and rate.high is not None
    assert rate.low < rate.value < rate.high
    assert rate.value == pytest.approx(13.4, rel=0.1)


def above(ttft: int, tpot: int, failed: int) -> Probe:
    """Return a probe of 100 requests above the rate, of which so many met each limit, or failed."""
    return probe(0, 16.0, requests=100, good=min(ttft, tpot), met={"ttft": ttft, "tpot": tpot}, failed=failed)


@pytest.mark.parametrize(
    ("ttft", "tpot", "failed", "binding"),
    [
        (100, 90, 0, ("tpot",)),
        (90, 80, 0, ("tpot", "ttft")),
        (80, 90, 0, ("ttft", "tpot")),
        (99, 99, 0, ()),
        (100, 98, 0, ("tpot",)),
        (90, 90, 10, ("failures",)),
        (70, 90, 10, ("ttft", "failures")),
        (99, 97, 1, ("tpot",)),
    ],
)
def test_what_alone_is_too_frequent_above_the_rate_binds(
    ttft: int, tpot: int, failed: int, binding: tuple[str, ...]
) -> None:
    rate = Estimate(value=13.4, low=12.8, high=14.0)
    below = probe(1, 8.0, requests=1000, good=0, met={"ttft": 0, "tpot": 0}, failed=1000)
    assert binding_limits(QUESTION, [below, above(ttft, tpot, failed)], rate) == binding


@pytest.mark.parametrize(
    ("missed", "ended", "is_known"),
    [((0, 0), "budget", False), ((0, 30), "budget", True), ((0, 30), "client", False), ((30, 30), "budget", False)],
    ids=["no rate was too much", "between", "the client's limit", "no rate held"],
)
def test_the_rate_of_fewest_joules_is_known_between_one_that_held_and_one_that_did_not(
    missed: tuple[int, int], ended: Ended, is_known: bool
) -> None:
    rates = zip((4.0, 8.0), missed, strict=True)
    made = [even_probe(rate, 40, count, stage="bracket", watts=300.0) for rate, count in rates]
    result = setting_result(LOOSE, made, ended=ended)
    assert (result.least_joules_rate is not None) == (result.least_joules is not None) == is_known
