"""Make the probes of a search: runs at one rate each, with folders of their own, against a server that stays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from shutil import rmtree
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.report.write import finish
from loadgen.results.metrics import CUT_OFF
from loadgen.results.probe import probe_of
from loadgen.run.interrupts import run_replay
from loadgen.run.progress import announcer
from loadgen.run.settle import answers, wait_until_at_rest
from loadgen.search.plan import is_hopeless
from loadgen.search.server import Server, ServerLostError

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.results.run_folder import RunResult
    from loadgen.results.search_result import Probe
    from loadgen.run.config import RunConfig
    from loadgen.run.interrupts import Interruption
    from loadgen.run.progress import Tallies
    from loadgen.search.plan import PlannedProbe, Question
    from loadgen.search.server import ViewOf
    from loadgen.search.workload import Workload
    from loadgen.workload.schedule import Schedule

_AT_REST_S = 15.0
"""Longest wait for the server to be at rest after a probe."""
_MIN_DRAIN_S, _DRAINS = 10.0, 3
"""Time after the sending in which requests may complete: at least so long, or so many times as long as they take."""
_MAX_BUSY, _BUSY_THAT_TELLS = 0.8, 0.4
"""Share of a core above which this client has no room for a hitch, as in `selftest`; and above which its use of a core
grows with the rate, so that it says at which rate that share is reached."""


class ClientLimitError(LoadgenError):
    """This client was too slow for a probe, which therefore says nothing about the server."""


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

    def make(self, planned: PlannedProbe, remaining_s: float, takes_s: float, title: str) -> Measured:
        """Make a probe, within `remaining_s`; once more if its server was lost, or this client was too slow for it.

        takes_s: time after which requests are decided. Raises ServerLostError, ClientLimitError, another LoadgenError,
        and KeyboardInterrupt.
        """
        begun_s = monotonic()
        judge = _Judge(planned, self._question.bracket_share, begun_s + remaining_s, takes_s)
        try:
            result = self._run(planned, judge, title)
        except ServerLostError as err:
            if not self._server.was_reached:
                raise err.__cause__ or err from None
            self._say(f"{title}: {str(err).splitlines()[0]}; once more")
            self._server.restart()
            result = self._run(planned, judge, title)
        except ClientLimitError as err:
            self._say(f"{title}: {err}; once more")
            result = self._run(planned, judge, title)
        self._learn_limit(planned.rate_rps, result)
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
        folder = self._config.out / self._name(planned)
        rmtree(folder, ignore_errors=True)  # of an attempt that was not finished
        with self._view_of(title) as view:
            try:
                schedule, config = self._prepared(planned, folder)
                sent = run_replay(schedule, config, view, self._interruption, judge)
            except LoadgenError as err:
                if answers(self._server.url, self._config.headers):
                    raise
                raise ServerLostError(f"the server was lost: {err}") from err
            result = finish(folder, sent, announcer(view))
            if result.info.stopped_by in ("interrupted", "aborted"):
                raise KeyboardInterrupt
            self._server.was_reached = True
            self._check(result)
            self._server.is_warm = True
            if (result.info.server.get("metrics") or {}).get("understood"):
                announcer(view)("waiting for the server to be at rest")
                root_url = result.info.server["base_url"].removesuffix("/v1")
                timeout_s = max(1.0, min(_AT_REST_S, judge.until_s - monotonic()))
                wait_until_at_rest(root_url, result.info.server.get("engine"), timeout_s)
        return result

    def _prepared(self, planned: PlannedProbe, folder: Path) -> tuple[Schedule, RunConfig]:
        """Return the requests of a probe, and the options of its run: the first one of a server warms it up, and the
        very first one also measures the power at rest."""
        schedule, history, plan = self._workload.requests(planned.rate_rps, planned.duration_s, planned.seed)
        return schedule, msgspec.structs.replace(
            self._config,
            out=folder,
            base_url=self._server.url,
            plan=self._config.plan | plan | {"stage": planned.stage},
            history=history,
            words=self._config.words if any(request.words for request in schedule.requests) else None,
            warmup=0 if self._server.is_warm else min(self._config.warmup, len(schedule.requests)),
            idle_s=self._config.idle_s if planned.number == 0 else 0.0,
            overwrite=True,
        )

    def _check(self, result: RunResult) -> None:
        """Raise ServerLostError or ClientLimitError where the run says nothing about how much the server can take."""
        assert result.summary is not None
        verdict, errors = result.summary.verdict, Counter(record.error for record in result.records)
        if verdict.check("finished").status == "failed":
            raise ServerLostError(verdict.check("finished").reason or "the server was lost")
        broken = errors.total() - errors[None] - errors["timeout"] - sum(errors[kind] for kind in CUT_OFF)
        if broken and not errors[None]:
            raise ServerLostError(verdict.check("failures").reason or "no request completed")
        if (errors["connect"] or errors["truncated"]) and not answers(self._server.url):
            raise ServerLostError("the server broke connections off, and does not answer")
        if verdict.check("client").status == "failed":
            raise ClientLimitError(verdict.check("client").reason or "this client was late")

    def _learn_limit(self, rate_rps: float, result: RunResult) -> None:
        """Take note of the rate at which this client will have no room, if that can be told from its use of a core."""
        assert result.summary is not None
        cpu_s, duration_s = result.info.instrument.get("cpu_s"), result.summary.duration_s
        if not cpu_s or duration_s <= 0:
            return
        busy = cpu_s / duration_s / self._config.processes
        if busy > _BUSY_THAT_TELLS:
            self.max_rps = min(self.max_rps, rate_rps * max(1.0, _MAX_BUSY / busy))


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
        return self.is_hopeless or elapsed_s > self._end_s or monotonic() > self.until_s
