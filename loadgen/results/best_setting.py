"""The best of several settings, and the Pareto front of their probes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from loadgen.stats.intervals import pareto

if TYPE_CHECKING:
    from loadgen.results.search_result import Objective, Probe, SettingResult


class Point(NamedTuple):
    """A probe with a steady state and a known cost."""

    setting: str
    probe: Probe
    good_rps: float
    joules_per_good_request: float


def best_of(settings: Sequence[SettingResult], objective: Objective) -> SettingResult | None:
    """Return the setting with the largest rate within the limits, or with fewest joules; None where none is known."""
    merits = [(merit.value, setting) for setting in settings if (merit := setting.merit(objective)) is not None]
    if not merits:
        return None
    best = max if objective == "rate" else min
    return best(merits, key=itemgetter(0))[1]


def points(settings: Sequence[SettingResult]) -> list[Point]:
    """Return the probes in which a server kept up and that have a cost, in the order of the settings."""
    return [
        Point(setting.name, probe, probe.good_rps, cost)
        for setting in settings
        for probe in setting.probes
        if not probe.overloaded and probe.good_rps and (cost := probe.joules_per_good_request) is not None
    ]


def front(among: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both good requests/s and joules per good request, the fastest first."""
    return [among[i] for i in pareto([(-point.good_rps, point.joules_per_good_request) for point in among])]
