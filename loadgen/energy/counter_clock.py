"""Infer when a counter really updated: polls see it late, but a counter with a clock of its own updates on its ticks.

A poll only says that an update lies in t +- slack (the timestamp uncertainty: half the time between two polls). A
counter that updates every T (the H200's: 100.0 ms) has its k-th update at a + T k, and hundreds of such intervals
determine a and T far better than one of them says where its own update was. This is done in three steps:

1. Number the updates. A clock runs along them: an update at t is round((t - tick) / T) ticks after the previous one.
   Where the clock then lies outside the update's interval it is pulled to the edge of the interval, by p, and T by
   PERIOD_GAIN p / (k + PERIOD_PRIOR_TICKS): a period that is wrong by dT puts the clock off by k dT after k ticks, so
   p / k estimates dT. An update is ambiguous, and excluded, when the neighbouring tick lies
   within its interval too, give or take MIN_SEPARATION of the period.
2. Fit a + T k through the intervals: least squares on the distance of the line to each interval (alternating
   projections: move each point to the nearest place of its interval, fit a line, repeat), which fixes T. All lines that
   are inside all intervals fit equally well, so `a` is put in the middle of what the intervals leave open,
   OUTLIER_PERCENT of them disregarded on each side.
3. Check. Unless MIN_EXPLAINED of the updates lie within their intervals on that clock, the counter has no clock.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats, Ints

MIN_UPDATES = 20
"""Fewer unambiguous updates do not determine a clock."""
MIN_EXPLAINED = 0.95
"""Share of the unambiguous updates that a clock must explain."""
JITTER_NS = 2_000_000
"""Uncertainty of an update once the counter's clock is known: the counter's own jitter (p95 2 ms on the H200)."""

START_UPDATES = 40
"""Updates that the first estimate of the period is made from."""
FINE_POLLS = 1 / 5
"""Polls are fine when the median slack is below this share of the median interval. Those of a regular counter, every
0.618 periods, are not: their median interval is two polls, four times the slack."""
MAX_SINGLE_INTERVAL = 1.8
"""Intervals above this many mean ones hold a missed update: they are no period."""
FIRST_PERIODS = (1.0, 1.015, 0.985, 1.03, 0.97)
"""Periods to start from, relative to the first estimate, until one explains the updates: under coarse polls the mean of
few intervals can be 1.5 % off, and the numbers then slip by a tick."""
MIN_SEPARATION = 0.05
"""Share of the period by which the neighbouring tick must lie outside an update's interval."""
PERIOD_GAIN = 0.7
"""Damping of the period's correction. The pull stems from noise too; below 1 the period does not follow it."""
PERIOD_PRIOR_TICKS = 5
"""Weight of the first estimate of the period, in ticks: the first few pulls say little about the period."""
PROJECTIONS = 40
"""Alternating projections. Each is a contraction; 40 are enough for the line to stand still within microseconds."""
OUTLIER_PERCENT = 2
"""Percentile at which an edge of the open interval of `a` is taken, so that single late reads do not close it."""


def align_to_counter_clock(series: EnergySeries) -> EnergySeries:
    """Return the series with its updates at the instants of the counter's own clock.

    A series without a clock, without slack, or with too few updates is returned itself. An update that the clock does
    not explain, or that may be either of two ticks, is dropped: its two windows become one. The first and the last
    update and those after a gap always stay.
    """
    clock = _clock_of(series)
    return series if clock is None else _moved(series, *clock)


def align_portion(series: EnergySeries, first: int) -> EnergySeries:
    """Return the updates from number `first` on, those between the ends at the instants of the clock that the whole
    series shows. The ends stay where they were seen, so that portions follow one another without a gap."""
    portion = series.at(slice(first, None))
    clock = _clock_of(series)
    if clock is None:
        return portion
    clock_ns, explained = clock[0][first:], clock[1][first:]
    explained[[0, -1]] = False
    return _moved(portion, clock_ns, explained)


