"""Arrival processes: offsets of requests in seconds from the start, at a constant or a changing rate."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import LoadgenError
from loadgen.stats.arrays import Floats, Ints

Process = Literal["poisson", "gamma", "constant"]

Points = Sequence[tuple[float, float]]
"""(second, requests/s), in order of time; the rate is linear between two points."""

MAX_ARRIVALS = 100_000_000
"""Most requests of one run."""

_BLOCK = 4096
"""Gaps are drawn in blocks of this size, however many are needed, so that a longer run starts as a shorter one does."""


def offsets(
    process: Process,
    rate: float,
    rng: np.random.Generator,
    *,
    burstiness: float = 1.0,
    count: int | None = None,
    duration_s: float | None = None,
) -> Floats:
    """Draw sorted arrival offsets at a mean of `rate` per second: `count` of them, those before `duration_s`, or both.

    constant: i / rate from 0 on. poisson: gaps Exp(rate). gamma: gaps Gamma(shape = burstiness, mean 1 / rate), whose
    coefficient of variation is 1 / sqrt(burstiness): 1 is Poisson, smaller is burstier. Gaps are summed as drawn, never
    clipped or rescaled, which would change the process. A gamma run starts at an arrival, which adds
    (1 / burstiness - 1) / 2 requests to a long run on average (Cox, Renewal Theory, 4.2).
    """
    _check("rate", rate, "requests/s")
    _check("burstiness", burstiness, "a gamma shape")
    if duration_s is not None:
        _check("duration", duration_s, "seconds")
    if count is not None and count < 1:
        raise LoadgenError(f"{count} requests: expected at least 1")
    if count is None and duration_s is None:
        raise ValueError("offsets without an end: give count or duration_s")
    mean_count = rate * (duration_s or 0.0) if count is None else count
    if mean_count > MAX_ARRIVALS:
        raise LoadgenError(f"{mean_count:.3g} requests: expected at most {MAX_ARRIVALS:,} in one run")
    end_s = math.inf if duration_s is None else duration_s
    match process:
        case "constant":
            arrivals = np.arange(math.ceil(rate * end_s) + 1 if count is None else count) / rate
        case "poisson":
            arrivals = _renewal(lambda size: rng.exponential(1 / rate, size), count, end_s)
        case "gamma":
            scale = 1 / (rate * burstiness)
            arrivals = _renewal(lambda size: rng.gamma(burstiness, scale, size), count, end_s)
    return arrivals[arrivals < end_s]


def _renewal(gaps: Callable[[int], Floats], count: int | None, end_s: float) -> Floats:
    """Sum independent gaps: `count` of them, or as many as it takes to reach `end_s` if that is fewer."""
    blocks: list[Floats] = []
    limit, last_s = MAX_ARRIVALS if count is None else count, 0.0
    while len(blocks) * _BLOCK < limit and last_s < end_s:
        blocks.append(last_s + np.cumsum(gaps(_BLOCK)))
        last_s = float(blocks[-1][-1])
    if count is None and last_s < end_s:
        raise LoadgenError(f"more than {MAX_ARRIVALS:,} requests before {end_s:g} s: expected a less bursty process")
    return np.concatenate(blocks)[:limit]


def _check(name: str, value: float, unit: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise LoadgenError(f"{name} {value}: expected {unit}, finite and above 0")


# -- given arrivals at another rate, and rates that change -----------------------------------------------------------


def thinned(groups: Ints, keep: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of the arrivals that stay when each group stays with probability `keep`.

    The rate falls and bursts last as long as before; compressing time instead keeps the size of every burst and changes
    how long it lasts. With every arrival its own group, the index of dispersion over a fixed window goes from D to
    1 + keep (D - 1): anything is Poisson when it is thinned enough.
    """
    if not 0 < keep <= 1:
        raise LoadgenError(f"share {keep} of the arrivals: expected above 0 and at most 1")
    different, group_index = np.unique(groups, return_inverse=True)
    return np.asarray((rng.random(len(different)) < keep)[group_index])


class Superposed(NamedTuple):
    """Arrivals in order, from shifted copies of a source."""

    offsets_s: Floats
    picks: Ints
    """Index in the source of each arrival."""
    laps: Ints
    """2 k for an arrival of copy k, 2 k + 1 for one that the shift wrapped round the end. Copy 0 is not shifted."""


