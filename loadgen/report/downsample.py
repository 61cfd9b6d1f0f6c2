"""Fewer points, by rules that can be said in a caption."""

import itertools

import numpy as np
from numpy.typing import NDArray

from loadgen.stats.arrays import Floats

Places = NDArray[np.int64]

LIMIT = 2_000
"""The most points that one series of one plot draws."""


def by_rank(n: int, limit: int) -> Places:
    """Up to `limit` ranks out of 0..n-1, evenly spaced, the first and the last always among them."""
    if n <= limit:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))


def by_extremes(values: Floats, limit: int) -> Places:
    """Places of the lowest and the highest value of each of limit/2 equal runs of neighbours: no spike is lost."""
    n = len(values)
    if n <= limit:
        return np.arange(n)
    cuts = np.linspace(0, n, limit // 2 + 1).astype(np.int64)
    pairs = [(a + int(values[a:b].argmin()), a + int(values[a:b].argmax())) for a, b in itertools.pairwise(cuts)]
    return np.unique(np.array(pairs, dtype=np.int64))
