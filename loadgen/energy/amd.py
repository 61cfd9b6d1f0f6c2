"""AMD GPUs, through AMD's own bindings (the extra `amd`). Reads only.

Written to the shapes of amdsmi 7 and tested through it on a stand-in for libamd_smi.so: never yet run on a card.
"""

import ctypes
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import CounterTrack
from loadgen.energy.meter import LEFT_OUT, Reading
from loadgen.energy.nvml import Device, choose, visible_tokens
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import MeterError
from loadgen.extras import install_command
from loadgen.units import UJ_PER_MJ

_POLL_S = 0.05
"""The firmware sums about once in a millisecond: every read is a point."""
VISIBLE = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Variables that HIP programs obey; the first that is set counts."""


class AmdMeter:
    """Any number of GPUs. Open it with `open_amd`."""

    poll_s = _POLL_S

    def __init__(self, smi: Any, gpus: list[tuple[EnergyDomain, Any]], notes: list[str], clock: Callable[[], int]):
        self._smi = smi
        self._gpus = gpus
        self._tracks = {domain.name: CounterTrack(domain.name, continuous=True) for domain, _ in gpus}
        self._clock = clock
        self.notes = notes

    @property
    def domains(self) -> list[EnergyDomain]:
        return [domain for domain, _ in self._gpus]

    def read(self) -> Reading:
        samples: list[EnergySample] = []
        errors: list[str] = []
        before = self._resets()
        for domain, handle in self._gpus:
            start_ns = self._clock()
            try:
                raw_mj = _counter_mj(self._smi, handle)
            except self._smi.AmdSmiException as err:
                errors.append(f"{domain.name}: {_describe(err)}")
                continue
            if sample := self._tracks[domain.name].observe(start_ns, self._clock(), raw_mj):
                samples.append(sample)
        return Reading(samples, self._resets() - before, tuple(errors))

    def close(self) -> None:
        with suppress(self._smi.AmdSmiException):
            self._smi.amdsmi_shut_down()

    def _resets(self) -> int:
        return sum(track.resets for track in self._tracks.values())


def open_amd(
    gpus: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], int] = monotonic_ns,
) -> AmdMeter:
    """Open a meter of the chosen GPUs: indices or UUIDs; None means those that HIP_VISIBLE_DEVICES names, else all.

    Raises MeterError with the reason when not one of them can be measured.
    """
    smi = _bindings()
    try:
        smi.amdsmi_init()
        handles = smi.amdsmi_get_processor_handles()
        devices = [Device(i, smi.amdsmi_get_gpu_device_uuid(handle)) for i, handle in enumerate(handles)]
    except smi.AmdSmiException as err:
        raise MeterError(f"amdsmi does not start: {_describe(err)}") from err
    visible = next((environ[name] for name in VISIBLE if name in environ), None) if gpus is None else None
    tokens = list(gpus) if gpus is not None else visible_tokens(visible)
    chosen = devices if tokens is None else choose(devices, tokens, lambda token: token)
    notes = ["amdsmi: this meter has been tested on a stand-in for the library, not on a card"]
    opened: list[tuple[EnergyDomain, Any]] = []
    for device in chosen:
        try:
            _counter_mj(smi, handles[device.index])
        except smi.AmdSmiException as err:
            notes.append(f"gpu:{device.index}{LEFT_OUT}{_describe(err)}")
            continue
        domain = EnergyDomain(name=f"gpu:{device.index}", source="amdsmi-counter", uuid=device.uuid)
        opened.append((domain, handles[device.index]))
    if not opened:
        smi.amdsmi_shut_down()
        raise MeterError("no AMD GPU can be measured: " + "; ".join(notes[1:] or ["amdsmi answers, but lists none"]))
    return AmdMeter(smi, opened, notes, clock)


def _bindings() -> Any:
    """Import and return the amdsmi module. Raises MeterError when its library or the bindings are missing.

    The library is looked for first, where the module looks: without it the module prints to stdout and then fails with
    a KeyError, and importing it takes 0.2 s.
    """
    rocm = os.environ.get("ROCM_HOME", os.environ.get("ROCM_PATH", "/opt/rocm"))
    for library in (f"{rocm}/lib/libamd_smi.so", "libamd_smi.so"):
        with suppress(OSError):
            ctypes.CDLL(library)
            break
    else:
        raise MeterError("no AMD driver library here (libamd_smi.so not found)")
    try:
        with redirect_stdout(io.StringIO()):
            import amdsmi
    except ImportError as err:
        raise MeterError(f"AMD's bindings are not installed: {install_command('amd')}") from err
    except KeyError as err:
        raise MeterError(f"AMD's bindings do not find their library or one of its functions: {err}") from err
    return amdsmi


def _counter_mj(smi: Any, handle: Any) -> int:
    """energy_accumulator x counter_resolution (microjoules), as amdsmi gives them, in whole millijoules."""
    count = smi.amdsmi_get_energy_count(handle)
    return int(count["energy_accumulator"] * count["counter_resolution"] / UJ_PER_MJ)


def _describe(err: Exception) -> str:
    info = getattr(err, "err_info", None)
    return str(info or err).split(" - ")[-1].strip()
