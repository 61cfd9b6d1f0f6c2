"""When requests come: offsets in seconds from the start, and how to tell whether they came as asked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.errors import LoadgenError

Process = Literal["poisson", "gamma", "constant"]

Seconds = NDArray[np.float64]
Numbers = NDArray[np.int64]
Points = Sequence[tuple[float, float]]
"""(second, requests/s), in order: the rate goes in straight lines through them."""

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


def thinned(groups: Numbers, keep: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which arrivals stay when each group of them does with probability `keep`: a lower rate, bursts as long as before.

    Squeezing time keeps every burst's size and changes how long it lasts; this does the opposite. With every arrival
    its own group, the index of dispersion over a fixed window goes from D to 1 + keep (D - 1): thinned enough, anything
    is Poisson.
    """
    if not 0 < keep <= 1:
        raise LoadgenError(f"share {keep} of the arrivals: expected above 0 and at most 1")
    _, which = np.unique(groups, return_inverse=True)
    return np.asarray((rng.random(int(which.max(initial=-1)) + 1) < keep)[which])


class Superposed(NamedTuple):
    """Arrivals in order; which arrival of the source each is; and in which copy, counted so that 2 k are those of copy
    k after its shift and 2 k + 1 those that the shift took round the end. The first copy is not shifted."""

    offsets_s: Seconds
    picks: Numbers
    laps: Numbers


