"""Empirical distributions: counted values, Kolmogorov-Smirnov distances, rank correlation, index of dispersion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints


@dataclass(frozen=True)
class Counts:
    """Distinct values in ascending order, and the number of times each occurs."""

    values: Floats
    counts: Ints

    @property
    def mean(self) -> float:
        return float(self.values @ self.counts / self.counts.sum())

    @property
    def std(self) -> float:
        return float(np.sqrt((self.values - self.mean) ** 2 @ self.counts / self.counts.sum()))

    def percentile(self, percent: float) -> float:
        """Interpolate linearly between the two nearest ranks, as numpy does."""
        cumulative = np.cumsum(self.counts)
        rank = percent / 100 * (cumulative[-1] - 1)
        low, high = self.values[np.searchsorted(cumulative, (np.floor(rank), np.ceil(rank)), side="right")]
        return float(low + (high - low) * (rank % 1))


@dataclass(frozen=True)
class ShareCurve:
    """A cumulative distribution at up to RANKS of its values: `shares` of the sample are at or below `values`."""

    values: Floats
    shares: Floats
    count: int
    """Size of the sample."""
    percentiles: Mapping[int, float]
    """Exact values at CURVE_PERCENTILES."""


RANKS = 500
TAIL_RANKS = 100
"""Ranks, of RANKS, that are above 99 %, closer together towards the highest value."""
CURVE_PERCENTILES = (50, 90, 99)


def curve_of_sample(values: ArrayLike) -> ShareCurve | None:
    """Return the curve of a sample; None without values."""
    ranked = np.sort(np.asarray(values))
    if not len(ranked):
        return None
    kept = _curve_ranks(len(ranked))
    exact = {percent: float(np.percentile(ranked, percent)) for percent in CURVE_PERCENTILES}
    return ShareCurve(ranked[kept].astype(np.float64), (kept + 1) / len(ranked), len(ranked), exact)


def curve_of_counts(counts: Counts) -> ShareCurve:
    """Return the curve of counted values, drawn at ranks of those that differ."""
    kept = _curve_ranks(len(counts.values))
    total = int(counts.counts.sum())
    exact = {percent: counts.percentile(percent) for percent in CURVE_PERCENTILES}
    return ShareCurve(counts.values[kept], np.cumsum(counts.counts)[kept] / total, total, exact)


def _curve_ranks(count: int) -> Ints:
    """Return up to RANKS of 0..count - 1: evenly spaced ones with both ends, and closer ones above 99 %."""
    if count <= RANKS:
        return np.arange(count, dtype=np.int64)
    from_top = np.geomspace(1, max(count / 100, 2), TAIL_RANKS).round().astype(np.int64)
    return np.unique(np.concatenate([by_rank(count, RANKS - TAIL_RANKS), count - from_top]))


def by_rank(count: int, limit: int) -> Ints:
    """Return up to `limit` evenly spaced ranks out of 0..count - 1, with the first and the last."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.unique(np.linspace(0, count - 1, limit).round().astype(np.int64))


def count_values(values: ArrayLike) -> Counts:
    """Count the distinct values of a sample."""
    return Counts(*np.unique(np.asarray(values, dtype=np.float64), return_counts=True))


def ks_distance(a: Counts, b: Counts, tolerance: float = 0.0) -> float:
    """Return the largest difference between two cumulative distributions (two-sample Kolmogorov-Smirnov).

    Values that differ by no more than `tolerance` are taken for the same.
    """
    return max(_excess(a, b, tolerance), _excess(b, a, tolerance))


def _excess(a: Counts, b: Counts, tolerance: float) -> float:
    """Return the largest P(a <= x) - P(b <= x + tolerance)."""
    share_a, share_b = (np.concatenate(([0], np.cumsum(c.counts) / c.counts.sum())) for c in (a, b))
    below_b = share_b[np.searchsorted(b.values, a.values + tolerance, side="right")]
    return float(np.max(share_a[1:] - below_b, initial=0.0))


def ks_to_law(cdf: Floats) -> float:
    """Return the Kolmogorov-Smirnov distance of a sample to a law whose CDF at the sorted sample is `cdf`."""
    step = np.arange(len(cdf) + 1) / len(cdf)
    return max(float(np.max(step[1:] - cdf)), float(np.max(cdf - step[:-1])))


def ks_exponential(gaps: Floats) -> tuple[float, float]:
    """Return the distance of the gaps to an exponential distribution of their own mean, and its 5 % critical value.

    The critical value is Stephens' for a mean taken from the sample itself: D < 0.2/n + 1.094 / (sqrt n + 0.26 +
    0.5/sqrt n) (M. A. Stephens, EDF Statistics for Goodness of Fit, JASA 69, 1974, table 1, case of the exponential).
    """
    n = len(gaps)
    if n < 2 or not np.any(gaps > 0):
        raise ValueError("needs two gaps or more, not all 0")
    distance = ks_to_law(-np.expm1(-np.sort(gaps) / gaps.mean()))
    return distance, 0.2 / n + 1.094 / (math.sqrt(n) + 0.26 + 0.5 / math.sqrt(n))


def gamma_cdf(shape: float, x: Floats) -> Floats:
    """Return P(X <= x) for a gamma distribution of `shape` and scale 1.

    It is x^a e^-x / Gamma(a + 1) (1 + x/(a+1) + x^2/((a+1)(a+2)) + ...) (Abramowitz and Stegun, 6.5.29). Every term is
    positive, so that nothing cancels.
    """
    x = np.minimum(x, shape + 20 * math.sqrt(shape) + 50)  # beyond, it is 1 to the last digit
    term = np.ones_like(x)
    total = term.copy()
    divisor = shape
    while np.any(term > 1e-16 * total):
        divisor += 1
        term = term * x / divisor
        total += term
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(shape * np.log(x) - x - math.lgamma(shape + 1)) * total)


def spearman(x: Ints, y: Ints, counts: Ints) -> float | None:
    """Return the rank correlation of pairs (x, y) that occur `counts` times each; None when one side does not vary.

    Ties share their mean rank.
    """
    rank_x, rank_y = _mean_ranks(x, counts), _mean_ranks(y, counts)
    n = counts.sum()
    rank_x, rank_y = rank_x - rank_x @ counts / n, rank_y - rank_y @ counts / n
    spread = float(np.sqrt((rank_x * rank_x) @ counts) * np.sqrt((rank_y * rank_y) @ counts))
    return None if spread == 0 else float((rank_x * rank_y) @ counts) / spread


def _mean_ranks(values: Ints, counts: Ints) -> Floats:
    _, index = np.unique(values, return_inverse=True)
    of_value = np.bincount(index, counts)
    return np.asarray((np.cumsum(of_value) - (of_value - 1) / 2)[index])


def index_of_dispersion(offsets_s: Floats, window_s: float) -> float | None:
    """Return variance / mean of the counts in whole windows from the first arrival on.

    It is 1 for a Poisson process and 0 for constant gaps; None with fewer than two whole windows. Empty windows count:
    they are computed, not stored.
    """
    if len(offsets_s) == 0:
        return None
    window = np.floor((offsets_s - offsets_s[0]) / window_s)
    windows = int(window[-1])
    if windows < 2:
        return None
    _, counts = np.unique(window[window < windows], return_counts=True)
    mean = float(counts.sum()) / windows
    squares = float((counts.astype(np.float64) ** 2).sum())
    return (squares - windows * mean**2) / (windows - 1) / mean
