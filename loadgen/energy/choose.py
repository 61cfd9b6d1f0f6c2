"""The choice of an energy source, in one place, with the reason for everything that was not chosen."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadgen.energy.amd import open_amd
from loadgen.energy.cpu_estimate import CpuEstimate
from loadgen.energy.hwmon import HWMON, HwmonMeter
from loadgen.energy.metric_page import MetricMeter
from loadgen.energy.nvml import open_nvml
from loadgen.energy.rapl import POWERCAP, RaplMeter
from loadgen.energy.redfish import SCHEME, RedfishMeter
from loadgen.energy.remote import open_remote
from loadgen.energy.several import SeveralMeters
from loadgen.energy.source_names import public_source, sources_of
from loadgen.errors import LoadgenError, MeterError

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter

_log = logging.getLogger(__name__)

CHOICES = ("auto", "nvml", "amd", "rapl", "hwmon", "cpu", "none")
"""Values of --energy, besides a URL and several of them with commas between."""


def open_meter(
    choice: str,
    *,
    gpus: Sequence[str] | None = None,
    token: str | None = None,
    powercap: Path = POWERCAP,
    hwmon: Path = HWMON,
    every_s: float = 0.0,
) -> tuple[EnergyMeter | None, list[str]]:
    """The meter that `choice` asks for and, a line each, why there is none or why a better one was passed over.

    Several choices with commas between are one meter of all their domains. `auto` is the GPUs' counters, else the
    CPU's, else none: never an estimate. A source asked for by name that cannot be used raises LoadgenError. gpus:
    indices or UUIDs; token: for a URL; powercap, hwmon: roots of the kernel's trees; every_s: as for `open_nvml`.
    """
    if len(sources := sources_of(choice)) > 1:
        options = {"gpus": gpus, "token": token, "powercap": powercap, "hwmon": hwmon, "every_s": every_s}
        return _several(sources, **options), []
    match choice:
        case "none":
            return None, ["energy was turned off (--energy none)"]
        case "auto":
            return _first(
                {
                    "nvml": lambda: open_nvml(gpus, every_s=every_s),
                    "amd": lambda: open_amd(gpus),
                    "rapl": lambda: RaplMeter(powercap),
                    "hwmon": lambda: HwmonMeter(hwmon),
                }
            )
        case "nvml":
            return _asked("nvml", lambda: open_nvml(gpus, every_s=every_s)), []
        case "amd":
            return _asked("amd", lambda: open_amd(gpus)), []
        case "rapl":
            return _asked("rapl", lambda: RaplMeter(powercap)), []
        case "hwmon":
            return _asked("hwmon", lambda: HwmonMeter(hwmon)), []
        case sensor if sensor.startswith("hwmon:"):
            return _asked("hwmon", lambda: HwmonMeter(hwmon, sensor.removeprefix("hwmon:"))), []
        case "cpu":
            return _asked("cpu", CpuEstimate), []
        case url if url.startswith(SCHEME):
            return _asked("Redfish", lambda: RedfishMeter(url)), []
        case url if "://" in url and "#" in url:
            return _asked("URL", lambda: MetricMeter(url, token=token)), []
        case url if "://" in url:
            return _asked("URL", lambda: open_remote(url, token=token, gpus=gpus)), []
        case _:
            raise LoadgenError(
                f"--energy {choice!r} is none of {', '.join(CHOICES)}, nor hwmon:SENSOR, nor a URL (http://...)"
            )


def energy_token(choice: str) -> str | None:
    """Return $LOADGEN_ENERGY_TOKEN for the sources that a user names; none for what a server itself names as `auto`."""
    return None if choice == "auto" else stated_token()


def stated_token() -> str | None:
    """Return $LOADGEN_ENERGY_TOKEN, which is for sources that a user names."""
    return os.environ.get("LOADGEN_ENERGY_TOKEN") or None


def _several(sources: Sequence[str], **options: Any) -> EnergyMeter:
    """Open every source. Raises LoadgenError, with no meter left open, if one cannot be used or repeats another."""
    if alone := {"auto", "none"}.intersection(sources):
        raise LoadgenError(f"--energy {min(alone)} stands alone: name the sources, as in --energy nvml,rapl")
    if len(set(sources)) < len(sources):
        raise LoadgenError("--energy names a source twice")
    if "cpu" in sources and (measured := {"rapl", "hwmon"}.intersection(sources)):
        raise LoadgenError(f"--energy cpu estimates what {max(measured)} measures: leave one of them out")
    meters: dict[str, EnergyMeter] = {}
    try:
        for source in sources:
            meter, _ = open_meter(source, **options)
            assert meter is not None, "only auto and none are without a meter"
            name = public_source(source)
            if name in meters:
                meter.close()
                raise MeterError(f"{name} is named twice")
            meters[name] = meter
        return SeveralMeters(meters)
    except BaseException as err:
        for meter in meters.values():
            meter.close()
        if isinstance(err, MeterError):
            raise LoadgenError(f"--energy: {err}") from err
        raise


def source_beside(base_url: str, energy: str, *, simulated_at: str | None) -> str | None:
    """Return the energy source that `--energy` names for the server at `base_url`.

    `auto` is the source beside the server: its own simulated counter (at the URL `simulated_at`), or this machine's
    when the server runs here. None when the server runs on another host.
    """
    if energy != "auto":
        return energy
    if simulated_at:
        return simulated_at
    return "auto" if is_local(base_url) else None


def is_local(url: str) -> bool:
    """Return True if the URL's host is this machine: its meters are then the server's.

    A name with several addresses is this machine when all of them are.
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.startswith("127."):
        return True
    try:
        addresses = {(entry[0], entry[4]) for entry in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return host == socket.gethostname()
    return all(_is_own(family, address) for family, address in addresses)


def _is_own(family: int, address: tuple[Any, ...]) -> bool:
    """Return True if an interface of this machine has the address, which alone can be bound."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind(address)
    except OSError:
        return False
    return True


def _asked(name: str, open_it: Callable[[], EnergyMeter]) -> EnergyMeter:
    try:
        meter = open_it()
        _log_choice(name, meter)
        return meter
    except MeterError as err:
        raise LoadgenError(f"--energy {name}: {err} (`loadgen meters` lists what this machine has)") from err


def _first(openers: dict[str, Callable[[], EnergyMeter]]) -> tuple[EnergyMeter | None, list[str]]:
    reasons: list[str] = []
    for name, open_it in openers.items():
        try:
            meter = open_it()
        except MeterError as err:
            reasons.append(f"{name}: {err}")
            _log.info("energy source refused: %(reason)s", {"reason": reasons[-1]})
        else:
            _log_choice(name, meter)
            return meter, reasons
    return None, reasons


def _log_choice(name: str, meter: EnergyMeter) -> None:
    domains = [f"{domain.name} ({domain.source})" for domain in meter.domains]
    _log.info("energy source %(source)s: %(domains)s", {"source": name, "domains": domains})
