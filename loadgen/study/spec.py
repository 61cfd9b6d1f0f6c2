"""A study file and its plan: every run of the matrix, in the order of running, before the first server starts."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.servers.recipe import KnobValue, knob_values, read_recipe
from loadgen.units import NS_PER_S
from loadgen.workload import streams
from loadgen.workload.schedule import Arrival, Schedule, ScheduledRequest, build_schedule, stable_hash63
from loadgen.workload.trace import Trace, TraceRequest, read_trace


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
    workloads: list[str] = []
    """Only these; empty: all."""
    batches: list[int] | None = None
    """Only these of a workload's, like `rates`."""
    rates: list[float] | None = None


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[workloads.LABEL]: fixed lengths, or those of a trace, or streams; and the load, where it is not the study's."""

    input: int | None = None
    output: int | None = None
    trace: str | None = None
    """A trace, or a TOML file of streams, whose rates together are the rate. A path: beside the study's file, or from
    where loadgen is run."""
    batches: list[int] | None = None
    rates: list[float] | None = None
    duration_s: float | None = None
    arrival: Arrival | None = None
    burstiness: float | None = None

    @property
    def streams(self) -> bool:
        return self.trace is not None and self.trace.endswith(".toml")


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
    """Open loops: requests per second, for `duration_s`. As many requests as that makes, in every repeat."""
    rounds: int = 3
    min_requests: int = 1
    duration_s: float = 60.0
    arrival: Arrival = "poisson"
    burstiness: float = 1.0
    repeats: int = 3
    restart: bool = True
    """Each repeat starts the server afresh. Without, all repeats share one start: sooner done, and the intervals say
    nothing about how one start differs from another."""
    warmup: int = 2
    """Requests before the first open loop of a workload on a started server, one by one; before the first closed one at
    a batch, a whole round. 0: none."""
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
class StudyRun:
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


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to the machine and not to the question: given beside the file, for every server with a recipe."""

    models: list[str] = []
    """Instead of the study's, and of a server's own."""
    knobs: dict[str, str] = {}
    python: str | None = None


NOTHING = Overrides()


def read_study(path: Path, overrides: Overrides = NOTHING) -> Study:
    """The study in `path`. LoadgenError when it is not one, or asks for what no recipe has."""
    try:
        study = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Study)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a study: {err}") from err
    study = _overridden(study, overrides)
    for problem in _problems(study):
        raise LoadgenError(f"{path}: {problem}")
    return study


def _overridden(study: Study, given: Overrides) -> Study:
    def server(one: Server) -> Server:
        if one.recipe is None:
            return one
        changes = {"models": given.models or one.models, "knobs": one.knobs | given.knobs}
        return msgspec.structs.replace(one, python=given.python or one.python, **changes)

    return msgspec.structs.replace(study, servers={label: server(one) for label, one in study.servers.items()})


def _problems(study: Study) -> Iterator[str]:
    if not (study.servers and study.workloads):
        yield "a study needs [servers.X] and [workloads.X]"
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
        if unknown := set(server.workloads) - set(study.workloads):
            yield f"server {label}: no workload {min(unknown)!r}; there are: {', '.join(study.workloads)}"
        if not any(_loads(study, server, workload) for workload in _workloads(study, server)):
            yield f"server {label} has nothing to do: a study needs batches or rates, its own or a workload's"
    for label, workload in study.workloads.items():
        if (workload.trace is None) == (workload.input is None or workload.output is None):
            yield f"workload {label} needs either a trace, or input and output"
        if workload.streams and (workload.arrival or workload.burstiness):
            yield f"workload {label}: each stream of {workload.trace} has an arrival of its own"
        if workload.streams and (study.batches if workload.batches is None else workload.batches):
            yield f"workload {label}: streams come at rates, not in batches: give it batches = []"


def filled(server: Server, batch: int | None) -> dict[str, KnobValue]:
    """The server's knobs with {batch} put in."""
    return {
        key: value.replace("{batch}", str(batch or 1)) if isinstance(value, str) else value
        for key, value in server.knobs.items()
    }


def plan_runs(study: Study) -> list[StudyRun]:
    """Every run, in the order of running: repeat by repeat; in each, servers at random, and each server's runs too.

    A repeat is a fresh start of the server, so that what one start happened to get does not pass for the server's law;
    unless `restart` is off: then it is server by server, and each server's runs repeat by repeat.
    """
    rng = np.random.default_rng(study.seed)
    cells: list[StudyRun] = []
    for repeats in [[r] for r in range(study.repeats)] if study.restart else [range(study.repeats)]:
        blocks: dict[str, list[StudyRun]] = {}
        for cell in _cells(study):
            blocks.setdefault(start_key(study, cell), []).append(cell)
        order = list(blocks.values())
        for index in rng.permutation(len(order)):
            for repeat in repeats:
                cells += [replace(order[index][i], repeat=repeat) for i in rng.permutation(len(order[index]))]
    return cells


def _cells(study: Study) -> Iterator[StudyRun]:
    """One repeat of everything."""
    for label, server in study.servers.items():
        models: list[str | None] = [*(server.models or study.models)] or [server.model]
        for model in models:
            for workload in _workloads(study, server):
                for batch, rps in _loads(study, server, workload):
                    yield StudyRun(label, model, workload, batch, rps, 0)


def _workloads(study: Study, server: Server) -> list[str]:
    return [label for label in study.workloads if not server.workloads or label in server.workloads]


