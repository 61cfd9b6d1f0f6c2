"""The cumulative histogram of Prometheus, with exemplars. Pure."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Self

MAX_EXEMPLAR_ID = 64
"""Characters of a request id that an exemplar keeps: OpenMetrics allows 128 for all labels together."""


class Exemplar(NamedTuple):
    """The newest observation in a bucket that came with a request id."""

    request_id: str
    value: float


class Histogram:
    """Counts observations per bucket; accumulates them over the buckets when read."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        """Upper bounds, increasing; a value equal to a bound is in its bucket. +Inf is implied."""
        self.counts = [0] * (len(bounds) + 1)
        """Observations in each bucket alone, the one above all bounds at the end."""
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, request_id: str | None = None) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if request_id is not None:
            self.exemplars[bucket] = Exemplar(request_id[:MAX_EXEMPLAR_ID], value)

    def buckets(self) -> list[tuple[str, int, Exemplar | None]]:
        """Return (upper bound as text, observations at or below it, exemplar) of each bucket, +Inf at the end."""
        labels = (*map(str, self.bounds), "+Inf")
        return list(zip(labels, accumulate(self.counts), self.exemplars, strict=True))

    def copy(self) -> Self:
        twin = type(self)(self.bounds)
        twin.counts, twin.exemplars, twin.sum = self.counts.copy(), self.exemplars.copy(), self.sum
        return twin
