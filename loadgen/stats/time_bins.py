"""Bins of equal width over time: events are counted in them, and what lasts is averaged over them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints

MAX_BINS = 600
_WIDTHS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400)
_NARROW_S = (0.5, 0.2, 0.1)
_MIN_BINS = 20
"""Fewest bins of 1 s; where they would be fewer, those of _NARROW_S are used."""


class Percentiles(NamedTuple):
    """Median and 99th percentile of the values of each bin; NaN where there is none."""

    p50: Floats
    p99: Floats


@dataclass(frozen=True)
class TimeBins:
    """`count` bins of `width_s`, from `first_s` on."""

    first_s: float
    width_s: float
    count: int

    @property
    def edges_s(self) -> Floats:
        """The ends of the bins, one more than there are bins."""
        return np.asarray(self.first_s + self.width_s * np.arange(self.count + 1), dtype=np.float64)

    @property
    def middle_s(self) -> Floats:
        return np.asarray(self.first_s + self.width_s * (np.arange(self.count) + 0.5), dtype=np.float64)

    def place(self, instants_s: Floats) -> Ints:
        """Return the bin of each instant; an instant outside is in the nearest bin."""
        return np.clip((instants_s - self.first_s) / self.width_s, 0, self.count - 1).astype(np.int64)

    def sums(self, instants_s: Floats, weights: Floats | None = None) -> Floats:
        """Return the sum of the weights of the events in each bin; their number without weights."""
        return np.bincount(self.place(instants_s), weights, self.count).astype(np.float64)

    def percentiles(self, instants_s: Floats, values: Floats) -> Percentiles:
        """Return the percentiles of the values in each bin, interpolated between ranks as in a summary."""
        place = self.place(instants_s)
        ranked = values[np.lexsort((values, place))]
        counts = np.bincount(place, minlength=self.count)
        first = np.cumsum(counts) - counts
        return Percentiles(*(_at_rank(ranked, first, counts, share) for share in (0.5, 0.99)))

    def growth(self, instants_s: Floats, steps: Floats) -> Floats:
        """Return how much a counter grew in each bin, with its growth spread evenly between two readings.

        steps[i]: growth from reading i to reading i + 1. NaN in a bin that no part of the readings' time is in.
        """
        if len(instants_s) < 2:
            return np.full(self.count, np.nan)
        edges_s = self.edges_s
        growth = np.diff(np.interp(edges_s, instants_s, np.concatenate([[0.0], np.cumsum(steps)])))
        read = (edges_s[1:] > instants_s[0]) & (edges_s[:-1] < instants_s[-1])
        return np.where(read, growth, np.nan)

    def integrals(self, begins_s: Floats, ends_s: Floats, weights: Floats | float = 1.0) -> Floats:
        """Return, over each bin, the integral of the sum of the weights of the intervals that an instant is in."""
        instants_s = np.concatenate([begins_s, ends_s])
        changes = np.broadcast_to(weights, begins_s.shape)
        order = np.argsort(instants_s, kind="stable")
        instants_s = instants_s[order]
        level = np.cumsum(np.concatenate([changes, -changes])[order])
        if not len(level):
            return np.zeros(self.count)
        total = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(instants_s))])
        return np.asarray(np.maximum(np.diff(np.interp(self.edges_s, instants_s, total)), 0.0))


def bins_between(first_s: float, last_s: float) -> TimeBins:
    """Return bins that hold both instants, with 0 and round numbers as their edges: of 1 s, narrower where they would
    be few, and wider where they would be more than about MAX_BINS."""
    length_s = last_s - first_s
    if length_s < _MIN_BINS:
        width_s = next((width for width in _NARROW_S if length_s >= _MIN_BINS * width), _NARROW_S[-1])
    else:
        width_s = next((width for width in _WIDTHS_S if length_s <= MAX_BINS * width), _WIDTHS_S[-1])
    begin, end = np.floor(first_s / width_s), np.floor(last_s / width_s) + 1
    return TimeBins(float(begin * width_s), float(width_s), int(end - begin))


def _at_rank(ranked: Floats, first: Ints, counts: Ints, share: float) -> Floats:
    """Return the value at a share of the ranks of each group; `first` are the places where the groups begin."""
    values = np.full(len(counts), np.nan)
    held = counts > 0
    rank = share * (counts[held] - 1)
    low = np.floor(rank).astype(np.int64)
    high = np.minimum(low + 1, counts[held] - 1)
    at_low, at_high = ranked[first[held] + low], ranked[first[held] + high]
    values[held] = at_low + (at_high - at_low) * (rank - low)
    return values
