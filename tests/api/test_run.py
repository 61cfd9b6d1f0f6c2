"""A run that is read is its folder."""

from pathlib import Path

import msgspec
import pytest

import loadgen
from loadgen.report.write import finish
from loadgen.results.run_folder import RunWriter
from loadgen.workload.schedule import Schedule
from support import sample_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, with its analysis."""
    path = tmp_path_factory.mktemp("runs") / "a"
    made = sample_runs.run(num_requests=50)
    writer = RunWriter(path, made.info, Schedule(tuple(made.schedule), "trace", 4.0, 0))
    for record in made.records:
        writer.record(record)
    writer.energy(made.energy)
    writer.close()
    finish(path)
    return path


def test_a_run_states_what_its_files_do(folder: Path) -> None:
    run = loadgen.read(str(folder))
    assert run.summary.to_dict() == msgspec.json.decode((folder / "summary.json").read_bytes())
    assert msgspec.json.decode(msgspec.json.encode(run.info.to_dict())) == msgspec.json.decode(
        (folder / "run.json").read_bytes()
    )
    assert run.verdict is run.summary.verdict
    assert (len(run.requests), run.path) == (50, folder)
    assert len(run.energy) > 10 and len(run.engine) == 0
    assert run.requests is run.requests, "a table is made once"


def test_a_run_is_shown_in_one_line(folder: Path) -> None:
    run = loadgen.read(folder)
    completed = run.summary.requests.completed
    assert repr(run) == f"<Run '{folder}': {completed} of 50 requests completed, verdict {run.verdict.status}>"


def test_reading_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert loadgen.read(folder).requests.to_pandas().shape[0] == 50
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_is_no_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, Path(__file__)):
        with pytest.raises(loadgen.LoadgenError, match="is not a run folder"):
            loadgen.read(path)
