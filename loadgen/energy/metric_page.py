"""Power or energy of a whole machine, from one series of a Prometheus page: a smart plug, a power strip, a BMC.

The address names the series after a #: http://plug:9100/metrics#plug_power_watts{outlet="3"}. What is measured is
whatever hangs on that meter, so its domain is a machine, which may contain the GPUs and the host.
"""

import re
from collections.abc import Callable

from loadgen.clock import monotonic_ns
from loadgen.energy.machine_track import MachineTrack
from loadgen.energy.meter import Reading
from loadgen.energy.remote import sample_of
from loadgen.energy.series import EnergyDomain
from loadgen.errors import MeterError
from loadgen.http_get import PageClient

POLL_S = 0.5
_MAX_GAP_S = 5.0
"""Longest time between two readings of a power over which it is integrated."""
_MAX_VALUE = 1e15
_SERIES = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?", re.ASCII)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"([^"\\]*)"\s*', re.ASCII)
_MJ_BY_UNIT = {"joules": 1e3, "kilowatt_hours": 3.6e9, "kwh": 3.6e9, "watt_hours": 3.6e6, "wh": 3.6e6}
"""Millijoules of a unit that the name of a counter ends with, `_total` apart."""


class MetricMeter:
    """The meter of one series of a page. Raises MeterError unless exactly one series of the page fits."""

    poll_s = POLL_S

    def __init__(self, url: str, *, token: str | None = None, clock: Callable[[], int] = monotonic_ns) -> None:
        address, _, series = url.partition("#")
        self._metric, self._labels = parse_series(series)
        mj_per_unit = unit_of(self._metric)
        self._connection = PageClient(address.removesuffix("/metrics"), token, clock)
        self._track = MachineTrack(self._connection.hostname, "page", mj_per_unit, poll_s=POLL_S, max_gap_s=_MAX_GAP_S)
        try:
            self._read_value()
        except BaseException:
            self._connection.close()
            raise
        kind = "power, integrated" if mj_per_unit is None else "counter of energy"
        self.notes = [
            f"{self._track.name} is {self._metric} of {self._connection.url}/metrics: {kind}, every {POLL_S} s"
        ]

    @property
    def domains(self) -> list[EnergyDomain]:
        return [self._track.domain]

    def read(self) -> Reading:
        return self._track.reading(*self._read_value())

    def close(self) -> None:
        self._connection.close()

    def _read_value(self) -> tuple[int, int, float]:
        """Return when the page was requested and received, and the value of the series."""
        answer = self._connection.get("/metrics")
        address = f"{self._connection.url}/metrics"
        if answer.status != 200:
            raise MeterError(f"{address} answers {answer.status}")
        values = matching_values(answer.body.decode(errors="replace"), self._metric, self._labels)
        if len(values) != 1:
            raise MeterError(f"{address} has {len(values)} series {self._metric} with these labels: name one of them")
        if not 0 <= values[0] < _MAX_VALUE:
            raise MeterError(f"{address}: {self._metric} is {values[0]:g}, which is no power or energy")
        return answer.sent_ns, answer.received_ns, values[0]


def parse_series(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the labels of a series written as in PromQL, with = alone. Raises MeterError."""
    match = _SERIES.fullmatch(text.strip())
    labels = (match[2] if match else None) or ""
    if match is None or _LABEL.sub("", labels).strip(", "):
        raise MeterError(f'{text!r} is no series: write METRIC or METRIC{{label="value"}} after the #')
    return match[1], dict(_LABEL.findall(labels))


def unit_of(metric: str) -> float | None:
    """Return the millijoules of one unit of a counter of energy, and None for power in watts. Raises MeterError."""
    name = metric.lower().removesuffix("_total")
    if name.endswith("watts"):
        return None
    for unit, millijoules in _MJ_BY_UNIT.items():
        if name.endswith(f"_{unit}"):
            return millijoules
    raise MeterError(f"the unit of {metric} is unknown: its name ends in none of _watts, _{', _'.join(_MJ_BY_UNIT)}")


def matching_values(text: str, metric: str, labels: dict[str, str]) -> list[float]:
    """Return the values of the page's series of this name with these labels. Lines that cannot be read are none."""
    lines = (line for line in text.split("\n") if line.lstrip().startswith(metric))
    samples = [sample for line in lines if (sample := sample_of(line))]
    return [float(s.value) for s in samples if s.name == metric and labels.items() <= s.labels.items()]