def superposed(offsets_s: Floats, groups: Ints, times: float, rng: np.random.Generator) -> Superposed:
    """Return `times` as many arrivals in the same time, as from more users.

    They are copies of the source that each begin at a random point of it and go round; the last copy is thinned by
    `groups`. Variance and mean of the counts both add, so that the index of dispersion stays.
    """
    if not (math.isfinite(times) and times > 0 and times * len(offsets_s) <= MAX_ARRIVALS):
        raise LoadgenError(
            f"{times:.3g} times {len(offsets_s):,} arrivals: expected at most {MAX_ARRIVALS:,} in one run"
        )
    start_s, span_s = float(offsets_s[0]), cycle_s(offsets_s)
    copies = []
    for copy in range(math.ceil(times)):
        shifted_s = offsets_s - start_s + (rng.random() * span_s if copy else 0.0)
        picks = np.arange(len(offsets_s)) if copy < int(times) else np.flatnonzero(thinned(groups, times % 1, rng))
        copies.append((shifted_s[picks] % span_s, picks, 2 * copy + (shifted_s[picks] >= span_s)))
    joined = [np.concatenate(column) for column in zip(*copies, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return Superposed(*(column[order] for column in joined))


def cycle_s(offsets_s: Floats) -> float:
    """Return the period of arrivals that go round: from first to last plus a mean gap. LoadgenError if that is 0."""
    if len(offsets_s) < 2 or offsets_s[-1] <= offsets_s[0]:
        raise LoadgenError("every request of the trace arrives at the same instant: it has no rate to scale")
    return float(offsets_s[-1] - offsets_s[0]) * len(offsets_s) / (len(offsets_s) - 1)


def points_of(shape: str) -> Points:
    """Parse the points of `ramp:FROM:TO:SECONDS` or `step:RATE:RATE:...:SECONDS` (each rate that long)."""
    kind, *numbers = shape.split(":")
    try:
        *rates, length_s = map(float, numbers)
    except ValueError:
        rates, length_s = [], math.nan
    valid = all(math.isfinite(rate) and rate >= 0 for rate in rates) and any(rates)
    if not (valid and math.isfinite(length_s) and length_s > 0 and len(rates) >= 2):
        kind = ""
    match kind:
        case "ramp" if len(rates) == 2:
            return [(0.0, rates[0]), (length_s, rates[1])]
        case "step":
            return [point for i, r in enumerate(rates) for point in ((i * length_s, r), ((i + 1) * length_s, r))]
    raise LoadgenError(
        f"shape {shape!r}: expected ramp:FROM:TO:SECONDS or step:RATE:RATE:SECONDS (each rate that long), "
        "rates in requests/s, 0 or more and not all 0"
    )


def expected_counts(times_s: Floats, points: Points) -> Floats:
    """Return the expected number of arrivals until each time: the integral of the rate. The last rate continues.

    Arrivals that follow the rate have rate 1 after this transformation (the time-rescaling theorem: E. N.
    Brown et al., Neural Computation 14, 2002).
    """
    seconds, rates, counts = _table(points)
    k = np.maximum(np.searchsorted(seconds, times_s, side="right") - 1, 0)
    since = times_s - seconds[k]
    return np.asarray(counts[k] + rates[k] * since + _slopes(seconds, rates)[k] * since**2 / 2)


def warped(operational: Floats, points: Points) -> Floats:
    """Map arrivals of rate 1 to arrivals at the rate through `points`: the inverse of `expected_counts`.

    Arrivals that a last rate of 0 would delay for ever are left out.
    """
    seconds, rates, counts = _table(points)
    if rates[-1] == 0:
        operational = operational[operational < counts[-1]]
    k = np.maximum(np.searchsorted(counts, operational, side="right") - 1, 0)
    rate, slope, remaining = rates[k], _slopes(seconds, rates)[k], operational - counts[k]
    root = rate + np.sqrt(np.maximum(rate**2 + 2 * slope * remaining, 0.0))
    return np.asarray(seconds[k] + np.divide(2 * remaining, root, out=np.zeros_like(remaining), where=root > 0))


def _table(points: Points) -> tuple[Floats, Floats, Floats]:
    """Return the points as (seconds, rates from each second on, arrivals expected until it)."""
    seconds, rates = np.array(points, dtype=np.float64).T
    counts = np.concatenate(([0.0], np.cumsum(np.diff(seconds) * (rates[1:] + rates[:-1]) / 2)))
    return seconds, rates, counts


def _slopes(seconds: Floats, rates: Floats) -> Floats:
    length = np.diff(seconds)
    return np.append(np.divide(np.diff(rates), length, out=np.zeros_like(length), where=length > 0), 0.0)
