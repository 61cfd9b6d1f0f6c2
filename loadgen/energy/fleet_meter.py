"""One meter of all engines: the counters of this machine's GPUs, and those of engines with an energy source of their
own, whose domains carry the engine's name."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from loadgen.energy.awaited_meter import AwaitedMeter
from loadgen.energy.choose import is_local, open_meter
from loadgen.energy.named_engine import domain_at, domains_of
from loadgen.energy.several import SeveralMeters, refuse_repetition
from loadgen.errors import LoadgenError, MeterError, NoAnswerError
from loadgen.http_get import REQUEST_ERRORS, http_get

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter, Reading
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.energy.series import EnergyDomain

_log = logging.getLogger(__name__)
_LATE = threading.Lock()
"""Held while a source that answers at last is compared with the others."""


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
    simulated: Collection[str] | None = None,
    awaiting: bool = False,
) -> tuple[EnergyMeter | None, list[str], tuple[NamedEngine, ...]]:
    """Return one meter of all these engines, why there is none or why a better source was passed over, and the engines
    with the energy sources that were taken.

    choice: the source of engines without one of their own. With "auto" that of a simulated engine is its counter.
    token: for the sources that a user names. sharing: engines may have the same GPUs, all of them. every_s: as for
    `open_meter`. simulated: names of the simulated engines; None asks every engine. awaiting: an engine's own source
    that does not answer is opened when it does, and its domains are not among the meter's before.
    Raises LoadgenError when a source that was asked for cannot be used, when two measure the same, or when it is not
    known which GPUs are an engine's. Blocks.
    """
    tokens = {engine.name: token for engine in engines if engine.energy is not None}
    if choice == "auto":
        engines = _with_simulated_counters(engines, simulated)
    beside = [engine for engine in engines if engine.energy is None and choice != "none"]
    if reason := _unreadable(beside, choice):
        return None, [reason], tuple(engines)
    meters: dict[str, EnergyMeter] = {}
    reasons: list[str] = []
    try:
        if beside:
            placed = {gpu for engine in beside for gpu in engine.gpus}
            meter, reasons = open_meter(choice, gpus=sorted(placed) or gpus, token=token, every_s=every_s)
            if meter is None:
                return None, reasons, tuple(engines)
            meters[choice] = meter
        if choice != "none":
            _open_own_meters([engine for engine in engines if engine.energy is not None], tokens, meters, awaiting)
        if not meters:
            return None, ["energy was turned off (--energy none)"], tuple(engines)
        whole = SeveralMeters(meters) if len(meters) > 1 else next(iter(meters.values()))
        opened = [engine for engine in engines if not isinstance(meters.get(_label(engine)), AwaitedMeter)]
        _check_domains(opened, whole.domains, sharing=sharing)
    except BaseException as err:
        for meter in meters.values():
            meter.close()
        if isinstance(err, MeterError):
            raise LoadgenError(str(err)) from err
        raise
    return whole, reasons, tuple(engines)


def _unreadable(beside: Sequence[NamedEngine], choice: str) -> str:
    """Return why engines without a source of their own cannot be measured from here; empty if they can. Raises
    LoadgenError when it is not known which GPUs are an engine's."""
    if unplaced := next((engine.name for engine in beside if not engine.gpus and len(beside) > 1), None):
        raise LoadgenError(
            f"--engine {unplaced}: say which GPUs are its own (gpus=0), or where its energy is read (energy=URL)"
        )
    away = ", ".join(engine.name for engine in beside if choice == "auto" and not is_local(engine.url))
    return away and f"{away}: on another host; run `loadgen sidecar` there and add energy=http://HOST:9478"


def _with_simulated_counters(engines: Sequence[NamedEngine], simulated: Collection[str] | None) -> list[NamedEngine]:
    """Return the engines, each simulated one with its own counter unless it has another source. None asks them."""
    if simulated is None:
        sourceless = [engine for engine in engines if engine.energy is None]
        with ThreadPoolExecutor(max(len(sourceless), 1)) as pool:
            answers = pool.map(is_simulated, (engine.url for engine in sourceless))
            simulated = {engine.name for engine, says_so in zip(sourceless, answers, strict=True) if says_so}
    return [
        msgspec.structs.replace(engine, energy=engine.energy or (engine.url if engine.name in simulated else None))
        for engine in engines
    ]


def _open_own_meters(
    engines: Sequence[NamedEngine], tokens: Mapping[str, str | None], meters: dict[str, EnergyMeter], awaiting: bool
) -> None:
    """Open the engines' own sources side by side, since hosts that are off cost a timeout each, and add them to
    `meters`. Raises LoadgenError."""
    with ThreadPoolExecutor(max(len(engines), 1)) as pool:
        openings = [
            pool.submit(_own_meter, engine, tokens.get(engine.name), meters, awaiting=awaiting) for engine in engines
        ]
    for engine, opening in zip(engines, openings, strict=True):
        if opening.exception() is None:
            meters[_label(engine)] = opening.result()
    for opening in openings:
        opening.result()  # raises the first error, with all other meters among those that are closed


def _label(engine: NamedEngine) -> str:
    return f"--engine {engine.name}"


def _own_meter(
    engine: NamedEngine, token: str | None, meters: dict[str, EnergyMeter], *, awaiting: bool
) -> EnergyMeter:
    """Open an engine's own source, or later if it does not answer. Raises LoadgenError when it cannot be used."""
    try:
        return _open_own(engine, token)
    except NoAnswerError as err:
        if awaiting:
            _log.warning("%s: %s; its energy is unknown until it answers", _label(engine), err)
            return AwaitedMeter(_label(engine), partial(_open_late, engine, token, meters))
        raise LoadgenError(f"{_label(engine)}: {err}") from err
    except MeterError as err:
        raise LoadgenError(f"{_label(engine)}: {err}") from err


def _open_own(engine: NamedEngine, token: str | None) -> EnergyMeter:
    """Open an engine's own source. Raises MeterError, and NoAnswerError where nothing answers."""
    assert engine.energy is not None
    try:
        meter, _ = open_meter(engine.energy, gpus=engine.gpus or None, token=token)
    except LoadgenError as err:
        kind = NoAnswerError if isinstance(err.__cause__, NoAnswerError) else MeterError
        raise kind(str(err.__cause__ or err)) from err
    assert meter is not None, "only auto and none are without a meter"
    return MeterAtEngine(engine.name, meter)


def _open_late(engine: NamedEngine, token: str | None, meters: dict[str, EnergyMeter]) -> EnergyMeter:
    """Open an engine's own source while `meters` are read. Raises MeterError if it measures what one of them does."""
    meter = _open_own(engine, token)
    try:
        with _LATE:
            _check_domains([engine], meter.domains, sharing=False)
            refuse_repetition(meters | {_label(engine): meter})
            meters[_label(engine)] = meter
    except (LoadgenError, MeterError) as err:
        meter.close()
        raise MeterError(str(err).removeprefix(f"{_label(engine)}: ")) from err
    return meter


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
