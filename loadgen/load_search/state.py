"""The state of a search: its probes and answers so far, in memory and in its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from loadgen import __version__
from loadgen.errors import LoadgenError
from loadgen.load_search.plan import PlannedProbe, Question, next_probe
from loadgen.load_search.present import present_or_planned
from loadgen.load_search.race import race, share_of_budget
from loadgen.load_search.setting_result import setting_result
from loadgen.report.search_text import describe_probe, duration_text, estimate_text, per_second
from loadgen.results.best_setting import best_of
from loadgen.results.replicas import with_costs
from loadgen.results.run_folder import SCHEMA_VERSION
from loadgen.results.search_result import Ended, Probe, SearchResult, SettingResult

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.load_search.folder import SearchFolder
    from loadgen.load_search.settings import Setting
    from loadgen.results.run_folder import RunResult
    from loadgen.results.search_result import PresentLoad

_AGAIN_SHARE = 0.2
"""Smallest share of the budget for which the server of the best setting is started once more."""


class SearchState:
    """The search so far, in memory and in its folder, and the setting that is being searched."""

    def __init__(
        self,
        folder: SearchFolder,
        question: Question,
        settings: Sequence[Setting],
        trace: str,
        command: str | None,
        begun_s: float,
        present: PresentLoad | None = None,
    ) -> None:
        earlier = folder.result or SearchResult(
            schema_version=SCHEMA_VERSION,
            started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            loadgen_version=__version__,
        )
        self.question = question
        self._folder, self._begun_s, self._load = folder, begun_s, present
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
        self.results = list(earlier.settings) or [
            SettingResult(name=setting.name, options=setting.recorded_options) for setting in settings
        ]
        """The settings with their answers so far."""
        self._index, self._until_s, self._counted_s = 0, begun_s + question.budget_s, begun_s
        self._start_rps = question.start_rps

    def begin(self, index: int, is_last: bool = False) -> None:
        """Turn to a setting: it begins at the rate of the best so far, and has its share of the time that remains.

        is_last: all of that time.
        """
        self._index = index
        to_come = self.results[index : index + 1] if is_last else self.results[index:]
        undone = [setting.spent_s for setting in to_come if self._is_undone(setting)]
        remaining_s = self._unspent_s
        turn_s = share_of_budget(remaining_s, undone) if self._is_undone(self._setting) else 0.0
        self._until_s = monotonic() + min(turn_s, remaining_s)
        best = self._best_other
        self._start_rps = self.question.start_rps
        if self._load is None and best is not None and best.rate is not None:
            self._start_rps = best.rate.value

    @property
    def undecided_best(self) -> int | None:
        """Index of the best of several settings if it is undecided while much time remains, which losers left over."""
        best = best_of(self.results, self.question.objective)
        needed_s = _AGAIN_SHARE * self.question.budget_s
        if len(self.results) == 1 or best is None or best.ended != "budget" or self._unspent_s < needed_s:
            return None
        return self.results.index(best)

    @property
    def _unspent_s(self) -> float:
        return self.question.budget_s - self.spent_s

    def _is_undone(self, setting: SettingResult) -> bool:
        planned = next_probe(self.question, setting.probes, inf)
        return setting.ended != "dropped" and isinstance(planned, PlannedProbe)

    @property
    def _setting(self) -> SettingResult:
        return self.results[self._index]

    @property
    def _best_other(self) -> SettingResult | None:
        others = [setting for index, setting in enumerate(self.results) if index != self._index]
        return best_of(others, self.question.objective)

    @property
    def prefix(self) -> str:
        """Beginning of the names of the present setting's files."""
        return f"{self._index + 1}-" if len(self.results) > 1 else ""

    @property
    def server_log(self) -> Path:
        """File for the output of the present setting's server."""
        return self._folder.path / f"{self.prefix}server.log"

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes of the present setting."""
        return self._setting.probes

    @property
    def has_probes(self) -> bool:
        return any(setting.probes for setting in self.results)

    @property
    def spent_s(self) -> float:
        return self._earlier_s + monotonic() - self._begun_s

    @property
    def remaining_s(self) -> float:
        """Time that the present setting may still take."""
        return self._until_s - monotonic()

    def next(self, max_rps: float, overhead_s: float = 1.0) -> PlannedProbe | Ended:
        """Return the next probe, or the reason for which there is none.

        max_rps: the highest rate of this client. overhead_s: time that a probe takes beyond its sending and its drain.
        """
        if self._setting.ended == "dropped":
            return "dropped"
        max_rps = min(max_rps, self.question.max_rps)
        question = replace(self.question, start_rps=self._start_rps, max_rps=max_rps)
        planned = next_probe(question, self.probes, self.remaining_s - overhead_s)
        if not isinstance(planned, PlannedProbe):
            return planned
        if self._lost_because:
            return "dropped"
        return present_or_planned(self._load, question, self.probes, planned, self.remaining_s - overhead_s)

    @property
    def _lost_because(self) -> str | None:
        best = self._best_other
        return None if best is None else race(best, self.probes, self.question)

    def add(self, probe: Probe, run: RunResult) -> None:
        """Take in a probe. LoadgenError where fewest joules are wanted, and it has none."""
        assert run.summary is not None
        idle_watts = self._setting.idle_watts or run.summary.energy.idle_watts
        self.results[self._index] = msgspec.structs.replace(
            self._setting, probes=(*self.probes, probe), idle_watts=idle_watts
        )
        server = run.info.server
        self._result = msgspec.structs.replace(
            self._result,
            model=server.get("model"),
            engine=server.get("engine"),
            simulated=bool(server.get("simulated")),
        )
        if self.question.objective == "joules_per_good_request" and not run.info.domains:
            reasons = "; ".join(run.info.energy_reasons) or "--energy none"
            raise LoadgenError(f"no energy is measured, so that no load can cost fewest joules: {reasons}")
        self.write()

    def end(self, ended: Ended, rate_rps: float = inf, reason: str | None = None) -> None:
        """End the present setting. rate_rps: that at which this client is at its limit, where that is the end."""
        if ended == "budget" and not self.has_probes:
            share = f", a share of {len(self.results)}," if len(self.results) > 1 else ""
            raise LoadgenError(
                f"--budget {self.question.budget_s:g}s{share} is too short for one probe: give it a minute or more"
            )
        if self._setting.ended is not None and ended in ("budget", self._setting.ended):  # in an earlier sitting
            ended, reason = self._setting.ended, self._setting.reason
        elif ended == "client":
            reason = self._client_reason(rate_rps, reason)
            if len(self.results) == 1 and not self.probes:
                raise LoadgenError(f"{reason}, or begin at a lower rate by --start")
        elif ended == "dropped":
            reason = self._lost_because
        self.write(ended, reason)

    def end_without_server(self, reason: str, say: Callable[[str], None]) -> None:
        """End the present setting, whose server did not start or was lost; raise that where it is the only one."""
        if len(self.results) == 1 and not self.probes:
            raise LoadgenError(reason)
        first, *others = reason.splitlines()
        line = " ".join([first, *(text.strip() for text in others[-1:])])  # a server's last line says what failed
        if len(self.results) > 1:
            say(f"{self._setting.name}: {line}")
        self.end("server", reason=line)

    def end_all(self) -> SearchResult:
        """Return the result. LoadgenError where no setting has a probe."""
        if not self.has_probes:
            raise LoadgenError(f"no setting was measured: {self.results[0].name}: {self.results[0].reason}")
        return self.write(self._setting.ended, self._setting.reason)

    def write(self, ended: Ended | None = None, reason: str | None = None) -> SearchResult:
        """Write the result with the answer so far of the present setting."""
        setting, now_s = self._setting, monotonic()
        answered = setting_result(
            self.question,
            setting.probes,
            ended=ended,
            reason=reason,
            idle_watts=setting.idle_watts,
            name=setting.name,
            options=setting.options,
        )
        spent_s = setting.spent_s + now_s - self._counted_s
        self.results[self._index] = msgspec.structs.replace(answered, spent_s=spent_s)
        self._counted_s = now_s
        best = best_of(self.results, self.question.objective)
        load = self._load
        if load is not None and best is not None:
            load = with_costs(load, best, self.question.attainment, self.question.confidence)
        self._result = msgspec.structs.replace(
            self._result,
            spent_s=self._earlier_s + now_s - self._begun_s,  # the settings' times sum to it
            settings=tuple(self.results),
            best=None if best is None else best.name,
            present=load,
        )
        self._folder.write(self._result)
        return self._result

    def _client_reason(self, rate_rps: float, reason: str | None) -> str:
        if reason is not None:
            return f"at {per_second(rate_rps)} {reason}; add --processes"
        if rate_rps < self.question.max_rps:
            return f"above {per_second(rate_rps)} this client would use over 80 % of a core: add --processes"
        return f"no rate above --max-rps {self.question.max_rps:g} was tried"

    def describe_next(self, planned: PlannedProbe) -> str:
        """Return the title of the next probe: what it is, the answer so far, and the time that remains."""
        rate = self._setting.target(self.question.objective)
        parts = [
            *([self._setting.name] if self._setting.name else []),
            f"probe {planned.number} at {per_second(planned.rate_rps)} for {duration_text(planned.duration_s)}",
            *([f"so far {estimate_text(rate, unit='/s')}"] if rate else []),
            f"{duration_text(self.remaining_s)} left",
        ]
        return ", ".join(parts)

    def describe_last(self) -> str:
        """Return what the last probe found, and the answer so far."""
        setting, objective = self._setting, self.question.objective
        line = describe_probe(self.probes[-1], setting.target(objective), self.remaining_s, objective)
        return f"{setting.name}: {line}" if setting.name else line