def superposed(offsets_s: Seconds, groups: Numbers, times: float, rng: np.random.Generator) -> Superposed:
    """`times` as many arrivals in the same time, as from more users: copies that each begin elsewhere in the source and
    go round, the last of them thinned. Variance and mean of the counts both add: the index of dispersion stays."""
    if not (math.isfinite(times) and times > 0 and times * len(offsets_s) <= MAX_ARRIVALS):
        raise LoadgenError(
            f"{times:.3g} times {len(offsets_s):,} arrivals: expected at most {MAX_ARRIVALS:,} in one run"
        )
    start_s, span_s = float(offsets_s[0]), cycle_s(offsets_s)
    copies = []
    for copy in range(math.ceil(times)):
        at = offsets_s - start_s + (rng.random() * span_s if copy else 0.0)
        picks = np.arange(len(offsets_s)) if copy < int(times) else np.flatnonzero(thinned(groups, times % 1, rng))
        copies.append((at[picks] % span_s, picks, 2 * copy + (at[picks] >= span_s)))
    joined = [np.concatenate(column) for column in zip(*copies, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return Superposed(*(column[order] for column in joined))


def cycle_s(offsets_s: Seconds) -> float:
    """How long arrivals last that go round: from the first to the last, and a mean gap. LoadgenError without one."""
    if len(offsets_s) < 2 or offsets_s[-1] <= offsets_s[0]:
        raise LoadgenError("every request of the trace arrives at the same instant: it has no rate to scale")
    return float(offsets_s[-1] - offsets_s[0]) * len(offsets_s) / (len(offsets_s) - 1)


def points_of(shape: str) -> Points:
    """(second, requests/s) points of `ramp:FROM:TO:SECONDS` or `step:RATE:RATE:...:SECONDS` (each rate that long)."""
    kind, *numbers = shape.split(":")
    try:
        *rates, length_s = map(float, numbers)
    except ValueError:
        rates, length_s = [], math.nan
    sound = all(math.isfinite(rate) and rate >= 0 for rate in rates) and any(rates)
    if not (sound and math.isfinite(length_s) and length_s > 0 and len(rates) >= 2):
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


def expected(at_s: Seconds, points: Points) -> Seconds:
    """How many arrivals the rate through `points` gives up to each second: its integral. The last rate goes on.

    Arrivals of any process, put through this, come at rate 1 when they came as asked (the time-rescaling theorem: E. N.
    Brown et al., Neural Computation 14, 2002).
    """
    seconds, rates, counts = _table(points)
    k = np.clip(np.searchsorted(seconds, at_s, side="right") - 1, 0, len(seconds) - 1)
    since = at_s - seconds[k]
    return np.asarray(counts[k] + rates[k] * since + _slopes(seconds, rates)[k] * since**2 / 2)


def warped(operational: Seconds, points: Points) -> Seconds:
    """Arrivals of rate 1 -> arrivals of the rate through `points`: the inverse of `expected`. Those that a last rate of
    0 would put off for ever are left out."""
    seconds, rates, counts = _table(points)
    if rates[-1] == 0:
        operational = operational[operational < counts[-1]]
    k = np.clip(np.searchsorted(counts, operational, side="right") - 1, 0, len(seconds) - 1)
    rate, slope, left = rates[k], _slopes(seconds, rates)[k], operational - counts[k]
    root = rate + np.sqrt(np.maximum(rate**2 + 2 * slope * left, 0.0))
    return np.asarray(seconds[k] + np.divide(2 * left, root, out=np.zeros_like(left), where=root > 0))


def _table(points: Points) -> tuple[Seconds, Seconds, Seconds]:
    """Seconds, rates from each second on, and arrivals expected until then."""
    seconds, rates = np.array(points, dtype=np.float64).T
    counts = np.concatenate(([0.0], np.cumsum(np.diff(seconds) * (rates[1:] + rates[:-1]) / 2)))
    return seconds, rates, counts


def _slopes(seconds: Seconds, rates: Seconds) -> Seconds:
    length = np.diff(seconds)
    return np.append(np.divide(np.diff(rates), length, out=np.zeros_like(length), where=length > 0), 0.0)


# -- did they come as asked? ------------------------------------------------------------------------------------------

MIN_GAPS = 10
"""With fewer, nothing is said."""
SIGNIFICANCE = 0.01
"""A run of what was asked is told otherwise once in a hundred, not once in twenty: somebody reads every verdict."""


@dataclass(frozen=True)
class RealizedArrivals:
    """Arrivals against the process that was asked for; None where there are too few to tell."""

    count: int
    rate: float | None = None
    gap_cv: float | None = None
    """Standard deviation / mean of the gaps: 1 / sqrt(burstiness) for gamma, 0 for constant."""
    dispersion: float | None = None
    """Variance / mean of the counts in whole seconds."""
    ks: float | None = None
    """Distance of the gaps from what was asked: the process's law, or with `planned` the gaps of that."""
    ks_critical: float | None = None
    faults: list[str] = field(default_factory=list)
    """How they differ from what was asked, in words."""


def realized_arrivals(
    offsets_s: Seconds,
    process: str,
    rate: float | None,
    burstiness: float = 1.0,
    points: Points | None = None,
    planned: Seconds | None = None,
) -> RealizedArrivals:
    """Sorted offsets from the run's start, against `process` at `rate`, or at the rate through `points`.

    The mean gap must lie within four standard errors (CV / sqrt(gaps)) of what was asked, or 1 %; the gaps must pass
    Kolmogorov-Smirnov at SIGNIFICANCE: Poisson's against an exponential of their own mean, gamma's against the gamma
    asked for, and a trace's own against `planned`, if given. A constant process may vary by a tenth of its gap.
    """
    rate_asked, at = rate, offsets_s
    if points is not None:
        at, rate = expected(offsets_s, points), 1.0
        planned = None if planned is None else expected(planned, points)
    gaps = np.diff(at)
    if len(gaps) < MIN_GAPS or gaps.sum() <= 0:
        return RealizedArrivals(len(offsets_s))
    scale = 1.0 if points is None else float((at[-1] - at[0]) / (offsets_s[-1] - offsets_s[0]))
    got, cv = len(gaps) / float(gaps.sum()), float(gaps.std() / gaps.mean())
    expected_cv = {"poisson": 1.0, "gamma": burstiness**-0.5, "constant": 0.0}.get(process, cv)
    faults = []
    if rate is not None and abs(rate / got - 1) > max(4 * expected_cv / math.sqrt(len(gaps)), 0.01):
        wanted = f"{rate_asked:.4g}" if points is None and rate_asked else f"{scale:.4g} (the mean of the shape so far)"
        faults.append(f"{got * scale:.4g} requests/s instead of {wanted}")
    ks, critical = _ks(gaps, process, rate, burstiness, None if planned is None else np.diff(planned))
    if ks is not None and critical is not None and ks > critical:
        law = {"poisson": "exponential", "gamma": f"of a gamma of shape {burstiness:g}"}.get(process, "those scheduled")
        faults.append(f"gaps are not {law} (KS {ks:.3f} > {critical:.3f})")
    if process == "constant" and cv > 0.1:
        faults.append(f"gaps vary by {cv:.0%} though they were to be constant")
    dispersion = index_of_dispersion(offsets_s, 1.0)
    return RealizedArrivals(len(offsets_s), got * scale, cv, dispersion, ks, critical, faults)


def _ks(
    gaps: Seconds, process: str, rate: float | None, burstiness: float, planned: Seconds | None
) -> tuple[float | None, float | None]:
    """(distance, critical value at SIGNIFICANCE); None where there is no law to be near."""
    n = len(gaps)
    if process == "poisson":
        distance, at_5_percent = ks_exponential(gaps)
        return distance, at_5_percent + (1.308 - 1.094) / (math.sqrt(n) + 0.26 + 0.5 / math.sqrt(n))
    if process == "gamma" and rate is not None:
        below = gamma_below(burstiness, np.sort(gaps) * rate * burstiness)
        step = np.arange(n + 1) / n
        distance = max(float(np.max(step[1:] - below)), float(np.max(below - step[:-1])))
        return distance, 1.628 / (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if process == "trace" and planned is not None and len(planned):
        at = np.sort(np.concatenate((gaps, planned)))
        shares = [np.searchsorted(np.sort(side), at, side="right") / len(side) for side in (gaps, planned)]
        return float(np.max(np.abs(shares[0] - shares[1]))), 1.628 * math.sqrt(1 / n + 1 / len(planned))
    return None, None


def gamma_below(shape: float, x: Seconds) -> Seconds:
    """P(X <= x) for gamma of `shape`, scale 1: x^a e^-x / Gamma(a + 1) (1 + x/(a+1) + x^2/((a+1)(a+2)) + ...).

    (Abramowitz and Stegun, 6.5.29.) Every term is positive: nothing cancels.
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