def _clock_of(series: EnergySeries) -> tuple[Ints, NDArray[np.bool_]] | None:
    """Return (instant of each update on the counter's clock, whether the clock explains it); None without a clock."""
    if len(series) < MIN_UPDATES or series.slack_ns is None or not series.slack_ns.any():
        return None
    t_ns = (series.t_ns - series.t_ns[0]).astype(np.float64)
    slack_ns = np.maximum(series.slack_ns, 1).astype(np.float64)
    period_ns = _first_period(t_ns, slack_ns)
    for ratio in FIRST_PERIODS:
        ticks, unambiguous = _number_updates(t_ns, slack_ns, ratio * period_ns)
        if unambiguous.sum() < MIN_UPDATES:
            continue
        line = _fit_line(ticks[unambiguous], t_ns[unambiguous], slack_ns[unambiguous])
        clock_ns = np.polyval(line, ticks)
        explained = unambiguous & (np.abs(clock_ns - t_ns) <= slack_ns + JITTER_NS)
        if explained[unambiguous].mean() >= MIN_EXPLAINED:
            return np.rint(clock_ns).astype(np.int64) + series.t_ns[0], explained
    return None


def _moved(series: EnergySeries, clock_ns: Ints, explained: NDArray[np.bool_]) -> EnergySeries:
    """Return the series with the updates that the clock explains at its instants, without the others but for those that
    always stay; the series itself if they would be out of order."""
    permanent = np.zeros(len(series), dtype=np.bool_) if series.gap is None else series.gap.copy()
    permanent[[0, -1]] = True
    keep = explained | permanent
    aligned_ns = np.where(explained, clock_ns, series.t_ns)[keep]
    if (np.diff(aligned_ns) <= 0).any():
        return series
    kept = series.at(keep)
    slack_ns = None if kept.slack_ns is None else np.where(explained[keep], JITTER_NS, kept.slack_ns)
    return replace(kept, t_ns=aligned_ns, slack_ns=slack_ns)


def _first_period(t_ns: Floats, slack_ns: Floats) -> float:
    """Return an estimate of the period: the median interval where polls are fine, else the mean of the single ones.

    Under coarse polls all intervals are multiples of the poll, so their mean is right and their median is not.
    """
    intervals_ns = np.diff(t_ns[:START_UPDATES])
    median_ns = float(np.median(intervals_ns))
    if float(np.median(slack_ns[:START_UPDATES])) < median_ns * FINE_POLLS:
        return median_ns
    return float(np.mean(intervals_ns[intervals_ns < MAX_SINGLE_INTERVAL * np.mean(intervals_ns)]))


def _number_updates(t_ns: Floats, slack_ns: Floats, period_ns: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (tick number of each update, whether it can be only that tick); step 1 of the module's derivation."""
    tick_ns, tick = float(t_ns[0]), 0
    ticks, unambiguous = [0], [True]
    for update_ns, uncertainty_ns in zip(t_ns[1:].tolist(), slack_ns[1:].tolist(), strict=True):
        passed = max(round((update_ns - tick_ns) / period_ns), 0)
        tick_ns += passed * period_ns
        tick += passed
        offset_ns = update_ns - tick_ns
        unambiguous.append(period_ns - abs(offset_ns) > uncertainty_ns + MIN_SEPARATION * period_ns)
        if unambiguous[-1] and abs(offset_ns) > uncertainty_ns:
            pull_ns = offset_ns - math.copysign(uncertainty_ns, offset_ns)
            tick_ns += pull_ns
            period_ns += PERIOD_GAIN * pull_ns / (tick + PERIOD_PRIOR_TICKS)
        ticks.append(tick)
    numbers = np.array(ticks, dtype=np.float64)
    twice = np.diff(numbers) == 0  # a tick has one update: which of the two it is, is not known
    alone = np.concatenate(([True], ~twice)) & np.concatenate((~twice, [True]))
    return numbers, np.array(unambiguous) & alone


def _fit_line(ticks: Floats, t_ns: Floats, slack_ns: Floats) -> Floats:
    """Return (T, a) of the line through as many of the intervals t +- slack as can be; step 2 of the derivation."""
    earliest_ns, latest_ns = t_ns - slack_ns, t_ns + slack_ns
    line = np.polyfit(ticks, t_ns, 1, w=1 / slack_ns)
    slope, at_0 = line.tolist()
    centred = ticks - ticks.mean()
    per_slope = centred / (centred @ centred)
    for _ in range(PROJECTIONS):
        nearest_ns = np.clip(slope * ticks + at_0, earliest_ns, latest_ns)
        slope = float(per_slope @ nearest_ns)
        at_0 = float(nearest_ns.mean() - slope * ticks.mean())
    line_ns = slope * ticks + at_0
    lower_ns = np.percentile(earliest_ns - line_ns, 100 - OUTLIER_PERCENT)
    upper_ns = np.percentile(latest_ns - line_ns, OUTLIER_PERCENT)
    return np.array([slope, at_0 + (lower_ns + upper_ns) / 2])
