"""A run folder that was read: its numbers as typed attributes, and its requests and readings as tables."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.results.run_tables import energy_table, engine_table, requests_table, sessions_table
from loadgen.results.summarize import load_run

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Summary
    from loadgen.results.table import Table
    from loadgen.results.verdict import Verdict


class Run:
    """A run folder in memory. `loadgen.read` and `loadgen.replay` make it; it never changes."""

    path: Path
    """The run folder; `path / "report.html"` is its page."""
    info: RunInfo
    """Contents of run.json: the options, the server, the machine and the versions, without secrets."""
    summary: Summary
    """Contents of summary.json, such as `summary.ttft_s.p99` in seconds; None is unknown."""

    def __init__(self, path: Path, result: RunResult) -> None:
        """Hold a run that was analysed."""
        assert result.summary is not None
        self.path, self.info, self.summary = path, result.info, result.summary
        self._result = result

    @property
    def verdict(self) -> Verdict:
        """The judgement on the run: `verdict.status` is "ok", "warning" or "failed", and `verdict.stands` is False
        where `loadgen replay` exits with 1."""
        return self.summary.verdict

    @cached_property
    def requests(self) -> Table:
        """One row for each request of the schedule, whatever its outcome: latencies in seconds, tokens, joules."""
        return requests_table(self._result)

    @cached_property
    def sessions(self) -> Table:
        """One row for each session: time, tokens, joules; no rows where no session has several requests."""
        return sessions_table(self._result)

    @cached_property
    def energy(self) -> Table:
        """One row for each reading of an energy counter; no rows without a meter."""
        return energy_table(self._result)

    @cached_property
    def engine(self) -> Table:
        """One row for each reading of the engine's own counters; no rows where it shows none."""
        return engine_table(self._result)

    def __repr__(self) -> str:
        requests = self.summary.requests
        outcome = f"{requests.completed:,} of {requests.scheduled:,} requests completed"
        return f"<Run {str(self.path)!r}: {outcome}, verdict {self.verdict.status or 'not known'}>"


def read(path: str | os.PathLike[str]) -> Run:
    """Read a run folder, and compute its attribution and summary from what was recorded. Nothing is written.

    A run that is in progress, or that was killed, reads as far as it was recorded.
    LoadgenError: the folder is no run, or a file of it is damaged.
    """
    return Run(Path(path), load_run(Path(path)))
