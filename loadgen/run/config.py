"""The options of a run, in one list: click fills it in, every sending process receives it, and run.json states it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec

from loadgen.client.client import Client
from loadgen.client.redact import clean_sources, clean_url, redact, redact_command, secrets_of
from loadgen.client.request_body import MessageMaker, message_maker
from loadgen.client.word_counts import Count
from loadgen.energy.named_engine import parse_engines
from loadgen.errors import LoadgenError
from loadgen.record import SLO_METRICS, Endpoint
from loadgen.results.failure_limit import FailureLimit
from loadgen.results.metrics import slo_of
from loadgen.workload.schedule import TooLong
from loadgen.workload.sessions import History
from loadgen.workload.words import WordsReader

if TYPE_CHECKING:
    from loadgen.client.server_info import ServerInfo
    from loadgen.workload.prompts import PromptKind, Vocabulary


class Recorded(NamedTuple):
    """The form in which run.json states an option, where that is not the plain value under the field's name."""

    value: Callable[[Any], Any] | None
    """Makes the stated value from the option's; None leaves the option out of run.json."""
    name: str | None = None
    """The key in run.json; None is the field's name."""
    omit_none: bool = False
    """True leaves the key out when the option is None or empty."""


def _plain(value: Any) -> Any:
    return value


SECRET = Recorded(None)
"""A value that authenticates. It reaches the server and is written nowhere."""
NOT_RECORDED = Recorded(None)
WITHOUT_PASSWORD = Recorded(clean_url)
HEADER_NAMES = Recorded(sorted)
"""Header values may authenticate; the names do not."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Pue = Annotated[float, msgspec.Meta(ge=1, le=100)]
ShortText = Annotated[str, msgspec.Meta(max_length=200)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a run, beyond its schedule. A field has the name of the click option that fills it.

    run.json states the fields in this order.
    """

    base_url: Annotated[str, WITHOUT_PASSWORD]
    goodput: dict[str, Positive] = {}
    """Limit in milliseconds by metric, for requests without limits of their own."""
    headers: Annotated[dict[str, str], HEADER_NAMES] = {}
    extra_body: dict[str, Any] = {}
    processes: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Number of processes that share the sending."""
    count: Count = "auto"
    """The prompts of one's own that are counted before the run."""
    tokenizer: Annotated[Path | None, Recorded(lambda path: str(path) if path else None)] = None
    model: str | None = None
    endpoint: Endpoint = "chat"
    energy: Annotated[str, Recorded(clean_sources)] = "auto"
    gpus: tuple[str, ...] = ()
    engines: Annotated[tuple[str, ...], NOT_RECORDED] = ()
    """Engines behind the server, as --engine names them: an entry of their own in run.json."""
    engine_headers: Annotated[tuple[str, ...], Recorded(list, omit_none=True)] = ()
    """Response headers that name the engines which served a request."""
    share_host: Literal["time", "tokens"] = "time"
    """The way in which the host's energy is shared among the requests, where a meter counts it beside the GPUs'."""
    pue: Annotated[Pue | None, Recorded(_plain, omit_none=True)] = None
    """Facility power over IT power."""
    grid_intensity: Annotated[Positive | None, Recorded(_plain, omit_none=True)] = None
    """Carbon intensity of the grid in grams of CO2e per kWh."""
    grid_source: Annotated[ShortText | None, Recorded(_plain, omit_none=True)] = None
    """Source and date of `grid_intensity`."""
    price: Annotated[Positive | None, Recorded(_plain, omit_none=True)] = None
    """Price per kWh, in any currency."""
    max_concurrency: PositiveInt | None = None
    warmup: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Requests sent one by one before the run, unrecorded."""
    idle_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 2.0
    """Recorded before the first request when there is a meter: the power of the resident model at rest."""
    timeout_s: Annotated[Positive | None, Recorded(_plain, name="timeout")] = 600.0
    max_failed: str = FailureLimit.DEFAULT
    """Share ("1%") or number ("5") of requests that may fail: with more of them the run itself has failed."""
    max_tokens: PositiveInt | None = None
    """Longest answer of a request that ends where the model ends it and states no limit of its own."""
    history: History = "recorded"
    """The answers that a later turn of a session with words of its own is sent with."""
    too_long: TooLong = "refuse"
    """Treatment of sessions with a request that is longer than the model's context."""
    max_context: PositiveInt | None = None
    """Tokens of the longest prompt and answer together, where that is less than the server takes, or not known."""
    keep_bodies: bool = False
    """True: the file of the requests' words becomes bodies.jsonl of the run folder."""
    keep_answers: bool = False
    """True: the words of the answers are written to answers.jsonl of the run folder."""
    otlp: Annotated[str | None, Recorded(clean_url, omit_none=True)] = None
    """URL of a sidecar that receives a span for every request."""
    api_key: Annotated[str | None, SECRET] = None
    out: Annotated[Path, NOT_RECORDED]
    """The run folder."""
    overwrite: Annotated[bool, NOT_RECORDED] = False
    words: Annotated[Path | None, NOT_RECORDED] = None
    """The file that holds the words of requests that have their own."""
    command: Annotated[tuple[str, ...], NOT_RECORDED] = ()
    """The words of the command line that starts the run: an entry of its own in run.json, without secrets."""
    plan: Annotated[dict[str, Any], NOT_RECORDED] = {}
    """The making of the schedule: run.json states these entries before the options."""

    def __post_init__(self) -> None:
        """Raise LoadgenError for a header that cannot be sent, an unknown limit, or an invalid share of failures."""
        for name, value in self.headers.items():
            if fault := header_fault(name, value):
                raise LoadgenError(fault)
        if unknown := set(self.goodput) - set(SLO_METRICS):
            raise LoadgenError(f"goodput: {min(unknown)!r} is none of {', '.join(SLO_METRICS)}")
        FailureLimit.parse(self.max_failed)
        parse_engines(self.engines, sharing=True)
        for name in self.engine_headers:
            if fault := header_fault(name, ""):
                raise LoadgenError(f"--engine-header: {fault}")


