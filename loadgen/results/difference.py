"""Differences between two runs, with 95 % intervals that respect busy periods, and the reasons for having none.

The values are those of the two summaries. The interval is the difference ± t s: s is the standard error from a block
bootstrap (`stats.block_bootstrap`) and t is Student's 97.5 % quantile. Latencies, joules and the ratio of goodput are
resampled over requests in the order of the schedule; rates and power over equal bins of time. Where both runs had the
same schedule, the same blocks are drawn in both, so that what the schedule does to both cancels; otherwise each run is
resampled by itself, and the two standard errors are combined (`stats.intervals.combined_error`).

A busy period that is cut by the end of a block makes the variance from blocks too small, the more so the shorter the
blocks. The variance is therefore extrapolated from two lengths: 2 V(b) - V(b/3), V the variance from blocks of length b
(the lugsail estimator with r = 3 and c = 1/2: Vats and Flegal, Lugsail lag windows for estimating time-average
covariance matrices, Biometrika 109, 2022). The degrees of freedom are those of the blocks in which the value was
decided: see `_freedom`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import stdev
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from loadgen.results.run_statistics import (
    JOULES,
    LATENCIES,
    MIN_REQUESTS,
    Resampled,
    limits_of,
    name_and,
    over_requests,
    per_second,
)
from loadgen.results.summary_paths import mean_at, value_at
from loadgen.stats.block_bootstrap import block_length, resampled_weights
from loadgen.stats.intervals import combined_error, detectable, t95, welch

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats

PATHS = (
    *(path for name in LATENCIES for path in name_and(name)),
    "goodput.ratio",
    "goodput.rps",
    "tokens.output_per_s",
    *name_and(JOULES),
    "energy.joules_per_output_token",
    "energy.mean_watts",
)
"""Numbers of summary.json that are compared, in the order of reading."""
BLOCKS = 8
"""Number of blocks that a run is cut into."""
SHORTER = 3
"""Factor by which the blocks of the second, shorter length are shorter."""
PAIRED_FREEDOM = (BLOCKS - 1) ** 2 / (2 * BLOCKS / 3 - 1)
"""Degrees of freedom of the standard error of a pair: those of a mean's variance from overlapping blocks on a circle,
which scatters less than that from disjoint ones (Künsch 1989). It is a quadratic form, whose eigenvalues w are the
Fejér kernel at the frequencies above 0, and has (sum w)² / sum w² (Satterthwaite, An Approximate Distribution of
Estimates of Variance Components, Biometrics Bulletin 2, 1946)."""
LENGTHS = 2
"""Least length of a block, in lengths that are best for a variance. With blocks of once that length there were twice as
many false alarms near capacity (docs/concepts/compare.md counts them)."""
_SEED = 1_989


class StandardError(NamedTuple):
    """The standard error of a difference, and the degrees of freedom that it was estimated with."""

    value: float
    freedom: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A number of summary.json in two runs. The difference is None when a side is unknown."""

    path: str
    a: float | None
    b: float | None
    difference: float | None
    """b - a."""
    half_width: float | None = None
    """Half the width of its 95 % interval: the smallest change that these two runs could have shown."""
    detectable: float | None = None
    """Size of a true change that such runs show in four of five comparisons."""
    reason: str = ""
    """Reason for having no interval; empty where there is one."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the ends of the interval."""
        if self.difference is None or self.half_width is None:
            return None
        return self.difference - self.half_width, self.difference + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies on one side of 0."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


class Differences(msgspec.Struct, frozen=True, kw_only=True):
    """Differences of run B from run A, by the path of the number."""

    paired: bool
    """True where both runs, or each pair of repeats, had the same schedule and were compared together."""
    rows: dict[str, Difference]


