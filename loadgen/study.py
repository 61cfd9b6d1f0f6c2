"""A matrix of (server and knobs) x model x workload x load x repeats -> run folders -> one table and one report.

Everything is planned before the first server starts, from the file and its seed alone: a study that was killed knows
what is left by looking into its folder.
"""

import csv
import hashlib
import io
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import cycle, groupby, islice, product
from pathlib import Path
from time import monotonic

import msgspec
import numpy as np
from rich.console import Console

from loadgen import gpu, rundir
from loadgen.errors import LoadgenError
from loadgen.profiles import read_hardware, read_model
from loadgen.recipe import KnobValue, knob_values, read_recipe
from loadgen.replay import Options, replay
from loadgen.report import study as page
from loadgen.report.live import view
from loadgen.results import Row
from loadgen.schedule import Arrival, Schedule, ScheduledRequest, build
from loadgen.serve import served
from loadgen.summary import Summary
from loadgen.trace import Trace, TraceRequest, read_trace


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[servers.LABEL]: one way to serve. The text {batch} in a knob is the batch of the run."""

    recipe: str | None = None
    knobs: dict[str, KnobValue] = {}
    python: str | None = None
    """The interpreter that has the engine, when that is not the one that runs loadgen."""
    models: list[str] = []
    """Instead of the study's: for recipes that call the same model by another name."""
    base_url: str | None = None
    """A server that already runs, instead of a recipe. Then `model` below says which of its models."""
    model: str | None = None


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[workloads.LABEL]: fixed lengths, or the lengths (and, at a rate, the arrivals) of a trace."""

    input: int | None = None
    output: int | None = None
    trace: str | None = None
    """A path: beside the study's file, or from where loadgen is run."""


class Cool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    at_most_c: float = 60.0
    timeout_s: float = 120.0


class Idealized(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Names in profiles/hardware and profiles/models."""

    hardware: str
    model: str


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A study file."""

    title: str
    description: str = ""
    servers: dict[str, Server]
    models: list[str] = []
    """Served one after the other; empty: each recipe's own."""
    workloads: dict[str, Workload]
    batches: list[int] = []
    """Closed loops: this many requests in flight until `rounds` times as many are done (`min_requests` at least)."""
    rates: list[float] = []
    """Open loops: requests per second, for `duration_s`."""
    rounds: int = 3
    min_requests: int = 1
    duration_s: float = 60.0
    arrival: Arrival = "poisson"
    burstiness: float = 1.0
    repeats: int = 3
    warmup: int = 2
    retries: int = 1
    seed: int = 0
    endpoint: str = "completions"
    energy: str = "auto"
    timeout_s: float = 600.0
    idle_s: float = 2.0
    goodput: dict[str, float] = {}
    """Limits in ms: ttft, tpot, e2el."""
    baseline: str | None = None
    """The server that reductions are counted from."""
    cool: Cool = Cool()
    idealized: Idealized | None = None


@dataclass(frozen=True)
class Cell:
    """One run of the plan."""

    server: str
    model: str | None
    workload: str
    batch: int | None
    rps: float | None
    repeat: int

    @property
    def name(self) -> str:
        load = f"b{self.batch}" if self.batch is not None else f"{self.rps:g}rps"
        model = (self.model or "").rstrip("/").rsplit("/", 1)[-1]
        parts = [self.server, model, self.workload, load, f"r{self.repeat}"]
        return "-".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts if part)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """cell.json, written last: a run with it is over and is not made again unless it failed."""

    status: str
    """"done" or "failed"."""
    attempts: int
    reasons: list[str] = []
    gpus: list[gpu.GpuState] = []
    seconds: float = 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """study.json: which study this folder is of."""

    file: str
    sha256: str
    title: str
    gpus: list[gpu.GpuState] = []
    """At the start: every run must see the same ones."""


Say = Callable[[str], None]


def read_study(path: Path) -> Study:
    """The study in `path`. LoadgenError when it is not one, or asks for what no recipe has."""
    try:
        study = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Study)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a study: {err}") from err
    for problem in _problems(study):
        raise LoadgenError(f"{path}: {problem}")
    return study


