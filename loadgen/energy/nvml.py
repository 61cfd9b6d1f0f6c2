"""NVIDIA GPUs, through NVML. Reads only: no setting of a card is ever touched.

The energy counter is asked for, per device, by calling it: architecture is no proof. Where it is not supported, power
is integrated instead, and `source` says so. NVML answers for a whole GPU; with MIG, nothing tells a slice's joules.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from loadgen.clock import monotonic_ns
from loadgen.energy.meter import CounterTrack, PowerTrack, Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S

PERMANENT = {3: "not supported", 12: "library not found", 13: "function not found", 18: "driver and library differ"}
"""NVML codes that no later call can cure."""
FATAL = {15: "the GPU is lost", 16: "the GPU needs a reset"}
"""NVML codes after which this device says nothing more."""

RETRY = {10, 21, 27, 999}
"""Timeout, no data, not ready, unknown: the next call may be answered."""

SHORTEST_POLL_S = 0.01
"""A counter that moves more often than this needs no finer points."""
LEARN_POLL_S = 0.05
"""The longest poll while the period is not known."""
DEAD_POLL_S = 1.0
QUIET = 0.6
"""Share of a period after a move in which the next one is not looked for: saves half of the reads, and late wake-ups
or a period misjudged by a third do no harm."""
VERNIER = 0.618
"""Share of a regular counter's period from one read to the next. Never two moves between reads, and reads that fall at
ever other phases of the period: together they tell its clock to a millisecond. Fewer than 0.7, so that a move is not
taken for its neighbour when a read comes late."""
MAX_DUTY = 0.2
"""Share of the time that may go into reading (one read takes about 4 ms on an H200)."""

MW_PER_W = 1000

HELD_BACK = (
    (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hardware thermal slowdown"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal slowdown"),
    (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "power brake"),
    (pynvml.nvmlClocksEventReasonHwSlowdown, "hardware slowdown"),
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
)
"""Bits of the clocks' event reasons that say a GPU is slower than it could be, the gravest first."""
ASK_CLOCKS_NS = NS_PER_S

_GAIN = "the sensor's gain error is about 5 %"
_POWER = {
    "nvml-power-instant": f"field 186, instant power: on Hopper about 25 ms seen of each 100 ms; {_GAIN}",
    "nvml-power-average": f"field 185, a 1 s moving average: steps are smeared over a second; {_GAIN}",
    "nvml-power-usage": f"nvmlDeviceGetPowerUsage, a 1 s average on Ampere and newer (GA100 instant); {_GAIN}",
}
"""How power can be had, best first, and what it is."""


@dataclass(frozen=True)
class Device:
    """A GPU that NVML lists. `uuid` is None when the device does not answer."""

    index: int
    uuid: str | None


