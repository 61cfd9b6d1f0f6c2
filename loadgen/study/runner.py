"""A matrix of (server and knobs) x model x workload x load x repeats -> run folders -> one table and one report.

The plan follows from the file and its seed alone: a study that was killed sees in its folder what is left to run.
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

import msgspec
import numpy as np

from loadgen.energy import gpu_state
from loadgen.energy_model.estimate import flops
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.report import study_page as page
from loadgen.report.write import finish
from loadgen.results import run_folder
from loadgen.results.study_table import Row
from loadgen.results.summary import Summary
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView
from loadgen.run.replay import replay
from loadgen.servers.launcher import served
from loadgen.study.spec import (
    NOTHING,
    Overrides,
    Study,
    StudyRun,
    arrival_of,
    filled,
    plan_runs,
    read_study,
    schedule_of,
    start_key,
)
from loadgen.workload.schedule import Schedule, ScheduledRequest


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """cell.json, written last: a run with it is over and is not made again unless it failed."""

    status: str
    """"done" or "failed"."""
    attempts: int
    reasons: list[str] = []
    gpus: list[gpu_state.GpuState] = []
    seconds: float = 0.0


class StudyState(msgspec.Struct, frozen=True, kw_only=True):
    """study.json: which study this folder is of."""

    file: str
    sha256: str
    title: str
    overrides: Overrides = NOTHING
    gpus: list[gpu_state.GpuState] = []
    """At the start: every run must see the same ones."""


Say = Callable[[str], None]


# ---------------------------------------------------------------- running


def run_study(
    file: Path,
    out: Path,
    say: Say,
    overrides: Overrides = NOTHING,
    other_gpu: bool = False,
    only: Sequence[str] = (),
) -> list[Row]:
    """Runs what is not yet done of the study in `file`, in `out`; gives every row. LoadgenError, KeyboardInterrupt.

    other_gpu: from now on the GPUs are those that are here, if they are of the kind and the power limit it began on.
    only: servers whose runs are made now; none: all.
    """
    study = read_study(file, overrides)
    if unknown := set(only) - set(study.servers):
        raise LoadgenError(f"--only {min(unknown)}: the study has no such server; it has: {', '.join(study.servers)}")
    cells = plan_runs(study)
    begun = _begin(file, study, out, overrides)
    now = gpu_state.states()
    if other_gpu and _kinds(now) == _kinds(begun.gpus):
        begun = msgspec.structs.replace(begun, gpus=now)
    _check_gpus(begun.gpus, now)
    undone = [cell for cell in cells if not _is_done(out, cell)]
    todo = [cell for cell in undone if not only or cell.server in only]
    before = len(cells) - len(undone)
    if before:
        say(f"{before} of {len(cells)} runs are done already")
    started, made = monotonic(), 0
    for _, block in groupby(todo, key=lambda cell: (cell.repeat if study.restart else 0, start_key(study, cell))):
        for outcome, cell in _block(study, list(block), file.parent, out, begun, say):
            made += 1
            left_s = (monotonic() - started) / made * (len(todo) - made)
            line = _line(cell, outcome, write_results(study, cells, out))
            say(f"[{before + made}/{len(cells)}, {_told(left_s)} left] {line}")
    return write_results(study, cells, out)


def _begin(file: Path, study: Study, out: Path, overrides: Overrides) -> StudyState:
    """study.json of a folder that is new, or of this same study."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    known = out / "study.json"
    if known.exists():
        before = msgspec.json.decode(known.read_bytes(), type=StudyState)
        if before.sha256 != sha256:
            raise LoadgenError(f"{out} holds another study, or {file} changed since; choose another --out")
        if before.overrides != overrides:
            given = msgspec.json.encode(before.overrides).decode()
            raise LoadgenError(f"{out} was begun with another --model, --knob or --python: {given}")
        return before
    if out.exists() and any(out.iterdir()):
        raise LoadgenError(f"--out {out} is not empty and holds no study; choose another")
    progress = StudyState(
        file=file.name, sha256=sha256, title=study.title, overrides=overrides, gpus=gpu_state.states()
    )
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / "study.toml").write_bytes(file.read_bytes())
    run_folder.write_atomic(known, msgspec.json.format(msgspec.json.encode(progress)) + b"\n")
    return progress