def find_differences(a: RunResult, b: RunResult, names: tuple[str, str] = ("A", "B")) -> Differences:
    """Return the differences of two analysed runs, which reasons call by these names. The same runs give the same
    intervals."""
    assert a.summary is not None and b.summary is not None
    paired = _same_schedule(a, b) and len(a.records) == len(b.records)
    errors, reasons = _errors([over_requests(a), over_requests(b)], paired, names)
    bins = [per_second(a), per_second(b)]
    in_time, more = _errors([of for of in bins if of], paired, names) if all(bins) else ({}, {})
    errors, reasons = errors | in_time, reasons | more
    if limits_of(a) != limits_of(b):
        reasons |= dict.fromkeys(("goodput.ratio", "goodput.rps"), f"{names[0]} and {names[1]} have other limits")
    return Differences(
        paired=paired,
        rows={
            path: _difference(
                path, value_at(a.summary, path), value_at(b.summary, path), errors.get(path), reasons.get(path), names
            )
            for path in PATHS
        },
    )


def _difference(
    path: str,
    a: float | None,
    b: float | None,
    error: StandardError | None,
    reason: str | None,
    names: tuple[str, str],
) -> Difference:
    if a is None or b is None:
        unknown = "both runs" if a is b else names[0] if a is None else names[1]
        return Difference(path=path, a=a, b=b, difference=None, reason=f"not known in {unknown}")
    if reason or error is None:
        return Difference(path=path, a=a, b=b, difference=b - a, reason=reason or "its scatter is not known")
    half = t95(error.freedom) * error.value
    found = detectable(half, error.freedom)
    return Difference(path=path, a=a, b=b, difference=b - a, half_width=half, detectable=found)


def _errors(
    pair: Sequence[Resampled], paired: bool, names: tuple[str, str]
) -> tuple[dict[str, StandardError], dict[str, str]]:
    """Return the standard error by path, and the reason by path for having none."""
    named = list(zip(names, pair, strict=True))
    reasons = {path: f"{name}: {text}" for name, run in reversed(named) for path, text in run.reasons.items()}
    shared = [paths for paths in pair[0].parts if paths in pair[1].parts]
    long_enough = [paths for paths in shared if _are_blocks_long_enough(pair, paths, paired)]
    for paths in shared:
        if paths not in long_enough:
            runs = ", ".join(f"{run.n:,} {run.of} of {name}" for name, run in named)
            text = f"too short for how long its busy periods last: {runs}"
            reasons = dict.fromkeys(paths, text) | reasons
    if paired:
        return _errors_of(pair, long_enough), reasons
    of_a, of_b = (_errors_of([run], long_enough, seed) for seed, run in enumerate(pair, _SEED))
    return {path: StandardError(*combined_error(*of_a[path], *of_b[path])) for path in of_a}, reasons


def _are_blocks_long_enough(pair: Sequence[Resampled], paths: tuple[str, ...], paired: bool) -> bool:
    """Return whether the blocks outlast the dependence of a statistic.

    A length that was estimated from a short run is often too small by chance. Latencies and goodput depend on the same
    queue: the longest of their lengths holds for them all.
    """
    if paired:
        # What both runs have in common cancels: blocks need only outlast the dependence of the differences.
        common = min(run.n for run in pair)
        series = [pair[1].parts[paths].series[:common] - pair[0].parts[paths].series[:common]]
    else:
        family = paths[0].startswith("energy.")
        series = [
            part.series
            for run in pair
            for paths_alike, part in run.parts.items()
            if paths_alike[0].startswith("energy.") == family
        ]
    return all(
        len(values) >= MIN_REQUESTS and len(values) // BLOCKS >= LENGTHS * block_length(values) for values in series
    )


def _errors_of(
    runs: Sequence[Resampled], chosen: Sequence[tuple[str, ...]], seed: int = _SEED
) -> dict[str, StandardError]:
    """Return the standard errors of the chosen statistics of a run, or of what a second run has more than the first.

    A busy period is in both runs of a pair, so that the differences need no extrapolation.
    """
    near = _variances(runs, chosen, BLOCKS, seed)
    if len(runs) > 1:
        return {path: StandardError(sqrt(variance), PAIRED_FREEDOM) for path, variance in near.items()}
    further = _variances(runs, chosen, SHORTER * BLOCKS, seed)
    return {
        path: StandardError(sqrt(max(near[path], 2 * near[path] - further[path])), _freedom(runs[0], path))
        for path in near
    }


