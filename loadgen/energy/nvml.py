"""NVIDIA GPUs, through NVML. Reads only: no setting of a card is ever touched.

Each device's energy counter is detected by calling it: the architecture is no proof. Where it is not supported, power
is integrated instead, and `source` says so. NVML measures a whole GPU; in MIG mode the energy of a slice is unknown.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pynvml

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import GPU_MAX_W, CounterTrack, PowerTrack
from loadgen.energy.meter import LEFT_OUT, Reading
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S

PERMANENT = {3: "not supported", 12: "library not found", 13: "function not found", 18: "driver and library differ"}
"""NVML codes after which a repeated call fails too."""
FATAL = {15: "the GPU is lost", 16: "the GPU needs a reset"}
"""NVML codes after which this device answers no more."""
RETRY = {10, 21, 27, 999}
"""Timeout, no data, not ready, unknown: the next call may succeed."""

SHORTEST_POLL_S = 0.01
"""A counter that updates more often than this needs no finer points."""
LEARN_POLL_S = 0.05
"""Longest poll while the period is unknown."""
DEAD_POLL_S = 1.0
"""Poll when no device is read any more."""
QUIET = 0.6
"""Share of a period after an update in which no read looks for the next one. It saves half of the reads, and late
wake-ups or a period misjudged by a third do no harm."""
VERNIER = 0.618
"""Share of a regular counter's period from one read to the next. There are never two updates between reads, and the
reads fall on ever different phases of the period: together they determine its clock to a millisecond. It is below 0.7,
so that an update is not taken for its neighbour when a read comes late."""
MAX_DUTY = 0.2
"""Largest share of the time spent reading (one read takes about 4 ms on an H200)."""

MW_PER_W = 1000
OVER_LIMIT = 3
"""No card draws this many times its largest power limit, not even for one period of its counter."""

THROTTLE_REASONS = (
    (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hardware thermal slowdown"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal slowdown"),
    (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "power brake"),
    (pynvml.nvmlClocksEventReasonHwSlowdown, "hardware slowdown"),
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
)
"""Bits of the clock event reasons that mean reduced clocks, the gravest first."""
CHECK_CLOCKS_NS = NS_PER_S
"""Time between checks of the clocks."""
_CAPPED_NS_FIELD = 74
"""NVML_FI_DEV_PERF_POLICY_POWER, the same as NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: cumulative nanoseconds in
which the power limit lowered the clocks. An H200 counts them every 100 ms. A read takes 6 us, that of the clock 5."""

_GAIN = "the sensor's gain error is about 5 %"
_POWER = {
    "nvml-power-instant": f"field 186, instant power: on Hopper about 25 ms seen of each 100 ms; {_GAIN}",
    "nvml-power-average": f"field 185, a 1 s moving average: steps are smeared over a second; {_GAIN}",
    "nvml-power-usage": f"nvmlDeviceGetPowerUsage, a 1 s average on Ampere and newer (GA100 instant); {_GAIN}",
}
"""Sources of power, the best first, and their properties."""


@dataclass(frozen=True)
class Device:
    """A GPU in the driver's list. `uuid` is None when the device does not answer."""

    index: int
    uuid: str | None


