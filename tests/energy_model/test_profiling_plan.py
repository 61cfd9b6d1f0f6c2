"""The plan of a profile measurement, and the journal that resumes it."""

from pathlib import Path

import pytest

from loadgen.cli.profile import parse_bins
from loadgen.energy_model.energy_profile import GridKey, GridPoint
from loadgen.energy_model.profiling_plan import (
    journal,
    journal_path,
    measurement_order,
    read_journal,
    seconds_remaining,
)
from loadgen.energy_model.waves import RequestShape
from loadgen.errors import LoadgenError

ON = {"model": "m", "engine": "e"}
POINT = GridPoint(input=8, output=2, batch=1, joules_per_request=1.5)


def test_bins_are_grids() -> None:
    shapes = [RequestShape(1, 3), RequestShape(2, 3), RequestShape(4, 5), RequestShape(4, 6)]
    assert parse_bins("1,2x3 4x5,6 1x3") == shapes


@pytest.mark.parametrize("text", ["", "8", "8x", "0x4", "8xfour", "8;9x1"])
def test_text_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(LoadgenError, match="--bins"):
        parse_bins(text)


def test_a_plan_keeps_the_order_of_batches_and_shuffles_bins_by_seed() -> None:
    bins = parse_bins("1,2,3,4,5,6,7,8x1,2")
    plan = measurement_order(bins, [32, 1], seed=0)
    assert [key.batch for key in plan] == [32] * 16 + [1] * 16
    assert {(key.input, key.output) for key in plan[:16]} == {(key.input, key.output) for key in plan[16:]} == set(bins)
    assert plan == measurement_order(bins, [32, 1], seed=0) != measurement_order(bins, [32, 1], seed=1)


def test_the_time_remaining_follows_the_durations_of_the_measured_points() -> None:
    def duration_s(key: GridKey) -> float:
        return 0.5 + 1e-5 * key.input * key.batch + 0.01 * key.output

    plan = measurement_order(parse_bins("100,1000x10,100"), [1, 64], seed=0)
    predicted = seconds_remaining([(key, duration_s(key)) for key in plan[:5]], plan[5:])
    assert predicted == pytest.approx(sum(map(duration_s, plan[5:])), rel=0.02)
    assert seconds_remaining([], plan) is None
    assert seconds_remaining([(plan[0], 1.0)], []) == 0.0


def test_the_journal_returns_earlier_and_appended_points_and_no_half_line(tmp_path: Path) -> None:
    path, other = journal_path(tmp_path / "p.json"), GridPoint(input=9, output=2, batch=4, joules_per_request=2.5)
    with journal(path, ON, [POINT]) as keep:
        keep(other)
    with path.open("a") as file:
        file.write('{"input": 9, "outp')
    assert read_journal(path, ON) == [POINT, other]


def test_a_journal_of_another_server_or_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json.partial.jsonl"
    assert read_journal(path, ON) == [], "no journal is an empty one"
    path.write_text("")
    assert read_journal(path, ON) == [], "interrupted before its first line"
    with journal(path, ON, []):
        pass
    with pytest.raises(LoadgenError, match="holds cells measured on"):
        read_journal(path, ON | {"model": "other"})
    path.write_text("[1]\n")
    with pytest.raises(LoadgenError, match="not the journal of a profile"):
        read_journal(path, ON)
