"""Run a study: a matrix of servers x models x workloads x loads x repeats -> run folders, one table and one page.

The plan follows from the file and its seed alone: a study that was killed sees in its folder which runs remain.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Self

import msgspec

from loadgen.energy import gpu_state
from loadgen.errors import LoadgenError
from loadgen.files import write_atomic
from loadgen.report.study_page import render_study_page
from loadgen.report.write import finish
from loadgen.results import run_folder
from loadgen.results.study_table import Row
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.servers.launcher import served
from loadgen.study.plan import StudyRun, plan_runs, schedule_of, start_key
from loadgen.study.rows import FinishedRun, RunOutcome, gpu_names, row_of
from loadgen.study.spec import NO_OVERRIDES, Overrides, Study, read_study
from loadgen.workload.schedule import Schedule


class StudyState(msgspec.Struct, frozen=True, kw_only=True):
    """study.json: the study that this folder belongs to."""

    file: str
    sha256: str
    title: str
    overrides: Overrides = NO_OVERRIDES
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
                raise LoadgenError(f"{out} was begun with another --model, --knob or --python: {options}")
            return stored
        if out.exists() and any(out.iterdir()):
            raise LoadgenError(f"--out {out} is not empty and holds no study; choose another")
        state = cls(file=file.name, sha256=sha256, title=study.title, overrides=overrides, gpus=gpu_state.states())
        (out / "runs").mkdir(parents=True, exist_ok=True)
        (out / "study.toml").write_bytes(file.read_bytes())
        run_folder.write_json(path, state)
        return state


_Print = Callable[[str], None]


@dataclass
class _StartedServer:
    """The server of a block: its URL, or why it did not start; and the loads that it has been warmed up with."""

    url: str | None
    error: str = ""
    warm: set[tuple[str, int | None]] = field(default_factory=set)


def run_study(
    file: Path,
    out: Path,
    say: _Print,
    overrides: Overrides = NO_OVERRIDES,
    other_gpu: bool = False,
    only: Sequence[str] = (),
) -> list[Row]:
    """Make the runs of the study in `file` that are not done in `out`, and return all rows.

    Raises LoadgenError, and KeyboardInterrupt. other_gpu: accept other GPUs from here on, if they are of the kind and
    the power limit that the study began on. only: servers whose runs are made now; none: all.
    """
    study = read_study(file, overrides)
    if unknown := set(only) - set(study.servers):
        raise LoadgenError(f"--only {min(unknown)}: the study has no such server; it has: {', '.join(study.servers)}")
    runs = plan_runs(study)
    gpus = StudyState.open(file, study, out, overrides).gpus
    present = gpu_state.states()
    if other_gpu and _kinds(present) == _kinds(gpus):
        gpus = present
    _check_gpus(gpus, present)
    folder = _StudyFolder(study, runs, out)
    undone = [run for run in runs if not folder.is_done(run)]
    todo = [run for run in undone if not only or run.server in only]
    num_done = len(runs) - len(undone)
    if num_done:
        say(f"{num_done} of {len(runs)} runs are done already")
    started_s, num_made = monotonic(), 0
    for _, block in groupby(todo, key=lambda run: (run.repeat if study.restart else 0, start_key(study, run))):
        for run, outcome, finished in _run_block(study, list(block), file.parent, out, gpus, say):
            folder.add(run, outcome, finished)
            num_made += 1
            remaining_s = (monotonic() - started_s) / num_made * (len(todo) - num_made)
            remaining = f"{remaining_s:.0f} s" if remaining_s < 90 else f"{remaining_s / 60:.0f} min"
            say(f"[{num_done + num_made}/{len(runs)}, {remaining} left] {folder.describe(run)}")
    return folder.write_results()


# ---------------------------------------------------------------- the folder


class _StudyFolder:
    """The outcomes and rows of a study so far. Each run folder is decoded once: when the study goes on, or never."""

    def __init__(self, study: Study, runs: Sequence[StudyRun], out: Path) -> None:
        self._study, self._runs, self._out = study, runs, out
        self._outcomes: dict[str, RunOutcome] = {}
        self._rows: dict[str, Row] = {}
        for run in runs:
            path = out / "runs" / run.name / "cell.json"
            if path.exists():
                outcome = self._outcomes[run.name] = msgspec.json.decode(path.read_bytes(), type=RunOutcome)
                if outcome.status == "done":
                    self._rows[run.name] = row_of(study, run, outcome, FinishedRun.read(path.parent))

    def is_done(self, run: StudyRun) -> bool:
        return run.name in self._rows

    def add(self, run: StudyRun, outcome: RunOutcome, finished: FinishedRun | None) -> None:
        """Take in a run that is over, and rewrite the table and the page. `finished` is None when it failed."""
        path = self._out / "runs" / run.name / "cell.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(path, outcome)
        self._outcomes[run.name] = outcome
        if finished is not None:
            self._rows[run.name] = row_of(self._study, run, outcome, finished)
        self.write_results()

    def describe(self, run: StudyRun) -> str:
        """Return one line on how the run ended."""
        outcome, row = self._outcomes[run.name], self._rows.get(run.name)
        if row is None:
            return f"{run.name}: failed {outcome.attempts} times: {outcome.reasons[-1].splitlines()[0]}"
        if row.joules_per_output_token is None:
            return f"{run.name}: done, no energy"
        return f"{run.name}: {row.joules_per_output_token:.4g} J/output token, {row.mean_watts or 0:.0f} W"

    def write_results(self) -> list[Row]:
        """Write results.csv and report.html of the runs that are done; return their rows in the order of the plan."""
        study, rows = self._study, [self._rows[run.name] for run in self._runs if run.name in self._rows]
        failed = {
            run.name: self._outcomes[run.name].reasons[-1]
            for run in self._runs
            if run.name in self._outcomes and self._outcomes[run.name].status == "failed"
        }
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=Row.__struct_fields__, lineterminator="\n")
        table.writeheader()
        table.writerows(msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.cell))
        write_atomic(self._out / "results.csv", text.getvalue().encode())
        remaining = len(self._runs) - len(rows) - len(failed)
        page = render_study_page(study.title, study.description, rows, study.baseline, study.goodput, failed, remaining)
        write_atomic(self._out / "report.html", page.encode())
        return rows


# ---------------------------------------------------------------- one start of a server


def _run_block(
    study: Study, runs: Sequence[StudyRun], source: Path, out: Path, gpus: list[gpu_state.GpuState], say: _Print
) -> Iterator[tuple[StudyRun, RunOutcome, FinishedRun | None]]:
    """Make the runs of one start of a server; a run that fails is repeated on a fresh one, `retries` times.

    source: the study file's folder. gpus: those that every run must see.
    """
    pending = [(run, RunOutcome(status="failed", attempts=0)) for run in runs]
    while pending:
        failed: list[tuple[StudyRun, RunOutcome]] = []
        with ExitStack() as stack:
            try:
                server = _StartedServer(stack.enter_context(_start_server(study, pending[0][0], out, say)))
            except LoadgenError as err:
                server = _StartedServer(None, str(err))
            for run, earlier in pending:
                started_s = monotonic()
                present = gpu_state.cool_down(study.cool.at_most_c, study.cool.timeout_s)
                _check_gpus(gpus, present)
                outcome = msgspec.structs.replace(earlier, attempts=earlier.attempts + 1, gpus=present)
                try:
                    finished = _measure(study, run, source, out, server)
                except LoadgenError as err:
                    outcome = msgspec.structs.replace(outcome, reasons=[*earlier.reasons, str(err)])
                    if outcome.attempts > study.retries:
                        yield run, outcome, None
                    else:
                        say(f"{run.name}: {outcome.reasons[-1].splitlines()[0]}; once more on a fresh server")
                        failed.append((run, outcome))
                else:
                    seconds = monotonic() - started_s
                    yield run, msgspec.structs.replace(outcome, status="done", seconds=seconds), finished
        pending = failed


def _start_server(study: Study, run: StudyRun, out: Path, say: _Print) -> AbstractContextManager[str]:
    """Return a context that starts the server of a run, or that only has its URL when it already runs."""
    server = study.servers[run.server]
    if server.base_url is not None:
        return nullcontext(server.base_url)
    assert server.recipe is not None
    settings = [f"{key}={value}" for key, value in server.engine_options(run.batch).items()]
    options = [word for setting in settings for word in ("--engine-option", setting)]
    options += ["--model", run.model] if run.model is not None else []
    options += ["--python", server.python] if server.python is not None else []
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(server.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if server.gpus else {}
    return served(server.recipe, *options, log=out / f"{run.server}.log", progress=say, environment=visible)


def _check_gpus(expected: list[gpu_state.GpuState], present: list[gpu_state.GpuState]) -> None:
    """Raise LoadgenError where they differ: then a difference between two runs may be one between GPUs."""
    if [(gpu.uuid, gpu.limit_w) for gpu in expected] == [(gpu.uuid, gpu.limit_w) for gpu in present]:
        return
    names = f"{gpu_names(expected) or 'none'}, now {gpu_names(present) or 'none'}"
    hint = "; add --other-gpu to go on all the same" if _kinds(expected) == _kinds(present) else ""
    raise LoadgenError(f"the GPUs are not those the study began on: {names}{hint}")


def _kinds(gpus: list[gpu_state.GpuState]) -> list[tuple[str, float | None]]:
    return [(gpu.name, gpu.limit_w) for gpu in gpus]


# ---------------------------------------------------------------- one run


def _measure(study: Study, run: StudyRun, source: Path, out: Path, server: _StartedServer) -> FinishedRun:
    """Make one run. LoadgenError if a request failed: the load was not the planned one. An interrupt ends the study."""
    if server.url is None:
        raise LoadgenError(server.error)
    schedule = schedule_of(study, run, source)
    warm_up = study.warmup if (run.workload, run.batch) not in server.warm else 0
    server.warm.add((run.workload, run.batch))
    config = _run_config(study, run, out / "runs" / run.name, server.url)
    if run.batch is None:
        config = msgspec.structs.replace(config, warmup=min(warm_up, len(schedule.requests)))
    rmtree(config.out, ignore_errors=True)  # of an earlier attempt; one killed at once is no run folder yet
    if run.batch is not None and warm_up:
        _warm_up(schedule, config, run.batch)
    replay(schedule, config, NullView())
    result = finish(config.out, schedule)
    if result.info.stopped_by != "completed":
        raise KeyboardInterrupt
    assert result.summary is not None
    if failed := result.summary.requests.failed:
        example = next(record for record in result.records if record.error)
        raise LoadgenError(
            f"{failed} of {result.summary.requests.scheduled} requests failed, first {example.error}: {example.detail}"
        )
    return FinishedRun(result.info, result.summary, result.schedule)


def _run_config(study: Study, run: StudyRun, folder: Path, url: str) -> RunConfig:
    server = study.servers[run.server]
    arrival, burstiness = study.arrival_of(run.workload)
    return RunConfig(
        out=folder,
        base_url=url,
        model=server.model if server.base_url else None,
        endpoint="chat" if study.endpoint == "chat" else "completions",
        energy=study.energy,
        gpus=tuple(server.gpus),
        max_concurrency=run.batch,
        timeout_s=study.timeout_s,
        warmup=0,
        idle_s=study.idle_s,
        overwrite=True,
        goodput=study.goodput,
        plan={
            "study": study.title,
            "server": run.server,
            "knobs": server.engine_options(run.batch),
            "workload": run.workload,
            "batch": run.batch,
            "rps": run.rps,
            "arrival": arrival,
            "burstiness": burstiness,
            "repeat": run.repeat,
        },
    )


def _warm_up(schedule: Schedule, config: RunConfig, batch: int) -> None:
    """Send one unrecorded round at the batch of the run, so that what an engine compiles or captures for it exists."""
    seed = schedule.seed + 1_000_003  # other prompts than the run's, so that none of these is in a prefix cache
    one_round = Schedule(schedule.requests[:batch], schedule.arrival, None, seed)
    with TemporaryDirectory() as folder:
        unrecorded = msgspec.structs.replace(config, out=Path(folder) / "run", warmup=0, idle_s=0.0, energy="none")
        replay(one_round, unrecorded, NullView())
        if run_folder.read_run(unrecorded.out).info.stopped_by != "completed":
            raise KeyboardInterrupt
