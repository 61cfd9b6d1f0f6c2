"""Search for a load: one probe after another until the answer is as sure as was wanted, or the budget is spent.

All that is known follows from the probes, which the folder keeps: a search that was killed goes on from there. Several
settings of the server are searched one after the other, so that the server is started once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.load_search.faults import ClientLimitError, ServerLostError
from loadgen.load_search.folder import search_folder
from loadgen.load_search.plan import PlannedProbe, Question, request_time_s
from loadgen.load_search.prober import Prober
from loadgen.load_search.server import Server, ViewOf
from loadgen.load_search.settings import Setting, settings_of
from loadgen.load_search.state import SearchState
from loadgen.report.format import plural
from loadgen.run.config import recorded_options
from loadgen.run.progress import NullView

if TYPE_CHECKING:
    from loadgen.load_search.workload import Workload
    from loadgen.results.search_result import PresentLoad, SearchResult
    from loadgen.run.config import RunConfig
    from loadgen.run.interrupts import Interruption


def search(
    workload: Workload,
    config: RunConfig,
    question: Question,
    *,
    serve: str | None = None,
    over: Sequence[str] = (),
    present: PresentLoad | None = None,
    command: str | None = None,
    say: Callable[[str], None],
    view_of: ViewOf = lambda title: NullView(),
    interruption: Interruption | None = None,
) -> SearchResult:
    """Search in the folder `config.out`, or go on with the search in it; return its result, which is also written.

    serve: name of the server to start for it. over: the values of its engine options to compare, as KEY=V1,V2; the
    server is started once for each setting. present: the load of today, whose cost is wanted.
    command: the command line that goes on with the search, without secrets.
    Raises LoadgenError, and KeyboardInterrupt once the folder is written.
    """
    begun_s = monotonic()
    settings = settings_of(serve, over)
    with search_folder(config.out, _options(workload, config, question, serve, settings)) as folder:
        state = SearchState(folder, question, settings, workload.name, command, begun_s, present)
        if num_done := sum(len(setting.probes) for setting in state.results):
            say(f"{plural(num_done, 'probe')} of the search in {folder.path} done already")
        config = msgspec.structs.replace(config, out=folder.path / "probes", goodput=question.limits_ms)

        def search_setting(index: int, is_last: bool = False) -> None:
            state.begin(index, is_last)
            _search_setting(
                settings[index], state, workload, config, serve, view_of=view_of, say=say, interruption=interruption
            )

        try:
            for index in range(len(settings)):
                search_setting(index)
            if (best := state.undecided_best) is not None:
                search_setting(best, is_last=True)
            return state.end_all()
        except BaseException:
            if state.has_probes:
                state.write()
            raise


def _search_setting(
    setting: Setting,
    state: SearchState,
    workload: Workload,
    config: RunConfig,
    serve: str | None,
    *,
    view_of: ViewOf,
    say: Callable[[str], None],
    interruption: Interruption | None,
) -> None:
    """Search a setting on a server of its own; start none where nothing remains to be asked of it."""
    planned = state.next(state.question.max_rps)
    if not isinstance(planned, PlannedProbe):
        state.end(planned)
        return
    until_s = monotonic() + state.remaining_s
    options = (*(("--model", config.model) if config.model else ()), *setting.words)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                Server(config.base_url, serve, options, state.server_log, view_of, interruption, until_s)
            )
        except LoadgenError as err:
            state.end_without_server(str(err), say)
            return
        prober = Prober(
            workload, config, state.question, server, state.prefix, view_of=view_of, say=say, interruption=interruption
        )
        _probe_on(state, prober, say)


def _probe_on(state: SearchState, prober: Prober, say: Callable[[str], None]) -> None:
    """Make probes of a setting until there is no more to make."""
    while True:
        planned = state.next(prober.max_rps, prober.overhead_s)
        if not isinstance(planned, PlannedProbe):
            return state.end(planned, prober.max_rps)
        try:
            measured = prober.make(
                planned, state.remaining_s, request_time_s(state.probes), state.describe_next(planned)
            )
        except ClientLimitError as err:
            if all(probe.rate_rps < planned.rate_rps for probe in state.probes):
                return state.end("client", planned.rate_rps, str(err))
            say(f"{err}; it was fast enough for higher rates, so the probe is made again")
            continue
        except ServerLostError as err:
            return state.end_without_server(str(err), say)
        state.add(measured.probe, measured.run)
        say(state.describe_last())


def _options(
    workload: Workload, config: RunConfig, question: Question, serve: str | None, settings: Sequence[Setting]
) -> dict[str, Any]:
    """Return what the search follows from, without secrets."""
    stated = {name: value for name, value in asdict(question).items() if name != "max_rps"}
    options = {**recorded_options(config), **workload.identity, **stated, "serve": serve}
    if over := [setting.recorded_options for setting in settings if setting.options]:
        options["over"] = over
    if serve:
        del options["base_url"]
    return options
