"""Differences between two runs, with 95 % intervals that respect busy periods, and the reasons for having none.

The values are those of the two summaries. The interval is the difference ± t s: s is the standard error from a block
bootstrap (`stats.block_bootstrap`) and t is Student's 97.5 % quantile for as many degrees of freedom as the run has
whole blocks, less one. Latencies, joules and the ratio of goodput are resampled over requests in the order of the
schedule; rates and power over equal bins of time. Where both runs had the same schedule, the same blocks are drawn
in both, so that what the schedule does to both cancels; otherwise each run is resampled by itself.
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
from loadgen.stats.intervals import detectable, t95, welch

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
BLOCKS = (12, 8)
"""Numbers of blocks that a run is cut into: the first that leaves them long enough."""
LENGTHS = 2
"""Least length of a block, in lengths that are best for a variance. That length makes the variance somewhat small, and
so makes false alarms (docs/concepts/compare.md counts them)."""
_SEED = 1_989


class StandardError(NamedTuple):
    """The standard error of a difference, and the degrees of freedom that it was estimated with."""

    value: float
    freedom: int


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
    errors: dict[str, StandardError] = {}
    cuts = {paths: _cut(pair, paths, paired) for paths in shared}
    for blocks in BLOCKS:
        chosen = [paths for paths in shared if cuts[paths] == blocks]
        errors |= _errors_of(pair, chosen, blocks, paired)
    for paths in shared:
        if cuts[paths] is None:
            runs = ", ".join(f"{run.n:,} {run.of} of {name}" for name, run in named)
            text = f"too short for how long its busy periods last: {runs}"
            reasons = dict.fromkeys(paths, text) | reasons
    return errors, reasons


def _cut(pair: Sequence[Resampled], paths: tuple[str, ...], paired: bool) -> int | None:
    """Return the number of blocks for a statistic; None where no number leaves them long enough in both runs."""
    series = [run.parts[paths].series for run in pair]
    if paired:
        # What both runs have in common cancels: blocks need only outlast the dependence of the differences.
        common = min(run.n for run in pair)
        series = [series[1][:common] - series[0][:common]]
    if min(len(one) for one in series) < MIN_REQUESTS:
        return None
    needed = [(len(one), LENGTHS * block_length(one)) for one in series]
    return next((blocks for blocks in BLOCKS if all(n // blocks >= length for n, length in needed)), None)


def _errors_of(
    pair: Sequence[Resampled], chosen: Sequence[tuple[str, ...]], blocks: int, paired: bool
) -> dict[str, StandardError]:
    """Return the standard errors of the chosen statistics from resamples of so many blocks."""
    # Bins of a run that ended earlier are empty: they count as no time and nothing done in it.
    sizes = [max(run.n for run in pair)] * 2 if paired else [run.n for run in pair]
    draws: list[dict[tuple[str, ...], list[Floats]]] = [{paths: [] for paths in chosen} for _ in pair]
    for place, (run, size, drawn) in enumerate(zip(pair, sizes, draws, strict=True)):
        seed = _SEED if paired else _SEED + place
        for weights in resampled_weights(size, max(size // blocks, 1), seed) if chosen else ():
            for paths, values in drawn.items():
                values.append(run.parts[paths].statistic(weights[:, : run.n]))
    errors: dict[str, StandardError] = {}
    for paths in chosen:
        of_a, of_b = (np.concatenate(drawn[paths]) for drawn in draws)
        rows = min(len(of_a), len(of_b))
        scatter = np.nanstd(of_b[:rows] - of_a[:rows], axis=0, ddof=1)
        errors |= {path: StandardError(float(error), blocks - 1) for path, error in zip(paths, scatter, strict=True)}
    return errors


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
