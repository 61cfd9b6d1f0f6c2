"""An estimate of CPU power from utilisation, for machines without a counter. Only used when chosen by name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loadgen.clock import monotonic_ns
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.units import s_from_ns

PROC_STAT = Path("/proc/stat")
_POLL_S = 0.5
"""Ticks are 10 ms: half a second of two cores is 100 of them."""


IDLE_W, BUSY_W = 0.74, 3.5
"""Watts of a logical CPU: the Cloud Carbon Footprint project's averages over server CPUs."""


class CpuTimes(NamedTuple):
    """Ticks since boot, all CPUs together."""

    busy: int
    total: int


def read_times(stat: str) -> CpuTimes:
    """Parse the text of /proc/stat. Waiting for a disk is idle; guest time is already inside user and nice."""
    fields = stat.split("\n", 1)[0].split()
    if fields[:1] != ["cpu"] or len(fields) < 9:
        raise MeterError(f"{PROC_STAT} does not begin with the line of all CPUs")
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in fields[1:9])
    busy = user + nice + system + irq + softirq + steal
    return CpuTimes(busy, busy + idle + iowait)


class CpuEstimate:
    """Joules = P(u) times the length of each interval. P(u) = idle + (busy - idle) u, with u the share of all CPUs'
    time that was not idle."""

    poll_s = _POLL_S

    def __init__(
        self, *, stat: Path = PROC_STAT, cpus: int | None = None, clock: Callable[[], int] = monotonic_ns
    ) -> None:
        count = cpus or os.cpu_count() or 1
        self._idle_w, self._busy_w = IDLE_W * count, BUSY_W * count
        self._stat = stat
        self._clock = clock
        self._joules = 0.0
        self._last = self._observe()
        self.notes = [
            f"an estimate, not a measurement: {self._idle_w:.1f} W idle to {self._busy_w:.1f} W busy "
            f"by utilisation ({IDLE_W} to {BUSY_W} W per CPU, {count} CPUs)"
        ]

    @property
    def domains(self) -> list[EnergyDomain]:
        return [EnergyDomain(name="cpu:all", source="estimate", period_s=self.poll_s)]

    def read(self) -> Reading:
        last_ns, last = self._last
        t_ns, now = self._observe()
        if now.total <= last.total:
            return Reading([])
        self._last = t_ns, now
        busy = (now.busy - last.busy) / (now.total - last.total)
        watts = self._idle_w + (self._busy_w - self._idle_w) * busy
        self._joules += max(watts, 0.0) * s_from_ns(t_ns - last_ns)
        return Reading([EnergySample(t_ns, "cpu:all", self._joules)])

    def close(self) -> None:
        """Nothing is held open."""

    def _observe(self) -> tuple[int, CpuTimes]:
        try:
            return self._clock(), read_times(self._stat.read_text())
        except OSError as err:
            raise MeterError(f"{self._stat} cannot be read: {err.strerror}") from err
