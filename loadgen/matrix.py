"""A study file and its plan: every run of the matrix, in the order of running, before the first server starts."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.recipe import KnobValue, knob_values, read_recipe
from loadgen.schedule import Arrival, Schedule, ScheduledRequest, build
from loadgen.trace import Trace, TraceRequest, read_trace


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[servers.LABEL]: one way to serve. The text {batch} in a knob is the batch of the run."""

    recipe: str | None = None
    knobs: dict[str, KnobValue] = {}
    python: str | None = None
    """The interpreter that has the engine, when that is not the one that runs loadgen."""
    gpus: list[str] = []
    """Indices or UUIDs of the GPUs that it may use, and that are measured; empty: all visible ones."""
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
    """Requests before each open loop, one by one; before a closed one, a whole round of its batch. 0: none."""
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
