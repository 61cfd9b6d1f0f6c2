"""Cumulative energy series from polls: of a counter that updates now and then, and of a power reading.

What no hardware can do is decided here for every source: a counter that moved by more than its domain can draw has
jumped or restarted, and the energy around that is unknown.
"""

from statistics import median

from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.series import EnergySample, series_by_domain
from loadgen.units import MJ_PER_J, NS_PER_S, s_from_ns

NJ_PER_MJ = 1_000_000
GPU_MAX_W = 10_000.0
"""Power beyond any card: the largest, NVIDIA's GB300 and AMD's MI355X, are built for 1,400 W."""
PACKAGE_MAX_W = 2_000.0
"""Power beyond any CPU package: the largest, EPYC 9965 and Xeon 6980P, are built for 500 W."""
PLATFORM_MAX_W = 20_000.0
"""Power beyond a whole machine: a DGX B200 with its eight GPUs is built for 14,300 W."""
AGE_NS = NS_PER_S // 10
"""A counter's value may be older than its read by as much as the period of the slowest hardware counter."""
ROUNDING = 1e-6
"""Share of a counter's value by which it may fall without having restarted: sums of floats are that inexact."""


def ceiling_w(domain: str) -> float:
    """Return the watts that the domain of this name cannot exceed."""
    if domain.startswith("gpu:"):
        return GPU_MAX_W
    return PACKAGE_MAX_W if domain.startswith(("cpu:package", "cpu:socket", "dram:")) else PLATFORM_MAX_W


def is_possible(millijoules: float, elapsed_ns: int, max_w: float) -> bool:
    """Return True if a domain of at most `max_w` can have used this energy in this time."""
    return 0 <= millijoules * NJ_PER_MJ <= max_w * (elapsed_ns + AGE_NS)


def is_rounding(previous: float, value: float) -> bool:
    """Return True if a counter that fell to `value` did so by rounding, not because it restarted."""
    return previous * (1 - ROUNDING) <= value < previous


