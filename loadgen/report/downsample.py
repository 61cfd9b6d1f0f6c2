"""Downsample for plots, by rules that fit in a caption."""

import itertools

import numpy as np

from loadgen.stats.arrays import Floats, Ints

LIMIT = 2_000
"""Maximum number of points of one series in one plot."""


def by_rank(n: int, limit: int) -> Ints:
    """Return up to `limit` evenly spaced ranks out of 0..n-1, with the first and the last."""
    if n <= limit:
        return np.arange(n)
    return np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))


def by_extremes(values: Floats, limit: int) -> Ints:
    """Return the indices of the lowest and highest value of each of limit/2 equal runs of neighbours: spikes stay."""
    n = len(values)
    if n <= limit:
        return np.arange(n)
    cuts = np.linspace(0, n, limit // 2 + 1).astype(np.int64)
    pairs = [(a + int(values[a:b].argmin()), a + int(values[a:b].argmax())) for a, b in itertools.pairwise(cuts)]
    return np.unique(np.array(pairs, dtype=np.int64))