def header_fault(name: str, value: str) -> str | None:
    """Return the reason why a header cannot be sent; None where it can."""
    if not re.fullmatch(r"[!#-'*+\-.0-9A-Z^-z|~]+", name):
        return f"{name!r} is not the name of a header"
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        return f"the value of header {name!r} holds a character that cannot be sent"
    return None


def limits_of(config: RunConfig, workload: str) -> dict[str, float]:
    """Return the latency limits in milliseconds of a workload's requests: its stream's own, or the run's."""
    return slo_of({**config.plan, "goodput": config.goodput}, workload)


def recorded_options(config: RunConfig) -> dict[str, Any]:
    """Return `config` of run.json: the plan, then every option, without secrets."""
    stated = dict(config.plan)
    for name, hint in get_type_hints(RunConfig, include_extras=True).items():
        marks = (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Recorded))
        mark = next(marks, Recorded(_plain))
        value = getattr(config, name)
        if mark.value is not None and not (mark.omit_none and value in (None, ())):
            stated[mark.name or name] = mark.value(value)
    return stated


def recorded_command(config: RunConfig) -> list[str]:
    """Return `command` of run.json: the words of the command line without secrets, which the values of options may
    repeat."""
    secrets = secrets_of([*config.headers.values(), *([config.api_key] if config.api_key else [])])
    return [redact(word, secrets) for word in redact_command(config.command)]


@dataclass(frozen=True)
class PreparedRun:
    """All that a process needs to send a schedule. It holds the API key, so it is handed over and never written."""

    run_id: str
    config: RunConfig
    server: "ServerInfo"
    vocabularies: "dict[PromptKind, Vocabulary]"

    def message_maker(self, seed: int) -> MessageMaker:
        config, server = self.config, self.server
        return message_maker(
            seed,
            self.vocabularies,
            config.endpoint,
            server.model,
            server.dialect,
            config.extra_body,
            words=WordsReader(config.words) if config.words else None,
            max_tokens=config.max_tokens,
        )


def open_client(config: RunConfig) -> Client:
    """Return a client of the server that `config` names, to be used as a context manager."""
    return Client(
        config.base_url, headers=config.headers, api_key=config.api_key, timeout_s=config.timeout_s,
        engines=config.engines, engine_headers=config.engine_headers,
    )  # fmt: skip
