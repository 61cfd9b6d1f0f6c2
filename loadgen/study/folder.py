"""The folder of a study: which study it is, the outcome of each run, results.csv and report.html."""

from __future__ import annotations

import csv
import hashlib
import io
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from loadgen.client.redact import redact_command, redact_setting
from loadgen.energy import gpu_state
from loadgen.errors import LoadgenError
from loadgen.files import locked, write_atomic, writing
from loadgen.report.format import watts
from loadgen.report.study_page import render_study_page
from loadgen.report.study_text import reason_text
from loadgen.results import run_folder
from loadgen.results.study_table import Row, StudyInfo
from loadgen.study.rows import FinishedRun, RunOutcome, row_of
from loadgen.study.spec import NO_OVERRIDES, Overrides, Study

if TYPE_CHECKING:
    from loadgen.study.plan import StudyRun


class StudyState(msgspec.Struct, frozen=True, kw_only=True):
    """study.json: the study that this folder belongs to."""

    schema_version: str | None = None
    """Version of this file's format; null in an older version's folder."""
    file: str
    """Name of the study's TOML file."""
    sha256: str
    """SHA-256 of its bytes."""
    title: str
    """Title of the study."""
    overrides: Overrides = NO_OVERRIDES
    """Changes that the command line made to the file."""
    gpus: list[gpu_state.GpuState] = []
    """GPUs at the start: every run must see the same ones."""

    @classmethod
    def open(cls, file: Path, study: Study, out: Path, overrides: Overrides) -> Self:
        """Return study.json of the folder `out`, written now if that is new. LoadgenError if it is of another study."""
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        path = out / "study.json"
        if path.exists():
            stored = msgspec.json.decode(path.read_bytes(), type=cls)
            if stored.sha256 != sha256:
                raise LoadgenError(f"{out} holds another study, or {file} changed since; choose another --out")
            if stored.overrides != overrides:
                options = msgspec.json.encode(stored.overrides).decode()
                raise LoadgenError(f"{out} was begun with another --model, --engine-option or --python: {options}")
            return stored
        if out.exists() and any(out.iterdir()):
            raise LoadgenError(f"--out {out} is not empty and holds no study; choose another")
        state = cls(
            schema_version=run_folder.SCHEMA_VERSION,
            file=file.name,
            sha256=sha256,
            title=study.title,
            overrides=overrides,
            gpus=gpu_state.states(),
        )
        with writing(out, "the study's folder"):
            (out / "runs").mkdir(parents=True, exist_ok=True)
            (out / "study.toml").write_bytes(file.read_bytes())
            run_folder.write_json(path, state)
        return state


class StudyFolder:
    """The outcomes and rows of a study so far. Each run folder is decoded once: when the study goes on, or never."""

    def __init__(self, study: Study, runs: Sequence[StudyRun], out: Path, state: StudyState, command: str) -> None:
        """Read what is done. `command` is the command line that goes on with the study."""
        self._study, self._runs, self._out = study, runs, out
        self._state, self._command = state, command
        self._outcomes: dict[str, RunOutcome] = {}
        self._rows: dict[str, Row] = {}
        for run in runs:
            path = out / "runs" / run.name / "cell.json"
            if path.exists():
                outcome = self._outcomes[run.name] = msgspec.json.decode(path.read_bytes(), type=RunOutcome)
                if outcome.status == "done":
                    with suppress(FileNotFoundError):  # a run that lost its results is made again
                        self._rows[run.name] = row_of(study, run, outcome, FinishedRun.read(path.parent))

    def is_done(self, run: StudyRun) -> bool:
        return run.name in self._rows

    def add(self, run: StudyRun, outcome: RunOutcome, finished: FinishedRun | None) -> None:
        """Take in a run that is over, and rewrite the table and the page. `finished` is None when it failed."""
        path = self._out / "runs" / run.name / "cell.json"
        with writing(self._out, "the study's folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            run_folder.write_json(path, outcome)
        self._outcomes[run.name] = outcome
        if finished is not None:
            self._rows[run.name] = row_of(self._study, run, outcome, finished)
        self.write_results()

    def failed(self) -> list[str]:
        """Return the names of the runs that failed, however often they were tried."""
        return [name for name, outcome in self._outcomes.items() if outcome.status == "failed"]

    def describe(self, run: StudyRun) -> str:
        """Return one line on how the run ended."""
        outcome, row = self._outcomes[run.name], self._rows.get(run.name)
        if row is None:
            return f"{run.name}: failed {outcome.attempts} times: {reason_text(outcome.reasons[-1])}"
        if row.joules_per_output_token is None:
            text = f"{run.name}: done, no energy"
        else:
            text = f"{run.name}: {row.joules_per_output_token:.4g} J/output token, {watts(row.mean_watts)}"
        return f"{text}; {row.failed:,} of {row.requests:,} requests failed" if row.failed else text

    def write_results(self) -> list[Row]:
        """Write results.csv and report.html of the runs that are done; return their rows in the order of the plan."""
        rows = [self._rows[run.name] for run in self._runs if run.name in self._rows]
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=Row.__struct_fields__, lineterminator="\n")
        table.writeheader()
        table.writerows(msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.cell))
        page = render_study_page(self.info(), rows)
        with writing(self._out, "the study's folder"):
            write_atomic(self._out / "results.csv", text.getvalue().encode())
            write_atomic(self._out / "report.html", page.encode())
        return rows

    def info(self) -> StudyInfo:
        """Return the study beside its rows, so far."""
        study = self._study
        failed = {name: self._outcomes[name].reasons[-1] for name in self.failed()}
        return StudyInfo(
            title=study.title,
            description=study.description,
            baseline=study.baseline,
            limits_ms=study.goodput,
            wanted=study.goodput_share,
            seed=study.seed,
            workloads={label: workload.text for label, workload in study.workloads.items()},
            failed=failed,
            remaining=len(self._runs) - len(self._rows) - len(failed),
            pages=frozenset(path.parent.name for path in self._out.glob("runs/*/report.html")),
            file=self._state.file,
            sha256=self._state.sha256,
            command=self._command,
        )


def study_lock(out: Path) -> AbstractContextManager[None]:
    """Return a context that holds the lock of a study's folder. LoadgenError in it: another process holds that."""
    return locked(out, "the study's folder")


def command_line(file: Path, out: Path, overrides: Overrides) -> str:
    """Return the command that makes a study in `out`, or goes on with it."""
    words = ["loadgen", "study", str(file), "--out", str(out)]
    words += [word for model in overrides.models for word in ("--model", model)]
    words += [word for item in overrides.engine_options.items() for word in ("--engine-option", redact_setting(*item))]
    words += ["--python", overrides.python] if overrides.python is not None else []
    return shlex.join(redact_command(words))
