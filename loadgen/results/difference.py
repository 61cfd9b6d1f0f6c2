"""Differences between two runs, with 95 % intervals that respect busy periods, and the reasons for having none.

The values are those of the two summaries. The interval is the difference ± t s: s is the standard error from a block
bootstrap (`stats.block_bootstrap`) and t is Student's 97.5 % quantile for as many degrees of freedom as the run has
whole blocks, less one. Latencies, joules and the ratio of goodput are resampled over requests in the order of the
schedule; rates and power over equal bins of time. Where both runs had the same schedule, the same blocks are drawn
in both, so that what the schedule does to both cancels; otherwise each run is resampled by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from loadgen.stats.block_bootstrap import block_length, resampled_weights
from loadgen.stats.intervals import t95

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary
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


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A number of summary.json in two runs. The difference is None when a side is unknown."""

    path: str
    a: float | None
    b: float | None
    difference: float | None
    """b - a."""
    half_width: float | None = None
    """Half the width of its 95 % interval: the smallest change that these two runs could have shown."""
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
    """True where both runs had the same schedule and were resampled together."""
    rows: dict[str, Difference]


def find_differences(a: RunResult, b: RunResult, names: tuple[str, str] = ("A", "B")) -> Differences:
    """Return the differences of two analysed runs, which reasons call by these names. The same runs give the same
    intervals."""
    assert a.summary is not None and b.summary is not None
    same_schedule = (a.info.schedule_sha256, a.info.seed) == (b.info.schedule_sha256, b.info.seed)
    paired = same_schedule and len(a.records) == len(b.records)
    half_widths, reasons = _half_widths([over_requests(a), over_requests(b)], paired, names)
    bins = [per_second(a), per_second(b)]
    in_time, more = _half_widths([of for of in bins if of], paired, names) if all(bins) else ({}, {})
    half_widths, reasons = half_widths | in_time, reasons | more
    if limits_of(a) != limits_of(b):
        reasons |= dict.fromkeys(("goodput.ratio", "goodput.rps"), f"{names[0]} and {names[1]} have other limits")
    return Differences(
        paired=paired,
        rows={
            path: _difference(
                path, _value(a.summary, path), _value(b.summary, path), half_widths.get(path), reasons.get(path), names
            )
            for path in PATHS
        },
    )


def _value(summary: Summary, path: str) -> float | None:
    value: Any = summary
    for name in path.split("."):
        value = getattr(value, name, None)
    return None if value is None else float(value)


def _difference(
    path: str,
    a: float | None,
    b: float | None,
    half_width: float | None,
    reason: str | None,
    names: tuple[str, str],
) -> Difference:
    if a is None or b is None:
        unknown = "both runs" if a is b else names[0] if a is None else names[1]
        return Difference(path=path, a=a, b=b, difference=None, reason=f"not known in {unknown}")
    if reason or half_width is None:
        return Difference(path=path, a=a, b=b, difference=b - a, reason=reason or "its scatter is not known")
    return Difference(path=path, a=a, b=b, difference=b - a, half_width=half_width)


def _half_widths(
    pair: Sequence[Resampled], paired: bool, names: tuple[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the half width by path, and the reason by path for having none."""
    named = list(zip(names, pair, strict=True))
    reasons = {path: f"{name}: {text}" for name, run in reversed(named) for path, text in run.reasons.items()}
    shared = [paths for paths in pair[0].parts if paths in pair[1].parts]
    half_widths: dict[str, float] = {}
    cuts = {paths: _cut(pair, paths, paired) for paths in shared}
    for blocks in BLOCKS:
        chosen = [paths for paths in shared if cuts[paths] == blocks]
        half_widths |= _half_widths_of(pair, chosen, blocks, paired)
    for paths in shared:
        if cuts[paths] is None:
            runs = ", ".join(f"{run.n:,} {run.of} of {name}" for name, run in named)
            text = f"too short for how long its busy periods last: {runs}"
            reasons = dict.fromkeys(paths, text) | reasons
    return half_widths, reasons


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


def _half_widths_of(
    pair: Sequence[Resampled], chosen: Sequence[tuple[str, ...]], blocks: int, paired: bool
) -> dict[str, float]:
    """Return the half widths of the chosen statistics from resamples of so many blocks."""
    # Bins of a run that ended earlier are empty: they count as no time and nothing done in it.
    sizes = [max(run.n for run in pair)] * 2 if paired else [run.n for run in pair]
    draws: list[dict[tuple[str, ...], list[Floats]]] = [{paths: [] for paths in chosen} for _ in pair]
    for place, (run, size, drawn) in enumerate(zip(pair, sizes, draws, strict=True)):
        seed = _SEED if paired else _SEED + place
        for weights in resampled_weights(size, max(size // blocks, 1), seed) if chosen else ():
            for paths, values in drawn.items():
                values.append(run.parts[paths].statistic(weights[:, : run.n]))
    half_widths: dict[str, float] = {}
    for paths in chosen:
        of_a, of_b = (np.concatenate(drawn[paths]) for drawn in draws)
        rows = min(len(of_a), len(of_b))
        errors = np.nanstd(of_b[:rows] - of_a[:rows], axis=0, ddof=1)
        half_widths |= {path: t95(blocks - 1) * float(error) for path, error in zip(paths, errors, strict=True)}
    return half_widths
