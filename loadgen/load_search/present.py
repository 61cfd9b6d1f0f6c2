"""Probes at the load of today: long ones at the rates at which replicas would serve it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from loadgen.load_search.plan import bracket, request_time_s

if TYPE_CHECKING:
    from loadgen.load_search.plan import PlannedProbe, Question
    from loadgen.results.search_result import PresentLoad, Probe

_MIN_S, _TIMES = 30.0, 20
"""Length of such a probe, in seconds and in times that a request takes: in 8 of these the server fills up."""
_MAX_SHARE = 0.15
"""Largest share of the time that remains; where it takes more, the short probes that bracketed must do."""


def present_or_planned(
    load: PresentLoad | None, question: Question, probes: Sequence[Probe], planned: PlannedProbe, remaining_s: float
) -> PlannedProbe:
    """Return the probe of the load of today that is still to be made before the refining one that is planned, or this.

    There is one at the rate of each present replica, and one at that of the fewest that the bracket lets serve it.
    """
    low = bracket(question, probes)[0]
    if load is None or planned.stage != "refine" or low is None:
        return planned
    fewest = ceil(load.now_rps / low - 1e-9)
    rates = [load.now_rps / count for count in (load.replicas, fewest) if fewest <= count <= load.replicas]
    duration_s = max(_MIN_S, _TIMES * request_time_s(probes))
    if duration_s > _MAX_SHARE * remaining_s:
        return planned
    made = {probe.rate_rps for probe in probes if probe.stage == "present"}
    for rate_rps in rates:
        if rate_rps not in made:
            return replace(planned, rate_rps=rate_rps, stage="present", duration_s=duration_s)
    return planned
