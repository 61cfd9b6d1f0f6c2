import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.load_search.plan import MIN_REFINES, PlannedProbe, Question, bracket, is_hopeless, is_missed, next_probe
from loadgen.results.search_answer import sought_rate
from loadgen.results.search_result import Probe, Stage
from support.probes_of_curves import drawn_probe, even_probe, share_at

QUESTION = Question(limits_ms={"ttft": 200.0}, attainment=0.95, budget_s=1e6)


def bracketing(*rates: tuple[float, int], decision_s: float = 1.0) -> list[Probe]:
    """Return short probes of 40 requests: (rate, missed)."""
    return [even_probe(rate, 40, missed, stage="bracket", decision_s=decision_s) for rate, missed in rates]


def refining(count: int, requests: int = 4000) -> list[Probe]:
    rates = [10 * (1.05 if i % 2 else 0.95) for i in range(count)]
    return bracketing((8, 0), (11, 30)) + [even_probe(r, requests, round(requests * share_at(r))) for r in rates]


@pytest.mark.parametrize(
    ("probes", "rate"),
    [
        ([], 1.0),
        (bracketing((1, 0)), 2.0),
        (bracketing((1, 0), (2, 0)), 4.0),
        (bracketing((1, 30)), 0.5),
        (bracketing((1, 30), (0.5, 30)), 0.25),
        (bracketing((1, 0), (2, 0), (4, 30)), math.sqrt(8)),
        (bracketing((1, 30), (0.5, 0)), math.sqrt(0.5)),
        (bracketing((1, 0), (2, 30), (4, 0)), math.sqrt(2)),  # what missed below is not undone by luck above
    ],
    ids=["start", "held", "held again", "missed", "missed again", "between", "between, downwards", "luck"],
)
def test_bracketing_doubles_or_halves_and_then_bisects(probes: list[Probe], rate: float) -> None:
    planned = next_probe(QUESTION, probes, 1000)
    assert isinstance(planned, PlannedProbe)
    assert (planned.stage, planned.rate_rps) == ("bracket", pytest.approx(rate))


def test_a_rate_whose_requests_all_outlasted_the_probe_is_probed_again_for_longer() -> None:
    planned = next_probe(QUESTION, [even_probe(1, 0, 0, stage="bracket", decision_s=20.0)], 600)
    assert isinstance(planned, PlannedProbe)
    assert (planned.rate_rps, planned.duration_s) == (1.0, pytest.approx(60))


@pytest.mark.parametrize(
    ("question", "probes", "remaining_s", "ended"),
    [
        (QUESTION, refining(MIN_REFINES, 40_000), 1000, "interval"),
        (QUESTION, [], 5, "budget"),
        (QUESTION, refining(MIN_REFINES, 300), 5, "budget"),
        (QUESTION, bracketing((0.5, 30), (0.25, 30), decision_s=1.0), 1000, "fails"),  # alone, and still too slow
        (replace(QUESTION, max_rps=4.0), bracketing((2, 0), (4, 0)), 1000, "client"),
    ],
    ids=["narrow", "no time", "no time to refine", "missed even alone", "the client's limit held"],
)
def test_a_search_ends(question: Question, probes: list[Probe], remaining_s: float, ended: str) -> None:
    assert next_probe(question, probes, remaining_s) == ended


@pytest.mark.parametrize(
    ("rate_rps", "missed", "e2e_s", "ended"),
    [
        (1.0, 30, 0.1, "fails"),  # a tenth of a request in flight
        (1.0, 10, 0.1, None),  # a short probe may have met a hitch
        (1.0, 30, 0.5, None),
        (1.0, 30, None, None),
        (50.0, 30, 0.1, None),
    ],
)
def test_a_search_ends_at_its_first_rate_if_requests_hardly_meet_and_are_far_too_slow(
    rate_rps: float, missed: int, e2e_s: float | None, ended: str | None
) -> None:
    missing = even_probe(rate_rps, 40, missed, stage="bracket")
    planned = next_probe(QUESTION, [msgspec.structs.replace(missing, e2e_p50_s=e2e_s)], 1000)
    assert planned == ended if ended else isinstance(planned, PlannedProbe)


def test_refining_probes_are_below_and_above_the_estimate_in_turn() -> None:
    for count in range(6):
        probes = refining(count, 300)
        planned = next_probe(QUESTION, probes, 1e5)
        assert isinstance(planned, PlannedProbe)
        estimate = sought_rate(probes, "rate", 0.95, 0.95).estimate.value
        assert planned.stage == "refine"
        assert (planned.rate_rps > estimate) == (count % 2 == 1)
        assert abs(math.log(planned.rate_rps / estimate)) <= 0.2 + 1e-9


def test_few_probes_do_not_end_a_search_however_narrow_their_interval() -> None:
    assert isinstance(next_probe(QUESTION, refining(MIN_REFINES - 1, 400_000), 1e6), PlannedProbe)


def test_few_independent_misses_do_not_end_a_search_however_narrow_their_interval() -> None:
    question = replace(QUESTION, width=2.0)
    assert isinstance(next_probe(question, refining(MIN_REFINES, 100), 1e6), PlannedProbe)
    assert next_probe(question, refining(MIN_REFINES, 40_000), 1e6) == "interval"


