"""The outcome of a setting, from its probes."""

import pytest

from loadgen.load_search.plan import Question
from loadgen.load_search.setting_result import setting_result
from loadgen.results.search_result import Ended
from tests.support.probes_of_curves import even_probe

QUESTION = Question(limits_ms={"ttft": 200.0}, attainment=0.95)


@pytest.mark.parametrize(
    ("missed", "ended", "is_known"),
    [((0, 0), "budget", False), ((0, 30), "budget", True), ((0, 30), "client", False), ((30, 30), "budget", False)],
    ids=["no rate was too much", "between", "the client's limit", "no rate held"],
)
def test_the_rate_of_fewest_joules_is_known_between_one_that_held_and_one_that_did_not(
    missed: tuple[int, int], ended: Ended, is_known: bool
) -> None:
    rates = zip((4.0, 8.0), missed, strict=True)
    probes = [even_probe(rate, 40, count, stage="bracket", watts=300.0) for rate, count in rates]
    result = setting_result(QUESTION, probes, ended=ended)
    assert (result.least_joules_rate is not None) == (result.least_joules is not None) == is_known
