"""The energy of a whole machine from one number that is polled: a counter of energy, or a power."""

from loadgen.energy.counter_track import PLATFORM_MAX_W, CounterTrack, PowerTrack
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain


class MachineTrack:
    """The one domain of a meter whose number may be of either kind."""

    def __init__(
        self, hostname: str, source: str, mj_per_unit: float | None, *, poll_s: float, max_gap_s: float
    ) -> None:
        """source: begin of the domain's. mj_per_unit: millijoules of one unit of a counter; None for power in watts.
        max_gap_s: longest time between two readings of a power over which it is integrated."""
        self.name = f"machine:{hostname}"
        self._source, self._mj_per_unit, self._poll_s = source, mj_per_unit, poll_s
        self._counter = CounterTrack(self.name, max_w=PLATFORM_MAX_W)
        self._power = PowerTrack(self.name, max_gap_s=max_gap_s)

    @property
    def domain(self) -> EnergyDomain:
        if self._mj_per_unit is None:
            return EnergyDomain(name=self.name, source=f"{self._source}-power", period_s=self._poll_s)
        return EnergyDomain(name=self.name, source=f"{self._source}-counter", period_s=self._counter.period_s)

    def reading(self, start_ns: int, end_ns: int, value: float) -> Reading:
        """Return what a poll between these instants shows."""
        if self._mj_per_unit is None:
            return Reading(self._power.observe((start_ns + end_ns) // 2, value))
        resets = self._counter.resets
        sample = self._counter.observe(start_ns, end_ns, round(value * self._mj_per_unit))
        return Reading([] if sample is None else [sample], self._counter.resets - resets)
