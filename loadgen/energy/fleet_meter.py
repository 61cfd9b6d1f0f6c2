"""One meter of all engines: the counters of this machine's GPUs, and those of engines with an energy source of their
own, whose domains carry the engine's name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from loadgen.energy.choose import is_local, open_meter
from loadgen.energy.named_engine import domain_at, domains_of
from loadgen.energy.several import SeveralMeters
from loadgen.errors import LoadgenError, MeterError
from loadgen.http_get import REQUEST_ERRORS, http_get

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter, Reading
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.energy.series import EnergyDomain


class MeterAtEngine:
    """The meter of one engine; the names of its domains end with the engine's."""

    def __init__(self, engine: str, meter: EnergyMeter) -> None:
        self._engine, self._meter = engine, meter

    def _named(self, domain: str) -> str:
        return domain_at(domain, self._engine)

    @property
    def domains(self) -> list[EnergyDomain]:
        return [
            msgspec.structs.replace(
                domain, name=self._named(domain.name), within=domain.within and self._named(domain.within)
            )
            for domain in self._meter.domains
        ]

    @property
    def notes(self) -> list[str]:
        return [f"{self._engine}: {note}" for note in self._meter.notes]

    @property
    def poll_s(self) -> float:
        return self._meter.poll_s

    def read(self) -> Reading:
        reading = self._meter.read()
        return reading._replace(
            samples=[msgspec.structs.replace(sample, domain=self._named(sample.domain)) for sample in reading.samples],
            errors=tuple(f"{self._engine}: {error}" for error in reading.errors),
            throttled=tuple((self._named(domain), reason) for domain, reason in reading.throttled),
        )

    def close(self) -> None:
        self._meter.close()


def open_fleet_meter(
    engines: Sequence[NamedEngine],
    choice: str = "auto",
    *,
    gpus: Sequence[str] | None = None,
    token: str | None = None,
    sharing: bool = False,
    every_s: float = 0.0,
) -> tuple[EnergyMeter | None, list[str], tuple[NamedEngine, ...]]:
    """Return one meter of all these engines, why there is none or why a better source was passed over, and the engines
    with the energy sources that were taken.

    choice: the source of engines without one of their own. With "auto" that of a simulated engine is its counter.
    sharing: engines may have the same GPUs, all of them. every_s: as for `open_meter`.
    Raises LoadgenError when a source that was asked for cannot be used, when two measure the same, or when it is not
    known which GPUs are an engine's. Blocks.
    """
    if choice == "auto":
        engines = _with_simulated_counters(engines)
    beside = [engine for engine in engines if engine.energy is None and choice != "none"]
    if unplaced := next((engine.name for engine in beside if not engine.gpus and len(beside) > 1), None):
        raise LoadgenError(
            f"--engine {unplaced}: say which GPUs are its own (gpus=0), or where its energy is read (energy=URL)"
        )
    away = [engine.name for engine in beside if choice == "auto" and not is_local(engine.url)]
    if away:
        reason = f"{', '.join(away)}: on another host; run `loadgen sidecar` there and add energy=http://HOST:9478"
        return None, [reason], tuple(engines)
    meters: dict[str, EnergyMeter] = {}
    reasons: list[str] = []
    try:
        if beside:
            own = {gpu for engine in beside for gpu in engine.gpus}
            meter, reasons = open_meter(choice, gpus=sorted(own) or gpus, token=token, every_s=every_s)
            if meter is None:
                return None, reasons, tuple(engines)
            meters[choice] = meter
        for engine in engines if choice != "none" else ():
            if engine.energy is not None:
                meters[f"--engine {engine.name}"] = _own_meter(engine, engine.energy, token)
        if not meters:
            return None, ["energy was turned off (--energy none)"], tuple(engines)
        whole = SeveralMeters(meters) if len(meters) > 1 else next(iter(meters.values()))
        _check_domains(engines, whole.domains, sharing=sharing)
    except BaseException as err:
        for meter in meters.values():
            meter.close()
        if isinstance(err, MeterError):
            raise LoadgenError(str(err)) from err
        raise
    return whole, reasons, tuple(engines)


def _with_simulated_counters(engines: Sequence[NamedEngine]) -> list[NamedEngine]:
    """Return the engines, each simulated one with its own counter unless it has another source."""
    with ThreadPoolExecutor(max(len(engines), 1)) as pool:
        simulated = list(pool.map(lambda engine: engine.energy is None and is_simulated(engine.url), engines))
    return [
        msgspec.structs.replace(engine, energy=engine.url) if its_own else engine
        for engine, its_own in zip(engines, simulated, strict=True)
    ]


def _own_meter(engine: NamedEngine, url: str, token: str | None) -> EnergyMeter:
    try:
        meter, _ = open_meter(url, gpus=engine.gpus or None, token=token)
    except LoadgenError as err:
        raise LoadgenError(f"--engine {engine.name}: {str(err).removeprefix('--energy URL: ')}") from err
    assert meter is not None, "only auto and none are without a meter"
    return MeterAtEngine(engine.name, meter)


def _check_domains(engines: Sequence[NamedEngine], domains: Sequence[EnergyDomain], *, sharing: bool) -> None:
    """Raise LoadgenError if an engine has no domain, or another's: one GPU may be named by its index and its UUID."""
    owners: dict[str, tuple[str, set[str]]] = {}
    for engine in engines:
        own = {domain.name for domain in domains_of(engine, domains)}
        if not own:
            raise LoadgenError(f"--engine {engine.name}: no energy source has a GPU of it")
        for name in own:
            other, of_other = owners.setdefault(name, (engine.name, own))
            if other != engine.name and not (sharing and of_other == own):
                raise LoadgenError(f"--engine: {name} is of {other} and of {engine.name}")


def is_simulated(url: str) -> bool:
    """Return True if the server at this URL answers, and says that it is simulated."""
    try:
        response = http_get(f"{url}/v1/models", timeout_s=2, max_body_bytes=1 << 20)
    except (*REQUEST_ERRORS, ValueError):
        return False
    return response.headers.get("X-Simulated") == "true"