def _variances(
    runs: Sequence[Resampled], chosen: Sequence[tuple[str, ...]], blocks: int, seed: int
) -> dict[str, float]:
    """Return the variance of each value over resamples of so many blocks."""
    if not chosen:  # a run of one request is too short for any
        return {}
    # Bins of a run that ended earlier are empty: they count as no time and nothing done in it.
    size = max(run.n for run in runs)
    length = max(size // blocks, 1)
    drawn: dict[tuple[str, ...], list[Floats]] = {paths: [] for paths in chosen}
    for weights in resampled_weights(size, length, seed):
        for paths, values in drawn.items():
            first, *second = (run.parts[paths].statistic(weights[:, : run.n]) for run in runs)
            values.append(second[0] - first if second else first)
    unbiased = size / (size - length)  # k / (k - 1) for k whole blocks
    return {
        path: float(variance) * unbiased
        for paths, values in drawn.items()
        for path, variance in zip(paths, np.nanvar(np.concatenate(values), axis=0, ddof=1), strict=True)
    }


def _freedom(run: Resampled, path: str) -> float:
    """Return the degrees of freedom of a standard error: one less than the blocks in which the value was decided.

    A p99 whose requests all came in one busy period was decided in one block, however many there are, and its standard
    error is a guess. The number of blocks is the inverse of the chance that two of the deciding elements share a block
    (Simpson, Measurement of Diversity, Nature 163, 1949), at most BLOCKS; the result is at least 1.
    """
    places = run.deciding.get(path)
    if places is None:
        return BLOCKS - 1
    counts = np.bincount(places * BLOCKS // run.n, minlength=BLOCKS)
    together, n = int((counts * (counts - 1)).sum()), len(places)
    decided_in = n * (n - 1) / together if together else BLOCKS
    return min(BLOCKS - 1.0, max(1.0, decided_in - 1))


# ---------------------------------------------------------------- repeats


def differences_of_sides(
    a: Sequence[RunResult], b: Sequence[RunResult], names: tuple[str, str] = ("A", "B")
) -> Differences:
    """Return the differences of two runs, or of repeats where a side has several."""
    if len(a) == len(b) == 1:
        return find_differences(a[0], b[0], names)
    return differences_of_repeats(a, b, names)


def differences_of_repeats(
    a: Sequence[RunResult], b: Sequence[RunResult], names: tuple[str, str] = ("A", "B")
) -> Differences:
    """Return the differences of the means of several analysed runs a side. The interval is Student's over the runs,
    which are independent: whatever differs between repeats is in it.

    Where the i-th runs of both sides had the same schedule, it is that of the mean of their differences; otherwise
    Welch's. A side of one run gives none.
    """
    paired = len(a) == len(b) and all(_same_schedule(*pair) for pair in zip(a, b, strict=True))
    sides = [[run.summary for run in runs if run.summary is not None] for runs in (a, b)]
    assert [len(side) for side in sides] == [len(a), len(b)]
    rows = {}
    for path in PATHS:
        of_a, of_b = (mean_at(side, path) for side in sides)
        values = [[value for summary in side if (value := value_at(summary, path)) is not None] for side in sides]
        error, reason = None, None
        if short := [name for name, side in zip(names, sides, strict=True) if len(side) < 2]:
            reason = f"{short[0]} is one run: repeat it"
        elif of_a is not None and of_b is not None:
            error = _error_of_repeats(values[0], values[1], paired)
        rows[path] = _difference(path, of_a, of_b, error, reason, names)
    return Differences(paired=paired, rows=rows)


def _error_of_repeats(a: Sequence[float], b: Sequence[float], paired: bool) -> StandardError:
    if not paired:
        return StandardError(*welch(a, b))
    changes = [y - x for x, y in zip(a, b, strict=True)]
    return StandardError(stdev(changes) / sqrt(len(changes)), len(changes) - 1)


def _same_schedule(a: RunResult, b: RunResult) -> bool:
    return (a.info.schedule_sha256, a.info.seed) == (b.info.schedule_sha256, b.info.seed)