def _outcome(out: Path, cell: StudyRun) -> RunOutcome | None:
    path = out / "runs" / cell.name / "cell.json"
    return msgspec.json.decode(path.read_bytes(), type=RunOutcome) if path.exists() else None


def _is_done(out: Path, cell: StudyRun) -> bool:
    outcome = _outcome(out, cell)
    return outcome is not None and outcome.status == "done"


@dataclass
class _Started:
    """The server of a block: where it answers, or why it does not; and the loads that it has been warmed up with."""

    url: str | None
    why_not: str = ""
    warm: set[tuple[str, int | None]] = field(default_factory=set)


def _block(
    study: Study, cells: list[StudyRun], folder: Path, out: Path, begun: StudyState, say: Say
) -> Iterator[tuple[RunOutcome, StudyRun]]:
    """The runs of one start of a server. What breaks is tried again on a fresh one, `retries` times."""
    left = [(cell, RunOutcome(status="failed", attempts=0)) for cell in cells]
    while left:
        again: list[tuple[StudyRun, RunOutcome]] = []
        with ExitStack() as stack:
            try:
                started = _Started(stack.enter_context(_server(study, left[0][0], out, say)))
            except LoadgenError as err:
                started = _Started(None, str(err))
            for cell, before in left:
                outcome = _attempt(study, cell, folder, out, begun, before, started)
                if outcome.status == "done" or outcome.attempts > study.retries:
                    _settle(out, cell, outcome)
                    yield outcome, cell
                else:
                    say(f"{cell.name}: {outcome.reasons[-1].splitlines()[0]}; once more on a fresh server")
                    again.append((cell, outcome))
        left = again


