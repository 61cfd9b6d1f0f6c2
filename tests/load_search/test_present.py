"""The load of today is probed at the rates at which replicas would serve it, after bracketing and before refining."""

import pytest

from loadgen.load_search.plan import PlannedProbe, Question
from loadgen.load_search.present import present_or_planned
from loadgen.results.search_result import PresentLoad
from support.search_results import probe, probes

QUESTION = Question(limits_ms={"ttft": 200.0, "tpot": 10.0}, attainment=0.99)
REFINE = PlannedProbe(number=6, rate_rps=12.0, duration_s=100.0, seed=6, stage="refine")
BRACKETING = probes()[:6]  # 8/s held, 16/s did not


def next_rate(now_rps: float, replicas: int, made: tuple[float, ...] = ()) -> float | None:
    done = (*BRACKETING, *(probe(6 + i, rate, stage="present") for i, rate in enumerate(made)))
    load = PresentLoad(now_rps=now_rps, replicas=replicas)
    planned = present_or_planned(load, QUESTION, done, REFINE, 600.0)
    return planned.rate_rps if planned.stage == "present" else None


@pytest.mark.parametrize(
    ("now_rps", "replicas", "made", "rate"),
    [
        (6.0, 2, (), 3.0),
        (6.0, 2, (3.0,), 6.0),  # one server has room for it
        (6.0, 2, (3.0, 6.0), None),
        (24.0, 6, (4.0,), 8.0),  # three have
        (6.0, 1, (), 6.0),
        (6.0, 1, (6.0,), None),
        (40.0, 2, (), None),  # more than the bracket lets them serve
    ],
)
def test_the_present_rate_comes_first_and_then_that_of_the_fewest_replicas(
    now_rps: float, replicas: int, made: tuple[float, ...], rate: float | None
) -> None:
    assert next_rate(now_rps, replicas, made) == rate


def test_such_a_probe_takes_a_small_part_of_the_time() -> None:
    load = PresentLoad(now_rps=6.0, replicas=2)
    planned = present_or_planned(load, QUESTION, BRACKETING, REFINE, 600.0)
    assert (planned.duration_s, planned.seed, planned.number) == (40.0, 6, 6)
    assert present_or_planned(load, QUESTION, BRACKETING, REFINE, 260.0) is REFINE


def test_without_a_load_or_while_bracketing_the_plan_stays() -> None:
    assert present_or_planned(None, QUESTION, BRACKETING, REFINE, 600.0) is REFINE
    bracketing = PlannedProbe(number=0, rate_rps=1.0, duration_s=10.0, seed=0, stage="bracket")
    assert present_or_planned(PresentLoad(now_rps=6.0), QUESTION, BRACKETING, bracketing, 600.0) is bracketing
