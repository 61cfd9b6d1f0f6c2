"""The share of requests that miss a limit as a function of the rate, near one share. Pure.

From one rate to a neighbouring one the share m is modelled as logistic in the logarithm of the rate r:

    log(m / (1 - m)) = log(M / (1 - M)) + b (log r - log R)

R, at which the share is M, is what is wanted, and b > 0 is the steepness. It is the model of a psychometric function,
whose threshold is found by few trials placed near it (A. B. Watson and D. G. Pelli, QUEST, Perception & Psychophysics
33, 1983; C. F. J. Wu, Efficient sequential designs with binary data, JASA 80, 1985). As there, the likelihood is kept
on a grid of (log R, log b), with a wide prior on b alone: medians, intervals, and those of any function of both
follow from its weights.

Requests are not independent: those that are slow come together, in a busy period. The counts therefore vary more than
binomial ones by the dispersion, which is measured by batch means: the variance of the counts of consecutive blocks over
the binomial one, at the block size at which it is largest (A. M. Law, Simulation Modeling and Analysis, 9.5.3). The
logarithm of the likelihood is divided by it (R. W. M. Wedderburn, Quasi-likelihood functions, Biometrika 61, 1974), and
since it is an estimate, its weights are those of Student's t rather than of a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.results.search_result import Estimate, Probe

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

BANDWIDTH = 0.5
"""Distance in the logarithm of the rate at which a probe no longer counts (tricube weights, as in LOESS)."""
_FAR_WEIGHT = 0.02
"""Weight of probes beyond it, which only keep the curve from where it cannot be."""
_FEW = 4.0
"""Requests for which a bracketing or an overloaded probe counts at most, before the dispersion: no steady state."""
_MEAN_LOG_STEEPNESS, _SD_LOG_STEEPNESS = math.log(8), 0.8
_STEEPNESS = (1.0, 150.0)
_RATES, _STEEPNESSES = 400, 50
_USUAL_DISPERSION, _USUAL_WEIGHT = 5.0, 3.0
_MIN_REQUESTS = 80
"""Fewest requests of a probe whose blocks are compared."""
_PASSES = 4
"""The place of the curve decides which probes are near it, and these decide its place."""


@dataclass(frozen=True)
class MissCurve:
    """Weights of all curves through (R, M) with steepness b; axis 0 is log R, axis 1 is log b."""

    missed: float
    """M, the share of missed requests at R."""
    log_rates: Floats
    log_steepness: Floats
    weights: Floats
    """Sum is 1."""
    dispersion: float

    @property
    def rate_rps(self) -> float:
        """Return the median of R."""
        return math.exp(self._quantile(0.5))

    @property
    def log_sd(self) -> float:
        """Return the standard deviation of log R."""
        weights = self.weights.sum(axis=1)
        return math.sqrt(float(weights @ (self.log_rates - weights @ self.log_rates) ** 2))

    @property
    def steepness(self) -> float:
        """Return the geometric mean of b."""
        return math.exp(float(self.weights.sum(axis=0) @ self.log_steepness))

    def share_at(self, rate_rps: float) -> float:
        """Return the share of missed requests at a rate, at the median of R and the mean steepness."""
        return _logistic(_logit(self.missed) + self.steepness * math.log(rate_rps / self.rate_rps))

    def rate(self, confidence: float) -> Estimate:
        """Return R with its interval; an end at the border of the grid is unknown."""
        tail = (1 - confidence) / 2
        low, high = self._quantile(tail), self._quantile(1 - tail)
        margin = 2 * (self.log_rates[1] - self.log_rates[0])
        return Estimate(
            value=self.rate_rps,
            low=math.exp(low) if low > self.log_rates[0] + margin else None,
            high=math.exp(high) if high < self.log_rates[-1] - margin else None,
        )

    def _quantile(self, share: float) -> float:
        return float(np.interp(share, np.cumsum(self.weights.sum(axis=1)), self.log_rates))


def miss_curve(probes: Sequence[Probe], missed: float) -> MissCurve:
    """Return the curve near the share `missed` of missed requests. At least one probe must have counted requests."""
    probes = [probe for probe in probes if probe.requests]
    at = np.array([math.log(probe.rate_rps) for probe in probes])
    low, high = at.min() - 1.1, at.max() + 1.1
    dispersions, near = np.full(len(probes), _USUAL_DISPERSION), np.ones(len(probes))
    lowest, highest = low, high
    for _ in range(_PASSES):
        curve = _weighted(probes, at, near / dispersions, missed, np.linspace(low, high, _RATES), dispersions)
        middle = math.log(curve.rate_rps)
        near = np.maximum(_FAR_WEIGHT, (1 - np.minimum(np.abs(at - middle) / BANDWIDTH, 1) ** 3) ** 3)
        dispersions = _dispersions(probes, at, middle)
        span = max(0.05, 8 * curve.log_sd)
        low, high = max(lowest, middle - span), min(highest, middle + span)
    return curve


def _weighted(
    probes: Sequence[Probe], at: Floats, weights: Floats, missed: float, log_rates: Floats, dispersions: Floats
) -> MissCurve:
    """Return the curves with the weights of Student's t on their quasi-likelihood."""
    log_steepness = np.linspace(math.log(_STEEPNESS[0]), math.log(_STEEPNESS[1]), _STEEPNESSES)
    steepness = np.exp(log_steepness)
    likelihood = np.broadcast_to(
        -0.5 * ((log_steepness - _MEAN_LOG_STEEPNESS) / _SD_LOG_STEEPNESS) ** 2, (len(log_rates), len(log_steepness))
    ).copy()
    information = 0.0
    for probe, log_rate, weight in zip(probes, at.tolist(), weights.tolist(), strict=True):
        if probe.overloaded or probe.stage == "bracket":
            weight = min(weight, _FEW / probe.requests)
        logit = np.clip(_logit(missed) + steepness * (log_rate - log_rates[:, None]), -40, 40)
        likelihood -= weight * (probe.missed * np.logaddexp(0, -logit) + probe.good * np.logaddexp(0, logit))
        information += weight * min(probe.missed, probe.good)
    freedom = max(2.0, information)
    scores = -(freedom + 1) / 2 * np.log1p(2 * (likelihood.max() - likelihood) / freedom)
    odds = np.exp(scores)
    return MissCurve(missed, log_rates, log_steepness, odds / odds.sum(), float(np.median(dispersions)))


