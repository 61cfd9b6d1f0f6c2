"""Predict how many requests share the engine at an offered rate, from the times that a profile measured.

A grid point keeps B requests in flight and completes `requests` in `duration_s`, so by Little's law, L = lambda W
(J. D. C. Little, Operations Research 9(3), 1961), a request takes W(B) = B duration_s / requests. At a constant number
in flight, the rate lambda would settle at the fixed point B = lambda W(B). Requests that arrive at random come together
and leave gaps: their number in flight is a birth-death chain with arrivals at lambda and completions at k / W(k) when k
are in flight, whose mean is Little's L = lambda W too. It has no steady state when lambda exceeds the completions at
the largest batch: the engine then queues without end.

The batch is the mean that costs the same. A step's joules are shared by the requests in flight, so a request's joules
are linear in 1/k, and the batch is the harmonic mean of k over completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.energy_model.estimate import surface
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.energy_model.energy_profile import EnergyProfile
    from loadgen.stats.arrays import Floats
    from loadgen.workload.token_bins import CountedPairs

_POINTS = 24
"""Batches at which the times of a mixed workload are computed; those between are interpolated."""


class OfferedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The steady state of an engine under random arrivals, as a profile predicts it."""

    rps: float
    capacity_rps: float
    """Completions per second at the profile's largest batch."""
    is_beyond_capacity: bool
    """True: there is no steady state, the queue grows without end."""
    in_flight: float | None
    """Mean number of requests in flight, waiting included. None beyond capacity."""
    busy: float
    """Share of the time in which any request is in flight."""
    batch: float
    """Batch at which a request costs as much as in this mixture of batches; within those that were measured."""


def offered_load(profile: EnergyProfile, pairs: CountedPairs, rps: float) -> OfferedLoad:
    """Return the steady state at `rps` requests/s of these lengths. Raises LoadgenError without measured times."""
    rates = _completion_rates(profile, pairs)
    smallest, largest = min(point.batch for point in profile.cells), len(rates)
    numbers = np.arange(1, largest + 1, dtype=np.float64)
    capacity = float(rates[-1])
    if rps >= capacity:
        return OfferedLoad(
            rps=rps,
            capacity_rps=capacity,
            is_beyond_capacity=True,
            in_flight=None,
            busy=1.0,
            batch=float(largest),
        )
    logs = np.concatenate(([0.0], np.cumsum(np.log(rps / rates))))
    weights = np.exp(logs - logs.max())
    # More than the largest batch: the others wait, and their number is a geometric series.
    ratio = rps / capacity
    waiting = float(weights[-1]) * ratio / (1 - ratio)
    total = float(weights.sum()) + waiting
    in_flight = (float(weights[1:] @ numbers) + waiting * (largest + 1 / (1 - ratio))) / total
    completed = weights[1:] * rates
    completed[-1] += waiting * capacity
    batch = float(completed.sum() / (completed / np.maximum(numbers, smallest)).sum())
    return OfferedLoad(
        rps=rps,
        capacity_rps=capacity,
        is_beyond_capacity=False,
        in_flight=in_flight,
        busy=1 - float(weights[0]) / total,
        batch=batch,
    )


def _completion_rates(profile: EnergyProfile, pairs: CountedPairs) -> Floats:
    """Return the completions per second with 1, 2, ... requests in flight, to the profile's largest batch."""
    timed = [point for point in profile.cells if point.requests and point.duration_s]
    if len(timed) < len(profile.cells):
        raise LoadgenError(f"profile {profile.name} has cells without requests and duration_s: give --batch")
    # The same interpolation as for joules: seconds of the engine per request are made of steps and tokens too.
    seconds = [
        msgspec.structs.replace(point, joules_per_request=(point.duration_s or 0) / (point.requests or 1), stderr=None)
        for point in timed
    ]
    times = msgspec.structs.replace(profile, cells=tuple(seconds))
    batches = sorted({point.batch for point in profile.cells})
    known = np.unique(np.concatenate((batches, np.geomspace(batches[0], batches[-1], _POINTS))))
    requests = float(pairs.counts.sum())
    rates = np.array([requests / surface(times, float(batch)).total(pairs)[0] for batch in known])
    numbers = np.arange(1, batches[-1] + 1, dtype=np.float64)
    # Below the smallest measured batch a request takes as long as there.
    between = np.exp(np.interp(np.log(numbers), np.log(known), np.log(rates)))
    return np.asarray(between * np.minimum(numbers / batches[0], 1))
