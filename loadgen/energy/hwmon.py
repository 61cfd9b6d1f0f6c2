"""Power and energy sensors of the kernel's hwmon tree: NVIDIA Grace, AMD's energy driver, ACPI power meters.

Values are microwatts and microjoules (kernel, Documentation/hwmon/sysfs-interface). What contains what on a Grace
(NVIDIA, Grace Performance Tuning Guide, Power Telemetry): the CPU and SysIO rails and the memory are inside "Grace
Power Socket"; "Module Power Socket", on a superchip with a GPU, contains that socket, the GPU and its memory. A sensor
whose scope its name does not tell is taken only by name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import PLATFORM_MAX_W, CounterTrack, PowerTrack, ceiling_w
from loadgen.energy.meter import Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.energy.sysfs import read_number, read_text
from loadgen.errors import MeterError
from loadgen.units import UJ_PER_MJ

HWMON = Path("/sys/class/hwmon")
UW_PER_W = 1e6
MS_PER_S = 1e3
_POLL_S = (0.1, 1.0)
"""Shortest and longest time between reads. Half the averaging interval lies between the two where one is known."""
_SHORT_S = 0.1
"""Longest averaging interval of a power that counts as momentary."""
_MAX_NAME = 64
_MAX_CHIPS = 256
_MAX_NAMED = 12
"""Sensors that a line names; the number of further ones follows."""
_CHANNEL = re.compile(r"(power[0-9]{1,3})_(?:average|input)|(energy[0-9]{1,3})_input", re.ASCII)
_RAIL = re.compile(
    r"(Module|Grace|Total|CPU|CPU Rail|SysIO|SoC Rail|DRAM)(?: Input)? Power(?: in uW)? Socket ([0-9]{1,3})",
    re.ASCII | re.IGNORECASE,
)
"""Names that the firmware of NVIDIA's CPUs gives its ACPI power meters, in two generations of wording."""
_PARTS = {
    "module": "module:{}",
    "grace": "cpu:socket-{}",
    "total": "cpu:socket-{}",
    "cpu": "cpu:socket-{}/cpu",
    "cpu rail": "cpu:socket-{}/cpu",
    "sysio": "cpu:socket-{}/sysio",
    "soc rail": "cpu:socket-{}/sysio",
    "dram": "cpu:socket-{}/dram",
}
_AMD_SOCKET = re.compile(r"Esocket([0-9]{1,3})", re.ASCII)
_AMD_CORE = re.compile(r"Ecore[0-9]+", re.ASCII)


class Sensor(NamedTuple):
    """One sensor of the tree."""

    name: str
    """Its name after `hwmon:`: that of its chip and of its channel."""
    domain: EnergyDomain
    path: Path
    """File of its value."""
    interval_s: float | None
    """Time over which a power is averaged; None where it is not, or not known."""
    known: bool
    """True if its name tells what it measures."""

    @property
    def counts_energy(self) -> bool:
        return self.path.name.startswith("energy")


