"""The share of requests that miss a limit as a function of the rate, near one share. Pure.

R, the rate at which the share is M, is what is wanted. Near it the odds o = m / (1 - m) of the share m at the rate r
are modelled as a power of the distance to a rate at which all requests miss:

    o^-k = O^-k (1 - k b log(r / R))

with the odds O at R and the steepness b = d log o / d log r there. With k = 0 the curve would be logistic; with k > 0
it rises faster and faster towards the capacity. b differs below and above R: a few requests miss at any rate because
they are long, and many miss near the capacity because they wait. R is a psychometric function's threshold, which few
trials find if they are placed near it (A. B. Watson and D. G. Pelli, QUEST, Perception & Psychophysics 33, 1983; C. F.
J. Wu, Efficient sequential designs with binary data, JASA 80, 1985). As there, the likelihood is kept on a grid, here
of (log R, log b below, log b above), with a wide prior on both b alone: medians, intervals, and those of any function
of the three follow from its weights.

Requests are not independent: those that are slow come together, in a busy period, and the more of them miss, the longer
the periods are. So the counts vary more than binomial ones, by a dispersion 1 + c m that grows with m: the variance
function of a beta-binomial share. c is measured by batch means (A. M. Law, Simulation Modeling and Analysis, 9.5.3)
over the probes that missed about as much. The likelihood is the quasi-likelihood of that variance function (P.
McCullagh and J. A. Nelder, Generalized Linear Models, ch. 9); since c is an estimate, its weights are those of
Student's t, not of a Gaussian.
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

USUAL_MISSED = 0.05
"""Share of missed requests around which the curve is fitted where no share is wanted."""
BEND = 0.3
"""k. On simulated servers the odds to the power -k are straight in log r for k between 0.2 and 0.6."""
BANDWIDTH = 0.4
"""Distance in the logarithm of the rate at which a probe no longer counts (tricube weights, as in LOESS): twice the
farthest that the search places a probe from its estimate."""
_FAR_WEIGHT = 0.02
"""Weight of probes beyond it, which only keep the curve from where it cannot be."""
_FEW = {"bracket": 4.0, "refine": 10.0, "present": 10.0}
"""Independent requests for which a bracketing probe and an overloaded one count at most: they had no steady state. The
rate is then below that of an overloaded probe at odds of 1,000 to 1 or more."""
_MEAN_LOG_STEEPNESS, _SD_LOG_STEEPNESS = math.log(8), 0.9
"""Prior of log b. Simulated servers have 3 where long requests miss, and 40 where a queue forms."""
_STEEPNESS = (1.0, 150.0)
"""Ends of the grid of b: beyond them the prior is small."""
_RATES, _STEEPNESSES = 300, 40
"""Points of the grid."""
_USUAL_CLUMPING, _USUAL_WEIGHT = 500.0, 3.0
"""c before any is measured, and the number of blocks for which it counts. Simulated servers have 150 to 3,000."""
_LOG_SHARE_SD = 0.7
"""Distance in the logarithm of the share of missed requests within which probes have the same c: a factor of two."""
_MIN_MISSED = 5
"""Fewest missed requests of a probe whose blocks are compared."""
_UNLIKELY = 0.02
"""Weight of a place over that of the likeliest one, by which the probes exclude it."""
_MIN_FREEDOM = 10.0
"""Degrees of freedom of Student's t without a missed request: c is known within a factor of three before any."""
_PASSES = 4
"""The place of the curve decides which probes are near it, and these decide its place."""


@dataclass(frozen=True)
class MissCurve:
    """Weights of all curves through (R, M): of the places R, and of the steepness below and above each."""

    missed: float
    """M, the share of missed requests at R."""
    log_rates: Floats
    weights: Floats
    """Weights of `log_rates`. Their sum is 1."""
    log_steepness: Floats
    below: Floats
    """Weights of `log_steepness` below each place. Each row's sum is 1."""
    above: Floats
    clumping: float
    """c: the counts vary 1 + c m times as much as binomial ones."""
    busy_periods: float
    """Number of independent misses that those of the probes nearby are worth."""

    @property
    def rate_rps(self) -> float:
        """Return the median of R."""
        return math.exp(self._quantile(0.5))

    @property
    def log_sd(self) -> float:
        """Return the standard deviation of log R."""
        return math.sqrt(float(self.weights @ (self.log_rates - self.weights @ self.log_rates) ** 2))

    @property
    def steepness(self) -> tuple[float, float]:
        """Return the geometric means of b below and above R."""
        below, above = (math.exp(float(self.weights @ side @ self.log_steepness)) for side in (self.below, self.above))
        return below, above

    @property
    def dispersion(self) -> float:
        """Return the variance of the number of missed requests over the binomial one, at R."""
        return 1 + self.clumping * self.missed

    def share_at(self, rate_rps: float) -> float:
        """Return the share of missed requests at a rate, at the median of R and the mean steepness."""
        distance = math.log(rate_rps / self.rate_rps)
        rise = logit_rise(np.array(self.steepness[distance > 0] * distance))
        return float(1 / (1 + np.exp(-(logit(self.missed) + rise))))

    def rate(self, confidence: float) -> Estimate:
        """Return R with its interval. An end is unknown if places at that border of the grid are likely, too."""
        tail = (1 - confidence) / 2
        likely = self.weights > _UNLIKELY * self.weights.max()
        return Estimate(
            value=self.rate_rps,
            low=None if likely[0] else math.exp(self._quantile(tail)),
            high=None if likely[-1] else math.exp(self._quantile(1 - tail)),
        )

    def _quantile(self, share: float) -> float:
        return float(np.interp(share, np.cumsum(self.weights), self.log_rates))


