"""Search for a load: one probe after another until the answer is as sure as was wanted, or the budget is spent.

All that is known follows from the probes, which the folder keeps: a search that was killed goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen import __version__
from loadgen.errors import LoadgenError
from loadgen.report.format import plural
from loadgen.results.run_folder import SCHEMA_VERSION
from loadgen.results.search_result import Ended, Estimate, Probe, SearchResult
from loadgen.run.config import recorded_options
from loadgen.run.progress import NullView
from loadgen.search.folder import SearchFolder
from loadgen.search.outcome import best_rate, setting_result
from loadgen.search.plan import PlannedProbe, Question, next_probe
from loadgen.search.prober import ClientLimitError, Prober
from loadgen.search.server import Server, ServerLostError, ViewOf

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.run.config import RunConfig
    from loadgen.run.interrupts import Interruption
    from loadgen.search.workload import Workload


def search(
    workload: Workload,
    config: RunConfig,
    question: Question,
    *,
    serve: str | None = None,
    command: str | None = None,
    say: Callable[[str], None],
    view_of: ViewOf = lambda title: NullView(),
    interruption: Interruption | None = None,
) -> SearchResult:
    """Search in the folder `config.out`, or go on with the search in it; return its result, which is also written.

    serve: name of the server to start for it. command: the command line that goes on with the search, without secrets.
    Raises LoadgenError, and KeyboardInterrupt once the folder is written.
    """
    begun_s = monotonic()
    folder = SearchFolder(config.out, _options(workload, config, question, serve))
    state = _State(folder, question, workload.name, command, begun_s)
    if state.probes:
        say(f"{plural(len(state.probes), 'probe')} of the search in {folder.path} done already")
    planned = state.next(question.max_rps)
    if not isinstance(planned, PlannedProbe):  # nothing remains to be asked of a server
        return state.end(planned)
    config = msgspec.structs.replace(config, out=folder.path / "probes", goodput=question.limits_ms)
    with ExitStack() as stack:
        try:
            model = ("--model", config.model) if config.model else ()
            log = folder.path / "server.log"
            server = stack.enter_context(Server(config.base_url, serve, model, log, view_of, interruption))
            prober = Prober(workload, config, question, server, view_of=view_of, say=say, interruption=interruption)
            return _probe_on(state, prober, say)
        except BaseException:
            state.write()
            raise


def _probe_on(state: _State, prober: Prober, say: Callable[[str], None]) -> SearchResult:
    """Make probes until there is no more to make."""
    while True:
        planned = state.next(prober.max_rps)
        if not isinstance(planned, PlannedProbe):
            return state.end(planned, prober.max_rps)
        try:
            measured = prober.make(planned, state.remaining_s, state.takes_s, state.describe_next(planned))
        except ClientLimitError as err:
            return state.end("client", planned.rate_rps, str(err))
        except ServerLostError as err:
            if not state.probes:
                raise
            return state.end("server", reason=str(err))
        state.add(measured.probe, measured.run)
        say(state.describe_last())


class _State:
    """The search so far, in memory and in its folder."""

    def __init__(
        self, folder: SearchFolder, question: Question, trace: str, command: str | None, begun_s: float
    ) -> None:
        earlier = folder.result or SearchResult(
            schema_version=SCHEMA_VERSION,
            started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            loadgen_version=__version__,
        )
        self._folder, self._question, self._begun_s = folder, question, begun_s
        self._earlier_s = earlier.spent_s
        self._result = msgspec.structs.replace(
            earlier,
            objective=question.objective,
            limits_ms=question.limits_ms,
            attainment=question.attainment,
            confidence=question.confidence,
            width=question.width,
            budget_s=question.budget_s,
            trace=trace,
            command=command,
        )
        self.probes: tuple[Probe, ...] = earlier.settings[0].probes if earlier.settings else ()
        self._idle_watts = earlier.settings[0].idle_watts if earlier.settings else None

    @property
    def spent_s(self) -> float:
        return self._earlier_s + monotonic() - self._begun_s

    @property
    def remaining_s(self) -> float:
        return self._question.budget_s - self.spent_s

    @property
    def takes_s(self) -> float:
        """Time after which requests are decided, as far as the probes showed."""
        return max((probe.decision_s for probe in self.probes if not probe.overloaded), default=1.0)

    def next(self, max_rps: float) -> PlannedProbe | Ended:
        """Return the next probe, or the reason for which there is none. max_rps: the highest rate of this client."""
        question = replace(self._question, max_rps=min(max_rps, self._question.max_rps))
        return next_probe(question, self.probes, self.remaining_s)

    def add(self, probe: Probe, run: RunResult) -> None:
        """Take in a probe. LoadgenError where fewest joules are wanted, and it has none."""
        assert run.summary is not None
        self.probes = (*self.probes, probe)
        self._idle_watts = self._idle_watts or run.summary.energy.idle_watts
        server = run.info.server
        self._result = msgspec.structs.replace(
            self._result,
            model=server.get("model"),
            engine=server.get("engine"),
            simulated=bool(server.get("simulated")),
        )
        if self._question.objective == "joules_per_good_request" and not run.info.domains:
            reasons = "; ".join(run.info.energy_reasons) or "--energy none"
            raise LoadgenError(f"no energy is measured, so that no load can cost fewest joules: {reasons}")
        self.write()

    def end(self, ended: Ended, rate_rps: float = inf, reason: str | None = None) -> SearchResult:
        """Write the outcome. rate_rps: that at which this client is at its limit, where that is the end."""
        if ended == "budget" and not self.probes:
            raise LoadgenError(
                f"--budget {self._question.budget_s:g}s is too short for one probe: give it a minute or more"
            )
        if ended == "client":
            reason = self._client_reason(rate_rps, reason)
        return self.write(ended, reason)

    def write(self, ended: Ended | None = None, reason: str | None = None) -> SearchResult:
        setting = setting_result(self._question, self.probes, ended=ended, reason=reason, idle_watts=self._idle_watts)
        is_met = setting.rate is not None
        self._result = msgspec.structs.replace(
            self._result, spent_s=self.spent_s, settings=(setting,), best=setting.name if is_met else None
        )
        self._folder.write(self._result)
        return self._result

    def _client_reason(self, rate_rps: float, reason: str | None) -> str:
        if reason is not None:
            return f"at {rate_rps:.3g}/s {reason}"
        if rate_rps < self._question.max_rps:
            return f"above {rate_rps:.3g}/s this client would use more than 80 % of a core per process: add --processes"
        return f"--max-rps {self._question.max_rps:g}: no higher rate was tried"

    def describe_next(self, planned: PlannedProbe) -> str:
        """Return the title of the next probe: what it is, the answer so far, and the time that remains."""
        rate = best_rate(self._question, self.probes, None)
        so_far = f", so far {_shown(rate)}" if rate else ""
        left = f"{self.remaining_s / 60:.1f} min left"
        return f"probe {planned.number + 1} at {planned.rate_rps:.3g}/s for {planned.duration_s:.0f} s{so_far}, {left}"

    def describe_last(self) -> str:
        """Return what the last probe found."""
        probe = self.probes[-1]
        good = f"{probe.good / probe.requests:.1%} of {probe.requests:,} good" if probe.requests else "nothing counted"
        early = ", ended early" if probe.stopped_early else ""
        return f"{probe.name}: {probe.rate_rps:.3g}/s, {good}{early}"


def _shown(rate: Estimate) -> str:
    low, high = ("?" if end is None else f"{end:.3g}" for end in (rate.low, rate.high))
    return f"{rate.value:.3g}/s [{low}, {high}]"


def _options(workload: Workload, config: RunConfig, question: Question, serve: str | None) -> dict[str, Any]:
    """Return what the search follows from, without secrets."""
    asked = {name: value for name, value in asdict(question).items() if name != "max_rps"}
    options = {**recorded_options(config), **workload.identity, **asked, "serve": serve}
    if serve:
        del options["base_url"]
    return options