class _Gpu:
    """One device: which call is asked, and what was made of its answers. Mutable: alive, handle."""

    def __init__(self, index: int, uuid: str, handle: Any, source: str) -> None:
        self.name = f"gpu:{index}"
        self.uuid = uuid
        self.handle = handle
        self.source = source
        self.alive = True
        self.cost_ns = 0
        self.due_ns = 0
        """Before this, reading it would show nothing new."""
        self.counter = CounterTrack(self.name)
        self.power = PowerTrack(self.name)

    @property
    def domain(self) -> EnergyDomain:
        period_s = self.counter.period_s if self.source == "nvml-counter" else 0.1
        return EnergyDomain(name=self.name, source=self.source, uuid=self.uuid, period_s=period_s)

    def read(self, clock: Callable[[], int]) -> list[EnergySample]:
        before_ns = clock()
        if self.source != "nvml-counter":
            watts = power_w(self.handle, self.source)
            return self.power.observe((before_ns + clock()) // 2, watts)
        raw_mj = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        after_ns = clock()
        self.cost_ns = after_ns - before_ns
        sample = self.counter.observe(before_ns, after_ns, raw_mj)
        period_ns = NS_PER_S * (self.counter.period_s or 0)
        if self.counter.regular:
            self.due_ns = before_ns + round(VERNIER * period_ns)
        elif sample:
            self.due_ns = sample.t_ns + round(QUIET * period_ns)
        return [sample] if sample else []


class NvmlMeter:
    """Any number of GPUs. Open it with `open_nvml`."""

    def __init__(self, gpus: list[_Gpu], notes: list[str], clock: Callable[[], int]) -> None:
        self._gpus = gpus
        self._notes = notes
        self._clock = clock
        self._read_ns = clock()
        self._clocks_due_ns = self._read_ns
        self._pid = os.getpid()

    @property
    def domains(self) -> list[EnergyDomain]:
        return [gpu.domain for gpu in self._gpus]

    @property
    def notes(self) -> list[str]:
        return self._notes

    @property
    def poll_s(self) -> float:
        """Until one of the counters is due; not before a fifth of the shortest period, unless all are regular.

        Longer where reading is slow, but at least twice a period even then.
        """
        alive = [gpu for gpu in self._gpus if gpu.alive]
        if not alive:
            return DEAD_POLL_S
        quiet_s = (min([gpu.due_ns for gpu in alive]) - self._read_ns) / NS_PER_S
        if all([gpu.counter.regular for gpu in alive]):
            return max(SHORTEST_POLL_S, quiet_s)
        return max(self._step_s([gpu.domain.period_s for gpu in alive]), quiet_s)

    def _step_s(self, periods: Sequence[float | None]) -> float:
        known = [period_s for period_s in periods if period_s is not None]
        affordable_s = sum(gpu.cost_ns for gpu in self._gpus if gpu.alive) / NS_PER_S / MAX_DUTY
        if not known or len(known) < len(periods):
            return max(SHORTEST_POLL_S, min(affordable_s, LEARN_POLL_S))
        return max(SHORTEST_POLL_S, min(known) / 5, min(affordable_s, min(known) / 2))

    def read(self) -> Reading:
        if os.getpid() != self._pid:
            self._reopen()
        start_ns = self._read_ns = self._clock()
        samples: list[EnergySample] = []
        errors: list[str] = []
        resets = 0
        for gpu in self._gpus:
            if not gpu.alive or start_ns < gpu.due_ns:
                continue
            before = gpu.counter.resets
            try:
                samples += gpu.read(self._clock)
                resets += gpu.counter.resets - before
            except pynvml.NVMLError as err:
                gpu.alive = err.value not in PERMANENT and err.value not in FATAL
                errors.append(_failed(gpu, err))
        held_back = self._held_back(start_ns) if start_ns >= self._clocks_due_ns else ()
        return Reading(samples, resets, tuple(errors), held_back)

    def _held_back(self, now_ns: int) -> tuple[tuple[str, str | None], ...]:
        """Once a second. A device that does not say is left out."""
        self._clocks_due_ns = now_ns + ASK_CLOCKS_NS
        said = []
        for gpu in self._gpus:
            with suppress(pynvml.NVMLError):
                bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu.handle) if gpu.alive else None
                if bits is not None:
                    said.append((gpu.name, next((why for bit, why in HELD_BACK if bits & bit), None)))
        return tuple(said)

    def power_w(self) -> dict[str, float]:
        """Watts now, by domain, from the best power field each GPU has: to check the counter against."""
        now = {gpu.name: _best_power(gpu.handle) for gpu in self._gpus if gpu.alive}
        return {name: best[1] for name, best in now.items() if best is not None}

    def close(self) -> None:
        if os.getpid() == self._pid:
            pynvml.nvmlShutdown()

    def _reopen(self) -> None:
        """After a fork the parent's session is of no use: start one here, and find the same devices again."""
        try:
            pynvml.nvmlInit()
            for gpu in self._gpus:
                gpu.handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        except pynvml.NVMLError as err:
            raise MeterError(f"NVML did not start again after a fork: {err}") from err
        self._pid = os.getpid()


def open_nvml(
    gpus: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], int] = monotonic_ns,
) -> NvmlMeter:
    """A meter of the chosen GPUs: indices or UUIDs (a prefix will do); None is those that CUDA_VISIBLE_DEVICES names,
    else all. Raises MeterError with the reason when not one of them can be measured.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        raise MeterError(_why_no_nvml(err)) from err
    try:
        return _open(gpus, environ, clock)
    except pynvml.NVMLError as err:
        pynvml.nvmlShutdown()
        raise MeterError(f"NVML started, but cannot say which GPUs there are: {_said(err)}") from err
    except MeterError:
        pynvml.nvmlShutdown()
        raise


def _open(gpus: Sequence[str] | None, environ: Mapping[str, str], clock: Callable[[], int]) -> NvmlMeter:
    devices = _devices()
    if not devices:
        raise MeterError("NVML answers, but lists no GPU")
    visible = environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else None
    tokens = list(gpus) if gpus is not None else visible_tokens(visible)
    chosen = devices if tokens is None else choose(devices, tokens, _mig_parent)
    notes = _scope_notes(devices, chosen, environ, visible)
    opened = []
    for device in chosen:
        try:
            opened.append(_open_gpu(device, notes))
        except pynvml.NVMLError as err:
            notes.append(f"gpu:{device.index} is left out: {_said(err)}")
    if not opened:
        raise MeterError("no GPU can be measured: " + "; ".join(notes or ["none was chosen"]))
    return NvmlMeter(opened, notes, clock)


def _devices() -> list[Device]:
    def uuid_of(index: int) -> str | None:
        try:
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError:
            return None

    return [Device(index, uuid_of(index)) for index in range(pynvml.nvmlDeviceGetCount())]


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[Device]:
    """Those that CUDA_VISIBLE_DEVICES names, else all. NVML has to be started. Raises NVMLError and MeterError."""
    tokens = visible_tokens(environ.get("CUDA_VISIBLE_DEVICES"))
    return _devices() if tokens is None else choose(_devices(), tokens, _mig_parent)


def visible_tokens(visible: str | None) -> list[str] | None:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: everything after the first -1 is hidden. None: it is not set."""
    if visible is None:
        return None
    tokens = [token.strip() for token in visible.split(",") if token.strip()]
    return tokens[: tokens.index("-1")] if "-1" in tokens else tokens


