"""The answer of a search from its probes: the largest rate within the limits, and the rate of fewest joules. Pure.

Joules per good request at the rate r are P(r) / (r (1 - m(r))): power over good requests per second. More load spreads
the power that flows without any over more requests, until too many of them miss a limit. At the minimum

    d log P / d log r - 1 + b(m) m = 0,

where b(m) = b (o / O)^k is the steepness of the miss curve at the share m, o its odds. b(m) m grows with m, so for each
curve of `miss_curve` this has one solution, and the weights of the curves are those of the solutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from loadgen.results.miss_curve import BEND, USUAL_MISSED, MissCurve, logit, miss_curve
from loadgen.results.search_result import Estimate, Objective, Probe

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

_FEWEST_MISSED, _MOST_MISSED = 0.002, 0.5
"""Range of the share of missed requests at which joules per good request are fewest."""
_PASSES = 3
"""The minimum decides around which share the curve is fitted and what power it has, and these decide the minimum."""


class SoughtRate(NamedTuple):
    """The rate that a search is after."""

    estimate: Estimate
    log_sd: float
    """Standard deviation of its logarithm."""
    steepness: tuple[float, float]
    """d log o / d log r below and above it, of the odds o of a miss."""
    busy_periods: float
    """Number of independent misses that it is known from."""


class Power(NamedTuple):
    """Power near a rate: watts + slope (r - rate)."""

    rate_rps: float
    watts: float
    slope: float

    def at(self, rates: Floats) -> Floats:
        return self.watts + self.slope * (rates - self.rate_rps)


def sought_rate(
    probes: Sequence[Probe], objective: Objective, attainment: float | None, confidence: float
) -> SoughtRate:
    """Return the rate that the objective names. Probes without power leave the joules unknown: the rate at the usual
    share of missed requests stands in, so that the search goes on where they will be fewest."""
    if objective == "rate":
        assert attainment is not None
        return _rate_of(miss_curve(probes, 1 - attainment), confidence)
    least = least_joules(probes, attainment, confidence)
    return least.sought if least else _rate_of(miss_curve(probes, USUAL_MISSED), confidence)


def _rate_of(curve: MissCurve, confidence: float) -> SoughtRate:
    return SoughtRate(curve.rate(confidence), curve.log_sd, curve.steepness, curve.busy_periods)


class LeastJoules(NamedTuple):
    """The rate at which a good request costs fewest joules, and these."""

    sought: SoughtRate
    joules: Estimate
    """Joules per good request at that rate."""

    @property
    def rate(self) -> Estimate:
        return self.sought.estimate


def least_joules(probes: Sequence[Probe], attainment: float | None, confidence: float) -> LeastJoules | None:
    """Return the rate of fewest joules per good request, among those at which `attainment` of the requests are good if
    that is stated; None where the power is unknown."""
    curve = miss_curve(probes, USUAL_MISSED)
    power = power_near(probes, curve.rate_rps)
    if power is None:
        return None
    for _ in range(_PASSES):
        log_rates, log_joules, logits, weights = _minima(curve, power)
        curve = miss_curve(probes, float((weights * _logistic(logits)).sum()))
        power = power_near(probes, curve.rate_rps) or power
    log_rates, log_joules, _, weights = _minima(curve, power)
    tail = (1 - confidence) / 2
    rate, joules = (
        _estimate([math.exp(x) for x in _quantiles(values, weights, (0.5, tail, 1 - tail))])
        for values in (log_rates, log_joules)
    )
    if attainment is not None:
        limit = miss_curve(probes, 1 - attainment)
        if limit.rate_rps < rate.value:
            return _at_the_limit(limit, power, confidence)
        ends = [end for end in (rate.high, limit.rate(confidence).high) if end is not None]
        rate = msgspec.structs.replace(rate, high=min(ends, default=None))
    mean = float((weights * log_rates).sum())
    sd = math.sqrt(float((weights * (log_rates - mean) ** 2).sum()))
    return LeastJoules(SoughtRate(rate, sd, curve.steepness, curve.busy_periods), joules)


def _estimate(quantiles: Sequence[float]) -> Estimate:
    middle, low, high = quantiles
    return Estimate(value=middle, low=low, high=high)


def _minima(curve: MissCurve, power: Power) -> tuple[Floats, Floats, Floats, Floats]:
    """Return log r, the logarithm of joules per good request, and log o at the minimum of each curve, and its weight.
    Axes are the place of the curve, its steepness below, and that above."""
    places, steepness = curve.log_rates[:, None], np.exp(curve.log_steepness)
    log_rates = places
    for _ in range(_PASSES):  # the fixed share of the power depends on the rate, slowly
        logits = _logit_at_minimum(curve, _fixed_share(power, log_rates))
        log_rates = places - np.expm1(-BEND * (logits - logit(curve.missed))) / BEND / steepness
    # The minimum is below R if the curve below is steep enough there, above it if the curve above is not, or at R.
    distances = np.minimum(log_rates - places, 0)[:, :, None] + np.maximum(log_rates - places, 0)[:, None, :]
    rises = np.minimum(logits - logit(curve.missed), 0)[:, :, None]
    rises = rises + np.where(rises < 0, 0, np.maximum(logits - logit(curve.missed), 0)[:, None, :])
    log_rates = places[:, :, None] + np.where(rises < 0, np.minimum(distances, 0), distances)
    logits = logit(curve.missed) + rises
    log_watts = np.log(np.maximum(power.at(np.exp(log_rates)), 1e-9))
    log_joules = log_watts - log_rates - np.log1p(-_logistic(logits))
    weights = curve.weights[:, None, None] * curve.below[:, :, None] * curve.above[:, None, :]
    return log_rates, log_joules, logits, weights


def _fixed_share(power: Power, log_rates: Floats) -> Floats:
    """Return 1 - d log P / d log r."""
    rates = np.exp(log_rates)
    return np.asarray(1 - power.slope * rates / np.maximum(power.at(rates), 1e-9))


def _logit_at_minimum(curve: MissCurve, fixed_share: Floats) -> Floats:
    """Return log o at which b(m) m is the fixed share of the power, by bisection."""
    wanted = np.log(np.maximum(fixed_share, 1e-9)) - curve.log_steepness
    low = np.full(wanted.shape, logit(_FEWEST_MISSED))
    high = np.full(wanted.shape, logit(_MOST_MISSED))
    for _ in range(25):
        middle = (low + high) / 2
        is_below = -np.logaddexp(0, -middle) + BEND * (middle - logit(curve.missed)) < wanted
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return np.asarray((low + high) / 2)


def _logistic(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _at_the_limit(limit: MissCurve, power: Power, confidence: float) -> LeastJoules:
    """Return the limit itself as the rate of fewest joules: they still fall where it breaks."""
    sought = _rate_of(limit, confidence)
    rate = sought.estimate
    costs = [
        None if r is None else float(power.at(np.array(r))) / r / (1 - limit.missed)
        for r in (rate.value, rate.high, rate.low)
    ]
    assert costs[0] is not None
    joules = Estimate(value=costs[0], low=costs[1], high=costs[2])
    return LeastJoules(sought, joules)


def power_near(probes: Sequence[Probe], rate_rps: float) -> Power | None:
    """Fit the power of the probes near a rate by a line, weighted by their duration; None where none is known.

    Overloaded probes are left out unless there is no other.
    """
    known = [probe for probe in probes if probe.watts is not None and probe.counted_s > 0]
    known = [probe for probe in known if not probe.overloaded] or known
    if not known:
        return None
    rates = np.array([probe.rate_rps for probe in known])
    watts = np.array([probe.watts for probe in known], dtype=np.float64)
    distance = np.abs(np.log(rates / rate_rps))
    weights = np.array([probe.counted_s for probe in known]) * np.maximum(1e-3, 1 - np.minimum(distance, 1) ** 3) ** 3
    x = rates - float(weights @ rates) / float(weights.sum())
    y = float(weights @ watts) / float(weights.sum())
    spread = float(weights @ x**2)
    slope = float(weights @ (x * (watts - y))) / spread if spread > 0 else 0.0
    return Power(rate_rps, y + slope * float(rate_rps - (rates - x)[0]), max(slope, 0.0))


def _quantiles(values: Floats, weights: Floats, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values, axis=None)
    cumulative = np.cumsum(weights.ravel()[order])
    return np.interp(shares, cumulative, values.ravel()[order]).tolist()
