"""Which GPUs a server may use and how they are doing. Read, never set."""

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
    """One GPU at one moment. None is what the driver does not say."""

    name: str
    uuid: str
    limit_w: float | None = None
    temperature_c: float | None = None
    sm_mhz: int | None = None
    slowed_by: int | None = None
    """NVML's bits of reasons why clocks are below what they could be; 1 is idle."""


def states() -> list[GpuState]:
    """Of the GPUs that CUDA_VISIBLE_DEVICES names, or of all; empty without a driver. MeterError when it names none."""
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
    found: dict[str, Any] = {}
    asked: dict[str, Callable[[], Any]] = {
        "limit_w": lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "sm_mhz": lambda: int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "slowed_by": lambda: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
    }
    for key, ask in asked.items():
        with suppress(pynvml.NVMLError):
            found[key] = ask()
    return GpuState(name=str(pynvml.nvmlDeviceGetName(handle)), uuid=str(pynvml.nvmlDeviceGetUUID(handle)), **found)


def cool_down(limit_c: float, timeout_s: float) -> list[GpuState]:
    """Waits until every GPU is at or below `limit_c`, or for `timeout_s`; the states then."""
    end_ns = clock.monotonic_ns() + round(timeout_s * NS_PER_S)
    while True:
        now = states()
        hot = [one for one in now if one.temperature_c is not None and one.temperature_c > limit_c]
        if not hot or clock.monotonic_ns() > end_ns:
            return now
        sleep(1)