def _loads(study: Study, server: Server, label: str) -> list[tuple[int | None, float | None]]:
    """(batch, None) and (None, rate): the workload's, else the study's; of these, those the server is to have."""
    workload = study.workloads[label]
    batches = study.batches if workload.batches is None else workload.batches
    rates = study.rates if workload.rates is None else workload.rates
    return [
        *((batch, None) for batch in batches if server.batches is None or batch in server.batches),
        *((None, rate) for rate in rates if server.rates is None or rate in server.rates),
    ]


def start_key(study: Study, cell: StudyRun) -> str:
    """What one start of a server can run: the same server, model and knobs."""
    return repr((cell.server, cell.model, sorted(filled(study.servers[cell.server], cell.batch).items())))


def arrival_of(study: Study, cell: StudyRun) -> tuple[Arrival | None, float]:
    """The process of an open loop and its burstiness; None where each stream has its own."""
    workload = study.workloads[cell.workload]
    burstiness = study.burstiness if workload.burstiness is None else workload.burstiness
    return None if workload.streams else workload.arrival or study.arrival, burstiness


def schedule_of(study: Study, cell: StudyRun, folder: Path) -> Schedule:
    """A closed loop has every request due at once, and lets `batch` of them in; an open one draws its instants.

    Every server gets the same in the same repeat. Nothing else does: what a server still holds of another run's prompts
    is of no use to it.
    """
    workload = study.workloads[cell.workload]
    seed = stable_hash63(f"{study.seed}/{cell.workload}/{cell.batch}/{cell.rps}/{cell.repeat}") % 2**32
    duration_s = study.duration_s if workload.duration_s is None else workload.duration_s
    if workload.streams:
        assert cell.rps is not None
        return streams.schedule_streams(
            _streams(workload, cell.rps, folder), seed=seed, duration_s=duration_s, num_requests=None
        )
    trace = _trace(workload, cell.workload, folder)
    arrival, burstiness = arrival_of(study, cell)
    if cell.rps is None:
        return _closed(study, trace, cell.batch or 1, seed)
    assert arrival is not None
    if arrival == "trace":
        return build_schedule(trace, seed=seed, rps=cell.rps, duration_s=duration_s)
    return _open(trace, seed, cell.rps, arrival, burstiness, duration_s)


def _closed(study: Study, trace: Trace, batch: int, seed: int) -> Schedule:
    count = max(study.min_requests, batch * study.rounds)
    requests = tuple(
        ScheduledRequest(
            index=i,
            offset_ns=0,
            workload=request.workload,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
        )
        for i, request in enumerate(even_sample(trace, -(-count // batch) * batch, seed).requests)
    )
    return Schedule(requests, "constant", None, seed)


def _open(trace: Trace, seed: int, rps: float, arrival: Arrival, burstiness: float, duration_s: float) -> Schedule:
    """rps x duration requests, neither more nor fewer: how many came by chance is no noise of joules per token.

    The gaps of one more are drawn, and put to scale so that this one comes at the end. For a Poisson process that is
    the process itself, given its count: gaps over their sum are the spacings of uniform instants (Pyke 1965).
    """
    count = max(1, round(rps * duration_s))
    sample = even_sample(trace, count, seed)
    drawn = build_schedule(sample, seed=seed, rps=rps, arrival=arrival, burstiness=burstiness, num_requests=count + 1)
    scale = duration_s * NS_PER_S / drawn.requests[-1].offset_ns
    requests = tuple(
        msgspec.structs.replace(request, offset_ns=round(request.offset_ns * scale))
        for request in drawn.requests[:count]
    )
    return replace(drawn, requests=requests)


def even_sample(trace: Trace, count: int, seed: int) -> Trace:
    """`count` requests of the trace, as often each as the others to within one, evenly over its output lengths, in
    random order: so few requests have nearly the mean lengths of many. Sessions and shared prefixes stay in order.
    """
    laps, rest = divmod(count, len(trace.requests))
    if any(request.session_id or request.prefix_ids for request in trace.requests):
        chosen = [*trace.requests * laps, *trace.requests[:rest]]
        return Trace(trace.name, tuple(chosen), trace.sha256)
    ordered = sorted(trace.requests, key=lambda request: (request.output_tokens, request.input_tokens))
    chosen = ordered * laps + [ordered[(2 * i + 1) * len(ordered) // (2 * rest)] for i in range(rest)]
    order = np.random.default_rng([seed, 1]).permutation(count)
    return Trace(trace.name, tuple(chosen[i] for i in order), trace.sha256)


def _streams(workload: Workload, rps: float, folder: Path) -> streams.Streams:
    """The file's streams, each as much faster or slower as makes `rps` of them all."""
    path = _path(workload, folder)
    found = streams.read_streams(path)
    rates = {name: stream.rps for name, stream in found.items()}
    if None in rates.values():
        raise LoadgenError(f"{path}: a study sets the rate, so every stream needs an rps to share it by")
    times = rps / sum(rate or 0.0 for rate in rates.values())
    return {name: msgspec.structs.replace(s, rps=(s.rps or 0.0) * times) for name, s in found.items()}


def _path(workload: Workload, folder: Path) -> Path:
    assert workload.trace is not None
    beside = folder / workload.trace
    return beside if beside.exists() else Path(workload.trace)


def _trace(workload: Workload, label: str, folder: Path) -> Trace:
    if workload.trace is not None:
        return read_trace(_path(workload, folder))
    assert workload.input is not None and workload.output is not None
    request = TraceRequest(arrival_s=0.0, input_tokens=workload.input, output_tokens=workload.output, workload=label)
    return Trace(label, (request,), "")
