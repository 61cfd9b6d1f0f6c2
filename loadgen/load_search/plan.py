"""The next probe of a search, from the probes so far. Pure: a search that was killed goes on from its folder.

A search first brackets: the rate doubles until too many requests miss their limits, or halves until enough meet them,
and the interval between is bisected until its ends are within a half of each other. Then it refines: long probes a
little below and a little above the present estimate in turn, at a distance of one of its standard deviations, each a
third as long as all of them before. While the estimate is vague this bisects; later it keeps a probe near the rate on
either side of it, so that the answer depends little on the shape of the curve. Every probe has arrivals of its own:
with the same ones at each rate, the probes would share their chance, and many would say no more of it than one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.results.search_answer import sought_rate

if TYPE_CHECKING:
    from loadgen.results.search_result import Ended, Objective, Probe, Stage

USUAL_SHARE = 0.99
"""Wanted share of good requests, unless the user states another."""
FREE_SHARE = 0.7
"""Share of good requests below which no load costs fewest joules per good request: bracketing ends there."""
MIN_PROBE_S = 10.0
MIN_REQUESTS = 12
"""Fewest requests of a bracketing probe, expected."""
_FILLS = 3
"""Length of a bracketing probe in times that a request takes."""
MIN_REFINE_S = 30.0
_REFINE_FILLS = 25
"""Length of the first refining probe in times that a request takes."""
_GROWTH = 0.35
"""Length of a refining probe as a share of all before it, unless less will do: the width falls as the root of time."""
MIN_REFINES = 4
MIN_BUSY_PERIODS = 15.0
"""Fewest independent misses of an answer: how long busy periods are, and so the interval, is not known from fewer."""
_SPREAD = 1.0
"""Distance of a refining probe from the estimate in standard deviations, within these bounds of the logarithm."""
_MIN_SPREAD, _MAX_SPREAD = 0.02, 0.2
_MAX_RISE = 1.2
"""Largest distance of a refining probe in steepnesses of the curve, b log(r / R). Where 10 % may miss, 33 % of the
requests of such a probe do, and 89 % of those of one that is twice as far because the estimate was off."""
_BRACKET = 1.5
"""Ratio of the ends of a bracket that is narrow enough."""
_ALONE = 0.3
"""Mean requests in flight at which they hardly meet: at a lower rate they would be as slow."""

_DISPERSION = {"bracket": 4.0, "refine": 100.0, "present": 100.0}
"""Dispersion of the counts that a probe is stopped by. Near the rate a busy period of hundreds of requests is no more
than chance, and to stop probes by it would leave out the bad luck alone."""


@dataclass(frozen=True)
class Question:
    """The search of one setting."""

    limits_ms: dict[str, float] = field(default_factory=dict)
    objective: Objective = "rate"
    attainment: float | None = USUAL_SHARE
    """Share of requests that must be good; None, for the joules only: any."""
    budget_s: float = 600.0
    width: float = 0.1
    """Relative width of the interval at which the search ends."""
    confidence: float = 0.95
    start_rps: float = 1.0
    max_rps: float = math.inf
    """Rate beyond which this client cannot send in time."""
    seed: int = 0

    @property
    def good_share(self) -> float:
        """Return the share of requests that must be good at a rate within the limits."""
        return FREE_SHARE if self.attainment is None else self.attainment

    @property
    def bracket_share(self) -> float:
        """Return the share of good requests that bracketing looks for."""
        return self.good_share if self.objective == "rate" else FREE_SHARE


@dataclass(frozen=True)
class PlannedProbe:
    """A probe that is to be made: fields of Probe."""

    number: int
    rate_rps: float
    duration_s: float
    seed: int
    stage: Stage


def next_probe(question: Question, probes: Sequence[Probe], remaining_s: float) -> PlannedProbe | Ended:
    """Return the next probe, or the reason for which there is none.

    remaining_s: rest of the budget; a probe is as long as fits into it.
    """
    low, high = bracket(question, probes)
    takes_s = request_time_s(probes)
    if low is None or high is None or high / low > _BRACKET:
        rate = _bracketing_rate(question, low, high)
        if low is None and high is not None and _are_alone(probes, high, takes_s):
            return "fails"
        if low is not None and low >= question.max_rps:
            return "client"
        wanted_s = max(MIN_PROBE_S, _FILLS * takes_s, MIN_REQUESTS / rate)
        stage: Stage = "bracket"
    else:
        sought = sought_rate(probes, question.objective, question.attainment, question.confidence)
        refines = [probe for probe in probes if probe.stage == "refine"]
        width = sought.estimate.relative_width
        is_known = len(refines) >= MIN_REFINES and sought.busy_periods >= MIN_BUSY_PERIODS
        if is_known and width is not None and width <= question.width:
            return "interval"
        is_above = len(refines) % 2
        spread = max(_MIN_SPREAD, min(_MAX_SPREAD, _SPREAD * sought.log_sd, _MAX_RISE / sought.steepness[is_above]))
        rate = min(question.max_rps, sought.estimate.value * math.exp(spread if is_above else -spread))
        spent_s = sum(probe.wall_s for probe in refines)
        growth = _GROWTH if not is_known or width is None else min(_GROWTH, 1.1 * ((width / question.width) ** 2 - 1))
        wanted_s = max(MIN_REFINE_S, _REFINE_FILLS * takes_s, growth * spent_s)
        wanted_s = min(wanted_s, max(MIN_REFINE_S, remaining_s / max(1, MIN_REFINES - len(refines))))
        stage = "refine"
    room_s = remaining_s - 2 * takes_s - 1.0  # its drain, and the preparation of a run
    if room_s < min(wanted_s, MIN_PROBE_S + takes_s):
        return "budget"
    return PlannedProbe(
        number=len(probes),
        rate_rps=rate,
        duration_s=min(wanted_s, room_s),
        seed=question.seed + len(probes),
        stage=stage,
    )


def request_time_s(probes: Sequence[Probe]) -> float:
    """Return the time after which requests are decided, as far as the probes showed; a second before any has."""
    return max((probe.decision_s for probe in probes if not probe.overloaded), default=1.0)


def bracket(question: Question, probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """Return the largest bracketing rate with enough good requests, and the smallest one above it with too few."""
    share = 1 - question.bracket_share
    counted = [probe for probe in probes if probe.stage == "bracket" and (probe.requests or probe.stopped_early)]
    missed = {probe.rate_rps for probe in counted if is_missed(probe, share)}
    held = {probe.rate_rps for probe in counted} - missed
    high = min(missed, default=None)
    low = max((rate for rate in held if high is None or rate < high), default=None)
    return low, high


def _are_alone(probes: Sequence[Probe], rate_rps: float, takes_s: float) -> bool:
    """Return whether requests hardly met at a rate that misses.

    By Little's law as many are in flight as arrive while one takes. A single short probe may have met a hitch of the
    server, unless most of its requests missed.
    """
    at_rate = [probe for probe in probes if probe.rate_rps == rate_rps]
    known_s = [probe.e2e_p50_s for probe in at_rate if probe.overloaded and probe.e2e_p50_s is not None]
    return rate_rps * min([takes_s, *known_s]) < _ALONE


def is_missed(probe: Probe, share: float) -> bool:
    """Return whether clearly more requests than `share` missed in a short probe, beyond a single one by chance."""
    return probe.stopped_early or probe.missed > 1 + 1.5 * share * probe.requests


def _bracketing_rate(question: Question, low: float | None, high: float | None) -> float:
    if low is None and high is None:
        return min(question.start_rps, question.max_rps)
    if low is None:
        assert high is not None
        return high / 2
    return min(2 * low, question.max_rps) if high is None else math.sqrt(low * high)


def is_hopeless(ended: int, missed: int, stage: Stage, wanted: float) -> bool:
    """Return whether a probe has missed so much that the rest of it would say no more.

    Wald's sequential test (Sequential Tests of Statistical Hypotheses, 1945) of a share m1 of missed requests against
    m0, at an error of 1 % and with a dispersion of `_DISPERSION`. m0 is the share that may miss; near the rate, where a
    busy period is ordinary, a half.
    """
    allowed = max(1 - wanted, 0.01)
    m0, m1 = (allowed, min(0.7, 4 * allowed)) if stage == "bracket" else (0.5, 0.8)
    m1 = max(m1, m0 + 0.1)
    ratio = missed * math.log(m1 / m0) + (ended - missed) * math.log((1 - m1) / (1 - m0))
    return ratio / _DISPERSION[stage] > math.log(99)