class CounterTrack:
    """Change points, which never go down, of one raw counter that is polled.

    Only an update of the counter says when its value was true, so the first value is no point: the first update is.
    A value below the previous one means that the counter restarted. The energy around the restart is lost, so the first
    update after it repeats the last joules and is marked as a gap. So is an update by more than `max_w` allows.
    """

    PERIOD_INTERVALS = 8
    """Intervals between updates that settle the period."""
    REGULAR_UPDATES = 40
    """Finely polled updates that settle whether the counter runs on a clock of its own."""
    OUTAGE_PERIODS = (3, 2)
    """The latest of several updates is at most about one period old, even after an outage; half as much again (3 / 2)
    is for jitter."""

    def __init__(self, domain: str, *, continuous: bool = False, max_w: float = GPU_MAX_W) -> None:
        """`continuous`: it updates far more often than it is read, so that a value is true at the time of the read."""
        self.domain = domain
        self.resets = 0
        """Restarts and jumps."""
        self.regular: bool | None = None
        """True if the updates fit a clock, so that coarse polls are enough; None until that is settled."""
        self._continuous = continuous
        self._max_w = max_w
        self._raw_mj: int | None = None
        self._polled_ns = 0
        self._offset_mj = 0
        """Raw counter + offset = the series. It changes at each restart."""
        self._restarted = False
        self._updated_ns: int | None = None
        self._updated_since_ns = 0
        """Earliest instant that the latest update can have had."""
        self._intervals_ns: list[int] = []
        self._period_ns: int | None = None
        self._samples: list[EnergySample] = []
        """The updates so far, until `regular` is settled."""

    @property
    def period_s(self) -> float | None:
        """Median time between updates; None until enough of them were observed."""
        return None if self._period_ns is None else s_from_ns(self._period_ns)

    def observe(self, start_ns: int, end_ns: int, raw_mj: int) -> EnergySample | None:
        """Take the value of a poll that began and ended at these instants. Returns the sample of an update, if any."""
        previous_mj, polled_ns = self._raw_mj, self._polled_ns
        self._polled_ns = start_ns
        if previous_mj is not None and is_rounding(previous_mj, raw_mj):
            return None
        self._raw_mj = raw_mj
        if previous_mj is None or raw_mj == previous_mj:
            return None
        if raw_mj < previous_mj:
            self.resets += 1
            if not self._restarted:
                self._offset_mj += previous_mj
            self._restarted, self._updated_ns = True, None
            return None
        if self._continuous:
            earliest_ns = start_ns
        elif self._period_ns is None:
            earliest_ns = polled_ns
        else:
            factor, divisor = self.OUTAGE_PERIODS
            earliest_ns = max(polled_ns, end_ns - self._period_ns * factor // divisor)
        elapsed_ns = end_ns - self._updated_since_ns
        if self._updated_ns is not None and not is_possible(raw_mj - previous_mj, elapsed_ns, self._max_w):
            self.resets += 1
            self._offset_mj += previous_mj
            self._restarted, self._updated_ns = True, None
        return self._update(earliest_ns, end_ns, raw_mj)

    def _update(self, earliest_ns: int, latest_ns: int, raw_mj: int) -> EnergySample:
        """Make the sample of an update between these instants, and learn the period and the regularity from it."""
        t_ns = (earliest_ns + latest_ns) // 2
        if self._updated_ns is not None and self._period_ns is None:
            self._intervals_ns.append(t_ns - self._updated_ns)
            if len(self._intervals_ns) == self.PERIOD_INTERVALS:
                self._period_ns = round(median(self._intervals_ns))
        self._updated_ns, self._updated_since_ns = t_ns, earliest_ns
        gap, self._restarted = self._restarted, False
        if gap:
            # The restarted counter's own value so far belongs to the gap: the series continues from where it was.
            self._offset_mj -= raw_mj
        slack_ns = (latest_ns - earliest_ns) // 2
        sample = EnergySample(t_ns, self.domain, (raw_mj + self._offset_mj) / MJ_PER_J, slack_ns, gap)
        if self.regular is None:
            self._samples.append(sample)
            if len(self._samples) == self.REGULAR_UPDATES:
                [series] = series_by_domain(self._samples).values()
                self.regular, self._samples = align_to_counter_clock(series) is not series, []
        return sample


class PowerTrack:
    """Cumulative joules of one power reading that is polled: E += (P0 + P1)/2 dt between neighbouring polls.

    Every poll counts, equal ones too. An interval longer than `max_gap_s` was not observed: it is a gap.
    """

    def __init__(self, domain: str, *, keep_s: float = 0.1, max_gap_s: float = 1.0) -> None:
        self.domain = domain
        self._keep_ns = round(keep_s * NS_PER_S)
        """Least time between points; the sum runs at every poll."""
        self._max_gap_ns = round(max_gap_s * NS_PER_S)
        self._joules = 0.0
        self._previous: tuple[int, float] | None = None
        self._kept_ns: int | None = None

    def observe(self, t_ns: int, watts: float) -> list[EnergySample]:
        """Return the points that this poll completes: none, one, or the two ends of a gap."""
        previous, self._previous = self._previous, (t_ns, watts)
        if previous is None:
            return [self._keep(t_ns)]
        previous_ns, previous_w = previous
        if t_ns - previous_ns > self._max_gap_ns:
            ends = [] if previous_ns == self._kept_ns else [self._keep(previous_ns)]
            return [*ends, self._keep(t_ns, gap=True)]
        self._joules += (previous_w + watts) / 2 * s_from_ns(t_ns - previous_ns)
        assert self._kept_ns is not None
        return [self._keep(t_ns)] if t_ns - self._kept_ns >= self._keep_ns else []

    def _keep(self, t_ns: int, *, gap: bool = False) -> EnergySample:
        self._kept_ns = t_ns
        return EnergySample(t_ns, self.domain, self._joules, gap=gap)