class _Gpu:
    """One device: the source of its energy and the series made from it. `alive` and `handle` change."""

    def __init__(self, index: int, uuid: str, handle: Any, source: str, max_w: float, every_s: float) -> None:
        self.name, self.uuid, self.source = f"gpu:{index}", uuid, source
        self._every_s = every_s
        self._device: str | None = None
        with suppress(pynvml.NVMLError):
            self._device = str(pynvml.nvmlDeviceGetName(handle))
        self.handle = handle
        self.alive = True
        self.cost_ns = 0
        self.due_ns = 0
        """Instant before which a read would show nothing new."""
        self._max_w = max_w
        self._limit_w: float | None = None
        with suppress(pynvml.NVMLError):
            self._limit_w = float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / MW_PER_W
        self.counter = CounterTrack(self.name, max_w=max_w)
        self.power = PowerTrack(self.name)

    @property
    def domain(self) -> EnergyDomain:
        period_s = self.counter.period_s if self.source == "nvml-counter" else 0.1
        return EnergyDomain(
            name=self.name, source=self.source, uuid=self.uuid, device=self._device, period_s=period_s,
            limit_w=self._limit_w,
        )  # fmt: skip

    def read(self, clock: Callable[[], int]) -> list[EnergySample]:
        start_ns = clock()
        if self.source != "nvml-counter":
            watts = power_w(self.handle, self.source)
            if watts > self._max_w:
                raise MeterError(f"a power of {watts:,.0f} W is not read: no card draws it")
            return self.power.observe((start_ns + clock()) // 2, watts)
        raw_mj = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        end_ns = clock()
        self.cost_ns = end_ns - start_ns
        sample = self.counter.observe(start_ns, end_ns, raw_mj)
        period_ns = NS_PER_S * (self.counter.period_s or 0)
        if self.counter.regular:
            skipped = int(self._every_s / (self.counter.period_s or math.inf))
            self.due_ns = start_ns + round((skipped + VERNIER) * period_ns)
        elif sample:
            self.due_ns = sample.t_ns + round(QUIET * period_ns)
        return [msgspec.structs.replace(sample, **self._clocks())] if sample else []

    def _clocks(self) -> dict[str, int]:
        """Return what the clocks say of a sample; what the driver does not tell is absent."""
        clocks: dict[str, int] = {}
        with suppress(pynvml.NVMLError):
            [held] = pynvml.nvmlDeviceGetFieldValues(self.handle, [_CAPPED_NS_FIELD])
            if held.nvmlReturn == pynvml.NVML_SUCCESS:
                clocks["capped_ns"] = int(held.value.ullVal)
        with suppress(pynvml.NVMLError):
            clocks["sm_mhz"] = int(pynvml.nvmlDeviceGetClockInfo(self.handle, pynvml.NVML_CLOCK_SM))
        return clocks


class NvmlMeter:
    """A meter of any number of GPUs. Open it with `open_nvml`."""

    def __init__(self, gpus: list[_Gpu], notes: list[str], clock: Callable[[], int]) -> None:
        self._gpus = gpus
        self.notes = notes
        self._clock = clock
        self._read_ns = clock()
        self._clocks_due_ns = self._read_ns
        self._pid = os.getpid()

    @property
    def domains(self) -> list[EnergyDomain]:
        return [gpu.domain for gpu in self._gpus]

    @property
    def poll_s(self) -> float:
        """Time until one of the counters is due: at least a fifth of the shortest period, unless all are regular.

        It is longer where reading is slow, but even then there are two reads in a period.
        """
        alive = [gpu for gpu in self._gpus if gpu.alive]
        if not alive:
            return DEAD_POLL_S
        quiet_s = (min([gpu.due_ns for gpu in alive]) - self._read_ns) / NS_PER_S
        if all([gpu.counter.regular for gpu in alive]):
            return max(SHORTEST_POLL_S, quiet_s)
        periods = [gpu.domain.period_s for gpu in alive]
        measured = [period_s for period_s in periods if period_s is not None]
        affordable_s = sum([gpu.cost_ns for gpu in alive]) / NS_PER_S / MAX_DUTY
        if len(measured) < len(periods):
            step_s = min(affordable_s, LEARN_POLL_S)
        else:
            step_s = max(min(measured) / 5, min(affordable_s, min(measured) / 2))
        return max(SHORTEST_POLL_S, step_s, quiet_s)

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
            earlier_resets = gpu.counter.resets
            try:
                samples += gpu.read(self._clock)
                resets += gpu.counter.resets - earlier_resets
            except pynvml.NVMLError as err:
                gpu.alive = err.value not in PERMANENT and err.value not in FATAL
                errors.append(f"{gpu.name}: {_describe(err)}" + ("" if gpu.alive else "; it is not read any more"))
            except MeterError as err:
                errors.append(f"{gpu.name}: {err}")
        throttled = self._check_clocks(start_ns) if start_ns >= self._clocks_due_ns else ()
        return Reading(samples, resets, tuple(errors), throttled)

    def _check_clocks(self, now_ns: int) -> tuple[tuple[str, str | None], ...]:
        """Return the gravest reason for reduced clocks of each device, once a second; without those that do not say."""
        self._clocks_due_ns = now_ns + CHECK_CLOCKS_NS
        reasons = []
        for gpu in self._gpus:
            with suppress(pynvml.NVMLError):
                bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu.handle) if gpu.alive else None
                if bits is not None:
                    reasons.append((gpu.name, next((reason for bit, reason in THROTTLE_REASONS if bits & bit), None)))
        return tuple(reasons)

    def power_w(self) -> dict[str, float]:
        """Return the watts of each domain now, from its GPU's best power field: a check on the counter."""
        power = {gpu.name: _best_power(gpu.handle) for gpu in self._gpus if gpu.alive}
        return {name: best[1] for name, best in power.items() if best is not None}

    def close(self) -> None:
        if os.getpid() == self._pid:
            pynvml.nvmlShutdown()

    def _reopen(self) -> None:
        """Start a session of this process and find the same devices: after a fork the parent's session is unusable."""
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
    every_s: float = 0.0,
) -> NvmlMeter:
    """Open a meter of `gpus`, which are indices or UUIDs (a prefix is enough).

    every_s: time between two reads of a counter that has shown its clock, if not every update is of use.

    None means the GPUs that CUDA_VISIBLE_DEVICES names, or all if it is not set. Raises MeterError with the reason when
    none of them can be measured.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        raise MeterError(_why_no_nvml(err)) from err
    try:
        return _open(gpus, environ, clock, every_s)
    except pynvml.NVMLError as err:
        pynvml.nvmlShutdown()
        raise MeterError(f"NVML started, but cannot say which GPUs there are: {_describe(err)}") from err
    except MeterError:
        pynvml.nvmlShutdown()
        raise


def _open(
    gpus: Sequence[str] | None, environ: Mapping[str, str], clock: Callable[[], int], every_s: float
) -> NvmlMeter:
    devices = _devices()
    if not devices:
        raise MeterError("NVML answers, but lists no GPU")
    visible = environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else None
    tokens = list(gpus) if gpus is not None else visible_tokens(visible)
    try:
        chosen = devices if tokens is None else choose(devices, tokens, _mig_parent)
    except MeterError as err:
        raise MeterError(f"CUDA_VISIBLE_DEVICES={visible}: {err}" if visible is not None else str(err)) from err
    if not chosen:
        raise MeterError(
            f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU" if visible is not None else "no GPU was named"
        )
    notes = _scope_notes(devices, chosen, environ, visible)
    opened = []
    for device in chosen:
        try:
            opened.append(_open_gpu(device, notes, every_s))
        except pynvml.NVMLError as err:
            notes.append(f"gpu:{device.index}{LEFT_OUT}{_describe(err)}")
    if not opened:
        raise MeterError("no GPU can be measured: " + "; ".join(notes))
    return NvmlMeter(opened, notes, clock)


def _devices() -> list[Device]:
    def uuid_of(index: int) -> str | None:
        try:
            return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError:
            return None

    return [Device(index, uuid_of(index)) for index in range(pynvml.nvmlDeviceGetCount())]


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[Device]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, or all. NVML must be started. Raises NVMLError, MeterError."""
    tokens = visible_tokens(environ.get("CUDA_VISIBLE_DEVICES"))
    return _devices() if tokens is None else choose(_devices(), tokens, _mig_parent)