def test_a_probe_fits_into_the_rest_of_the_budget() -> None:
    for remaining_s in (20.0, 60.0, 200.0, 1000.0):
        planned = next_probe(QUESTION, refining(5, 300), remaining_s)
        assert isinstance(planned, PlannedProbe)
        assert planned.duration_s + 2 * 1.0 + 1.0 <= remaining_s + 1e-9


def test_the_last_probes_are_as_long_as_the_width_lacks_and_no_longer() -> None:
    probes = refining(MIN_REFINES, 8000)
    width = sought_rate(probes, "rate", 0.95, 0.95).estimate.relative_width
    assert width
    refined_s = sum(probe.wall_s for probe in probes if probe.stage == "refine")
    shares = []
    for target in (0.97 * width, 0.93 * width, width / 2):
        planned = next_probe(replace(QUESTION, width=target), probes, 1e6)
        assert isinstance(planned, PlannedProbe)
        shares.append(planned.duration_s / refined_s)
    assert shares == [pytest.approx(1.1 * (0.97**-2 - 1)), pytest.approx(1.1 * (0.93**-2 - 1)), pytest.approx(0.35)]


def test_a_rate_is_never_beyond_the_clients() -> None:
    question = replace(QUESTION, max_rps=9.0)
    for count in range(4):
        planned = next_probe(question, bracketing((7, 0), (9, 30)) + refining(count, 300)[2:], 1e5)
        assert isinstance(planned, PlannedProbe)
        assert planned.rate_rps <= 9.0


def test_each_probe_has_a_seed_of_its_own() -> None:
    question, seeds = replace(QUESTION, seed=100), set[int]()
    for count in range(5):
        planned = next_probe(question, refining(count, 300), 1e5)
        assert isinstance(planned, PlannedProbe)
        seeds.add(planned.seed)
    assert len(seeds) == 5


@pytest.mark.parametrize(
    ("requests", "missed", "stopped_early", "is_too_many"),
    [
        (40, 0, False, False),
        (40, 1, False, False),  # one may be chance
        (40, 4, False, False),  # 1 + 1.5 * 0.05 * 40 = 4
        (40, 5, False, True),
        (400, 30, False, False),
        (400, 32, False, True),
        (3, 0, True, True),
    ],
)
def test_a_short_probe_missed_if_clearly_more_than_may_did(
    requests: int, missed: int, stopped_early: bool, is_too_many: bool
) -> None:
    assert is_missed(even_probe(5.0, requests, missed, stopped_early=stopped_early), 0.05) == is_too_many


def test_the_bracket_is_of_bracketing_probes() -> None:
    assert bracket(QUESTION, bracketing((1, 0), (2, 0), (4, 30), (8, 40))) == (2, 4)
    assert bracket(QUESTION, [even_probe(3.0, 4000, 2000)]) == (None, None)


@pytest.mark.parametrize(
    ("ended", "missed", "stage", "wanted", "hopeless"),
    [
        (0, 0, "bracket", 0.95, False),
        (10, 0, "bracket", 0.95, False),
        (10, 3, "bracket", 0.95, False),
        (30, 30, "bracket", 0.95, True),
        (100, 40, "bracket", 0.95, True),
        (1000, 50, "bracket", 0.95, False),
        (300, 300, "refine", 0.95, False),  # a busy period
        (1000, 600, "refine", 0.95, False),
        (1500, 1500, "refine", 0.95, True),
        (20_000, 10_000, "refine", 0.95, False),
    ],
)
def test_a_probe_is_hopeless_when_it_missed_far_too_much(
    ended: int, missed: int, stage: Stage, wanted: float, hopeless: bool
) -> None:
    assert is_hopeless(ended, missed, stage, wanted) == hopeless


def probed(planned: PlannedProbe) -> Probe:
    """Return a probe of a server whose rate is 10/s, drawn by the probe's own seed."""
    rng = np.random.default_rng(planned.seed)
    requests = max(2, round(planned.rate_rps * planned.duration_s))
    share = share_at(planned.rate_rps)
    stopped = share > 0.8
    return drawn_probe(planned.rate_rps, requests, share, rng, 50.0, stage=planned.stage, stopped_early=stopped)


def searched(question: Question, probes: list[Probe], sittings: int = 100) -> tuple[list[Probe], str]:
    for _ in range(sittings):
        planned = next_probe(question, probes, question.budget_s - sum(probe.wall_s for probe in probes))
        if isinstance(planned, str):
            return probes, planned
        probes = [*probes, probed(planned)]
    return probes, "more"


def test_a_search_that_went_on_from_its_probes_is_the_one_that_was_not_interrupted() -> None:
    question = replace(QUESTION, budget_s=2000.0, seed=3)
    whole = searched(question, [])
    begun, _ = searched(question, [], sittings=5)
    assert searched(question, begun) == whole


def test_a_search_finds_the_rate_within_its_budget_and_says_why_it_ended() -> None:
    for seed in range(3):
        probes, ended = searched(replace(QUESTION, budget_s=5000.0, seed=1000 * seed), [])
        estimate = sought_rate(probes, "rate", 0.95, 0.95).estimate
        assert sum(probe.wall_s for probe in probes) <= 5000
        assert estimate.value == pytest.approx(10, rel=0.1)
        assert ended == ("interval" if (estimate.relative_width or 1) <= 0.1 else "budget")
