"""Compare runs, or repeats of them, from a program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from loadgen.api.run import Run
from loadgen.errors import LoadgenError
from loadgen.report.comparability import ALLOWED, objections_of_sides
from loadgen.results.difference import differences_of_sides
from loadgen.results.summarize import load_run

if TYPE_CHECKING:
    from loadgen.results.difference import Differences
    from loadgen.results.run_folder import RunResult

Side: TypeAlias = "Run | str | os.PathLike[str] | Sequence[Run | str | os.PathLike[str]]"


def compare(a: Side, b: Side, *, allow: str | Sequence[str] = ()) -> Differences:
    """Return the differences of run `b` from run `a`, with 95 % intervals: what `loadgen compare` prints.

    A side is a run, a run folder, a folder of run folders, or a sequence of them; several are repeats, whose means are
    compared. `compare(a, b).rows["ttft_s.p99"]` has the two values and the difference in seconds, and `interval` and
    `excludes_zero`; its `reason` says why there is no interval.

    allow: one objection, or several, that do not count, as of `--allow`.
    LoadgenError: a run did not finish or failed, or different things were asked of the two.
    """
    allow = (allow,) if isinstance(allow, str) else allow
    if unknown := set(allow) - set(ALLOWED):
        raise LoadgenError(f"allow: {min(unknown)!r} is none of {', '.join(ALLOWED)}")
    sides = [_runs_of(a), _runs_of(b)]
    if refusals := objections_of_sides(sides, ("A", "B"), allow):
        raise LoadgenError("; ".join(f"{text} (allow={kind!r} compares all the same)" for kind, text in refusals))
    return differences_of_sides(sides[0], sides[1], ("A", "B"))


def _runs_of(side: Side) -> list[RunResult]:
    if isinstance(side, Run):
        return [side._result]
    if isinstance(side, str | os.PathLike):
        return runs_in(Path(side))
    if not isinstance(side, Sequence):
        raise LoadgenError(f"expected a run, its folder, or several of them, not {type(side).__name__}")
    if not side:
        raise LoadgenError("nothing to compare: one side has no run")
    return [run for part in side for run in _runs_of(part)]


def runs_in(path: Path) -> list[RunResult]:
    """Return the run in a folder, or the runs in the folders that it holds, in the order of their names' numbers."""
    if (path / "run.json").exists():
        return [load_run(path)]
    folders = [file.parent for file in path.glob("*/run.json")] if path.is_dir() else []
    folders.sort(key=lambda folder: (len(folder.name), folder.name) if folder.name.isdigit() else (0, folder.name))
    return [load_run(folder) for folder in folders] or [load_run(path)]
