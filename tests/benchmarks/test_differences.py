"""The benchmark of differences compares two runs of one engine, which differ by chance alone."""

import pytest

from benchmarks.accuracy.differences import Case, outcomes_of, pairs_of, repeats_of
from loadgen.results.difference import find_differences


@pytest.mark.parametrize("paired", [False, True])
def test_two_runs_of_one_engine_mostly_do_not_differ(paired: bool) -> None:
    case = Case("poisson", 0.3, 200, paired)
    pairs = pairs_of(case, 6)
    assert find_differences(*pairs[0]).paired is paired
    for found in ([find_differences(*pairs[0])], list(repeats_of(case, pairs))[:1]):
        outcomes = [value for values in outcomes_of(found).values() for value in values if value is not None]
        assert len(outcomes) > 15 and sum(outcomes) <= 4
