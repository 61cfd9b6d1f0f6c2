"""The benchmark of differences compares two runs of one engine, which differ by chance alone."""

import pytest

from benchmarks.accuracy.differences import Case, differences


@pytest.mark.parametrize("paired", [False, True])
def test_two_runs_of_one_engine_mostly_do_not_differ(paired: bool) -> None:
    found = differences(Case("poisson", 0.5, 200, paired), 1)
    assert found.paired is paired
    outcomes = [row.excludes_zero for row in found.rows.values() if row.half_width is not None]
    assert len(outcomes) > 15 and sum(outcomes) <= 4
