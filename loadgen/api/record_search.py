"""Search for a load from the options of `loadgen search`: the command and the library both do it here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from loadgen.api.checked import checked
from loadgen.api.record_run import load_of, read_lines, say_left_out
from loadgen.errors import LoadgenError
from loadgen.load_search.plan import USUAL_SHARE, Question
from loadgen.load_search.runner import search
from loadgen.load_search.workload import Workload
from loadgen.results.search_result import PresentLoad, SearchResult
from loadgen.run.config import Positive, RunConfig, recorded_command
from loadgen.workload.words import stored_words

if TYPE_CHECKING:
    from loadgen.load_search.server import ViewOf
    from loadgen.run.interrupts import Interruption
    from loadgen.workload.trace import Trace

RUN_OPTIONS = frozenset(RunConfig.__struct_fields__) - {"plan", "words", "command", "history"}

Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class SearchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the search itself. A field has the name of the click option that fills it."""

    attainment: Share | None = None
    minimize: Literal["joules_per_good_request"] | None = None
    budget_s: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 600.0
    width: Share = 0.1
    confidence: Annotated[float, msgspec.Meta(gt=0.5, lt=1)] = 0.95
    start_rps: Positive | None = None
    max_rps: Positive | None = None
    now_rps: Positive | None = None
    replicas: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    keep_idle: bool = False


SEARCH_OPTIONS = frozenset(SearchOptions.__struct_fields__)


def folder_of(options: Mapping[str, Any]) -> Path:
    """Return the folder of a search: `out`, or runs/search-TRACE, so that the same options go on with it."""
    made_up = "made-up-prompts" if options["input"] else "requests"
    title = options["trace"] or "+".join(options["streams"]) or made_up
    return Path(options["out"] or Path("runs") / f"search-{Path(title).name.split('.')[0]}")


def record_search(
    options: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    view_of: ViewOf,
    source: Trace | bytes | None = None,
    command: Sequence[str] = (),
    interruption: Interruption | None = None,
) -> SearchResult:
    """Make the search that `options` describe, or go on with it.

    Their names are those of `record_run.LOAD_OPTIONS`, RUN_OPTIONS and SEARCH_OPTIONS, `serve`, `over` and `history`.
    source: requests in memory in place of a trace, or JSON lines of them. interruption: takes the place of Ctrl-C.
    Raises LoadgenError, and KeyboardInterrupt once the folder is written.
    """
    search_options = checked({name: options[name] for name in SEARCH_OPTIONS}, SearchOptions)
    load = load_of(options)
    run_options = {name: options[name] for name in RUN_OPTIONS & options.keys()}
    config = checked(run_options | {"base_url": options["base_url"] or "", "command": command}, RunConfig)
    with stored_words() as (words, path):
        if isinstance(source, bytes):
            source = read_lines(source, words, config.model)
        workload = Workload(load, words, config, options["history"], source=source, say=say)
        say_left_out(words, workload.name, say)
        question = _question(search_options, config.goodput or workload.limits_ms, load.seed)
        workload.hold_to(question.limits_ms)
        return search(
            workload,
            msgspec.structs.replace(config, words=path),
            question,
            serve=options["serve"],
            over=options["over"],
            present=_present_load(search_options),
            command=shlex.join(recorded_command(config)) or None,
            say=say,
            view_of=view_of,
            interruption=interruption,
        )


def _question(options: SearchOptions, limits_ms: dict[str, float], seed: int) -> Question:
    """Return what is searched for. LoadgenError: without limits, any rate is good."""
    if not limits_ms:
        raise LoadgenError("no limits to search within: add --goodput, such as --goodput ttft:200 --goodput tpot:50")
    if options.start_rps and options.max_rps and options.start_rps > options.max_rps:
        raise LoadgenError(f"--start {options.start_rps:g} is above --max-rps {options.max_rps:g}")
    return Question(
        limits_ms=limits_ms,
        objective=options.minimize or "rate",
        attainment=options.attainment or (None if options.minimize else USUAL_SHARE),
        budget_s=options.budget_s,
        width=options.width,
        confidence=options.confidence,
        start_rps=options.start_rps or (options.now_rps / options.replicas if options.now_rps else 1.0),
        max_rps=options.max_rps or math.inf,
        seed=seed,
    )


def _present_load(options: SearchOptions) -> PresentLoad | None:
    if options.now_rps is not None:
        return PresentLoad(now_rps=options.now_rps, replicas=options.replicas, keep_idle=options.keep_idle)
    if options.replicas > 1 or options.keep_idle:
        raise LoadgenError("--replicas and --keep-idle belong to a load: add --now RPS, all that they serve today")
    return None
