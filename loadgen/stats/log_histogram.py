"""Quantiles of a stream of values, in bounded memory.

The buckets are those of DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", VLDB 2019): their bounds grow by a constant factor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil, log

ACCURACY = 0.01
"""Largest relative error of a quantile."""
_GROWTH = (1 + ACCURACY) / (1 - ACCURACY)
_PER_BUCKET = 1 / log(_GROWTH)


@dataclass
class LogHistogram:
    """Counts of positive values by bucket: about 1,000 buckets from a microsecond to an hour, and no more."""

    counts: Counter[int] = field(default_factory=Counter)
    """Values in each bucket; bucket i ends at _GROWTH to the power i."""

    def add(self, value: float) -> None:
        """Count a value. Zero and less, which no latency is, has no bucket and is left out."""
        if value > 0:
            self.counts[ceil(log(value) * _PER_BUCKET)] += 1

    def quantile(self, share: float) -> float | None:
        """Return a value within ACCURACY of the one that `share` of the others do not exceed; None without values."""
        rank, bucket = share * (self.counts.total() - 1), None
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank < 0:
                break
        return None if bucket is None else 2 * _GROWTH**bucket / (1 + _GROWTH)

    def __add__(self, other: LogHistogram) -> LogHistogram:
        return LogHistogram(self.counts + other.counts)