def _server(study: Study, cell: StudyRun, out: Path, say: Say) -> AbstractContextManager[str]:
    server = study.servers[cell.server]
    if server.base_url is not None:
        return nullcontext(server.base_url)
    assert server.recipe is not None
    knobs = [f"{key}={value}" for key, value in filled(server, cell.batch).items()]
    options = [word for knob in knobs for word in ("--knob", knob)]
    options += ["--model", cell.model] if cell.model is not None else []
    options += ["--python", server.python] if server.python is not None else []
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(server.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if server.gpus else {}
    return served(server.recipe, *options, log=out / f"{cell.server}.log", say=say, environment=visible)


def _attempt(
    study: Study, cell: StudyRun, folder: Path, out: Path, begun: StudyState, before: RunOutcome, server: _Started
) -> RunOutcome:
    started = monotonic()
    gpus = gpu_state.cool_down(study.cool.at_most_c, study.cool.timeout_s)
    _check_gpus(begun.gpus, gpus)
    try:
        _measure(study, cell, folder, out, server)
    except LoadgenError as err:
        reasons = [*before.reasons, str(err)]
        return RunOutcome(status="failed", attempts=before.attempts + 1, reasons=reasons, gpus=gpus)
    return RunOutcome(
        status="done",
        attempts=before.attempts + 1,
        reasons=before.reasons,
        gpus=gpus,
        seconds=monotonic() - started,
    )


def _check_gpus(begun: list[gpu_state.GpuState], now: list[gpu_state.GpuState]) -> None:
    """LoadgenError where they are others: then what two runs differ by may be the GPUs'."""
    if [(one.uuid, one.limit_w) for one in begun] == [(one.uuid, one.limit_w) for one in now]:
        return
    told = f"{', '.join(map(_card, begun)) or 'none'}, now {', '.join(map(_card, now)) or 'none'}"
    hint = "; add --other-gpu to go on all the same" if _kinds(begun) == _kinds(now) else ""
    raise LoadgenError(f"the GPUs are not those the study began on: {told}{hint}")


def _kinds(gpus: list[gpu_state.GpuState]) -> list[tuple[str, float | None]]:
    return [(one.name, one.limit_w) for one in gpus]


def _card(state: gpu_state.GpuState) -> str:
    """Its name, and as much of its UUID as tells it from others."""
    return f"{state.name} ({state.uuid[:12]})"


def _measure(study: Study, cell: StudyRun, folder: Path, out: Path, started: _Started) -> None:
    """One run. One in which a request failed is no measurement of the rest; one that was interrupted ends the study."""
    if started.url is None:
        raise LoadgenError(started.why_not)
    schedule = schedule_of(study, cell, folder)
    warm_up = study.warmup if (cell.workload, cell.batch) not in started.warm else 0
    started.warm.add((cell.workload, cell.batch))
    arrival, burstiness = arrival_of(study, cell)
    server = study.servers[cell.server]
    rmtree(
        out / "runs" / cell.name, ignore_errors=True
    )  # of an earlier attempt; one killed at once is no run folder yet
    options = RunConfig(
        out=out / "runs" / cell.name,
        base_url=started.url,
        model=server.model if server.base_url else None,
        endpoint="chat" if study.endpoint == "chat" else "completions",
        energy=study.energy,
        gpus=tuple(server.gpus),
        max_concurrency=cell.batch,
        timeout_s=study.timeout_s,
        warmup=0 if cell.batch is not None else min(warm_up, len(schedule.requests)),
        idle_s=study.idle_s,
        overwrite=True,
        goodput=study.goodput,
        plan={
            "study": study.title,
            "server": cell.server,
            "knobs": filled(server, cell.batch),
            "workload": cell.workload,
            "batch": cell.batch,
            "rps": cell.rps,
            "arrival": arrival,
            "burstiness": burstiness,
            "repeat": cell.repeat,
        },
    )
    if cell.batch is not None and warm_up:
        _warm_up(schedule, options, cell.batch)
    replay(schedule, options, NullView())
    result = finish(options.out, schedule)
    if result.info.stopped_by != "completed":
        raise KeyboardInterrupt
    assert result.summary is not None
    if failed := result.summary.requests.failed:
        first = next(record for record in result.records if record.error)
        raise LoadgenError(
            f"{failed} of {result.summary.requests.scheduled} requests failed, first {first.error}: {first.detail}"
        )


def _warm_up(schedule: Schedule, options: RunConfig, batch: int) -> None:
    """One round at the batch of the run, not recorded: what is compiled or captured for it is there when it counts."""
    seed = schedule.seed + 1_000_003  # prompts of its own, so that nothing of the run is cached
    one_round = Schedule(schedule.requests[:batch], schedule.arrival, None, seed)
    with TemporaryDirectory() as folder:
        unrecorded = msgspec.structs.replace(options, out=Path(folder) / "run", warmup=0, idle_s=0.0, energy="none")
        replay(one_round, unrecorded, NullView())
        if run_folder.read_run(unrecorded.out).info.stopped_by != "completed":
            raise KeyboardInterrupt


def _settle(out: Path, cell: StudyRun, outcome: RunOutcome) -> None:
    folder = out / "runs" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_atomic(folder / "cell.json", msgspec.json.format(msgspec.json.encode(outcome)) + b"\n")


def _line(cell: StudyRun, outcome: RunOutcome, rows: list[Row]) -> str:
    if outcome.status != "done":
        return f"{cell.name}: failed {outcome.attempts} times: {outcome.reasons[-1].splitlines()[0]}"
    row = next(row for row in rows if row.cell == cell.name)
    if row.joules_per_output_token is None:
        return f"{cell.name}: done, no energy"
    return f"{cell.name}: {row.joules_per_output_token:.4g} J/output token, {row.mean_watts or 0:.0f} W"


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# ---------------------------------------------------------------- the table and the page


def write_results(study: Study, cells: list[StudyRun], out: Path) -> list[Row]:
    """results.csv and report.html of what is done so far, from the run folders alone."""
    rows = [_row(study, cell, out) for cell in cells if _is_done(out, cell)]
    failed = {cell.name: o.reasons[-1] for cell in cells if (o := _outcome(out, cell)) and o.status == "failed"}
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=Row.__struct_fields__, lineterminator="\n")
    table.writeheader()
    table.writerows(msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.cell))
    run_folder.write_atomic(out / "results.csv", text.getvalue().encode())
    left = len(cells) - len(rows) - len(failed)
    html = page.render_study_page(study.title, study.description, rows, study.baseline, study.goodput, failed, left)
    run_folder.write_atomic(out / "report.html", html.encode())
    return rows


