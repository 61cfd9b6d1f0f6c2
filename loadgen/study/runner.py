"""Run a study: a matrix of servers x models x workloads x loads x repeats -> run folders, one table and one page.

The plan follows from the file and its seed alone: a study that was killed sees in its folder which runs remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadgen.energy import gpu_state
from loadgen.errors import LoadgenError
from loadgen.report.write import finish
from loadgen.results import run_folder
from loadgen.run.config import RunConfig
from loadgen.run.interrupts import run_replay
from loadgen.run.progress import NullView, View, announcer, server_start
from loadgen.servers.launcher import served
from loadgen.study.folder import StudyFolder, StudyState, command_line, study_lock
from loadgen.study.plan import StudyRun, plan_runs, schedule_of, start_key
from loadgen.study.rows import FinishedRun, RunOutcome, gpu_names, unusable
from loadgen.study.spec import NO_OVERRIDES, Overrides, Study, read_study
from loadgen.workload.schedule import Schedule

if TYPE_CHECKING:
    from loadgen.results.study_table import Row, StudyInfo

_Print = Callable[[str], None]
ViewOf = Callable[[str], View]
"""Returns a view of one start of a server, or of one run, which has a title."""


class StudyResults(NamedTuple):
    """The table of a study so far, and the names of the runs that failed."""

    rows: list[Row]
    failed: list[str]
    study: StudyInfo


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
    view_of: ViewOf = lambda title: NullView(),
) -> StudyResults:
    """Make the runs of the study in `file` that are not done in `out`, and return the results of all.

    Raises LoadgenError, and KeyboardInterrupt. other_gpu: accept other GPUs from here on, if they are of the kind and
    the power limit that the study began on. only: servers whose runs are made now; none: all.
    """
    study = read_study(file, overrides)
    if unknown := set(only) - set(study.servers):
        raise LoadgenError(f"--only {min(unknown)}: the study has no such server; it has: {', '.join(study.servers)}")
    runs = plan_runs(study)
    state = StudyState.open(file, study, out, overrides)
    with study_lock(out):
        gpus = state.gpus
        present = gpu_state.states()
        if other_gpu and _kinds(present) == _kinds(gpus):
            gpus = present
        _check_gpus(gpus, present)
        folder = StudyFolder(study, runs, out, state, command_line(file, out, overrides))
        undone = [run for run in runs if not folder.is_done(run)]
        todo = [run for run in undone if not only or run.server in only]
        num_done = len(runs) - len(undone)
        if num_done:
            say(f"{num_done} of {len(runs)} runs are done already")
        started_s, num_made = monotonic(), 0

        def view(run: StudyRun) -> View:
            return view_of(f"run {num_done + num_made + 1} of {len(runs)}, {run.name}")

        for _, block in groupby(todo, key=lambda run: (run.repeat if study.restart else 0, start_key(study, run))):
            for run, outcome, finished in _run_block(study, list(block), file.parent, out, gpus, say, view):
                folder.add(run, outcome, finished)
                num_made += 1
                remaining_s = (monotonic() - started_s) / num_made * (len(todo) - num_made)
                remaining = f"{remaining_s:.0f} s" if remaining_s < 90 else f"{remaining_s / 60:.0f} min"
                say(f"[{num_done + num_made}/{len(runs)}, {remaining} left] {folder.describe(run)}")
        return StudyResults(folder.write_results(), folder.failed(), folder.info())


# ---------------------------------------------------------------- one start of a server


def _run_block(
    study: Study,
    runs: Sequence[StudyRun],
    source: Path,
    out: Path,
    gpus: list[gpu_state.GpuState],
    say: _Print,
    view_of: Callable[[StudyRun], View],
) -> Iterator[tuple[StudyRun, RunOutcome, FinishedRun | None]]:
    """Make the runs of one start of a server; a run that fails is repeated on a fresh one, `retries` times.

    source: the study file's folder. gpus: those that every run must see.
    """
    pending = [(run, RunOutcome(schema_version=run_folder.SCHEMA_VERSION, status="failed", attempts=0)) for run in runs]
    while pending:
        failed: list[tuple[StudyRun, RunOutcome]] = []
        with ExitStack() as stack:
            try:
                with view_of(pending[0][0]) as view:
                    server = _StartedServer(stack.enter_context(_start_server(study, pending[0][0], out, view)))
            except LoadgenError as err:
                server = _StartedServer(None, str(err))
            for run, earlier in pending:
                started_s = monotonic()
                present = gpu_state.cool_down(study.cool.at_most_c, study.cool.timeout_s)
                _check_gpus(gpus, present)
                outcome = msgspec.structs.replace(earlier, attempts=earlier.attempts + 1, gpus=present)
                try:
                    with view_of(run) as view:
                        finished = _measure(study, run, source, out, server, view)
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


def _start_server(study: Study, run: StudyRun, out: Path, view: View) -> AbstractContextManager[str]:
    """Return a context that starts the server of a run, or that only has its URL when it already runs."""
    server = study.servers[run.server]
    if server.base_url is not None:
        return nullcontext(server.base_url)
    assert server.recipe is not None
    settings = [f"{key}={value}" for key, value in server.options_of_batch(run.batch).items()]
    options = [word for setting in settings for word in ("--engine-option", setting)]
    options += ["--model", run.model] if run.model is not None else []
    options += ["--python", server.python] if server.python is not None else []
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(server.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if server.gpus else {}
    return served(
        server.recipe,
        *options,
        log=out / f"{run.server}.log",
        progress=server_start(view, server.recipe),
        environment=visible,
    )


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


def _measure(study: Study, run: StudyRun, source: Path, out: Path, server: _StartedServer, view: View) -> FinishedRun:
    """Make one run. LoadgenError if too many requests failed. An interrupt ends the study."""
    if server.url is None:
        raise LoadgenError(server.error)
    schedule = schedule_of(study, run, source)
    warm_up = study.warmup if (run.workload, run.batch) not in server.warm else 0
    server.warm.add((run.workload, run.batch))
    config = run_config(study, run, out / "runs" / run.name, server.url)
    if run.batch is None:
        config = msgspec.structs.replace(config, warmup=min(warm_up, len(schedule.requests)))
    rmtree(config.out, ignore_errors=True)  # of an earlier attempt; one killed at once is no run folder yet
    if run.batch is not None and warm_up:
        _warm_up(schedule, config, run.batch, view)
    run_replay(schedule, config, view)
    result = finish(config.out, schedule, announcer(view))
    if result.info.stopped_by != "completed":
        raise KeyboardInterrupt
    assert result.summary is not None
    if reason := unusable(study, result.summary):
        raise LoadgenError(reason)
    return FinishedRun(result.info, result.summary, result.schedule)


def run_config(study: Study, run: StudyRun, folder: Path, url: str) -> RunConfig:
    """Return the options of a run that is recorded in `folder`, against the server at `url`; without a warm-up."""
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
        share_host=study.share_host,
        pue=study.pue,
        grid_intensity=study.grid_intensity,
        grid_source=study.grid_source,
        price=study.price,
        overwrite=True,
        goodput=study.goodput,
        plan={
            "study": study.title,
            "server": run.server,
            "knobs": server.recorded_options(run.batch),
            "workload": run.workload,
            "batch": run.batch,
            "rps": run.rps,
            "arrival": arrival,
            "burstiness": burstiness,
            "repeat": run.repeat,
        },
    )


def _warm_up(schedule: Schedule, config: RunConfig, batch: int, view: View) -> None:
    """Send one unrecorded round at the batch of the run, so that what an engine compiles or captures for it exists."""
    seed = schedule.seed + 1_000_003  # other prompts than the run's, so that none of these is in a prefix cache
    one_round = Schedule(schedule.requests[:batch], schedule.arrival, None, seed)
    announcer(view)(f"warming up at batch {batch}")
    with TemporaryDirectory() as folder:
        unrecorded = msgspec.structs.replace(config, out=Path(folder) / "run", warmup=0, idle_s=0.0, energy="none")
        run_replay(one_round, unrecorded, NullView())
        if run_folder.read_run(unrecorded.out).info.stopped_by != "completed":
            raise KeyboardInterrupt