def visible_tokens(visible: str | None) -> list[str] | None:
    """Split CUDA_VISIBLE_DEVICES as CUDA does: everything after the first -1 is hidden. None if it is not set."""
    if visible is None:
        return None
    tokens = [token.strip() for token in visible.split(",") if token.strip()]
    return tokens[: tokens.index("-1")] if "-1" in tokens else tokens


def choose(devices: Sequence[Device], tokens: Sequence[str], mig_parent: Callable[[str], str]) -> list[Device]:
    """Return the devices that `tokens` name, each once, in that order. A MIG slice stands for its whole GPU."""
    chosen: dict[int, Device] = {}
    for token in tokens:
        device = _find(devices, mig_parent(token) if token.startswith("MIG-") else token)
        chosen.setdefault(device.index, device)
    return list(chosen.values())


def _find(devices: Sequence[Device], token: str) -> Device:
    if token.isdecimal():
        matches = [device for device in devices if device.index == int(token)]
    else:
        matches = [d for d in devices if d.uuid is not None and d.uuid.lower().startswith(token.lower())]
    match matches:
        case [device]:
            return device
        case []:
            present = ", ".join(f"{d.index} ({d.uuid or 'no answer'})" for d in devices)
            raise MeterError(f"there is no GPU {token!r} here; there are: {present}")
        case _:
            raise MeterError(f"{token!r} begins the UUID of {len(matches)} GPUs: give more of it")


