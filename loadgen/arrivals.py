"""When requests come: offsets in seconds from the start, and how to tell whether they came as asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import LoadgenError

Process = Literal["poisson", "gamma", "constant"]

Seconds = NDArray[np.float64]

MAX_ARRIVALS = 100_000_000

_BLOCK = 4096
"""Gaps are drawn in blocks of this size whatever is asked, so a longer run starts as the shorter one did."""


def offsets(
    process: Process,
    rate: float,
    rng: np.random.Generator,
    *,
    burstiness: float = 1.0,
    count: int | None = None,
    duration_s: float | None = None,
) -> Seconds:
    """Sorted arrival offsets at a mean of `rate` per second: the first `count`, those before `duration_s`, or both.

    constant: i / rate from 0 on. poisson: gaps Exp(rate). gamma: gaps Gamma(shape = burstiness, mean 1 / rate), whose
    coefficient of variation is 1 / sqrt(burstiness): 1 is Poisson, smaller is burstier. Gaps are summed as drawn, never
    clipped or rescaled: that would change the process. A gamma run starts at an arrival, which in the mean adds
    (1 / burstiness - 1) / 2 requests to a long one (Cox, Renewal Theory, 4.2).
    """
    _check("rate", rate, "requests/s")
    _check("burstiness", burstiness, "a gamma shape")
    _check_size(rate, count, duration_s)
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


def _renewal(gaps: Callable[[int], Seconds], count: int | None, end_s: float) -> Seconds:
    """Sums of independent gaps: `count` of them, or as many as it takes to reach `end_s` if that is fewer."""
    blocks: list[Seconds] = []
    wanted, last_s = MAX_ARRIVALS if count is None else count, 0.0
    while len(blocks) * _BLOCK < wanted and last_s < end_s:
        blocks.append(last_s + np.cumsum(gaps(_BLOCK)))
        last_s = float(blocks[-1][-1])
    if count is None and last_s < end_s:
        raise LoadgenError(f"more than {MAX_ARRIVALS:,} requests before {end_s:g} s: expected a less bursty process")
    return np.concatenate(blocks)[:wanted]


def _check_size(rate: float, count: int | None, duration_s: float | None) -> None:
    if duration_s is not None:
        _check("duration", duration_s, "seconds")
    if count is not None and count < 1:
        raise LoadgenError(f"{count} requests: expected at least 1")
    if count is None and duration_s is None:
        raise ValueError("offsets without an end: give count or duration_s")
    expected = rate * (duration_s or 0.0) if count is None else count
    if expected > MAX_ARRIVALS:
        raise LoadgenError(f"{expected:.3g} requests: expected at most {MAX_ARRIVALS:,} in one run")


def _check(what: str, value: float, unit: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise LoadgenError(f"{what} {value}: expected {unit}, finite and above 0")


def index_of_dispersion(offsets_s: Seconds, window_s: float) -> float | None:
    """Variance / mean of the counts in whole windows from the first arrival on: 1 for Poisson, 0 for clockwork.

    None with fewer than two whole windows. Empty windows count: they are computed, not stored.
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


def ks_exponential(gaps_s: Seconds) -> tuple[float, float]:
    """(largest distance between the gaps' distribution and an exponential of their mean, its 5 % critical value).

    The critical value is Stephens' for a mean taken from the sample itself: D < 0.2/n + 1.094 / (sqrt n + 0.26 +
    0.5/sqrt n) (M. A. Stephens, EDF Statistics for Goodness of Fit, JASA 69, 1974, table 1, case of the exponential).
    """
    n = len(gaps_s)
    if n < 2 or not np.any(gaps_s > 0):
        raise ValueError("needs two gaps or more, not all 0")
    below = -np.expm1(-np.sort(gaps_s) / gaps_s.mean())
    step = np.arange(n + 1) / n
    distance = max(float(np.max(step[1:] - below)), float(np.max(below - step[:-1])))
    return distance, 0.2 / n + 1.094 / (math.sqrt(n) + 0.26 + 0.5 / math.sqrt(n))


