"""loadgen report: a run is analysed again, and the page of a search is written again."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.cli.report import report
from loadgen.errors import LoadgenError
from support.search_results import search


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a search that lost its page."""
    (tmp_path / "search.json").write_bytes(msgspec.json.encode(search()))
    return tmp_path


def test_the_folder_of_a_search_has_its_answer_printed_and_its_page_written(folder: Path) -> None:
    result = CliRunner().invoke(report, [str(folder)])
    assert result.exit_code == 0, result.output
    assert "13.4 requests/s [12.8, 14.0] at 95 % confidence" in result.stdout
    assert "13.4 requests/s" in (folder / "report.html").read_text()
    as_json = CliRunner().invoke(report, [str(folder), "--json"])
    assert json.loads(as_json.stdout) == json.loads((folder / "search.json").read_bytes())


@pytest.mark.parametrize(("file", "place"), [("study.json", "runs"), (None, None)])
def test_a_folder_of_something_else_is_one_line_that_names_its_runs(
    tmp_path: Path, file: str | None, place: str | None
) -> None:
    if file:
        (tmp_path / file).write_text("{}")
    result = CliRunner().invoke(report, [str(tmp_path)])
    assert isinstance(result.exception, LoadgenError)
    there = f"; those in {tmp_path / place} are" if place else ""
    assert str(result.exception) == f"{tmp_path} is not a run folder: it has no run.json{there}"
