"""Every notebook in examples/ runs from its first cell to its last, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
RUNNER = ROOT / "tests" / "support" / "notebook.py"


def run(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Execute a notebook in a folder, with warnings as errors but for those of other packages."""
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder)}
    command = [sys.executable, "-W", "error::UserWarning", RUNNER, notebook]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def written(folder: Path, *sources: str) -> Path:
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources]
    (path := folder / "made.ipynb").write_text(json.dumps({"cells": cells}))
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path: Path, tmp_path: Path) -> None:
    result = run(path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Run 'runs/" in result.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_its_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


def test_cells_share_their_names_and_may_await(tmp_path: Path) -> None:
    notebook = written(tmp_path, "import asyncio\nx = 2", "x = await asyncio.sleep(0, x + 1)", "x + 1")
    assert run(notebook, tmp_path).stdout == "4\n"


@pytest.mark.parametrize("source", ["1 / 0", "1 +", "import asyncio\nasyncio.run(asyncio.sleep(0))"])
def test_a_cell_that_fails_fails_the_notebook(source: str, tmp_path: Path) -> None:
    result = run(written(tmp_path, "x = 1", source, "print('after')"), tmp_path)
    assert result.returncode == 1 and "after" not in result.stdout
