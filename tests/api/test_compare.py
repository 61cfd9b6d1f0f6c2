"""Runs compared from a program: the differences of the command, and its refusals."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import loadgen
from loadgen.cli import cli
from loadgen.report.write import finish
from loadgen.results.run_folder import RunWriter
from loadgen.workload.schedule import Schedule
from support import sample_runs


def write(path: Path, draw: int, seed: int) -> None:
    """Write the folder of a made-up run without failures, which states this seed."""
    made = sample_runs.run(num_requests=120, seed=draw, failing=0)
    info = msgspec.structs.replace(made.info, schedule_sha256="0", seed=seed)
    writer = RunWriter(path, info, Schedule(tuple(made.schedule), "trace", 4.0, seed))
    for record in made.records:
        writer.record(record)
    writer.energy(made.energy)
    writer.close()
    finish(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, which differ in their times, and c, of which another seed was asked."""
    base = tmp_path_factory.mktemp("runs")
    for name, draw, seed in (("a", 7, 0), ("b", 8, 0), ("c", 7, 99)):
        write(base / name, draw, seed)
    return base


def test_the_differences_are_those_of_the_command(runs: Path) -> None:
    made = loadgen.compare(loadgen.read(runs / "a"), str(runs / "b"))
    output = CliRunner().invoke(cli, ["compare", str(runs / "a"), str(runs / "b"), "--json"]).output
    printed = msgspec.json.decode(output)["differences"][0]["metrics"]
    assert {path: row.difference for path, row in made.rows.items()} == {
        path: row["difference"] for path, row in printed.items()
    }
    row = made.rows["e2e_s.mean"]
    assert (row.a, row.b) == tuple(loadgen.read(runs / name).summary.e2e_s.mean for name in "ab")


def test_a_run_does_not_differ_from_itself(runs: Path) -> None:
    made = loadgen.compare(runs / "a", runs / "a")
    assert made.paired
    assert {row.difference for row in made.rows.values()} <= {0.0, None}
    assert not any(row.excludes_zero for row in made.rows.values())


def test_runs_of_which_different_things_were_asked_are_refused_unless_allowed(runs: Path) -> None:
    with pytest.raises(loadgen.LoadgenError, match=r"another seed than A.*allow='seed'"):
        loadgen.compare(runs / "a", runs / "c")
    assert loadgen.compare(runs / "a", runs / "c", allow=["seed"]).rows
    assert loadgen.compare(runs / "a", runs / "c", allow="seed").rows


@pytest.mark.parametrize(
    ("a", "allow", "message"),
    [
        ([], (), "one side has no run"),
        ("none", (), "is not a run folder"),
        ("a", ["seeds"], "'seeds' is none of"),
        ([3], (), "expected a run, its folder, or several of them, not int"),
    ],
)
def test_what_cannot_be_compared_is_an_error_of_one_line(runs: Path, a: Any, allow: list[str], message: str) -> None:
    with pytest.raises(loadgen.LoadgenError, match=message):
        loadgen.compare(runs / a if isinstance(a, str) else a, runs / "b", allow=allow)


def test_several_runs_of_a_side_are_repeats(runs: Path) -> None:
    sides = [runs / "a", loadgen.read(runs / "b")], [runs / "b", runs / "a"]
    made = loadgen.compare(*sides)
    values = [loadgen.read(runs / name).summary.e2e_s.mean or 0.0 for name in "ab"]
    assert made.rows["e2e_s.mean"].a == made.rows["e2e_s.mean"].b == pytest.approx(sum(values) / 2)
