"""CPU packages and memory, through the kernel's powercap tree (Intel RAPL; AMD serves the same files).

What contains what: core and uncore are inside their package. dram is a supply of its own on servers, *not* inside the
package, so the two add. psys is the whole platform and contains them all.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import ceiling_w, is_possible, is_rounding
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.energy.sysfs import read_number, read_text
from loadgen.errors import MeterError
from loadgen.units import UJ_PER_MJ, s_from_ns

POWERCAP = Path("/sys/class/powercap")
UJ_PER_J = 1_000_000
UPDATE_S = 0.001
"""RAPL registers move about once a millisecond (Intel SDM vol. 3, 15.10)."""
_POLL_S = 0.1


class Zone(NamedTuple):
    """One counter of the tree."""

    domain: EnergyDomain
    path: Path
    range_uj: int
    """The counter goes back to zero after this much."""


def unwrap(last_uj: int, now_uj: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that wraps at most once between them."""
    return now_uj - last_uj if now_uj >= last_uj else now_uj - last_uj + range_uj


class Wrapping:
    """One zone's counter as a sum that never goes down.

    A value below the previous one is a wrap only if the zone can have drawn what then flowed. Otherwise the counter
    restarted or jumped: what flowed since the previous value is unknown.
    """

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.resets = 0
        self._max_w = ceiling_w(zone.domain.name)
        self._last: tuple[int, int] | None = None
        """(start of the read, value) of the previous read."""
        self._total_uj = 0

    def observe(self, before_ns: int, after_ns: int, raw_uj: int) -> EnergySample:
        gap = False
        if self._last is not None:
            last_ns, last_uj = self._last
            raw_uj = last_uj if is_rounding(last_uj, raw_uj) else raw_uj
            flowed_uj = unwrap(last_uj, raw_uj, self.zone.range_uj)
            elapsed_ns = after_ns - last_ns
            if s_from_ns(elapsed_ns) * self._max_w * UJ_PER_J >= self.zone.range_uj:
                gap = True
            elif not is_possible(flowed_uj / UJ_PER_MJ, elapsed_ns, self._max_w):
                gap = True
                self.resets += 1
            self._total_uj += 0 if gap else flowed_uj
        self._last = (before_ns, raw_uj)
        t_ns, slack_ns = (before_ns + after_ns) // 2, (after_ns - before_ns) // 2
        return EnergySample(t_ns, self.zone.domain.name, self._total_uj / UJ_PER_J, slack_ns, gap)


class RaplMeter:
    """Every zone that can be read. Raises MeterError when there is none, or when a package cannot be read."""

    poll_s = _POLL_S

    def __init__(self, root: Path = POWERCAP, *, clock: Callable[[], int] = monotonic_ns) -> None:
        zones, self.notes = find_zones(root)
        if not zones:
            raise MeterError("; ".join([f"no RAPL counters here: {root}/intel-rapl:* not found", *self.notes]))
        self._counters = [Wrapping(zone) for zone in zones]
        self._clock = clock

    @property
    def domains(self) -> list[EnergyDomain]:
        return [counter.zone.domain for counter in self._counters]

    def read(self) -> Reading:
        samples: list[EnergySample] = []
        errors: list[str] = []
        earlier_resets = self._resets()
        for counter in self._counters:
            before_ns = self._clock()
            try:
                raw_uj = _read_number(counter.zone.path / "energy_uj")
            except MeterError as err:
                errors.append(f"{counter.zone.domain.name}: {err}")
            else:
                samples.append(counter.observe(before_ns, self._clock(), raw_uj))
        return Reading(samples, self._resets() - earlier_resets, tuple(errors))

    def _resets(self) -> int:
        return sum(counter.resets for counter in self._counters)

    def close(self) -> None:
        """Nothing is held open."""


def find_zones(root: Path) -> tuple[list[Zone], list[str]]:
    """Return the tree's zones, and a note for each that cannot be read or only repeats another one.

    The same package can be served twice, through MSRs (intel-rapl) and through memory-mapped registers
    (intel-rapl-mmio): counted once, the MSR one, since it has the sub-zones. Raises MeterError when a package cannot be
    read: the sum of the others would pass for that of the CPU.
    """
    zones: dict[str, Zone] = {}
    notes: list[str] = []
    tops: list[tuple[Path, str]] = []
    for path in _packages(root):
        name = _name(path)
        top = name if name == "psys" else f"cpu:{name}"
        if top in zones:
            notes.append(f"{path.name} repeats {zones[top].path.name} ({name}): left out")
            continue
        try:
            zones[top] = _zone(path, top)
            tops.append((path, top))
        except MeterError as err:
            if top != "psys":
                raise
            notes.append(f"{path.name} (psys) cannot be read: {err}")
    outer = "psys" if "psys" in zones else None
    zones = {top: zone if top == outer else _inside(zone, outer) for top, zone in zones.items()}
    for package, top in tops:
        for path in sorted(root.glob(f"{package.name}:*")):
            try:
                is_memory = (name := _name(path)) == "dram"
                domain = f"dram:{package.name.split(':')[1]}" if is_memory else f"{top}/{name}"
                if domain in zones:
                    notes.append(f"{path.name} repeats {zones[domain].path.name} ({name}): left out")
                    continue
                zones[domain] = _inside(_zone(path, domain), outer if is_memory else top)
            except MeterError as err:
                notes.append(f"{path.name} cannot be read: {err}")
    return list(zones.values()), notes


def _inside(zone: Zone, outer: str | None) -> Zone:
    return zone._replace(domain=msgspec.structs.replace(zone.domain, within=outer))


def _packages(root: Path) -> Iterator[Path]:
    """Yield the top zones; "intel-rapl:" sorts after "intel-rapl-", so the MSR ones are asked for first."""
    for prefix in ("intel-rapl", "intel-rapl-mmio"):
        yield from (path for path in sorted(root.glob(f"{prefix}:*")) if path.name.count(":") == 1)


def _name(path: Path) -> str:
    if not (name := read_text(path / "name", remedy=_remedy(path / "name"))):
        raise MeterError(f"{path}/name is empty")
    return name


def _zone(path: Path, domain: str) -> Zone:
    """Return the zone in `path`. Raises MeterError if its counter or the counter's range cannot be read."""
    described = EnergyDomain(name=domain, source="rapl", period_s=UPDATE_S)
    _read_number(path / "energy_uj")
    if (range_uj := _read_number(path / "max_energy_range_uj")) == 0:
        raise MeterError(f"{path}/max_energy_range_uj is 0")
    return Zone(described, path, range_uj)


def _read_number(path: Path) -> int:
    return read_number(path, remedy=_remedy(path))


def _remedy(path: Path) -> str:
    cure = f"sudo chmod a+r {path.parent.parent}/intel-rapl*/{path.name}"
    return f"kernels since 5.10 let only root read it; run as root, or: {cure}"
