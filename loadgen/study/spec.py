"""The content of a study file: servers, workloads, loads and repeats. Checked before the first server starts."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadgen.attribution.host_share import ShareHost
from loadgen.client.redact import redact_value
from loadgen.errors import LoadgenError
from loadgen.record import SLO_METRICS
from loadgen.results.attainment import WANTED
from loadgen.servers.recipe import OptionValue, option_values, read_recipe
from loadgen.workload.schedule import Arrival


class ServerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[servers.LABEL]: one way to serve. The text {batch} in an engine option is the batch of the run."""

    recipe: str | None = None
    engine_options: dict[str, OptionValue] = msgspec.field(default_factory=dict, name="knobs")
    """Engine options of the recipe; the file format calls them knobs."""
    python: str | None = None
    """The interpreter that has the engine, when that is not the one that runs loadgen."""
    gpus: list[str] = []
    """Indices or UUIDs of the GPUs that it may use, and that are measured; empty: all visible ones."""
    models: list[str] = []
    """Replace the study's: for recipes that call the same model by another name."""
    base_url: str | None = None
    """Address of a server that already runs, instead of a recipe. Then `model` below names which of its models."""
    model: str | None = None
    workloads: list[str] = []
    """Labels of the workloads that it gets; empty: all."""
    batches: list[int] | None = None
    """Batches that it gets, of those of a workload; None: all. So are `rates`."""
    rates: list[float] | None = None

    def options_of_batch(self, batch: int | None) -> dict[str, OptionValue]:
        """Return its engine options with {batch} filled in; an open loop has batch 1."""
        return {
            key: value.replace("{batch}", str(batch or 1)) if isinstance(value, str) else value
            for key, value in self.engine_options.items()
        }

    def recorded_options(self, batch: int | None) -> dict[str, OptionValue]:
        """Return the same as they may be written down: without the values of secrets."""
        return {name: redact_value(name, value) for name, value in self.options_of_batch(batch).items()}


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[workloads.LABEL]: fixed lengths, or a trace, or streams; and the load, where it is not the study's."""

    input: int | None = None
    output: int | None = None
    trace: str | None = None
    """Path of a trace, or of a TOML file of streams whose rates together are the rate. Relative to the study's file, or
    to the working directory."""
    batches: list[int] | None = None
    rates: list[float] | None = None
    duration_s: float | None = None
    arrival: Arrival | None = None
    burstiness: float | None = None

    @property
    def streams(self) -> bool:
        return self.trace is not None and self.trace.endswith(".toml")

    @property
    def text(self) -> str:
        """Return its lengths, or the file that has them."""
        return self.trace or f"{self.input} input tokens, {self.output} output tokens"


