"""Search for a load from the options of `loadgen search`: the command and the library both do it here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.api.checked import checked
from loadgen.client import DEFAULT_URL
from loadgen.errors import LoadgenError
from loadgen.record import UNSTREAMED
from loadgen.results.search_result import PresentLoad, SearchResult
from loadgen.run.config import RunConfig, recorded_command
from loadgen.search.plan import USUAL_SHARE, Question
from loadgen.search.runner import search
from loadgen.search.workload import Workload
from loadgen.workload.load import Load
from loadgen.workload.words import stored_words

if TYPE_CHECKING:
    from loadgen.run.interrupts import Interruption
    from loadgen.search.server import ViewOf
    from loadgen.workload.trace import Trace

LOAD_OPTIONS = frozenset(Load.__struct_fields__)
RUN_OPTIONS = frozenset(RunConfig.__struct_fields__) - {"plan", "words", "command", "history"}
QUESTION_OPTIONS = frozenset(("objective", "attainment", "budget_s", "width", "confidence", "start_rps", "max_rps"))


def record_search(
    options: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    view_of: ViewOf,
    source: Trace | None = None,
    command: Sequence[str] = (),
    interruption: Interruption | None = None,
) -> SearchResult:
    """Make the search that `options` describe, or go on with it.

    Their names are those of LOAD_OPTIONS, RUN_OPTIONS, QUESTION_OPTIONS and PresentLoad, `serve`, `over` and `history`.
    source: requests in memory in place of a trace. interruption: takes the place of Ctrl-C.
    Raises LoadgenError, and KeyboardInterrupt once the folder is written.
    """
    options = dict(options)
    if options["input"] and options["endpoint"] in UNSTREAMED:
        options["output"] = options["output"] or "1"  # which no answer has
    load = checked({name: options[name] for name in LOAD_OPTIONS & options.keys()}, Load)
    run_options = {name: options[name] for name in RUN_OPTIONS & options.keys()}
    config = checked(run_options | {"base_url": options["base_url"] or DEFAULT_URL, "command": command}, RunConfig)
    with stored_words() as (words, path):
        workload = Workload(load, words, config, options["history"], source=source, say=say)
        if words.left_out:
            say(f"left out of {workload.name}: {', '.join(f'{n} {what}' for what, n in words.left_out.items())}")
        question = _question(options, config.goodput or workload.limits_ms)
        workload.hold_to(question.limits_ms)
        return search(
            workload,
            msgspec.structs.replace(config, words=path),
            question,
            serve=options["serve"],
            over=options["over"],
            present=_present_load(options),
            command=shlex.join(recorded_command(config)) or None,
            say=say,
            view_of=view_of,
            interruption=interruption,
        )


def _question(options: Mapping[str, Any], limits_ms: dict[str, float]) -> Question:
    """Return what is searched for. LoadgenError: without limits, any rate is good."""
    if not limits_ms:
        raise LoadgenError("no limits to search within: add --goodput, such as --goodput ttft:200 --goodput tpot:50")
    asked = {name: options[name] for name in QUESTION_OPTIONS & options.keys()}
    if asked["attainment"] is None and asked["objective"] == "rate":
        asked["attainment"] = USUAL_SHARE
    if asked["max_rps"] is None:
        asked["max_rps"] = math.inf
    if asked["start_rps"] is None:
        asked["start_rps"] = options["now_rps"] / options["replicas"] if options["now_rps"] else 1.0
    return Question(limits_ms=limits_ms, seed=options["seed"], **asked)


def _present_load(options: Mapping[str, Any]) -> PresentLoad | None:
    if options["now_rps"] is not None:
        return PresentLoad(now_rps=options["now_rps"], replicas=options["replicas"], keep_idle=options["keep_idle"])
    if options["replicas"] > 1 or options["keep_idle"]:
        raise LoadgenError("--replicas and --keep-idle belong to a load: add --now RPS, all that they serve today")
    return None
