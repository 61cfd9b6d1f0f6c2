"""Confidence intervals of means and ratios, and the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Interval:
    """A mean of `count` repeats; low and high are None when these repeats do not show how far repeats lie apart: one
    does not, nor do a few whose interval would leave the range of the quantity."""

    mean: float
    low: float | None
    high: float | None
    count: int


def interval(values: Sequence[float], lowest: float = -inf, highest: float = inf) -> Interval:
    """Return the mean and its 95 % interval by Student's t: mean ± t(n - 1) s / sqrt(n).

    The quantity lies between `lowest` and `highest`. An interval that reaches beyond them is no claim: its ends are
    None.
    """
    n, middle = len(values), fmean(values)
    if n < 2:
        return Interval(middle, None, None, n)
    half = t95(n - 1) * stdev(values) / sqrt(n)
    if middle - half < lowest or middle + half > highest:
        return Interval(middle, None, None, n)
    return Interval(middle, middle - half, middle + half, n)


def reduction(baseline: Sequence[float], values: Sequence[float]) -> Interval:
    """Return 1 - x/b of two sets of positive repeats: geometric means' ratio, with Welch's interval on logarithms."""
    b, x = [log(value) for value in baseline], [log(value) for value in values]
    difference, count = fmean(x) - fmean(b), min(len(b), len(x))
    if count < 2:
        return Interval(1 - exp(difference), None, None, count)
    error, freedom = welch(b, x)
    half = t95(freedom) * error
    return Interval(1 - exp(difference), 1 - exp(difference + half), 1 - exp(difference - half), count)


def paired_reduction(baseline: Sequence[float], values: Sequence[float]) -> Interval:
    """Return 1 - x/b where the i-th repeats of both had the same arrivals.

    The interval is Student's, of the mean of log x - log b.
    """
    log_ratio = interval([log(x / b) for b, x in zip(baseline, values, strict=True)])
    low = None if log_ratio.high is None else 1 - exp(log_ratio.high)
    high = None if log_ratio.low is None else 1 - exp(log_ratio.low)
    return Interval(1 - exp(log_ratio.mean), low, high, log_ratio.count)


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return the standard error of mean(b) - mean(a), and its degrees of freedom. Both need two values."""
    return combined_error(stdev(a) / sqrt(len(a)), len(a) - 1, stdev(b) / sqrt(len(b)), len(b) - 1)


def combined_error(a: float, freedom_a: float, b: float, freedom_b: float) -> tuple[float, float]:
    """Return the standard error of the difference of two independent numbers with these standard errors, and its
    degrees of freedom, which are seldom whole.

    (a² + b²)² / (a⁴/freedom of a + b⁴/freedom of b) (Welch, The Generalization of Student's Problem when Several
    Different Population Variances are Involved, Biometrika 34, 1947).
    """
    u, v = a**2, b**2
    if u + v == 0:
        return 0.0, freedom_a + freedom_b
    return sqrt(u + v), (u + v) ** 2 / (u**2 / freedom_a + v**2 / freedom_b)


_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T80 = (1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.879)


def t95(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t: the half width of a 95 % interval, in standard errors."""
    return _quantile(_T95, 1.959964, freedom)


def t80(freedom: float) -> float:
    """Return the 80 % quantile of Student's t."""
    return _quantile(_T80, 0.841621, freedom)


def _quantile(table: Sequence[float], z: float, freedom: float) -> float:
    """Return a quantile of Student's t from 1 degree of freedom on, within 3 %: between the entries of the table its
    logarithm is interpolated in 1 / freedom."""
    if freedom >= len(table):
        return _expansion(z, freedom) if freedom > len(table) else table[-1]
    whole = int(freedom)
    part = (1 / whole - 1 / freedom) / (1 / whole - 1 / (whole + 1))
    return table[whole - 1] * exp(part * log(table[whole] / table[whole - 1]))


def student(confidence: float, freedom: int) -> float:
    """Return the half width of an interval by Student's t in standard errors, from 3 degrees of freedom on; within 4 %,
    and exact at 95 %."""
    return t95(freedom) if confidence == 0.95 else _expansion(NormalDist().inv_cdf((1 + confidence) / 2), freedom)


def _expansion(z: float, n: float) -> float:
    """Return the quantile of Student's t with n degrees of freedom from that of the normal distribution (Fisher)."""
    by_n, by_n2 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    by_n3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + by_n / n + by_n2 / n**2 + by_n3 / n**3


def detectable(half_width: float, freedom: float) -> float:
    """Return the true change that a 95 % interval of this half width shows in four of five repetitions.

    The change must exceed t(97.5 %) + t(80 %) standard errors (Cohen, Statistical Power Analysis, 1988, section 2.4, in
    the approximation by a shifted t).
    """
    return half_width * (1 + t80(freedom) / t95(freedom))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats in both coordinates, by the first coordinate.

    Less is better.
    """
    front: list[int] = []
    lowest = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < lowest:
            front.append(index)
            lowest = points[index][1]
    return front


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the mean's 95 % confidence interval over the mean; inf for fewer than 2 values."""
    if len(values) < 2:
        return inf
    return t95(len(values) - 1) * stdev(values) / sqrt(len(values)) / fmean(values)