class CoolDown(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The temperature to wait for before each run, and the longest wait."""

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
    servers: dict[str, ServerSpec]
    models: list[str] = []
    """Models, served one after the other; empty: each recipe's own."""
    workloads: dict[str, WorkloadSpec]
    batches: list[int] = []
    """Closed loops: requests kept in flight, until `rounds` times as many are done (`min_requests` at least)."""
    rates: list[float] = []
    """Open loops: requests per second for `duration_s`. Every repeat has exactly rate x duration requests."""
    rounds: int = 3
    min_requests: int = 1
    duration_s: float = 60.0
    arrival: Arrival = "poisson"
    burstiness: float = 1.0
    repeats: int = 3
    restart: bool = True
    """Start the server afresh for each repeat. Without, all repeats share one start: this takes less time, and the
    intervals say nothing about how one start differs from another."""
    warmup: int = 2
    """Unrecorded requests, one by one, before the first open loop of a workload on a started server; before the first
    closed loop at a batch, a whole round instead. 0: none."""
    retries: int = 1
    seed: int = 0
    endpoint: str = "completions"
    energy: str = "auto"
    timeout_s: float = 600.0
    idle_s: float = 2.0
    share_host: ShareHost = "time"
    """The way in which the host's energy is shared among the requests, where a meter counts it beside the GPUs'."""
    pue: float | None = None
    """Facility power over IT power."""
    grid_intensity: float | None = None
    """Carbon intensity of the grid in grams of CO2e per kWh."""
    grid_source: str | None = None
    price: float | None = None
    goodput: dict[str, float] = {}
    """Limits in ms: ttft, tpot, e2el."""
    goodput_share: float = WANTED
    """Share of the requests that must be within every limit: the page states the load at which it is missed."""
    baseline: str | None = None
    """The server that reductions are relative to."""
    cool: CoolDown = CoolDown()
    idealized: Idealized | None = None

    def workloads_of(self, server: ServerSpec) -> list[str]:
        return [label for label in self.workloads if not server.workloads or label in server.workloads]

    def loads_of(self, server: ServerSpec, label: str) -> list[tuple[int | None, float | None]]:
        """Return (batch, None) and (None, rate): the workload's, else the study's; of these, those of the server."""
        workload = self.workloads[label]
        batches = self.batches if workload.batches is None else workload.batches
        rates = self.rates if workload.rates is None else workload.rates
        return [
            *((batch, None) for batch in batches if server.batches is None or batch in server.batches),
            *((None, rate) for rate in rates if server.rates is None or rate in server.rates),
        ]

    def arrival_of(self, label: str) -> tuple[Arrival | None, float]:
        """Return the process of a workload's open loop and its burstiness; None where each stream has its own."""
        workload = self.workloads[label]
        burstiness = self.burstiness if workload.burstiness is None else workload.burstiness
        return None if workload.streams else workload.arrival or self.arrival, burstiness


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Options that belong to the machine and not to the question: given beside the file, for servers with a recipe."""

    models: list[str] = []
    """Replace the study's models, and a server's own."""
    engine_options: dict[str, str] = msgspec.field(default_factory=dict, name="knobs")
    """Engine options that replace or join those of the servers."""
    python: str | None = None
    """Interpreter that starts the servers; None: the study's own."""


NO_OVERRIDES = Overrides()


def read_study(path: Path, overrides: Overrides = NO_OVERRIDES) -> Study:
    """Read the study in `path`. LoadgenError when it is not one, or has an option that no recipe has."""
    try:
        study = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Study)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a study: {err}") from err
    servers = {
        label: server
        if server.recipe is None
        else msgspec.structs.replace(
            server,
            models=overrides.models or server.models,
            engine_options=server.engine_options | overrides.engine_options,
            python=overrides.python or server.python,
        )
        for label, server in study.servers.items()
    }
    study = msgspec.structs.replace(study, servers=servers)
    for problem in problems(study):
        raise LoadgenError(f"{path}: {problem}")
    return study


def problems(study: Study) -> Iterator[str]:
    """Yield what contradicts itself or names what does not exist."""
    if not (study.servers and study.workloads):
        yield "a study needs [servers.X] and [workloads.X]"
    if study.baseline is not None and study.baseline not in study.servers:
        yield f"baseline {study.baseline!r} is none of its servers: {', '.join(study.servers)}"
    if study.endpoint not in ("chat", "completions"):
        yield f"endpoint {study.endpoint!r} is neither chat nor completions"
    if study.repeats < 1 or study.rounds < 1:
        yield "repeats and rounds are 1 at least"
    if not 0 < study.goodput_share <= 1:
        yield f"goodput_share is a share of the requests, above 0 and at most 1, not {study.goodput_share:g}"
    if unknown := set(study.goodput) - set(SLO_METRICS):
        yield f"goodput has no limit {min(unknown)!r}; there are: {', '.join(SLO_METRICS)}"
    for label, server in study.servers.items():
        if (server.recipe is None) == (server.base_url is None):
            yield f"server {label} needs either a recipe or a base_url"
        if server.recipe is not None:
            option_values(read_recipe(server.recipe), server.options_of_batch(1))
        if unknown := set(server.workloads) - set(study.workloads):
            yield f"server {label}: no workload {min(unknown)!r}; there are: {', '.join(study.workloads)}"
        if not any(study.loads_of(server, workload) for workload in study.workloads_of(server)):
            yield f"server {label} has nothing to do: a study needs batches or rates, its own or a workload's"
    for label, workload in study.workloads.items():
        if (workload.trace is None) == (workload.input is None or workload.output is None):
            yield f"workload {label} needs either a trace, or input and output"
        if workload.streams and (workload.arrival or workload.burstiness):
            yield f"workload {label}: each stream of {workload.trace} has an arrival of its own"
        if workload.streams and (study.batches if workload.batches is None else workload.batches):
            yield f"workload {label}: streams come at rates, not in batches: give it batches = []"