def _problems(study: Study) -> Iterator[str]:
    if not (study.servers and study.workloads and (study.batches or study.rates)):
        yield "a study needs [servers.X], [workloads.X], and batches or rates"
    if study.baseline is not None and study.baseline not in study.servers:
        yield f"baseline {study.baseline!r} is none of its servers: {', '.join(study.servers)}"
    if study.endpoint not in ("chat", "completions"):
        yield f"endpoint {study.endpoint!r} is neither chat nor completions"
    if study.repeats < 1 or study.rounds < 1:
        yield "repeats and rounds are 1 at least"
    for label, server in study.servers.items():
        if (server.recipe is None) == (server.base_url is None):
            yield f"server {label} needs either a recipe or a base_url"
        if server.recipe is not None:
            knob_values(read_recipe(server.recipe), filled(server, 1))
    for label, workload in study.workloads.items():
        if (workload.trace is None) == (workload.input is None or workload.output is None):
            yield f"workload {label} needs either a trace, or input and output"


def filled(server: Server, batch: int | None) -> dict[str, KnobValue]:
    """The server's knobs with {batch} put in."""
    return {
        key: value.replace("{batch}", str(batch or 1)) if isinstance(value, str) else value
        for key, value in server.knobs.items()
    }


def plan(study: Study) -> list[Cell]:
    """Every run, in the order of running: repeat by repeat; in each, servers at random, and each server's runs too.

    A repeat is a fresh start of the server, so that what one start happened to get does not pass for the server's law.
    """
    rng = np.random.default_rng(study.seed)
    loads: list[tuple[int | None, float | None]] = [(batch, None) for batch in study.batches]
    loads += [(None, rate) for rate in study.rates]
    cells: list[Cell] = []
    for repeat in range(study.repeats):
        blocks: dict[str, list[Cell]] = {}
        for label, server in study.servers.items():
            models: list[str | None] = [*(server.models or study.models)] or [server.model]
            for model, workload, (batch, rps) in product(models, study.workloads, loads):
                cell = Cell(label, model, workload, batch, rps, repeat)
                blocks.setdefault(start_key(study, cell), []).append(cell)
        order = list(blocks.values())
        for index in rng.permutation(len(order)):
            cells += [order[index][i] for i in rng.permutation(len(order[index]))]
    return cells


def start_key(study: Study, cell: Cell) -> str:
    """What one start of a server can run: the same server, model and knobs."""
    return repr((cell.server, cell.model, sorted(filled(study.servers[cell.server], cell.batch).items())))