# -- other rates from given arrivals, and rates that change -----------------------------------------------------------


def thin(offsets_s: Seconds, keep: float, rng: np.random.Generator) -> Seconds:
    """Each arrival kept with probability `keep`: a lower rate whose bursts last as long as before.

    Squeezing time (`trace.rescale`) keeps every burst's size and changes how long it lasts; this does the opposite.
    The index of dispersion over a fixed window goes from D to 1 + keep (D - 1): thinned enough, anything is Poisson.
    """
    if not 0 < keep <= 1:
        raise LoadgenError(f"share {keep} of the arrivals: expected above 0 and at most 1")
    return np.asarray(offsets_s[rng.random(len(offsets_s)) < keep])


def superpose(*streams: Seconds) -> Seconds:
    """All arrivals of all streams in order: a higher rate, as from more independent users."""
    return np.sort(np.concatenate(streams)) if streams else np.zeros(0)


def changing(points: list[tuple[float, float]], rng: np.random.Generator) -> Seconds:
    """A Poisson process whose rate goes in straight lines through (second, requests/s) points.

    A ramp is two points; a step is two points at one second. It ends at the last point. Drawn at the highest rate and
    thinned to the rate of the moment (Lewis and Shedler, Naval Research Logistics 26, 1979).
    """
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    seconds, rates = table[:, 0], table[:, 1]
    if len(table) < 2 or seconds[0] != 0 or np.any(np.diff(seconds) < 0) or np.any(rates < 0):
        raise LoadgenError(f"rates {points}: expected two points or more, from second 0 on, in order, none below 0")
    highest = float(rates.max())
    arrivals = offsets("poisson", highest, rng, duration_s=float(seconds[-1]))
    return np.asarray(arrivals[rng.random(len(arrivals)) * highest < np.interp(arrivals, seconds, rates)])


# -- did they come as asked? ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Realised:
    """Arrivals against the process that was asked for; None where there are too few to tell."""

    rate: float | None
    gap_cv: float | None
    """Standard deviation / mean of the gaps: 1 / sqrt(burstiness) for gamma, 0 for constant."""
    dispersion: float | None
    """Variance / mean of the counts in whole seconds."""
    ks: float | None
    """Distance of the gaps from an exponential of their mean; poisson only."""
    ks_critical: float | None
    verdict: str | None
    """What is wrong; None when nothing is."""


def realised(offsets_s: Seconds, process: str, rate: float | None, burstiness: float = 1.0) -> Realised:
    """For Poisson the gaps must pass Kolmogorov-Smirnov at 5 %; for any process the rate must lie within four standard
    errors (CV / sqrt(gaps)) of what was asked, and for a clock within 1 %."""
    gaps = np.diff(offsets_s)
    if len(gaps) < 2 or gaps.sum() <= 0:
        return Realised(None, None, None, None, None, None)
    got, cv = len(gaps) / float(gaps.sum()), float(gaps.std() / gaps.mean())
    ks, critical = ks_exponential(gaps) if process == "poisson" else (None, None)
    expected_cv = {"poisson": 1.0, "gamma": burstiness**-0.5, "constant": 0.0}.get(process, cv)
    faults = []
    if rate is not None and abs(got / rate - 1) > max(4 * expected_cv / math.sqrt(len(gaps)), 0.01):
        faults.append(f"{got:.4g} requests/s instead of {rate:.4g}")
    if ks is not None and critical is not None and ks > critical:
        faults.append(f"gaps are not exponential (KS {ks:.3f} > {critical:.3f})")
    if process == "constant" and cv > 0.1:
        faults.append(f"gaps vary by {cv:.0%} though they were to be constant")
    dispersion = index_of_dispersion(offsets_s, 1.0)
    return Realised(got, cv, dispersion, ks, critical, "; ".join(faults) or None)