def _dispersions(probes: Sequence[Probe], at: Floats, middle: float) -> Floats:
    """Return the dispersion of each probe, drawn towards that of the probes near the curve where it has few misses."""
    own = [_dispersion(probe) for probe in probes]
    weights = [
        probe.missed * math.exp(-(((log_rate - middle) / 0.15) ** 2)) if value is not None else 0.0
        for probe, log_rate, value in zip(probes, at.tolist(), own, strict=True)
    ]
    total = sum(weight * (value or 0.0) for weight, value in zip(weights, own, strict=True))
    usual = max(1.0, (total + _USUAL_DISPERSION * _USUAL_WEIGHT) / (sum(weights) + _USUAL_WEIGHT))
    known = [min(20, probe.missed) if value is not None else 0 for probe, value in zip(probes, own, strict=True)]
    return np.array([
        max(1.0, (5 * usual + count * (value or 0.0)) / (5 + count)) for count, value in zip(known, own, strict=True)
    ])  # fmt: skip


def _dispersion(probe: Probe) -> float | None:
    """Return the variance of the counts of blocks over the binomial one, the largest of three block sizes; None where
    it cannot be known."""
    if probe.requests < _MIN_REQUESTS or probe.missed in (0, probe.requests) or len(probe.blocks) < 8:
        return None
    share = probe.missed / probe.requests
    requests = np.array([block.requests for block in probe.blocks], dtype=np.float64)
    missed = np.array([block.missed for block in probe.blocks], dtype=np.float64)
    found = []
    for size in (1, 2, 4):
        if (count := len(requests) // size) < 8:
            break
        n = requests[: count * size].reshape(count, size).sum(axis=1)
        y = missed[: count * size].reshape(count, size).sum(axis=1)
        found.append(float(((y - n * share) ** 2).sum() / (n * share * (1 - share)).sum()) * count / (count - 1))
    return max(found)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _logistic(logit: float) -> float:
    return 1 / (1 + math.exp(-max(-40.0, min(40.0, logit))))
