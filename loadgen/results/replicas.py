"""The cost of a load on fewer replicas: power and misses as functions of the rate of each. Pure.

k equal servers that share the load L evenly have the rate r = L / k each, and a good request costs

    (k P(r) + (N - k) P_rest) / (L (1 - m(r)))

joules, where P_rest is the power of those that are at rest, or 0 where they are switched off. Fewer replicas cost less
because a server at work draws much of its power whatever its load.

log P is fitted by a parabola in log r to the probes in which the server kept up, each weighted by its counted time; its
residuals say how far probes lie apart, and so do the intervals (N. R. Draper and H. Smith, Applied Regression Analysis,
chapter 5). The misses are those of `miss_curve`, whose interval is that of its rate. A rate that lies below or above
all probes has no cost: nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from loadgen.results.miss_curve import USUAL_MISSED, MissCurve, miss_curve
from loadgen.results.search_result import Estimate, PresentLoad, Probe, ReplicaCost, SettingResult
from loadgen.stats.intervals import student

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

_MIN_FREEDOM = 3
"""Fewest probes beyond the coefficients of the parabola from which the residuals make an interval."""
_MOST_MISSED = 0.5
"""A rate at which more requests miss has no cost: the server has no steady state."""


@dataclass(frozen=True)
class PowerCurve:
    """log P as a polynomial in log r, between the lowest and the highest rate that was probed."""

    coefficients: Floats
    covariance: Floats | None
    """Covariance of the coefficients; None where the probes are too few to show how far they lie apart."""
    freedom: int
    low_rps: float
    high_rps: float

    def terms(self, rate_rps: float) -> Floats:
        return np.asarray(math.log(rate_rps) ** np.arange(len(self.coefficients)))

    def watts(self, rate_rps: float) -> float:
        return math.exp(float(self.terms(rate_rps) @ self.coefficients))

    def has(self, rate_rps: float) -> bool:
        """Return whether a rate lies among those that were probed."""
        return self.low_rps * (1 - 1e-6) <= rate_rps <= self.high_rps * (1 + 1e-6)


def power_curve(probes: Sequence[Probe]) -> PowerCurve | None:
    """Return the power over the rate; None where no probe in a steady state has a power."""
    known = [p for p in probes if p.watts is not None and p.watts > 0 and p.counted_s > 0 and not p.overloaded]
    if not known:
        return None
    rates = np.array([probe.rate_rps for probe in known])
    log_watts = np.log([probe.watts or 0.0 for probe in known])
    size = min(3, len({round(float(rate), 6) for rate in rates}))
    terms = np.log(rates)[:, None] ** np.arange(size)
    weights = np.array([probe.counted_s for probe in known])
    weights = weights / weights.mean()
    root = np.sqrt(weights)[:, None]
    coefficients = np.linalg.lstsq(root * terms, root[:, 0] * log_watts)[0]
    freedom = len(known) - size
    covariance = None
    if freedom >= _MIN_FREEDOM:
        variance = float(weights @ (log_watts - terms @ coefficients) ** 2) / freedom
        covariance = variance * np.linalg.inv(terms.T @ (weights[:, None] * terms))
    return PowerCurve(coefficients, covariance, freedom, float(rates.min()), float(rates.max()))


class _Cost(NamedTuple):
    """The logarithm of joules per good request, or of the ratio of two of them."""

    log_joules: float
    slope: Floats
    """Its derivative with respect to the coefficients of the power."""
    below: float
    above: float | None
    """Distances to the ends of its interval by the misses alone; None: unknown."""


def with_costs(load: PresentLoad, setting: SettingResult, attainment: float | None, confidence: float) -> PresentLoad:
    """Return the load with its cost on each number of replicas of a setting that may keep the limits."""
    if setting.rate is None:
        return load
    counts = [load.replicas]
    while counts[-1] > 1 and _is_within(load.now_rps / (counts[-1] - 1), setting.rate) is not False:
        counts.append(counts[-1] - 1)
    power = power_curve(setting.probes)
    curve = miss_curve(setting.probes, USUAL_MISSED if attainment is None else 1 - attainment)
    costs = [
        None if power is None else _cost(load, count, power, setting.idle_watts, curve, confidence) for count in counts
    ]
    made = []
    for count, cost in zip(counts, costs, strict=True):
        joules = saving = None
        if power is not None and cost is not None:
            joules = _estimate(cost, power, confidence)
            present = costs[0]
            saving = None if count == load.replicas or present is None else _saving(cost, present, power, confidence)
        rate_rps = load.now_rps / count
        made.append(
            ReplicaCost(
                replicas=count,
                rate_rps=rate_rps,
                is_within=_is_within(rate_rps, setting.rate),
                joules_per_good_request=joules,
                saving=saving,
            )
        )
    surely = [(c.joules_per_good_request.value, c.replicas) for c in made if c.is_within and c.joules_per_good_request]
    return replace(load, costs=tuple(made), best=min(surely)[1] if surely else None)


def _is_within(rate_rps: float, limit: Estimate) -> bool | None:
    """Return whether a rate is below the interval of the largest one; None in it, and False above it."""
    if rate_rps <= (limit.low or 0.0):
        return True
    return False if limit.high is not None and rate_rps > limit.high else None


def _cost(
    load: PresentLoad, count: int, power: PowerCurve, idle_watts: float | None, curve: MissCurve, confidence: float
) -> _Cost | None:
    """Return the cost on a number of replicas; None where it is unknown."""
    rate_rps = load.now_rps / count
    missed = curve.share_at(rate_rps)
    resting = load.replicas - count
    if not power.has(rate_rps) or missed > _MOST_MISSED or (resting and load.keep_idle and idle_watts is None):
        return None
    working_watts = count * power.watts(rate_rps)
    watts = working_watts + resting * (idle_watts or 0.0) * load.keep_idle
    limit = curve.rate(confidence)
    fewest = 0.0 if limit.high is None else curve.share_at(rate_rps * limit.value / limit.high)
    most = None if limit.low is None else curve.share_at(rate_rps * limit.value / limit.low)
    return _Cost(
        log_joules=math.log(watts / load.now_rps / (1 - missed)),
        slope=working_watts / watts * power.terms(rate_rps),
        below=math.log((1 - fewest) / (1 - missed)),
        above=None if most is None or most > _MOST_MISSED else math.log((1 - missed) / (1 - most)),
    )


def _ratio(cost: _Cost, present: _Cost) -> _Cost:
    """Return the logarithm of a cost over that of the present number of replicas. Both have the same power curve, whose
    errors cancel in part; the misses are taken for independent."""
    return _Cost(
        cost.log_joules - present.log_joules,
        cost.slope - present.slope,
        below=math.inf if present.above is None else math.hypot(cost.below, present.above),
        above=None if cost.above is None else math.hypot(cost.above, present.below),
    )


def _estimate(cost: _Cost, power: PowerCurve, confidence: float) -> Estimate:
    """Return the exponential of a cost with its interval, which is unknown where that of the power is."""
    value = math.exp(cost.log_joules)
    if power.covariance is None:
        return Estimate(value=value, low=None, high=None)
    half = student(confidence, power.freedom) * math.sqrt(float(cost.slope @ power.covariance @ cost.slope))
    low = None if math.isinf(cost.below) else value * math.exp(-math.hypot(half, cost.below))
    high = None if cost.above is None else value * math.exp(math.hypot(half, cost.above))
    return Estimate(value=value, low=low, high=high)


def _saving(cost: _Cost, present: _Cost, power: PowerCurve, confidence: float) -> Estimate:
    """Return the share of the present cost that is saved."""
    share = _estimate(_ratio(cost, present), power, confidence)
    return Estimate(
        value=1 - share.value,
        low=None if share.high is None else 1 - share.high,
        high=None if share.low is None else 1 - share.low,
    )
