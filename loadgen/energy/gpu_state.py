"""GPU state: power limit, temperature, clocks. Read-only."""

from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

import msgspec
import pynvml

from loadgen import clock
from loadgen.energy.nvml import visible_devices
from loadgen.units import NS_PER_S


class GpuState(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at one moment. None where the driver gives no value."""

    name: str
    """Model, such as "NVIDIA H200"."""
    uuid: str
    """Identity of the card."""
    limit_w: float | None = None
    """Power limit."""
    temperature_c: float | None = None
    """Temperature."""
    sm_mhz: int | None = None
    """Clock of the streaming multiprocessors."""
    slowed_by: int | None = None
    """NVML's bits of reasons why clocks are below what they could be; 1 is idle."""


def states() -> list[GpuState]:
    """Read the GPUs that CUDA_VISIBLE_DEVICES names, or all. Empty without a driver; MeterError when it names none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_state(pynvml.nvmlDeviceGetHandleByIndex(device.index)) for device in visible_devices()]
    except pynvml.NVMLError:
        return []
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _state(handle: Any) -> GpuState:
    values: dict[str, Any] = {}
    readers: dict[str, Callable[[], Any]] = {
        "limit_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "sm_mhz": lambda: int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "slowed_by": lambda: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
    }
    for key, read in readers.items():
        with suppress(pynvml.NVMLError):
            values[key] = read()
    return GpuState(name=str(pynvml.nvmlDeviceGetName(handle)), uuid=str(pynvml.nvmlDeviceGetUUID(handle)), **values)


def cool_down(limit_c: float, timeout_s: float) -> list[GpuState]:
    """Wait until every GPU is at or below `limit_c`, at most `timeout_s`. Returns the final states."""
    end_ns = clock.monotonic_ns() + round(timeout_s * NS_PER_S)
    while True:
        current = states()
        hot = [gpu for gpu in current if gpu.temperature_c is not None and gpu.temperature_c > limit_c]
        if not hot or clock.monotonic_ns() > end_ns:
            return current
        sleep(1)
