"""A search that was read: its answer as typed attributes, and its probes as a table."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.results.probes_table import probes_table
from loadgen.results.read_search import read_search_result

if TYPE_CHECKING:
    from loadgen.results.search_result import Estimate, SearchResult, SettingResult
    from loadgen.results.table import Table


class Search:
    """A search in memory. `loadgen.search` and `loadgen.read_search` make it; it never changes."""

    path: Path
    """The search's folder; `path / "report.html"` is its page, and `path / "probes" / name` the run folder of a probe,
    which `loadgen.read` reads."""
    result: SearchResult
    """Contents of search.json as typed attributes: the question, the answer of each setting, and its probes; None is
    unknown. `result.to_dict()` is the file."""

    def __init__(self, path: Path, result: SearchResult) -> None:
        """Hold a search that was made, or is being made."""
        self.path, self.result = path, result

    @property
    def best(self) -> SettingResult | None:
        """The best setting of the server, or the only one; None where none meets the limits, or none is known to."""
        return next((s for s in self.result.settings if s.name == self.result.best), None)

    @property
    def rate(self) -> Estimate | None:
        """Largest rate within the limits, in requests/s: `rate.value` with its interval `rate.low` to `rate.high`, of
        which an end that the probes do not bound is None. None where no rate meets the limits."""
        return self.best.rate if self.best else None

    @property
    def least_joules_rate(self) -> Estimate | None:
        """Rate at which a good request costs fewest joules, in requests/s; None where no energy was measured."""
        return self.best.least_joules_rate if self.best else None

    @property
    def least_joules(self) -> Estimate | None:
        """Joules per good request at that rate."""
        return self.best.least_joules if self.best else None

    @property
    def answer(self) -> str:
        """The answer in sentences, as `loadgen search` prints it."""
        from loadgen.report.search_text import answer

        head, sentences = answer(self.result)[1:]
        return "\n".join([head, *sentences])

    @cached_property
    def probes(self) -> Table:
        """One row for each probe of each setting: its rate, its counts, latencies in seconds, watts and joules."""
        return probes_table(self.result)

    def __repr__(self) -> str:
        return f"<Search {str(self.path)!r}: {len(self.probes):,} probes; {'. '.join(self.answer.splitlines()[:2])}>"


def read_search(path: str | os.PathLike[str]) -> Search:
    """Read the folder of a search, which may still be in progress. Nothing is written.

    LoadgenError: the folder is no search, or its search.json is damaged, or of a newer format.
    """
    return Search(Path(path), read_search_result(Path(path)))
