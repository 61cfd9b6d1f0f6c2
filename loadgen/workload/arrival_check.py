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


@dataclass(frozen=True)
class RealizedArrivals:
    """Statistics of arrivals against the requested process; None where there are too few arrivals to judge."""

    count: int
    rate: float | None = None
    gap_cv: float | None = None
    """Standard deviation / mean of the gaps: 1 / sqrt(burstiness) for gamma, 0 for constant."""
    dispersion: float | None = None
    """Variance / mean of the counts in whole seconds."""
    ks: float | None = None
    """Kolmogorov-Smirnov distance of the gaps from the process's distribution, or from the planned gaps of a trace."""
    ks_critical: float | None = None
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
    requested gamma, and a trace's own against `planned`, if given. A constant process may vary by a tenth of its gap.
    """
    requested_rps, times_s = rate, offsets_s
    if points is not None:
        times_s, rate = expected_counts(offsets_s, points), 1.0
        planned = None if planned is None else expected_counts(planned, points)
    gaps = np.diff(times_s)
    if len(gaps) < MIN_GAPS or gaps.sum() <= 0:
        return RealizedArrivals(len(offsets_s))
    scale = 1.0 if points is None else float((times_s[-1] - times_s[0]) / (offsets_s[-1] - offsets_s[0]))
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
    ks, critical = gaps_ks(gaps, process, rate, burstiness, None if planned is None else np.diff(planned))
    if ks is not None and critical is not None and ks > critical:
        law = {"poisson": "exponential", "gamma": f"of a gamma of shape {burstiness:g}"}.get(process, "those scheduled")
        faults.append(f"gaps are not {law} (KS {ks:.3f} > {critical:.3f})")
    if process == "constant" and cv > 0.1:
        faults.append(f"gaps vary by {cv:.0%} though they were to be constant")
    dispersion = index_of_dispersion(offsets_s, 1.0)
    return RealizedArrivals(len(offsets_s), measured_rate * scale, cv, dispersion, ks, critical, faults)


def gaps_ks(
    gaps: Floats, process: str, rate: float | None, burstiness: float, planned: Floats | None
) -> tuple[float | None, float | None]:
    """Return (Kolmogorov-Smirnov distance, its critical value at SIGNIFICANCE) of gaps against their process.

    `planned` are the gaps to compare a trace's own with. None for a process without a distribution to compare with.
    """
    n = len(gaps)
    if process == "poisson":
        distance, critical_5_percent = ks_exponential(gaps)
        return distance, critical_5_percent + (1.308 - 1.094) / (math.sqrt(n) + 0.26 + 0.5 / math.sqrt(n))
    if process == "gamma" and rate is not None:
        distance = ks_to_law(gamma_cdf(burstiness, np.sort(gaps) * rate * burstiness))
        return distance, 1.628 / (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    if process == "trace" and planned is not None and len(planned):
        return ks_distance(count_values(gaps), count_values(planned)), 1.628 * math.sqrt(1 / n + 1 / len(planned))
    return None, None