def choose(devices: Sequence[Device], tokens: Sequence[str], mig_parent: Callable[[str], str]) -> list[Device]:
    """The devices that tokens name, each once, in that order. A MIG slice stands for its whole GPU."""
    chosen: dict[int, Device] = {}
    for token in tokens:
        device = _find(devices, mig_parent(token) if token.startswith("MIG-") else token)
        chosen.setdefault(device.index, device)
    return list(chosen.values())


def _find(devices: Sequence[Device], token: str) -> Device:
    if token.isdecimal():
        found = [device for device in devices if device.index == int(token)]
    else:
        found = [d for d in devices if d.uuid is not None and d.uuid.lower().startswith(token.lower())]
    match found:
        case [device]:
            return device
        case []:
            known = ", ".join(f"{d.index} ({d.uuid or 'no answer'})" for d in devices)
            raise MeterError(f"there is no GPU {token!r} here; there are: {known}")
        case _:
            raise MeterError(f"{token!r} begins the UUID of {len(found)} GPUs: give more of it")


def _mig_parent(token: str) -> str:
    """UUID of the GPU that a MIG slice ("MIG-<uuid>", or the older "MIG-GPU-<uuid>/<gi>/<ci>") is part of."""
    if token.startswith("MIG-GPU-"):
        return token.removeprefix("MIG-").split("/")[0]
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(token)
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)))
    except pynvml.NVMLError as err:
        raise MeterError(f"the GPU of MIG slice {token} cannot be found: {_said(err)}") from err


def _scope_notes(
    devices: Sequence[Device], chosen: Sequence[Device], environ: Mapping[str, str], visible: str | None
) -> list[str]:
    """What the sum of the chosen GPUs covers, where that may not be what the server uses."""
    if len(devices) == 1 and chosen:
        return []
    how = "" if visible is None else " (CUDA_VISIBLE_DEVICES)"
    more = ": joules of GPUs that the server does not use are in the sum" if len(chosen) == len(devices) else ""
    notes = [f"{len(chosen)} of this host's {len(devices)} GPUs{how}{more}"]
    by_index = visible is not None and any(token.isdecimal() for token in visible_tokens(visible) or [])
    if by_index and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        notes.append("indices mean PCI order; CUDA has another for unlike GPUs unless CUDA_DEVICE_ORDER=PCI_BUS_ID")
    return notes


def _open_gpu(device: Device, notes: list[str]) -> _Gpu:
    """Tries the counter, then power. Raises NVMLError when the device has neither."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.index)
    name = f"gpu:{device.index}"
    source = _source(handle)
    uuid = device.uuid or str(pynvml.nvmlDeviceGetUUID(handle))
    if source != "nvml-counter":
        notes.append(f"{name} has no energy counter: joules are integrated from {_POWER[source]}")
    if _mig_on(handle):
        notes.append(f"{name} is in MIG mode: joules are the whole GPU's, a slice's cannot be told apart")
    return _Gpu(device.index, uuid, handle, source)


def _source(handle: Any) -> str:
    """What this device can be asked for. Only a counter that will never answer gives way to power."""
    for last in (False, False, True):
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as err:
            if err.value in RETRY and not last:
                continue
            if err.value not in PERMANENT or (best := _best_power(handle)) is None:
                raise
            return best[0]
        break
    return "nvml-counter"


def _best_power(handle: Any) -> tuple[str, float] | None:
    """The best way to ask for power that is answered, and the watts."""
    for source in _POWER:
        try:
            return source, power_w(handle, source)
        except pynvml.NVMLError:
            continue
    return None


def power_w(handle: Any, source: str) -> float:
    """Watts from one of the three ways to ask. Raises NVMLError."""
    match source:
        case "nvml-power-instant":
            return _field_w(handle, pynvml.NVML_FI_DEV_POWER_INSTANT)
        case "nvml-power-average":
            return _field_w(handle, pynvml.NVML_FI_DEV_POWER_AVERAGE)
        case _:
            return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / MW_PER_W


def _field_w(handle: Any, field: int) -> float:
    """The GPU scope (0) of a power field. The call as a whole succeeds while the field in it fails."""
    [answer] = pynvml.nvmlDeviceGetFieldValues(handle, [(field, 0)])
    if answer.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(answer.nvmlReturn)
    return float(answer.value.uiVal) / MW_PER_W


def _mig_on(handle: Any) -> bool:
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _failed(gpu: _Gpu, err: pynvml.NVMLError) -> str:
    return f"{gpu.name}: {_said(err)}" + ("" if gpu.alive else "; it is not read any more")


def _said(err: pynvml.NVMLError) -> str:
    known = PERMANENT.get(err.value) or FATAL.get(err.value) or str(err)
    return f"{known} (NVML {err.value})"


def _why_no_nvml(err: pynvml.NVMLError) -> str:
    match err.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return "no NVIDIA driver here (libnvidia-ml.so.1 not found)"
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the NVIDIA library is here, but the driver is not loaded"
        case pynvml.NVML_ERROR_NO_PERMISSION:
            return "NVML refuses: no permission to talk to the driver; in a container, start it with --gpus"
        case _:
            return f"NVML does not start: {_said(err)}"