class HwmonMeter:
    """The sensors whose scope is known, or the one called `name`. Raises MeterError when there is none."""

    def __init__(self, root: Path = HWMON, name: str | None = None, *, clock: Callable[[], int] = monotonic_ns) -> None:
        self._sensors, self.notes = choose_sensors(find_sensors(root), name, root)
        self._clock = clock
        shortest, longest = _POLL_S
        intervals_s = [sensor.interval_s or 0.0 for sensor in self._sensors]
        self.poll_s = min(max(min(intervals_s) / 2, shortest), longest)
        self._counters: dict[str, CounterTrack] = {}
        self._powers: dict[str, PowerTrack] = {}
        for sensor in self._sensors:
            read_number(sensor.path)
            domain = sensor.domain.name
            if sensor.counts_energy:
                self._counters[domain] = CounterTrack(domain, continuous=sensor.known, max_w=ceiling_w(domain))
            else:
                self._powers[domain] = PowerTrack(domain, max_gap_s=max(1.0, 3 * self.poll_s))

    @property
    def domains(self) -> list[EnergyDomain]:
        """Return the domains. A counter's period is known after some updates."""
        domains = []
        for sensor in self._sensors:
            track = self._counters.get(sensor.domain.name)
            period_s = max(self.poll_s, sensor.interval_s or 0.0) if track is None else track.period_s
            domains.append(msgspec.structs.replace(sensor.domain, period_s=period_s))
        return domains

    def read(self) -> Reading:
        samples: list[EnergySample] = []
        errors: list[str] = []
        earlier_resets = self._resets()
        for sensor in self._sensors:
            domain = sensor.domain.name
            before_ns = self._clock()
            try:
                value = read_number(sensor.path)
            except MeterError as err:
                errors.append(f"{domain}: {err}")
                continue
            after_ns = self._clock()
            if sensor.counts_energy:
                sample = self._counters[domain].observe(before_ns, after_ns, value // UJ_PER_MJ)
                samples += [] if sample is None else [sample]
            elif value > PLATFORM_MAX_W * UW_PER_W:
                errors.append(f"{domain}: {sensor.path} is {value / UW_PER_W:g} W, which is no power")
            else:
                samples += self._powers[domain].observe((before_ns + after_ns) // 2, value / UW_PER_W)
        return Reading(samples, self._resets() - earlier_resets, tuple(errors))

    def _resets(self) -> int:
        return sum(track.resets for track in self._counters.values())

    def close(self) -> None:
        """Nothing is held open."""


def choose_sensors(sensors: list[Sensor], name: str | None, root: Path) -> tuple[list[Sensor], list[str]]:
    """Return the sensors of a meter, each with the domain that contains it, and notes. Raises MeterError without any.

    name: of the one sensor that is wanted; None for all of known scope.
    """
    chosen = [sensor for sensor in sensors if sensor.name == name or (name is None and sensor.known)]
    unknown = [sensor.name for sensor in sensors if not sensor.known]
    by_name = f"of unknown scope, and read only by name (--energy hwmon:NAME): {_listed(unknown)}"
    if not chosen:
        wanted = "of known scope" if name is None else "of this name"
        names = by_name if name is None and unknown else _listed([sensor.name for sensor in sensors])
        raise MeterError(f"{root} has no sensor of power or energy {wanted}" + (f"; it has {names}" if names else ""))
    present = Counter(sensor.domain.name for sensor in chosen)
    if repeated := [domain for domain, count in present.items() if count > 1]:
        raise MeterError(f"{root} has {repeated[0]} twice: read one of them by name")
    averages_s = sorted({sensor.interval_s for sensor in chosen if sensor.interval_s})
    notes = [f"hwmon: the device averages power over {interval_s:g} s" for interval_s in averages_s]
    notes += [
        f"{sensor.domain.name}: what an ACPI power meter measures is up to the firmware, most often the whole machine"
        for sensor in chosen
        if sensor.domain.name.startswith("machine:")
    ]
    notes += [f"hwmon: {by_name}"] if name is None and unknown else []
    return [_placed(sensor, set(present)) for sensor in chosen], notes


def _placed(sensor: Sensor, present: set[str]) -> Sensor:
    """Return the sensor within the innermost domain present that contains it."""
    outer, _, inner = sensor.domain.name.partition("/")
    socket = outer.removeprefix("cpu:socket-")
    containers = ([outer] if inner else []) + ([f"module:{socket}"] if socket != outer else [])
    within = next((domain for domain in containers if domain in present), None)
    return sensor._replace(domain=msgspec.structs.replace(sensor.domain, within=within))


def find_sensors(root: Path) -> list[Sensor]:
    """Return every sensor of power and energy, but for AMD's counters of single cores, which are in their sockets'."""
    sensors: list[Sensor] = []
    for chip in sorted(root.glob("hwmon*"), key=lambda path: (len(path.name), path.name))[:_MAX_CHIPS]:
        sensors += _sensors_of(chip)
    counts = Counter(sensor.name for sensor in sensors)
    return [_renamed(sensor, counts) for sensor in sensors]


def _renamed(sensor: Sensor, counts: Counter[str]) -> Sensor:
    """Return the sensor, with the chip's number in its name where another one has the same."""
    if counts[sensor.name] == 1:
        return sensor
    name = f"{sensor.name}@{_chip_of(sensor.path)}"
    domain = sensor.domain
    if not sensor.known:
        domain = msgspec.structs.replace(domain, name=f"{domain.name}@{_chip_of(sensor.path)}")
    return sensor._replace(name=name, domain=domain)


def _chip_of(path: Path) -> str:
    return path.parent.parent.name if path.parent.name == "device" else path.parent.name


def _sensors_of(chip: Path) -> Iterator[Sensor]:
    """Yield the sensors of a chip. ACPI power meters have their files in the folder `device`."""
    folders = [folder for folder in (chip, chip / "device") if channels_in(folder)]
    if not folders:
        return
    name = _first_text(chip / "name", chip / "device" / "name") or chip.name
    for channel, path in channels_in(folders[0]).items():
        label = _first_text(path.with_name(f"{channel}_label"), path.with_name(f"{channel}_oem_info"))
        if name != "amd_energy" or not _AMD_CORE.fullmatch(label):
            yield _sensor(name, channel, label, path)


def channels_in(folder: Path) -> dict[str, Path]:
    """Return the file of each channel's value: its average, where it has one, since that misses no peak."""
    channels: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return {}
    for path in paths:
        if match := _CHANNEL.fullmatch(path.name):
            channels.setdefault(match[1] or match[2], path)
    return channels


def _sensor(chip: str, channel: str, label: str, path: Path) -> Sensor:
    averaged = path.name.endswith("_average")
    try:
        interval_s = read_number(path.with_name(f"{channel}_average_interval")) / MS_PER_S if averaged else None
    except MeterError:
        interval_s = None
    momentary = not averaged or (interval_s is not None and interval_s <= _SHORT_S)
    source = "hwmon-counter" if channel.startswith("energy") else f"hwmon-power{'' if momentary else '-average'}"
    name = f"{_plain(chip)}/{_plain(label) or channel}"
    known = known_domain(chip, label)
    kind = "machine" if chip == "power_meter" else "sensor"
    domain = EnergyDomain(name=known or f"{kind}:{name}", source=source)
    return Sensor(name, domain, path, interval_s, known is not None)


def known_domain(chip: str, label: str) -> str | None:
    """Return the domain that a sensor of this label measures; None where the label does not tell."""
    if chip == "power_meter" and (rail := _RAIL.fullmatch(label)):
        return _PARTS[rail[1].lower()].format(int(rail[2]))
    if chip == "amd_energy" and (socket := _AMD_SOCKET.fullmatch(label)):
        return f"cpu:package-{int(socket[1])}"
    return None


def _plain(text: str) -> str:
    """Return a text as part of a name: what is no letter, digit, dot, minus or underscore is a minus."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:_MAX_NAME]


def _first_text(*paths: Path) -> str:
    """Return the text of the first file that has one; empty without any."""
    for path in paths:
        try:
            if text := read_text(path):
                return " ".join(text.split())
        except MeterError:
            continue
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown
