"""Cumulative energy over time.

Every source ends up here as the same thing: points (t, joules since the source was opened) that never go down. Counters
are unwrapped and power is integrated by the meter, so that no reader downstream has to know which it was.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.units import mj_from_j


class EnergyDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that has joules of its own: a GPU, a CPU package."""

    name: str
    """Like "gpu:0", "cpu:package-0", "dram:0". One name means one counter through the whole run."""
    source: str
    """Like "nvml-counter", "nvml-power", "rapl", "simulated", "estimate": how the joules came to be."""
    uuid: str | None = None
    period_s: float | None = None
    """How often the source moves; None until it is known."""
    within: str | None = None
    """The domain that already contains this one. Never add the two."""


class EnergySample(msgspec.Struct, frozen=True, omit_defaults=True):
    """`joules` had flowed by `t_ns`, counted from an arbitrary zero that stays put for the run."""

    t_ns: int
    domain: str
    joules: float
    slack_ns: int = 0
    """The counter moved at t_ns, give or take this much: half the time between two polls, or a remote clock's error."""
    gap: bool = False
    """True: what flowed since the sample before is unknown (the counter restarted). `joules` repeats the last value,
    so that later differences are true, but the 0 between the two is no measurement."""


class EnergyWindow(NamedTuple):
    """Between two moves of the counter. `millijoules` is exact: a difference of two readings."""

    start_ns: int
    end_ns: int
    millijoules: int
    known: bool = True
    """False: the counter restarted in here; millijoules is 0 and means nothing."""


@dataclass(frozen=True)
class EnergySeries:
    """One domain's change points, in time order.

    t_ns: int64[n], strictly increasing. mj: int64[n], cumulative millijoules, never decreasing.
    slack_ns: int64[n], how far each move may lie from its t_ns (None: nowhere).
    gap: bool[n], True where the energy since the point before is unknown (None: nowhere).
    """

    domain: str
    t_ns: NDArray[np.int64]
    mj: NDArray[np.int64]
    slack_ns: NDArray[np.int64] | None = None
    gap: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.t_ns)

    @property
    def total_mj(self) -> int:
        """All energy known between the first and the last point; 0 when there are fewer than two."""
        return int(self.mj[-1] - self.mj[0]) if len(self) > 1 else 0

    @property
    def unknown_ns(self) -> int:
        """How much of the series lies in gaps, where `total_mj` counts nothing."""
        return 0 if self.gap is None else int(np.diff(self.t_ns)[self.gap[1:]].sum())

    def energy_mj(self, start_ns: int, end_ns: int) -> float | None:
        """Millijoules in [start, end], interpolating the cumulative curve; None outside what is known."""
        if not self._knows(start_ns, end_ns):
            return None
        at_start, at_end = np.interp([start_ns, end_ns], self.t_ns, self.mj)
        return float(at_end - at_start)

    def u_mj(self, start_ns: int, end_ns: int) -> float | None:
        """The most that `energy_mj` of the same interval can be wrong by, for a counter that is right when it moves.

        The true curve never goes down, so at an edge it lies between the last move that was surely before it and the
        first that was surely after: one step of the counter, or two where the slack leaves open on which side one is.
        """
        if not self._knows(start_ns, end_ns):
            return None
        return self._edge_mj(start_ns) + self._edge_mj(end_ns)

    def _edge_mj(self, t_ns: int) -> float:
        slack_ns = np.zeros_like(self.t_ns) if self.slack_ns is None else self.slack_ns
        before = int(np.searchsorted(self.t_ns, t_ns, side="right")) - 1
        while before > 0 and self.t_ns[before] + slack_ns[before] > t_ns:
            before -= 1
        after = int(np.searchsorted(self.t_ns, t_ns, side="left"))
        while after < len(self) - 1 and self.t_ns[after] - slack_ns[after] < t_ns:
            after += 1
        estimate = float(np.interp(t_ns, self.t_ns, self.mj))
        return max(estimate - float(self.mj[before]), float(self.mj[after]) - estimate)

    def _knows(self, start_ns: int, end_ns: int) -> bool:
        if len(self) < 2 or start_ns < self.t_ns[0] or end_ns > self.t_ns[-1]:
            return False
        if self.gap is None:
            return True
        first = int(np.searchsorted(self.t_ns, start_ns, side="right"))
        last = int(np.searchsorted(self.t_ns, end_ns, side="left"))
        return not self.gap[first : last + 1].any()

    def windows(self) -> Iterator[EnergyWindow]:
        """Every interval between neighbouring points. They tile the series: their energies sum to `total_mj`."""
        for i in range(len(self) - 1):
            known = self.gap is None or not self.gap[i + 1]
            yield EnergyWindow(int(self.t_ns[i]), int(self.t_ns[i + 1]), int(self.mj[i + 1] - self.mj[i]), known)

    def clip(self, start_ns: int, end_ns: int) -> "EnergySeries":
        """The points that cover [start, end]: the last one before start, the first one after end, all between.

        Cut at the counter's own moves, never inside a step, so that every window stays an exact difference.
        """
        first = max(int(np.searchsorted(self.t_ns, start_ns, side="right")) - 1, 0)
        last = int(np.searchsorted(self.t_ns, end_ns, side="left")) + 1
        slack_ns = None if self.slack_ns is None else self.slack_ns[first:last]
        gap = None if self.gap is None else self.gap[first:last]
        return EnergySeries(self.domain, self.t_ns[first:last], self.mj[first:last], slack_ns, gap)


