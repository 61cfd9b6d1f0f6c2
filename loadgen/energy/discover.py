"""The choice of an energy source, in one place, with the reason for everything that was not chosen."""

from collections.abc import Callable, Sequence
from pathlib import Path

from loadgen.energy.amd import open_amd
from loadgen.energy.cpu import CpuEstimate, PowerCurve
from loadgen.energy.meter import EnergyMeter, MeterError
from loadgen.energy.nvml import open_nvml
from loadgen.energy.rapl import POWERCAP, RaplMeter
from loadgen.energy.remote import RemoteMeter
from loadgen.errors import LoadgenError

CHOICES = ("auto", "nvml", "amd", "rapl", "cpu", "none")
"""What --energy takes, besides a URL."""


def open_meter(
    choice: str,
    *,
    gpus: Sequence[str] | None = None,
    token: str | None = None,
    cpu_watts: tuple[float, float] | None = None,
    powercap: Path = POWERCAP,
) -> tuple[EnergyMeter | None, list[str]]:
    """The meter that `choice` asks for and, a line each, why there is none or why a better one was passed over.

    `auto` is the GPUs' counters, else the CPU's, else none: never an estimate. A source asked for by name that cannot
    be used raises LoadgenError. gpus: indices or UUIDs; cpu_watts: (idle, busy) of the whole machine for `cpu`.
    """
    match choice:
        case "none":
            return None, ["energy was turned off (--energy none)"]
        case "auto":
            return _first(
                {"nvml": lambda: open_nvml(gpus), "amd": lambda: open_amd(gpus), "rapl": lambda: RaplMeter(powercap)}
            )
        case "nvml":
            return _asked("nvml", lambda: open_nvml(gpus)), []
        case "amd":
            return _asked("amd", lambda: open_amd(gpus)), []
        case "rapl":
            return _asked("rapl", lambda: RaplMeter(powercap)), []
        case "cpu":
            return _asked("cpu", lambda: CpuEstimate(PowerCurve(*cpu_watts) if cpu_watts else None)), []
        case url if "://" in url:
            return _asked("URL", lambda: RemoteMeter(url, token=token, gpus=gpus)), []
        case _:
            raise LoadgenError(f"--energy {choice!r} is none of {', '.join(CHOICES)}, nor a URL (http://...)")


def _asked(name: str, open_it: Callable[[], EnergyMeter]) -> EnergyMeter:
    try:
        return open_it()
    except MeterError as err:
        raise LoadgenError(f"--energy {name}: {err} (`loadgen meters` lists what this machine has)") from err


def _first(openers: dict[str, Callable[[], EnergyMeter]]) -> tuple[EnergyMeter | None, list[str]]:
    reasons: list[str] = []
    for name, open_it in openers.items():
        try:
            return open_it(), reasons
        except MeterError as err:
            reasons.append(f"{name}: {err}")
    return None, reasons
