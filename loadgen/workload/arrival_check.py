"""Check of realized arrivals against the requested arrival process: rate, gap distribution and dispersion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from loadgen.stats.distributions import (
    count_values,
    gamma_cdf,
    index_of_dispersion,
    ks_distance,
    ks_exponential,
    ks_to_law,
)
from loadgen.workload.arrivals import Points, expected_counts

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

MIN_GAPS = 10
"""Fewest gaps that are judged."""
SIGNIFICANCE = 0.01
"""False-positive rate of the check: 1 % rather than 5 %, because every run shows a verdict."""
MAX_JITTER_S = 0.005
"""Gaps that differ by no more than this are the same to a clock, or by no more than a quarter of the mean gap."""
MIN_DISPERSION_S = 10
"""Shortest time over which counts in seconds tell a dispersion."""


@dataclass(frozen=True)
class RealizedArrivals:
    """Statistics of arrivals against the requested process; None where there are too few arrivals to judge."""

    count: int
    """Number of arrivals."""
    rate: float | None = None
    """Arrivals per second."""
    rate_ratio: float | None = None
    """Rate / requested rate; of a rate that changes, the mean over the same time. None when no rate was requested."""
    gap_cv: float | None = None
    """Standard deviation / mean of the gaps: 1 / sqrt(burstiness) for gamma, 0 for constant."""
    dispersion: float | None = None
    """Variance / mean of the counts in whole seconds."""
    ks: float | None = None
    """Kolmogorov-Smirnov distance of the gaps from the process's distribution, or from the planned gaps of a trace."""
    ks_critical: float | None = None
    """Distance above which the gaps are not those of the process."""
    faults: list[str] = field(default_factory=list)
    """Differences from what was requested, in words."""


def realized_arrivals(
    offsets_s: Floats,
    process: str,
    rate: float | None,
    burstiness: float = 1.0,
    points: Points | None = None,
    planned: Floats | None = None,
) -> RealizedArrivals:
    """Check sorted offsets from the run's start against `process` at `rate`, or at the rate through `points`.

    The mean gap must lie within four standard errors (CV / sqrt(gaps)) of the requested one, or 1 %; the gaps must pass
    Kolmogorov-Smirnov at SIGNIFICANCE: Poisson's against an exponential of their own mean, gamma's against the
    requested gamma. A trace's own are compared with `planned`, if given, but for MAX_JITTER_S, because many of them may
    be equal. Nine tenths of the gaps of a constant process may vary by a tenth and this jitter.
    """
    requested_rps, times_s = rate, offsets_s
    if points is not None:
        times_s, rate = expected_counts(offsets_s, points), 1.0
        planned = None if planned is None else expected_counts(planned, points)
    gaps = np.diff(times_s)
    if len(gaps) < MIN_GAPS or gaps.sum() <= 0:
        return RealizedArrivals(len(offsets_s))
    scale = 1.0 if points is None else float((times_s[-1] - times_s[0]) / (offsets_s[-1] - offsets_s[0]))
    jitter = min(MAX_JITTER_S * scale, float(gaps.mean()) / 4)
    measured_rate, cv = len(gaps) / float(gaps.sum()), float(gaps.std() / gaps.mean())
    expected_cv = {"poisson": 1.0, "gamma": burstiness**-0.5, "constant": 0.0}.get(process, cv)
    faults = []
    if rate is not None and abs(rate / measured_rate - 1) > max(4 * expected_cv / math.sqrt(len(gaps)), 0.01):
        expected_rps = (
            f"{requested_rps:.4g}"
            if points is None and requested_rps
            else f"{scale:.4g} (the mean of the shape so far)"
        )
        faults.append(f"{measured_rate * scale:.4g} requests/s instead of {expected_rps}")
    ks, critical = gaps_ks(gaps, process, rate, burstiness, None if planned is None else np.diff(planned), jitter)
    if ks is not None and critical is not None and ks > critical:
        law = {"poisson": "exponential", "gamma": f"of a gamma of shape {burstiness:g}"}.get(process, "those scheduled")
        faults.append(f"gaps are not {law} (KS {ks:.3f} > {critical:.3f})")
    off = float(np.percentile(np.abs(gaps / gaps.mean() - 1), 90))
    if process == "constant" and off > 0.1 + jitter / float(gaps.mean()):
        faults.append(f"gaps vary by {cv:.0%} though they were to be constant")
    return RealizedArrivals(
        count=len(offsets_s),
        rate=measured_rate * scale,
        rate_ratio=None if rate is None else measured_rate / rate,
        gap_cv=cv,
        dispersion=index_of_dispersion(offsets_s, 1.0) if offsets_s[-1] - offsets_s[0] >= MIN_DISPERSION_S else None,
        ks=ks,
        ks_critical=critical,
        faults=faults,
    )


def gaps_ks(
    gaps: Floats, process: str, rate: float | None, burstiness: float, planned: Floats | None, jitter: float = 0.0
) -> tuple[float | None, float | None]:
    """Return (Kolmogorov-Smirnov distance, its critical value at SIGNIFICANCE) of gaps against their process.

    `planned` are the gaps to compare a trace's own with, which may differ by `jitter`. None for a process without a
    distribution to compare with.
    """
    n = len(gaps)
    if process == "poisson":
        distance, critical_5_percent = ks_exponential(gaps)
        return distance, critical_5_percent + (1.308 - 1.094) / (math.sqrt(n) + 0.26 + 0.5 / math.sqrt(n))
    if process == "gamma" and rate is not None:
        distance = ks_to_law(gamma_cdf(burstiness, np.sort(gaps) * rate * burstiness))
        return distance, 1.628 / (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if process == "trace" and planned is not None and len(planned):
        return ks_distance(count_values(gaps), count_values(planned), jitter), 1.628 * math.sqrt(
            1 / n + 1 / len(planned)
        )
    return None, None