def series_by_domain(samples: Iterable[EnergySample]) -> dict[str, EnergySeries]:
    """Samples of any number of domains, in any order of domains, each domain in time order."""
    points: dict[str, list[EnergySample]] = {}
    for sample in samples:
        points.setdefault(sample.domain, []).append(sample)
    return {domain: _series(domain, of_one) for domain, of_one in points.items()}


def _series(domain: str, samples: list[EnergySample]) -> EnergySeries:
    rows = [(s.t_ns, mj_from_j(s.joules), s.slack_ns, s.gap) for s in samples]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    t_ns, mj, slack_ns, gap = table.T
    if np.any(np.diff(t_ns) <= 0) or np.any(np.diff(mj) < 0):
        raise ValueError(f"energy samples of {domain} go back in time or in joules: the meter must not let them")
    return EnergySeries(domain, t_ns, mj, slack_ns, gap.astype(np.bool_))


MIN_MOVES = 20
FIRST_MOVES = 40
"""How many moves say what the period is to begin with."""
INSIDE = 0.95
"""Share of the observed moves that a regular clock must explain."""
CLOCK_SLACK_NS = 2_000_000
"""What is left of a move's uncertainty once the counter's clock is known: its own jitter (p95 2 ms on the H200)."""


def align_to_counter_clock(series: EnergySeries) -> EnergySeries:
    """The same moves at the instants of the counter's own clock, where it has one; else the series as it is.

    A poll sees a move late: it lies somewhere in t +- slack. A counter that moves every T (the H200's: 100.0 ms) has
    its k-th move at a + T k, and hundreds of moves say what a and T are, far better than one poll says of one move.
    Each move is put there, if at least INSIDE of them then lie within their slack. One that does not, or that may be
    either of two ticks, is no point any more: its two windows become one (the first and the last move always stay).
    """
    if len(series) < MIN_MOVES or series.slack_ns is None or not series.slack_ns.any():
        return series
    t_ns = (series.t_ns - series.t_ns[0]).astype(np.float64)
    slack_ns = np.maximum(series.slack_ns, 1).astype(np.float64)
    number, sure = _move_numbers(t_ns, slack_ns)
    if sure.sum() < MIN_MOVES:
        return series
    clock_ns = np.polyval(_through(number[sure], t_ns[sure], slack_ns[sure]), number)
    inside = sure & (np.abs(clock_ns - t_ns) <= slack_ns + CLOCK_SLACK_NS)
    if inside[sure].mean() < INSIDE:
        return series
    stay = np.zeros(len(series), dtype=np.bool_) if series.gap is None else series.gap.copy()
    stay[[0, -1]] = True
    keep = inside | stay
    moved = np.where(inside, np.rint(clock_ns), t_ns).astype(np.int64)[keep] + series.t_ns[0]
    if (np.diff(moved) <= 0).any():
        return series
    left = np.where(inside, CLOCK_SLACK_NS, slack_ns).astype(np.int64)[keep]
    return EnergySeries(series.domain, moved, series.mj[keep], left, None if series.gap is None else series.gap[keep])


def _move_numbers(
    t_ns: NDArray[np.float64], slack_ns: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Which of the clock's ticks each move is, and whether it can be only that one.

    A clock is run along the moves, and pulled into the slack of each one that it has left; the period learns from it.
    """
    period = _first_period(t_ns[:FIRST_MOVES], slack_ns[:FIRST_MOVES])
    tick, number = float(t_ns[0]), 0
    numbers, sure = [0], [True]
    for t, slack in zip(t_ns[1:].tolist(), slack_ns[1:].tolist(), strict=True):
        passed = max(round((t - tick) / period), 0)
        tick += passed * period
        number += passed
        off = t - tick
        sure.append(period - abs(off) > slack + 0.05 * period)
        if sure[-1] and abs(off) > slack:
            pull = off - math.copysign(slack, off)
            tick += pull
            period += 0.7 * pull / (number + 5)
        numbers.append(number)
    return np.array(numbers, dtype=np.float64), np.array(sure)


def _first_period(t_ns: NDArray[np.float64], slack_ns: NDArray[np.float64]) -> float:
    """The median gap where polls are fine. Where they are not, gaps are multiples of the poll: their mean is right."""
    gaps = np.diff(t_ns)
    typical = float(np.median(gaps))
    if float(np.median(slack_ns)) < typical / 4:
        return typical
    return float(np.mean(gaps[gaps < 1.8 * np.mean(gaps)]))


def _through(
    number: NDArray[np.float64], t_ns: NDArray[np.float64], slack_ns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The line that passes through the slack of as many moves as can be: (period, first).

    Least squares on what of the line lies outside the slack (projections onto the intervals), then to the middle of
    what the intervals leave open, a few outliers aside.
    """
    low, high = t_ns - slack_ns, t_ns + slack_ns
    line = np.polyfit(number, t_ns, 1, w=1 / slack_ns)
    for _ in range(40):
        line = np.polyfit(number, np.clip(np.polyval(line, number), low, high), 1)
    at = np.polyval(line, number)
    line[1] += (np.percentile(low - at, 98) + np.percentile(high - at, 2)) / 2
    return line