def schedule_of(study: Study, cell: Cell, folder: Path) -> Schedule:
    """A closed loop has every request due at once, and lets `batch` of them in; an open one draws its instants."""
    trace = _trace(study.workloads[cell.workload], cell.workload, folder)
    seed = study.seed + cell.repeat
    if cell.rps is not None:
        return build(
            trace,
            seed=seed,
            rps=cell.rps,
            arrival=study.arrival,
            burstiness=study.burstiness,
            duration_s=study.duration_s,
        )
    assert cell.batch is not None
    count = max(study.min_requests, cell.batch * study.rounds)
    requests = tuple(
        ScheduledRequest(
            index=i,
            offset_ns=0,
            workload=request.workload,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
        )
        for i, request in enumerate(islice(cycle(trace.requests), -(-count // cell.batch) * cell.batch))
    )
    return Schedule(requests, "constant", None, seed)


def _trace(workload: Workload, label: str, folder: Path) -> Trace:
    if workload.trace is not None:
        beside = folder / workload.trace
        return read_trace(beside if beside.exists() else Path(workload.trace))
    assert workload.input is not None and workload.output is not None
    request = TraceRequest(arrival_s=0.0, input_tokens=workload.input, output_tokens=workload.output, workload=label)
    return Trace(label, (request,), "")


# ---------------------------------------------------------------- running


def run(file: Path, out: Path, say: Say) -> list[Row]:
    """Runs what is not yet done of the study in `file`, in `out`; gives every row. LoadgenError, KeyboardInterrupt."""
    study = read_study(file)
    cells = plan(study)
    begun = _begin(file, study, out)
    todo = [cell for cell in cells if not _is_done(out, cell)]
    if len(todo) < len(cells):
        say(f"{len(cells) - len(todo)} of {len(cells)} runs are done already")
    started, made = monotonic(), 0
    for _, block in groupby(todo, key=lambda cell: (cell.repeat, start_key(study, cell))):
        for outcome, cell in _block(study, list(block), file.parent, out, begun, say):
            made += 1
            left_s = (monotonic() - started) / made * (len(todo) - made)
            line = _line(cell, outcome, write_results(study, cells, out))
            say(f"[{len(cells) - len(todo) + made}/{len(cells)}, {_told(left_s)} left] {line}")
    return write_results(study, cells, out)


def _begin(file: Path, study: Study, out: Path) -> Progress:
    """study.json of a folder that is new, or of this same study."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    known = out / "study.json"
    if known.exists():
        before = msgspec.json.decode(known.read_bytes(), type=Progress)
        if before.sha256 != sha256:
            raise LoadgenError(f"{out} holds another study, or {file} changed since; choose another --out")
        return before
    if out.exists() and any(out.iterdir()):
        raise LoadgenError(f"--out {out} is not empty and holds no study; choose another")
    progress = Progress(file=file.name, sha256=sha256, title=study.title, gpus=gpu.states())
    (out / "runs").mkdir(parents=True, exist_ok=True)
    (out / "study.toml").write_bytes(file.read_bytes())
    rundir.write_atomic(known, msgspec.json.format(msgspec.json.encode(progress)) + b"\n")
    return progress


def _outcome(out: Path, cell: Cell) -> Outcome | None:
    path = out / "runs" / cell.name / "cell.json"
    return msgspec.json.decode(path.read_bytes(), type=Outcome) if path.exists() else None


def _is_done(out: Path, cell: Cell) -> bool:
    outcome = _outcome(out, cell)
    return outcome is not None and outcome.status == "done"


def _block(
    study: Study, cells: list[Cell], folder: Path, out: Path, begun: Progress, say: Say
) -> Iterator[tuple[Outcome, Cell]]:
    """The runs of one start of a server. What breaks is tried again on a fresh one, `retries` times."""
    left = [(cell, Outcome(status="failed", attempts=0)) for cell in cells]
    while left:
        again: list[tuple[Cell, Outcome]] = []
        with ExitStack() as stack:
            broken: str | None = None
            try:
                url = stack.enter_context(_server(study, left[0][0], out, say))
            except LoadgenError as err:
                broken = str(err)
            for cell, before in left:
                outcome = _attempt(study, cell, folder, out, begun, before, url if broken is None else None, broken)
                if outcome.status == "done" or outcome.attempts > study.retries:
                    _settle(out, cell, outcome)
                    yield outcome, cell
                else:
                    say(f"{cell.name}: {outcome.reasons[-1].splitlines()[0]}; once more on a fresh server")
                    again.append((cell, outcome))
        left = again


def _server(study: Study, cell: Cell, out: Path, say: Say) -> AbstractContextManager[str]:
    server = study.servers[cell.server]
    if server.base_url is not None:
        return nullcontext(server.base_url)
    assert server.recipe is not None
    knobs = [f"{key}={value}" for key, value in filled(server, cell.batch).items()]
    options = [word for knob in knobs for word in ("--knob", knob)]
    options += ["--model", cell.model] if cell.model is not None else []
    options += ["--python", server.python] if server.python is not None else []
    return served(server.recipe, *options, log=out / f"{cell.server}.log", say=say)


def _attempt(
    study: Study,
    cell: Cell,
    folder: Path,
    out: Path,
    begun: Progress,
    before: Outcome,
    url: str | None,
    broken: str | None,
) -> Outcome:
    started = monotonic()
    gpus = gpu.cool_down(study.cool.at_most_c, study.cool.timeout_s)
    if _identity(gpus) != _identity(begun.gpus):
        raise LoadgenError(f"the GPUs are not those the study began on: {_identity(begun.gpus)}, now {_identity(gpus)}")
    try:
        if url is None:
            raise LoadgenError(broken or "no server")
        _measure(study, cell, folder, out, url)
    except LoadgenError as err:
        reasons = [*before.reasons, str(err)]
        return Outcome(status="failed", attempts=before.attempts + 1, reasons=reasons, gpus=gpus)
    return Outcome(
        status="done",
        attempts=before.attempts + 1,
        reasons=before.reasons,
        gpus=gpus,
        seconds=monotonic() - started,
    )


def _identity(gpus: list[gpu.GpuState]) -> list[tuple[str, str, float | None]]:
    return [(one.name, one.uuid, one.limit_w) for one in gpus]


def _measure(study: Study, cell: Cell, folder: Path, out: Path, url: str) -> None:
    """One run. One in which a request failed is no measurement of the rest; one that was interrupted ends the study."""
    schedule = schedule_of(study, cell, folder)
    server = study.servers[cell.server]
    (out / "runs" / cell.name / "cell.json").unlink(missing_ok=True)  # it told of an earlier attempt
    options = Options(
        out=out / "runs" / cell.name,
        base_url=url,
        api_key=None,
        model=server.model if server.base_url else None,
        endpoint="chat" if study.endpoint == "chat" else "completions",
        headers={},
        extra_body={},
        energy=study.energy,
        gpus=(),
        max_concurrency=cell.batch,
        timeout_s=study.timeout_s,
        tokenizer=None,
        warmup=min(study.warmup, len(schedule.requests)),
        idle_s=study.idle_s,
        overwrite=True,
        config={
            "study": study.title,
            "server": cell.server,
            "knobs": filled(server, cell.batch),
            "workload": cell.workload,
            "batch": cell.batch,
            "rps": cell.rps,
            "repeat": cell.repeat,
            "goodput": study.goodput,
            "max_concurrency": cell.batch,
            "base_url": url,
        },
    )
    result = replay(schedule, options, view("none", Console(stderr=True)))
    if result.info.stopped_by != "completed":
        raise KeyboardInterrupt
    assert result.summary is not None
    if failed := result.summary.requests.failed:
        first = next(record for record in result.records if record.error)
        raise LoadgenError(
            f"{failed} of {result.summary.requests.scheduled} requests failed, first {first.error}: {first.detail}"
        )


def _settle(out: Path, cell: Cell, outcome: Outcome) -> None:
    folder = out / "runs" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    rundir.write_atomic(folder / "cell.json", msgspec.json.format(msgspec.json.encode(outcome)) + b"\n")


def _line(cell: Cell, outcome: Outcome, rows: list[Row]) -> str:
    if outcome.status != "done":
        return f"{cell.name}: failed {outcome.attempts} times: {outcome.reasons[-1].splitlines()[0]}"
    row = next(row for row in rows if row.cell == cell.name)
    if row.joules_per_output_token is None:
        return f"{cell.name}: done, no energy"
    return f"{cell.name}: {row.joules_per_output_token:.4g} J/output token, {row.mean_watts or 0:.0f} W"


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# ---------------------------------------------------------------- the table and the page


def write_results(study: Study, cells: list[Cell], out: Path) -> list[Row]:
    """results.csv and report.html of what is done so far, from the run folders alone."""
    rows = [_row(study, cell, out) for cell in cells if _is_done(out, cell)]
    failed = {cell.name: o.reasons[-1] for cell in cells if (o := _outcome(out, cell)) and o.status == "failed"}
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=Row.__struct_fields__, lineterminator="\n")
    table.writeheader()
    table.writerows(msgspec.to_builtins(row) for row in sorted(rows, key=lambda row: row.cell))
    rundir.write_atomic(out / "results.csv", text.getvalue().encode())
    left = len(cells) - len(rows) - len(failed)
    html = page.render(study.title, study.description, rows, study.baseline, study.goodput, failed, left)
    rundir.write_atomic(out / "report.html", html.encode())
    return rows


def _row(study: Study, cell: Cell, out: Path) -> Row:
    folder = out / "runs" / cell.name
    outcome = _outcome(out, cell)
    info = msgspec.json.decode((folder / "run.json").read_bytes(), type=rundir.RunInfo)
    summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)
    assert outcome is not None
    energy, good = summary.energy, summary.goodput
    measured, output = energy.measured_joules, summary.tokens.output
    ideal = idealized_joules(study, (summary.tokens.input or 0) + (output or 0))
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
        gpu=", ".join(one.name for one in outcome.gpus) or None,
        temperature_c=max(temperatures, default=None),
    )


def idealized_joules(study: Study, tokens: int) -> float | None:
    """limit_w / peak_flops x 2 N per token, N the parameters a token touches: every FLOP at the dense peak rate and the
    power limit (arXiv 2504.17674, section 4.2), attention's own FLOPs left out. None when the study names no hardware.
    """
    if study.idealized is None:
        return None
    hardware, model = read_hardware(study.idealized.hardware), read_model(study.idealized.model)
    joules: float = tokens * 2 * model.active_parameters * hardware.limit_w / hardware.peak_flops
    return joules
