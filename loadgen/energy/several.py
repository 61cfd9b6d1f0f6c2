"""Several meters read as one: one of them at its own pace, each other in a thread of its own, so that a slow one delays
no reading."""

import threading
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.energy.meter import EnergyMeter, Reading, pause_s
from loadgen.energy.series import EnergyDomain
from loadgen.errors import MeterError
from loadgen.units import s_from_ns

_MAX_READINGS = 10_000
"""Readings kept for a caller that does not read: over 15 minutes of the fastest meter. Older ones are dropped."""
_JOIN_S = 5.0
"""Longest wait for a read to end when the meters are closed."""


class _BackgroundReader:
    """Reads one meter in a thread and keeps its readings until they are taken."""

    def __init__(self, name: str, meter: EnergyMeter, clock: Callable[[], int]) -> None:
        self.meter = meter
        self._clock = clock
        self._readings: deque[Reading] = deque(maxlen=_MAX_READINGS)
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"energy-{name}", daemon=True)

    def take(self) -> list[Reading]:
        """Return the readings since the previous call; the first call starts the thread. Raises what a read raised."""
        if self._crash is not None:
            raise self._crash
        if self._thread.ident is None:
            self._thread.start()
        return [self._readings.popleft() for _ in range(len(self._readings))]

    def stop(self) -> None:
        """Begin no further read."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the thread, and close the meter unless a read that never returned still holds it."""
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            self.meter.close()

    def _run(self) -> None:
        try:
            self._poll()
        except BaseException as err:  # it would be lost with the thread; `take` raises it again
            self._crash = err

    def _poll(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            start_ns = self._clock()
            try:
                reading, failures = self.meter.read(), 0
            except MeterError as err:
                reading, failures = Reading([], errors=(str(err),)), failures + 1
            self._readings.append(reading)
            self._stopping.wait(pause_s(self.meter.poll_s, failures) - s_from_ns(self._clock() - start_ns))


class SeveralMeters:
    """The domains of all of these meters, side by side. Raises MeterError when two of them measure the same thing."""

    def __init__(self, meters: Mapping[str, EnergyMeter], *, clock: Callable[[], int] = monotonic_ns) -> None:
        """meters: by the name of the source. The one read at the caller's pace is the first that has a GPU, or else a
        domain."""
        refuse_repetition(meters)
        self._meters = list(meters.values())
        self._first = max(self._meters, key=lambda meter: (_has_gpu(meter), bool(meter.domains)))
        self._others = [
            _BackgroundReader(name, meter, clock) for name, meter in meters.items() if meter is not self._first
        ]

    @property
    def domains(self) -> list[EnergyDomain]:
        """Return all domains. A series has no more updates than its meter is read, so no period is below its pace."""
        others = [
            msgspec.structs.replace(domain, period_s=max(domain.period_s or 0.0, reader.meter.poll_s))
            for reader in self._others
            for domain in reader.meter.domains
        ]
        return [*self._first.domains, *others]

    @property
    def notes(self) -> list[str]:
        return [note for meter in self._meters for note in meter.notes]

    @property
    def poll_s(self) -> float:
        return self._first.poll_s

    def read(self) -> Reading:
        """Read the first meter, and take what the others have read since. A meter that fails costs only itself."""
        readings = [reading for reader in self._others for reading in reader.take()]
        try:
            readings.insert(0, self._first.read())
        except MeterError as err:
            if not any(reading.samples for reading in readings):
                raise
            readings.insert(0, Reading([], errors=(str(err),)))
        return Reading(
            [sample for reading in readings for sample in reading.samples],
            sum(reading.resets for reading in readings),
            tuple(error for reading in readings for error in reading.errors),
            tuple(check for reading in readings for check in reading.throttled),
        )

    def close(self) -> None:
        for reader in self._others:
            reader.stop()
        for reader in self._others:
            reader.close()
        self._first.close()


def _has_gpu(meter: EnergyMeter) -> bool:
    return any(domain.name.startswith("gpu:") for domain in meter.domains)


def refuse_repetition(meters: Mapping[str, EnergyMeter]) -> None:
    """Raise MeterError if two meters have a domain of the same name, or the same GPU: its joules would count twice."""
    sources: dict[str, str] = {}
    for name, meter in meters.items():
        for domain in meter.domains:
            for key in filter(None, (domain.name, domain.uuid)):
                if (earlier := sources.setdefault(key, name)) != name:
                    raise MeterError(f"{earlier} and {name} both measure {domain.name}: leave one of them out")