def _mig_parent(token: str) -> str:
    """Return the UUID of the GPU of a MIG slice ("MIG-<uuid>", or the older "MIG-GPU-<uuid>/<gi>/<ci>")."""
    if token.startswith("MIG-GPU-"):
        return token.removeprefix("MIG-").split("/")[0]
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(token)
        return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)))
    except pynvml.NVMLError as err:
        raise MeterError(f"the GPU of MIG slice {token} cannot be found: {_describe(err)}") from err


def _scope_notes(
    devices: Sequence[Device], chosen: Sequence[Device], environ: Mapping[str, str], visible: str | None
) -> list[str]:
    """Describe the chosen GPUs where they may not be the ones that the server uses."""
    if len(devices) == 1:
        return []
    origin = "" if visible is None else " (CUDA_VISIBLE_DEVICES)"
    warning = ": joules of GPUs that the server does not use are in the sum" if len(chosen) == len(devices) else ""
    notes = [f"{len(chosen)} of this host's {len(devices)} GPUs{origin}{warning}"]
    by_index = any(token.isdecimal() for token in visible_tokens(visible) or [])
    if by_index and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        notes.append("indices mean PCI order; CUDA has another for unlike GPUs unless CUDA_DEVICE_ORDER=PCI_BUS_ID")
    return notes


def _open_gpu(device: Device, notes: list[str], every_s: float) -> _Gpu:
    """Open a device by its counter, else by power. Raises NVMLError when it has neither. Appends to `notes`."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(device.index)
    name = f"gpu:{device.index}"
    source = _source(handle)
    uuid = device.uuid or str(pynvml.nvmlDeviceGetUUID(handle))
    if source != "nvml-counter":
        notes.append(f"{name} has no energy counter: joules are integrated from {_POWER[source]}")
    with suppress(pynvml.NVMLError):
        current_mode, _pending = pynvml.nvmlDeviceGetMigMode(handle)
        if current_mode == pynvml.NVML_DEVICE_MIG_ENABLE:
            notes.append(f"{name} is in MIG mode: joules are the whole GPU's, a slice's cannot be told apart")
    return _Gpu(device.index, uuid, handle, source, _max_w(handle), every_s)


def _max_w(handle: Any) -> float:
    """Return the watts that the card cannot exceed: by its largest power limit, where it gives one."""
    with suppress(pynvml.NVMLError):
        _, limit_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        if limit_mw > 0:
            return min(GPU_MAX_W, float(OVER_LIMIT * limit_mw / MW_PER_W))
    return GPU_MAX_W


def _source(handle: Any) -> str:
    """Return the device's source. Only a counter that can never answer gives way to power."""
    for is_final in (False, False, True):
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError as err:
            if err.value in RETRY and not is_final:
                continue
            if err.value not in PERMANENT or (best := _best_power(handle)) is None:
                raise
            return best[0]
        break
    return "nvml-counter"


def _best_power(handle: Any) -> tuple[str, float] | None:
    """Return the best source of power that answers and its watts; None if there is none."""
    for source in _POWER:
        try:
            return source, power_w(handle, source)
        except pynvml.NVMLError:
            continue
    return None


def power_w(handle: Any, source: str) -> float:
    """Read the watts from one of the three sources of power. Raises NVMLError."""
    match source:
        case "nvml-power-instant":
            return _field_w(handle, pynvml.NVML_FI_DEV_POWER_INSTANT)
        case "nvml-power-average":
            return _field_w(handle, pynvml.NVML_FI_DEV_POWER_AVERAGE)
        case _:
            return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / MW_PER_W


def _field_w(handle: Any, field: int) -> float:
    """Read a power field in GPU scope (0). The call may succeed while the field in it fails."""
    [answer] = pynvml.nvmlDeviceGetFieldValues(handle, [(field, 0)])
    if answer.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(answer.nvmlReturn)
    return float(answer.value.uiVal) / MW_PER_W


def _describe(err: pynvml.NVMLError) -> str:
    meaning = PERMANENT.get(err.value) or FATAL.get(err.value) or str(err)
    return f"{meaning} (NVML {err.value})"


def _why_no_nvml(err: pynvml.NVMLError) -> str:
    match err.value:
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return "no NVIDIA driver here (libnvidia-ml.so.1 not found)"
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the NVIDIA library is here, but the driver is not loaded"
        case pynvml.NVML_ERROR_NO_PERMISSION:
            return "NVML refuses: no permission to talk to the driver; in a container, start it with --gpus"
        case _:
            return f"NVML does not start: {_describe(err)}"
