"""What a meter is: something that says which domains it has, and how many joules each has used so far."""

from statistics import median
from typing import NamedTuple, Protocol

from loadgen.energy.series import EnergyDomain, EnergySample, align_to_counter_clock, series_by_domain
from loadgen.units import MJ_PER_J, NS_PER_S, s_from_ns


class Reading(NamedTuple):
    """What one `read` saw: zero or more samples, oldest first, and what went wrong for some domains only."""

    samples: list[EnergySample]
    resets: int = 0
    """Counters found restarted by this read."""
    errors: tuple[str, ...] = ()
    """One line per domain that gave no answer; the others' samples are good."""
    held_back: tuple[tuple[str, str | None], ...] = ()
    """(domain, why its clocks are below what they could be, or None) for those that this read asked."""


class EnergyMeter(Protocol):
    """One energy source. Blocking: it is called from the sampler's thread only, never from the event loop."""

    @property
    def domains(self) -> list[EnergyDomain]: ...

    @property
    def notes(self) -> list[str]:
        """Provenance for people, a line each: averaging, gain, scope, what was left out and why."""
        ...

    @property
    def poll_s(self) -> float:
        """How long after the start of one read to begin the next, so that no move is missed. Ask again each time."""
        ...

    def read(self) -> Reading:
        """Cumulative, monotone joules per domain, now. Raises MeterError when there is no answer at all."""
        ...

    def close(self) -> None: ...


class CounterTrack:
    """One raw counter, polled, as change points that never go down.

    Only a move of the counter says when its value was true, so the value found first is no point: the first move is.
    A value below the last one means that the counter restarted. What flowed around the restart is lost, so the first
    move after it repeats the last joules and is marked as a gap.
    """

    LEARN = 8
    """Gaps between moves that settle the period."""
    REGULAR = 40
    """Moves, finely polled, that settle whether the counter runs on a clock of its own."""

    def __init__(self, domain: str, *, continuous: bool = False) -> None:
        """continuous: it moves far more often than it is read, so what it shows is of the moment of the read."""
        self.domain = domain
        self.resets = 0
        self._continuous = continuous
        self._raw_mj: int | None = None
        self._polled_ns = 0
        self._offset_mj = 0
        """Raw counter + offset = the series; moves at each restart."""
        self._restarted = False
        self._moved_ns: int | None = None
        self._gaps_ns: list[int] = []
        self._period_ns: int | None = None
        self._first: list[EnergySample] = []
        self.regular: bool | None = None
        """Whether its moves fit a clock, so that coarse polls will do: `on_its_own_clock` says where they were."""

    @property
    def period_s(self) -> float | None:
        """Median time between moves; None until enough of them were seen."""
        return None if self._period_ns is None else s_from_ns(self._period_ns)

    def observe(self, before_ns: int, after_ns: int, raw_mj: int) -> EnergySample | None:
        """A poll that began and ended at these instants; the sample, if the counter had moved since the last one."""
        last_mj, polled_ns = self._raw_mj, self._polled_ns
        self._raw_mj, self._polled_ns = raw_mj, before_ns
        if last_mj is None or raw_mj == last_mj:
            return None
        if raw_mj < last_mj:
            self._restart(last_mj)
            return None
        early_ns = before_ns if self._continuous else self._earliest_ns(polled_ns, after_ns)
        return self._moved(early_ns, after_ns, last_mj, raw_mj)

    def _restart(self, last_mj: int) -> None:
        self.resets += 1
        if not self._restarted:
            self._offset_mj += last_mj
        self._restarted, self._moved_ns = True, None

    def _moved(self, early_ns: int, late_ns: int, last_mj: int, raw_mj: int) -> EnergySample:
        t_ns = (early_ns + late_ns) // 2
        self._learn(t_ns)
        gap, self._restarted = self._restarted, False
        if gap:
            # The restarted counter's own value so far belongs to the gap: the series goes on from where it was.
            self._offset_mj -= raw_mj
        slack_ns = (late_ns - early_ns) // 2
        sample = EnergySample(t_ns, self.domain, (raw_mj + self._offset_mj) / MJ_PER_J, slack_ns, gap)
        self._judge(sample)
        return sample

    def _judge(self, sample: EnergySample) -> None:
        """Settles `regular`, once."""
        if self.regular is None:
            self._first.append(sample)
            if len(self._first) == self.REGULAR:
                [series] = series_by_domain(self._first).values()
                self.regular, self._first = align_to_counter_clock(series) is not series, []

    def _earliest_ns(self, polled_ns: int, after_ns: int) -> int:
        """After an outage the last of several moves is still about one period old; half as much again is for jitter."""
        return polled_ns if self._period_ns is None else max(polled_ns, after_ns - self._period_ns * 3 // 2)

    def _learn(self, t_ns: int) -> None:
        if self._moved_ns is not None and self._period_ns is None:
            self._gaps_ns.append(t_ns - self._moved_ns)
            if len(self._gaps_ns) == self.LEARN:
                self._period_ns = round(median(self._gaps_ns))
        self._moved_ns = t_ns


class PowerTrack:
    """One power reading, polled, as cumulative joules: E += (P0 + P1)/2 dt between neighbouring polls.

    Every poll counts, equal ones too. An interval longer than `max_gap_s` was not observed: a gap.
    """

    def __init__(self, domain: str, *, keep_s: float = 0.1, max_gap_s: float = 1.0) -> None:
        self.domain = domain
        self._keep_ns = round(keep_s * NS_PER_S)
        """A point this often is enough; the sum runs at every poll."""
        self._max_gap_ns = round(max_gap_s * NS_PER_S)
        self._joules = 0.0
        self._last: tuple[int, float] | None = None
        self._kept_ns: int | None = None

    def observe(self, t_ns: int, watts: float) -> list[EnergySample]:
        """The points that this poll completes: none, one, or the two ends of a gap."""
        last, self._last = self._last, (t_ns, watts)
        if last is None:
            return [self._keep(t_ns)]
        last_ns, last_w = last
        if t_ns - last_ns > self._max_gap_ns:
            ends = [] if last_ns == self._kept_ns else [self._keep(last_ns)]
            return [*ends, self._keep(t_ns, gap=True)]
        self._joules += (last_w + watts) / 2 * s_from_ns(t_ns - last_ns)
        assert self._kept_ns is not None
        return [self._keep(t_ns)] if t_ns - self._kept_ns >= self._keep_ns else []

    def _keep(self, t_ns: int, *, gap: bool = False) -> EnergySample:
        self._kept_ns = t_ns
        return EnergySample(t_ns, self.domain, self._joules, gap=gap)
