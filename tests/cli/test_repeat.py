"""loadgen replay --repeat, and the files that it writes for CI."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.errors import LoadgenError
from loadgen.results.verdict import CHECKS

RUN = ["replay", "chat", "--rps", "8", "--num-requests", "3", "--serve", "sim", "--ui", "none", "--idle", "0.5"]


def test_repeats_have_a_folder_and_a_seed_each_and_are_printed_as_a_list(tmp_path: Path) -> None:
    files = ["--junit", str(tmp_path / "out.xml"), "--markdown", str(tmp_path / "out.md")]
    done = CliRunner().invoke(
        cli, [*RUN, "--seed", "5", "--repeat", "2", "--out", str(tmp_path / "r"), "--json", *files]
    )
    assert done.exit_code == 0, done.output
    runs = [json.loads((tmp_path / "r" / name / "run.json").read_text()) for name in ("1", "2")]
    assert [run["seed"] for run in runs] == [5, 6]
    assert [summary["run_id"] for summary in json.loads(done.stdout)] == [run["run_id"] for run in runs]
    cases = [case.get("name") for case in ElementTree.parse(tmp_path / "out.xml").getroot()[0]]
    assert cases == [f"{check}, run {number}" for number in (1, 2) for check in CHECKS]
    assert (tmp_path / "out.md").read_text().count("### ") == 2


@pytest.mark.parametrize(
    ("file", "reason"), [("run.json", "is the folder of one run"), ("3/run.json", "is none of 1 to 2")]
)
def test_repeats_are_not_written_beside_other_runs(tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    done = CliRunner().invoke(cli, [*RUN, "--repeat", "2", "--out", str(tmp_path), "--overwrite"])
    assert isinstance(done.exception, LoadgenError) and reason in str(done.exception)
