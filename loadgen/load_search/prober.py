"""Make the probes of a search: runs at one rate each, with folders of their own, against a server that stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from shutil import rmtree
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadgen.errors import LoadgenError, NotReadyError
from loadgen.load_search.faults import ClientLimitError, ServerLostError, check_run, client_limit_rps
from loadgen.load_search.plan import is_hopeless
from loadgen.report.write import finish
from loadgen.results.probe import probe_of
from loadgen.run.interrupts import run_replay
from loadgen.run.progress import announcer
from loadgen.run.settle import answers, wait_until_at_rest
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.load_search.plan import PlannedProbe, Question
    from loadgen.load_search.server import Server, ViewOf
    from loadgen.load_search.workload import Requests, Workload
    from loadgen.results.run_folder import RunResult
    from loadgen.results.search_result import Probe
    from loadgen.run.config import RunConfig
    from loadgen.run.interrupts import Interruption
    from loadgen.run.progress import Tallies

_AT_REST_S = 15.0
"""Longest wait for the server to be at rest after a probe."""
_MIN_DRAIN_S, _DRAINS = 10.0, 3
"""Time after the sending in which requests may complete: at least so long, or so many times as long as they take."""


class Measured(NamedTuple):
    """A probe, and its run."""

    probe: Probe
    run: RunResult


class Prober:
    """Makes the probes of one setting."""

    def __init__(
        self,
        workload: Workload,
        config: RunConfig,
        question: Question,
        server: Server,
        prefix: str = "",
        *,
        view_of: ViewOf,
        say: Callable[[str], None],
        interruption: Interruption | None = None,
    ) -> None:
        """The runs have the options of `config`, whose `out` is the folder of their folders, whose names begin
        with `prefix`."""
        self._prefix = prefix
        self._workload, self._config, self._question, self._server = workload, config, question, server
        self._view_of, self._say, self._interruption = view_of, say, interruption
        self.max_rps = math.inf
        """Rate beyond which this client has no room, as far as the probes showed."""
        self.overhead_s = 1.0
        """Longest time that a probe took beyond its sending and its drain: for its preparation and its analysis."""

    def make(self, planned: PlannedProbe, remaining_s: float, takes_s: float, title: str) -> Measured:
        """Make a probe, within `remaining_s`; once more if its server was lost, or this client was too slow for it.

        takes_s: time after which requests are decided. Raises ServerLostError, ClientLimitError, another LoadgenError,
        and KeyboardInterrupt.
        """
        begun_s = monotonic()
        until_s = begun_s + remaining_s - self.overhead_s
        judge = _Judge(planned, self._question.bracket_share, until_s, takes_s)
        try:
            result = self._run(planned, judge, title)
        except ServerLostError as err:
            if not self._server.was_reached:
                raise err.__cause__ or err from None
            if monotonic() > until_s:
                raise
            self._say(f"{title}: {str(err).splitlines()[0]}; once more")
            self._server.restart()
            result = self._run(planned, judge, title)
        except ClientLimitError as err:
            if monotonic() > until_s:
                raise
            self._say(f"{title}: {err}; once more")
            result = self._run(planned, judge, title)
        self.max_rps = min(self.max_rps, client_limit_rps(planned.rate_rps, result))
        probe = probe_of(
            result,
            name=self._name(planned),
            number=planned.number,
            rate_rps=planned.rate_rps,
            stage=planned.stage,
            planned_s=planned.duration_s,
            wall_s=monotonic() - begun_s,
            stopped_early=judge.is_hopeless,
        )
        return Measured(probe, result)

    def _name(self, planned: PlannedProbe) -> str:
        return f"{self._prefix}{planned.number:03}"

    def _run(self, planned: PlannedProbe, judge: _Judge, title: str) -> RunResult:
        """Make the run of a probe and analyse it. Raises ServerLostError, ClientLimitError and KeyboardInterrupt."""
        judge.is_hopeless = False
        begun_s, was_warm = monotonic(), self._server.is_warm
        folder = self._config.out / self._name(planned)
        rmtree(folder, ignore_errors=True)  # of an attempt that was not finished
        with self._view_of(title) as view:
            try:
                requests = self._workload.requests(planned.rate_rps, planned.duration_s, planned.seed)
                config = self._config_of(planned, requests, folder)
                ready_s = max(1.0, judge.until_s - monotonic())
                sent = run_replay(requests.schedule, config, view, self._interruption, judge, ready_s)
            except NotReadyError as err:
                raise ServerLostError(str(err)) from None
            except LoadgenError as err:
                if answers(self._server.url):
                    raise
                raise ServerLostError(f"the server was lost: {err}") from err
            result = finish(folder, sent, announcer(view))
            if result.info.stopped_by in ("interrupted", "aborted"):
                raise KeyboardInterrupt
            self._server.was_reached = True
            self._server.move_to(result.info.server.get("base_url"))
            check_run(result, self._server.url)
            self._server.is_warm = True
            if (result.info.server.get("metrics") or {}).get("understood"):
                announcer(view)("waiting for the server to be at rest")
                root_url = result.info.server["base_url"].removesuffix("/v1")
                timeout_s = max(1.0, min(_AT_REST_S, judge.until_s - monotonic()))
                wait_until_at_rest(root_url, result.info.server.get("engine"), timeout_s)
        start_s, end_s = ((at_ns or 0) / NS_PER_S for at_ns in (result.info.start_ns, result.info.end_ns))
        preparation_s = start_s - begun_s if was_warm else 0.0  # the first one also waits for idle power and a warm-up
        self.overhead_s = max(self.overhead_s, preparation_s + monotonic() - end_s)
        return result

    def _config_of(self, planned: PlannedProbe, requests: Requests, folder: Path) -> RunConfig:
        """Return the options of a run: the first one of a server warms it up, and the very first one also measures the
        power at rest."""
        sent = requests.schedule.requests
        return msgspec.structs.replace(
            self._config,
            out=folder,
            base_url=self._server.url,
            plan=self._config.plan | requests.plan | {"stage": planned.stage},
            history=requests.history,
            words=self._config.words if any(request.words for request in sent) else None,
            warmup=0 if self._server.is_warm else min(self._config.warmup, len(sent)),
            idle_s=self._config.idle_s if planned.number == 0 else 0.0,
            overwrite=True,
        )


class _Judge:
    """Ends a run that is hopeless, or out of time."""

    def __init__(self, planned: PlannedProbe, wanted: float, until_s: float, takes_s: float) -> None:
        self._planned, self._wanted = planned, wanted
        self._end_s = planned.duration_s + max(_MIN_DRAIN_S, _DRAINS * takes_s)
        self.until_s = until_s
        """End of the budget, on the monotonic clock."""
        self.is_hopeless = False

    def __call__(self, tallies: Tallies, elapsed_s: float) -> bool:
        ended = tallies.limited + tallies.overdue
        missed = ended - tallies.good
        self.is_hopeless = is_hopeless(ended, missed, self._planned.stage, self._wanted)
        is_over = elapsed_s > self._planned.duration_s and not tallies.in_flight  # but for users who think
        return self.is_hopeless or is_over or elapsed_s > self._end_s or monotonic() > self.until_s
