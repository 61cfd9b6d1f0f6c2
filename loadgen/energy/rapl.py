"""CPU packages and memory, through the kernel's powercap tree (Intel RAPL; AMD serves the same files).

What contains what: core and uncore are inside their package. dram is a supply of its own on servers, *not* inside the
package, so the two add. psys is the whole platform and contains them all.
"""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from loadgen.clock import monotonic_ns
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S

POWERCAP = Path("/sys/class/powercap")
UJ_PER_J = 1_000_000
UPDATE_S = 0.001
"""RAPL registers move about once a millisecond (Intel SDM vol. 3, 15.10)."""
_POLL_S = 0.1
MAX_UJ_PER_S = 2_000 * UJ_PER_J
"""No package draws more: after a silence in which it could have wrapped twice, what flowed is unknown."""


class Zone(NamedTuple):
    """One counter of the tree."""

    domain: EnergyDomain
    path: Path
    range_uj: int
    """The counter goes back to zero after this much."""


def unwrap(last_uj: int, now_uj: int, range_uj: int) -> int:
    """Microjoules between two readings of a counter that wraps at most once between them."""
    return now_uj - last_uj if now_uj >= last_uj else now_uj - last_uj + range_uj


class _Wrapping:
    """One zone's counter as a sum that never goes down."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._last: tuple[int, int] | None = None
        self._total_uj = 0

    def observe(self, before_ns: int, after_ns: int, raw_uj: int) -> EnergySample:
        t_ns, slack_ns = (before_ns + after_ns) // 2, (after_ns - before_ns) // 2
        gap = False
        if self._last is not None:
            last_ns, last_uj = self._last
            gap = (t_ns - last_ns) * MAX_UJ_PER_S // NS_PER_S >= self.zone.range_uj
            self._total_uj += 0 if gap else unwrap(last_uj, raw_uj, self.zone.range_uj)
        self._last = (t_ns, raw_uj)
        return EnergySample(t_ns, self.zone.domain.name, self._total_uj / UJ_PER_J, slack_ns, gap)


class RaplMeter:
    """Every zone that can be read. Raises MeterError when there is none, or when reading is not allowed."""

    poll_s = _POLL_S

    def __init__(self, root: Path = POWERCAP, *, clock: Callable[[], int] = monotonic_ns) -> None:
        zones, self.notes = find_zones(root)
        if not zones:
            raise MeterError(f"no RAPL counters here: {root}/intel-rapl:* not found")
        for zone in zones:
            _read_uj(zone.path)
        self._counters = [_Wrapping(zone) for zone in zones]
        self._clock = clock

    @property
    def domains(self) -> list[EnergyDomain]:
        return [counter.zone.domain for counter in self._counters]

    def read(self) -> Reading:
        samples: list[EnergySample] = []
        errors: list[str] = []
        for counter in self._counters:
            before_ns = self._clock()
            try:
                raw_uj = _read_uj(counter.zone.path)
            except MeterError as err:
                errors.append(f"{counter.zone.domain.name}: {err}")
            else:
                samples.append(counter.observe(before_ns, self._clock(), raw_uj))
        return Reading(samples, errors=tuple(errors))

    def close(self) -> None:
        """Nothing is held open."""


def find_zones(root: Path) -> tuple[list[Zone], list[str]]:
    """The tree's zones, and a note for each that only repeats another one.

    The same package can be served twice, through MSRs (intel-rapl) and through memory-mapped registers
    (intel-rapl-mmio): counted once, the MSR one, since it has the sub-zones.
    """
    has_psys = any(name == "psys" for _, name in _packages(root))
    outer = "psys" if has_psys else None
    zones: dict[str, Zone] = {}
    notes: list[str] = []
    for path, name in _packages(root):
        top = name if name == "psys" else f"cpu:{name}"
        if top in zones:
            notes.append(f"{path.name} repeats {zones[top].path.name} ({name}): left out")
            continue
        zones[top] = _zone(path, top, None if top == "psys" else outer)
        for sub in sorted(root.glob(f"{path.name}:*")):
            part = _name(sub)
            domain = f"dram:{path.name.split(':')[1]}" if part == "dram" else f"{top}/{part}"
            zones[domain] = _zone(sub, domain, outer if part == "dram" else top)
    return list(zones.values()), notes


def _packages(root: Path) -> Iterator[tuple[Path, str]]:
    """Top zones and their names; "intel-rapl:" sorts after "intel-rapl-", so the MSR ones are asked for first."""
    for prefix in ("intel-rapl", "intel-rapl-mmio"):
        for path in sorted(root.glob(f"{prefix}:*")):
            if path.name.count(":") == 1:
                yield path, _name(path)


def _name(path: Path) -> str:
    return (path / "name").read_text().strip()


def _zone(path: Path, domain: str, within: str | None) -> Zone:
    described = EnergyDomain(name=domain, source="rapl", period_s=UPDATE_S, within=within)
    return Zone(described, path, int((path / "max_energy_range_uj").read_text()))


def _read_uj(zone: Path) -> int:
    path = zone / "energy_uj"
    try:
        return int(path.read_text())
    except PermissionError as err:
        raise MeterError(
            f"{path}: permission denied (kernels since 5.10 let only root read it); run as root, or: "
            f"sudo chmod a+r {zone.parent}/intel-rapl*/energy_uj"
        ) from err
    except (OSError, ValueError) as err:
        reason = errno.errorcode.get(err.errno or 0, "") if isinstance(err, OSError) else "not a number"
        raise MeterError(f"{path}: cannot be read ({reason or err})") from err