def logit_rise(rise: Floats) -> Floats:
    """Return log o(r) - log O, where `rise` is b log(r / R): -log(1 - k rise) / k, at most 40."""
    return np.minimum(-np.log(np.maximum(1 - BEND * rise, 1e-9)) / BEND, 40.0)


def miss_curve(probes: Sequence[Probe], missed: float) -> MissCurve:
    """Return the curve near the share `missed` of missed requests. At least one probe must have counted requests."""
    probes = [probe for probe in probes if probe.requests]
    at = np.array([math.log(probe.rate_rps) for probe in probes])
    lowest, highest = low, high = at.min() - 1.1, at.max() + 1.1
    near, clumping = np.ones(len(probes)), _USUAL_CLUMPING
    for _ in range(_PASSES):
        curve = _weighted(probes, at, near, missed, np.linspace(low, high, _RATES), clumping)
        middle = math.log(curve.rate_rps)
        near = np.maximum(_FAR_WEIGHT, (1 - np.minimum(np.abs(at - middle) / BANDWIDTH, 1) ** 3) ** 3)
        clumping = _clumping(probes, near, missed)
        span = max(0.05, 8 * curve.log_sd)
        low, high = max(lowest, middle - span), min(highest, middle + span)
    return curve


def _weighted(
    probes: Sequence[Probe], at: Floats, near: Floats, missed: float, log_rates: Floats, clumping: float
) -> MissCurve:
    """Return the curves with the weights of Student's t on their quasi-likelihood."""
    log_steepness = np.linspace(math.log(_STEEPNESS[0]), math.log(_STEEPNESS[1]), _STEEPNESSES)
    prior = -0.5 * ((log_steepness - _MEAN_LOG_STEEPNESS) / _SD_LOG_STEEPNESS) ** 2
    sides = [np.tile(prior - np.logaddexp.reduce(prior), (len(log_rates), 1)) for _ in range(2)]
    busy_periods = 0.0
    for probe, log_rate, weight in zip(probes, at.tolist(), near.tolist(), strict=True):
        share, requests, c = probe.missed / probe.requests, weight * probe.requests, clumping
        if probe.overloaded or probe.stage == "bracket":
            requests, c = min(_FEW[probe.stage], probe.requests), 0.0
        rise = np.exp(log_steepness) * (log_rate - log_rates[:, None])
        # Beyond a half there is no steady state: a share depends on the duration, and says no more than "a half".
        logits = np.minimum(logit(missed) + logit_rise(rise), 0.0)
        likelihood = requests * quasi_likelihood(min(share, 0.5), logits, c)
        sides[0] += np.where(rise <= 0, likelihood, 0.0)
        sides[1] += np.where(rise > 0, likelihood, 0.0)
        busy_periods += requests * min(share, 0.5) / (1 + c * share)
    totals = [np.logaddexp.reduce(side, axis=1) for side in sides]
    below, above = (np.exp(side - total[:, None]) for side, total in zip(sides, totals, strict=True))
    log_likelihood = totals[0] + totals[1]
    freedom = max(_MIN_FREEDOM, busy_periods)
    odds = np.exp(-(freedom + 1) / 2 * np.log1p(2 * (log_likelihood.max() - log_likelihood) / freedom))
    return MissCurve(missed, log_rates, odds / odds.sum(), log_steepness, below, above, clumping, busy_periods)


def quasi_likelihood(share: float, logits: Floats, clumping: float) -> Floats:
    """Return the quasi-likelihood of a request, where a `share` missed, for the variance function
    V(m) = m (1 - m) (1 + c m): the integral of (share - m) / V(m) over m."""
    log_missed, log_good = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
    log_dispersion = np.log1p(clumping * np.exp(log_missed))
    missing = log_missed - (log_good + clumping * log_dispersion) / (1 + clumping)
    return np.asarray(share * missing + (log_good - log_dispersion) / (1 + clumping))


def _clumping(probes: Sequence[Probe], near: Floats, missed: float) -> float:
    """Return c by batch means over all probes, each weighted by the blocks whose counts it compares, and by how close
    its share of missed requests is to M: one long prompt delays the same number of others at any rate, so that c is
    larger where few miss.

    Near the capacity blocks are shorter than a busy period and vary less than they should, so the size is taken at
    which c is largest.
    """
    by_size = []
    for size in (1, 2, 4):
        total, weights = _USUAL_CLUMPING * _USUAL_WEIGHT, _USUAL_WEIGHT
        for probe, weight in zip(probes, near.tolist(), strict=True):
            blocks = len(probe.blocks) // size
            if probe.overloaded or probe.stage == "bracket" or probe.missed < _MIN_MISSED or blocks < 2:
                continue
            share = probe.missed / probe.requests
            counts = np.array([[block.requests, block.missed] for block in probe.blocks], dtype=np.float64)
            n, y = counts[: blocks * size].reshape(blocks, size, 2).sum(axis=1).T
            variance = float(((y - n * share) ** 2).sum() / (n * share * (1 - share)).sum()) * blocks / (blocks - 1)
            weight *= min(8.0, probe.missed / max(1.0, variance))
            weight *= math.exp(-0.5 * (math.log(share / missed) / _LOG_SHARE_SD) ** 2)
            total += weight * max(0.0, variance - 1) / share
            weights += weight
        by_size.append(total / weights)
    return max(by_size)


def logit(share: float) -> float:
    return math.log(share / (1 - share))