def _row(study: Study, cell: StudyRun, out: Path) -> Row:
    folder = out / "runs" / cell.name
    outcome = _outcome(out, cell)
    info = msgspec.json.decode((folder / "run.json").read_bytes(), type=run_folder.RunInfo)
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    assert outcome is not None
    energy, good = summary.energy, summary.goodput
    measured, output = energy.measured_joules, summary.tokens.output
    lines = (folder / "schedule.jsonl").read_bytes().splitlines()
    ideal = idealized_joules(study, [msgspec.json.decode(line, type=ScheduledRequest) for line in lines])
    temperatures = [one.temperature_c for one in outcome.gpus if one.temperature_c is not None]
    return Row(
        cell=cell.name,
        server=cell.server,
        model=str(info.server["model"]),
        workload=cell.workload,
        batch=cell.batch,
        rps=cell.rps,
        repeat=cell.repeat,
        simulated=bool(info.server.get("simulated")),
        completed=summary.requests.completed,
        failed=summary.requests.failed,
        duration_s=summary.duration_s,
        input_tokens=summary.tokens.input,
        output_tokens=output,
        output_tokens_per_s=summary.tokens.output_per_s,
        measured_joules=measured,
        prefill_joules=energy.prefill_joules,
        decode_joules=energy.decode_joules,
        idle_joules=energy.idle_joules,
        unattributed_joules=energy.unattributed_joules,
        mean_watts=energy.mean_watts,
        joules_per_output_token=measured / output if measured is not None and output else None,
        joules_per_request=measured / summary.requests.completed if measured and summary.requests.completed else None,
        ttft_p50_s=summary.ttft_s.p50,
        ttft_p99_s=summary.ttft_s.p99,
        tpot_p50_s=summary.tpot_s.p50,
        tpot_p99_s=summary.tpot_s.p99,
        e2e_p50_s=summary.e2e_s.p50,
        goodput_ratio=good.ratio if good else None,
        good_requests_per_joule=good.good / measured if good and measured else None,
        idealized_joules=ideal,
        measured_over_idealized=measured / ideal if measured is not None and ideal else None,
        energy_valid=energy.valid,
        arrival=_arrival_told(study, cell),
        steady_joules_per_output_token=energy.steady.joules_per_output_token if energy.steady else None,
        idle_watts=energy.idle_watts,
        gpu=", ".join(map(_card, outcome.gpus)) or None,
        temperature_c=max(temperatures, default=None),
    )


def _arrival_told(study: Study, cell: StudyRun) -> str | None:
    """Of an open loop; a gamma process with its burstiness."""
    if cell.rps is None:
        return None
    arrival, burstiness = arrival_of(study, cell)
    return f"gamma {burstiness:g}" if arrival == "gamma" else arrival or "streams"


def idealized_joules(study: Study, requests: list[ScheduledRequest]) -> float | None:
    """limit_w / peak_flops x FLOPs of the lengths asked for, attention's included: all at the dense peak rate and the
    power limit (arXiv 2504.17674, section 4.2). None when the study names no hardware.
    """
    if study.idealized is None:
        return None
    hardware, model = read_hardware(study.idealized.hardware), read_model(study.idealized.model)
    inputs, outputs = (np.array([getattr(r, f"{side}_tokens") for r in requests]) for side in ("input", "output"))
    return float(flops(inputs, outputs, model).sum()) * hardware.limit_w / hardware.peak_flops
