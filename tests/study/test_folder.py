"""The folder of a study: what it holds of the runs so far, and what it says when it cannot be written."""

import errno
import os
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError
from loadgen.results import run_folder
from loadgen.study import folder
from loadgen.study.folder import StudyFolder, StudyState, command_line
from loadgen.study.plan import StudyRun, plan_runs
from loadgen.study.rows import RunOutcome
from loadgen.study.spec import NO_OVERRIDES, Overrides, Study, read_study

FAILED = RunOutcome(status="failed", attempts=2, reasons=["first", "second\nwith a traceback"])


def opened(file: Path, out: Path) -> tuple[Study, list[StudyRun], StudyFolder]:
    study = read_study(file)
    runs = plan_runs(study)
    state = StudyState.open(file, study, out, NO_OVERRIDES)
    return study, runs, StudyFolder(study, runs, out, state, command_line(file, out, NO_OVERRIDES))


def test_a_failed_run_is_not_done_and_is_described_by_its_last_reason(small: Path, tmp_path: Path) -> None:
    _, runs, state = opened(small, tmp_path / "out")
    state.add(runs[0], FAILED, None)
    assert not state.is_done(runs[0])
    assert state.describe(runs[0]) == f"{runs[0].name}: failed 2 times: second"
    _, _, again = opened(small, tmp_path / "out")
    assert not again.is_done(runs[0]) and again.write_results() == []
    page = (tmp_path / "out/report.html").read_text()
    assert f"{runs[0].name} failed: second" in page and f"{len(runs) - 1} runs to go" in page


def test_a_failed_run_that_was_made_links_to_its_report(small: Path, tmp_path: Path) -> None:
    _, runs, state = opened(small, tmp_path / "out")
    made = tmp_path / "out/runs" / runs[0].name
    made.mkdir()
    (made / "report.html").touch()
    state.add(runs[0], FAILED, None)
    state.add(runs[1], FAILED, None)
    page = (tmp_path / "out/report.html").read_text()
    assert f'href="runs/{runs[0].name}/report.html"' in page and f'href="runs/{runs[1].name}' not in page


def test_the_command_of_a_page_goes_on_with_the_study() -> None:
    overrides = Overrides(models=["a b"], engine_options={"dtype": "auto"}, python="/e/python")
    assert command_line(Path("s.toml"), Path("runs/s"), overrides) == (
        "loadgen study s.toml --out runs/s --model 'a b' --engine-option dtype=auto --python /e/python"
    )


def test_a_folder_belongs_to_one_study_with_its_options(small: Path, tmp_path: Path) -> None:
    study, _, _ = opened(small, tmp_path / "out")
    assert StudyState.open(small, study, tmp_path / "out", NO_OVERRIDES).title == study.title
    with pytest.raises(LoadgenError, match="was begun with another --model, --engine-option or --python"):
        StudyState.open(small, study, tmp_path / "out", Overrides(python="/other"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(LoadgenError, match="is not empty and holds no study"):
        StudyState.open(small, study, tmp_path / "other", NO_OVERRIDES)


@pytest.mark.parametrize("module", [folder, run_folder])
def test_a_full_disk_is_one_line(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    """cell.json is written through run_folder, and the table and the page by the study itself."""
    _, runs, state = opened(small, tmp_path / "out")

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(LoadgenError, match=r"^cannot write the study's folder .*out: No space left on device$"):
        state.add(runs[0], FAILED, None)
