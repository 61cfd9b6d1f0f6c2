"""README.md is short, its text of a run is what a run prints, and its pictures are small."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LABEL = re.compile(r"^ *[=+]? ?([A-Za-z][\w/ ]*?)(?= {2,}|$)", re.MULTILINE)


def labels(text: str) -> list[str]:
    """Return the first words of the rows of a report, which have columns behind them, and its headings."""
    plain = text.replace(" !", "").replace("OK, with warnings", "OK")
    rows = [row for row in plain.splitlines() if not row.startswith(" " * 8)]  # which would continue the row above
    return [found[1] for row in rows if (found := LABEL.match(row))]


def test_it_has_fewer_than_150_lines() -> None:
    assert len(README.splitlines()) < 150


def test_its_text_of_a_run_has_the_rows_of_a_run(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\$ loadgen (replay chat .*--serve sim.*)$", README, re.MULTILINE)
    shown = README.partition("<!-- demo: begin -->")[2].partition("<!-- demo: end -->")[0]
    options = command.replace("--duration 30", "--duration 13").split()
    printed = subprocess.run(
        [sys.executable, "-m", "loadgen", *options],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT), "LOADGEN_IDLE": "0.5"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert set(labels(shown)) <= set(labels(printed))


def test_its_rows_are_labelled() -> None:
    shown = README.partition("<!-- demo: begin -->")[2].partition("<!-- demo: end -->")[0]
    assert {"OK", "Load", "rate", "TTFT", "Energy", "idle", "attributed", "run folder"} <= set(labels(shown))


def test_the_pictures_are_small() -> None:
    assert sum(picture.stat().st_size for picture in (ROOT / "docs" / "pictures").iterdir()) < 600_000
