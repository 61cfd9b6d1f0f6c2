"""Runs of a study as rows of a table, and what repeats of them say: means, intervals, reductions, the Pareto front."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, stdev

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of results.csv: one run. None is unknown."""

    cell: str
    """The run's folder."""
    server: str
    model: str
    workload: str
    batch: int | None
    """Requests kept in flight, for a closed loop."""
    rps: float | None
    """Requests per second asked for, for an open one."""
    repeat: int
    simulated: bool
    completed: int
    failed: int
    duration_s: float
    input_tokens: int | None
    output_tokens: int | None
    output_tokens_per_s: float | None
    measured_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_joules: float | None
    unattributed_joules: float | None
    mean_watts: float | None
    joules_per_output_token: float | None
    """measured / output tokens: all the energy of the run's time, idle included."""
    joules_per_request: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    e2e_p50_s: float | None
    goodput_ratio: float | None
    good_requests_per_joule: float | None
    idealized_joules: float | None
    measured_over_idealized: float | None
    energy_valid: bool
    gpu: str | None
    """Name, and the beginning of the UUID where it is known."""
    temperature_c: float | None
    """Of the hottest GPU, before the run."""
    arrival: str | None = None
    """Of an open loop: poisson, constant, "gamma 0.25" (its burstiness), trace, or streams."""
    steady_joules_per_output_token: float | None = None
    """Without the run's ramp and drain; None when it had no steady state."""
    idle_watts: float | None = None
    """Before the run, with the model resident."""


Key = tuple[str, str, str, int | None, float | None]
"""server, model, workload, batch, rps: what repeats have in common."""


@dataclass(frozen=True)
class Interval:
    """A mean of `count` repeats; low and high are None when one repeat cannot say how far repeats lie apart."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """The repeats of one configuration."""

    key: Key
    rows: tuple[Row, ...]

    def interval(self, field: str) -> Interval | None:
        values = self.values(field)
        return interval(values) if values else None

    def values(self, field: str) -> list[float]:
        return [float(value) for row in self.rows if (value := getattr(row, field)) is not None]

    def mean(self, field: str) -> float | None:
        values = self.values(field)
        return fmean(values) if values else None


def groups(rows: Iterable[Row]) -> list[Group]:
    """Repeats together, in the order of their configuration."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row.server, row.model, row.workload, row.batch, row.rps), []).append(row)
    ordered = sorted(found.items(), key=lambda item: [(part is not None, part or 0) for part in item[0][3:]])
    by_name = sorted(ordered, key=lambda item: item[0][:3])
    return [Group(key, tuple(sorted(of_one, key=lambda row: row.repeat))) for key, of_one in by_name]


def interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % interval by Student's t: mean ± t(n - 1) s / sqrt(n)."""
    n, middle = len(values), fmean(values)
    if n < 2:
        return Interval(middle, None, None, n)
    half = t95(n - 1) * stdev(values) / sqrt(n)
    return Interval(middle, middle - half, middle + half, n)


def reduction(baseline: Sequence[float], values: Sequence[float]) -> Interval:
    """1 - x/b of two sets of positive repeats: the ratio of their geometric means, Welch's interval on logarithms.

    Degrees of freedom: (u + v)² / (u²/(n - 1) + v²/(m - 1)), u and v the squared standard errors (Welch 1947).
    """
    b, x = [log(value) for value in baseline], [log(value) for value in values]
    difference, count = fmean(x) - fmean(b), min(len(b), len(x))
    if count < 2:
        return Interval(1 - exp(difference), None, None, count)
    u, v = stdev(x) ** 2 / len(x), stdev(b) ** 2 / len(b)
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(b) - 1)) if u + v > 0 else float(count)
    half = t95(max(1, int(freedom))) * sqrt(u + v)
    return Interval(1 - exp(difference), 1 - exp(difference + half), 1 - exp(difference - half), count)


def paired_reduction(baseline: Sequence[float], values: Sequence[float]) -> Interval:
    """1 - x/b where the i-th repeats of both had the same arrivals: Student's interval of the mean of log x - log b."""
    found = interval([log(x / b) for b, x in zip(baseline, values, strict=True)])
    low = None if found.high is None else 1 - exp(found.high)
    high = None if found.low is None else 1 - exp(found.low)
    return Interval(1 - exp(found.mean), low, high, found.count)


def reduction_between(baseline: Group, other: Group, field: str) -> Interval:
    """Open loops draw their arrivals from the repeat's number: equal repeats are pairs. Closed loops draw nothing."""
    b, x = ({row.repeat: v for row in g.rows if (v := getattr(row, field)) is not None} for g in (baseline, other))
    drawn = baseline.key[4] is not None and other.key[4] is not None
    if drawn and (both := sorted(b.keys() & x.keys())):
        return paired_reduction([b[i] for i in both], [x[i] for i in both])
    return reduction(list(b.values()), list(x.values()))


_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t95(freedom: int) -> float:
    """97.5 % quantile of Student's t: a table up to 10 degrees, then Fisher's expansion about the normal quantile."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z, n = 1.959964, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates (less is better), by the first coordinate."""
    front: list[int] = []
    lowest = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < lowest:
            front.append(index)
            lowest = points[index][1]
    return front
