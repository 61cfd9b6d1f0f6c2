"""Standard errors of statistics of a series whose neighbours depend on one another, by resampling blocks of it.

Whole blocks are drawn with replacement until the series has its length again, so that what happens within a block, such
as a busy period, stays together (moving blocks: H. R. Künsch, The Jackknife and the Bootstrap for General Stationary
Observations, Annals of Statistics 17, 1989; on a circle, so that both ends are drawn as often as the middle:
Politis and Romano, A Circular Block-Resampling Procedure for Stationary Data, 1992). A resample is a row of weights:
how often each element was drawn. A statistic is computed from the weights, for all resamples at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log10, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints

RESAMPLES = 1_000
FEWEST_RESAMPLES = 200
"""Resamples of a series that is long. A standard error from 200 of them is within 10 % of its limit (2 standard
deviations)."""
_ELEMENTS = 20_000_000
"""Weights that are drawn in all, unless the fewest resamples need more."""
_PART = 2_000_000
"""Weights that are in memory at once."""
_LEVELS = 128
"""Thresholds between which a percentile is interpolated."""


def resamples_of(n: int) -> int:
    """Return the number of resamples of a series of `n`: fewer of a long one, for the sake of time."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, _ELEMENTS // max(n, 1)))


def block_length(series: Floats) -> int:
    """Return the length of blocks that estimates the variance of the mean best: between 1 and 3 sqrt n, and n / 3.

    b = (2 G² / D)^(1/3) n^(1/3) with D = 4/3 g², g = sum R(k) l(k/M), G = sum |k| R(k) l(k/M), R the autocovariances
    and l the flat-top window: 1 up to a half, then falling to 0 at 1. M is twice the lag after which five
    autocorrelations or more stay within 2 sqrt(log10 n / n) (Politis and White, Automatic Block-Length Selection for
    the Dependent Bootstrap, Econometric Reviews 23, 2004, as corrected by Patton, Politis and White, ibid. 28, 2009).
    """
    n = len(series)
    centred = series - series.mean() if n else series
    variance = float(centred @ centred)
    if n < 4 or variance <= 0:
        return 1
    run = max(5, ceil(sqrt(log10(n))))
    lags = min(n - 1, ceil(sqrt(n)) + run)
    covariance = np.array([centred[: n - lag] @ centred[lag:] for lag in range(lags + 1)]) / n
    small = np.abs(covariance[1:] / covariance[0]) < 2 * sqrt(log10(n) / n)
    quiet = [lag for lag in range(len(small) - run + 1) if small[lag : lag + run].all()]
    loud = np.flatnonzero(~small)
    last = quiet[0] if quiet else int(loud[-1]) + 1 if len(loud) else 0
    span = min(max(1, 2 * last), lags)
    k = np.arange(1, span + 1)
    window = np.minimum(1.0, 2 * (1 - k / span))
    g = covariance[0] + 2 * float(window @ covariance[1 : span + 1])
    derivative = 2 * float((window * k) @ covariance[1 : span + 1])
    longest = max(1, ceil(min(3 * sqrt(n), n / 3)))
    if g <= 0:
        return 1
    return max(1, min(longest, ceil(float(np.cbrt(1.5 * (derivative / g) ** 2 * n)))))


def resampled_weights(n: int, length: int, seed: int) -> Iterator[Floats]:
    """Yield the weights of `n` elements in parts of all resamples; rows are resamples, and each row adds up to n."""
    rng = np.random.default_rng(seed)
    whole, rest = divmod(n, length)
    lengths = np.array([length] * whole + ([rest] if rest else []))
    left = resamples_of(n)
    while left > 0:
        rows = min(left, max(1, _PART // n))
        left -= rows
        starts = rng.integers(0, n, (rows, len(lengths)))
        row = np.arange(rows)[:, None] * (2 * n + 1)
        # A block adds 1 from its start to its end; what passes the end of the series goes on at its beginning.
        edges = np.bincount((row + starts).ravel(), minlength=rows * (2 * n + 1))
        edges -= np.bincount((row + starts + lengths).ravel(), minlength=rows * (2 * n + 1))
        covered = np.cumsum(edges.reshape(rows, 2 * n + 1), axis=1)
        yield (covered[:, :n] + covered[:, n : 2 * n]).astype(np.float64)


class Ratio:
    """The sum of one amount per element over the sum of another."""

    def __init__(self, amounts: Floats, base: Floats) -> None:
        self._columns = np.stack([amounts, base], axis=1)

    def __call__(self, weights: Floats) -> Floats:
        """Return the statistic of each resample, as one column."""
        sums = weights @ self._columns
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[:, :1] / sums[:, 1:])


class Spread:
    """Mean and percentiles of values of which an element has none, one or several.

    Percentiles are interpolated between thresholds: at most 128 of the values, closest together towards both ends. That
    is enough for a standard error.
    """

    def __init__(self, values: Floats, owners: Ints, n: int, shares: tuple[float, ...]) -> None:
        """Prepare the values of the elements in `owners`, which ascend; `shares` are those of the percentiles."""
        self._shares = shares
        levels = np.concatenate(([0.0], 1 / (1 + np.exp(-np.linspace(-7, 7, _LEVELS - 2))), [1.0]))
        ranked = np.sort(values)
        self._thresholds = np.unique(ranked[np.ceil(levels * (len(ranked) - 1)).astype(np.int64)])
        self._owners, self._place = owners, np.searchsorted(self._thresholds, values).astype(np.int16)
        self._several = _table(self._place, owners, n, len(self._thresholds)) if len(values) > n else None
        counts = np.bincount(owners, minlength=n).astype(np.float64)
        self._mean = Ratio(np.bincount(owners, values, minlength=n).astype(np.float64), counts)

    def __call__(self, weights: Floats) -> Floats:
        """Return a row per resample: the mean, then each percentile."""
        x = self._thresholds
        if self._several is not None:
            counts = weights.astype(np.float32) @ self._several
        else:
            counts = np.stack([np.bincount(self._place, row[self._owners], len(x)) for row in weights])
        below, rows = np.cumsum(counts, axis=1, dtype=np.float64), np.arange(len(weights))
        columns = [self._mean(weights)]
        for share in self._shares:
            rank = share * below[:, -1]
            upper = np.minimum((below < rank[:, None]).sum(axis=1), len(x) - 1)
            lower = np.maximum(upper - 1, 0)
            step = below[rows, upper] - below[rows, lower]
            part = np.where(step > 0, (rank - below[rows, lower]) / np.where(step > 0, step, 1), 1.0)
            columns.append((x[lower] + np.clip(part, 0, 1) * (x[upper] - x[lower]))[:, None])
        return np.concatenate(columns, axis=1)


def _table(place: NDArray[np.int16], owners: Ints, n: int, places: int) -> NDArray[np.float32]:
    """Return how many values each element has at each place; counted in pieces, to bound the memory."""
    table = np.zeros((n, places), dtype=np.float32)
    for start in range(0, len(place), _PART):
        some, of = place[start : start + _PART], owners[start : start + _PART]
        first, last = int(of[0]), int(of[-1])
        counted = np.bincount((of - first) * places + some, minlength=(last - first + 1) * places)
        table[first : last + 1] += counted.reshape(-1, places)
    return table
