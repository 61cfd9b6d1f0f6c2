"""Inspect energy sources over a few seconds: the period, step size and power of each domain, and the cost of a read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.clock import monotonic_ns
from loadgen.energy.counter_track import PowerTrack
from loadgen.energy.nvml import NvmlMeter
from loadgen.energy.sampler import Sampler
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries, series_by_domain
from loadgen.errors import MeterError
from loadgen.units import ns_from_s, s_from_ns

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter

POWER_POLL_S = 0.02


class DomainFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of one domain over a few seconds. None: not observed."""

    name: str
    source: str
    uuid: str | None
    within: str | None
    moves: int
    """Updates of the counter."""
    period_s: float | None
    quantum_mj: int | None
    """The smallest step between two updates."""
    watts: float | None
    power_ratio: float | None
    """Counter over integrated power, between the same two updates."""
    verdict: str


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of one energy source, or the reason why it is not usable."""

    name: str
    usable: bool
    reason: str | None
    """Why it is not usable."""
    read_cost_s: float | None = None
    cpu_share: float | None = None
    """Share of one core that sampling this source at its own pace took."""
    errors: dict[str, int] = {}
    resets: int = 0
    domains: list[DomainFacts] = []
    notes: list[str] = []


def inspect_sources(openers: dict[str, Callable[[], EnergyMeter]], seconds: float) -> list[SourceFacts]:
    """Open every source, sample all that open side by side for `seconds`, and return the facts of each in order."""
    opened: dict[str, _Inspection] = {}
    refused: dict[str, str] = {}
    for name, open_it in openers.items():
        try:
            opened[name] = _Inspection(open_it())
        except MeterError as err:
            refused[name] = str(err)
    if opened:
        pause = threading.Event()
        end_ns = monotonic_ns() + ns_from_s(seconds)
        for inspection in opened.values():
            inspection.start()
        while monotonic_ns() < end_ns:
            pause.wait(POWER_POLL_S)
            for inspection in opened.values():
                inspection.observe_power()
    facts = {name: inspection.stop(name) for name, inspection in opened.items()}
    return [facts.get(name) or SourceFacts(name=name, usable=False, reason=refused[name]) for name in openers]


class _Inspection:
    """One open meter, its sampler, and the power read beside it."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._samples: list[EnergySample] = []
        self._sampler = Sampler(meter, self._samples.extend)
        self._tracks = {domain.name: PowerTrack(domain.name, keep_s=0.0) for domain in meter.domains}
        self._power: list[EnergySample] = []
        self._start_ns = monotonic_ns()

    def start(self) -> None:
        self._start_ns = monotonic_ns()
        self._sampler.start()

    def observe_power(self) -> None:
        if isinstance(self._meter, NvmlMeter):
            for name, watts in self._meter.power_w().items():
                self._power += self._tracks[name].observe(monotonic_ns(), watts)

    def stop(self, name: str) -> SourceFacts:
        """Stop sampling, close the meter unless a read of it hangs, and return the facts of the source `name`."""
        report = self._sampler.stop()
        length_s = s_from_ns(monotonic_ns() - self._start_ns)
        series, power = series_by_domain(self._samples), series_by_domain(self._power)
        domains = [domain_facts(d, series.get(d.name), power.get(d.name)) for d in self._meter.domains]
        notes = self._meter.notes
        if not self._sampler.hangs:
            self._meter.close()
        moved = any(domain.moves > 1 for domain in domains)
        return SourceFacts(
            name=name,
            usable=moved,
            reason=None if moved else "it answers, but its counter did not change while it was observed",
            read_cost_s=report.read_cost_s,
            cpu_share=report.cpu_s / length_s,
            errors=report.errors,
            resets=report.resets,
            domains=domains,
            notes=notes,
        )


def domain_facts(domain: EnergyDomain, series: EnergySeries | None, power: EnergySeries | None) -> DomainFacts:
    """Return the period, step size, watts and agreement with integrated power of the updates that were observed.

    series: None without a sample. power: the integral of the power readings beside a counter; None without any.
    """
    moves = 0 if series is None else len(series)
    facts = DomainFacts(
        name=domain.name, source=domain.source, uuid=domain.uuid, within=domain.within, moves=moves,
        period_s=domain.period_s, quantum_mj=None, watts=None, power_ratio=None, verdict="",
    )  # fmt: skip
    if series is not None and moves > 1:
        steps = np.diff(series.mj)
        facts = msgspec.structs.replace(
            facts,
            period_s=update_period_s(series) if domain.source == "nvml-counter" else domain.period_s,
            quantum_mj=int(steps[steps > 0].min()) if steps.any() else None,
            watts=series.total_mj / 1000 / s_from_ns(int(series.t_ns[-1] - series.t_ns[0])),
            power_ratio=ratio_to_power(series, power) if domain.source == "nvml-counter" else None,
        )
    return msgspec.structs.replace(facts, verdict=verdict(facts))


def update_period_s(series: EnergySeries) -> float:
    """Return the mean time between updates.

    A gap counts for as many updates as the median gap fits into it, so that single missed updates do not bias the mean.
    """
    gaps = np.diff(series.t_ns)
    updates = np.maximum(np.round(gaps / median(gaps.tolist())), 1).sum()
    return s_from_ns(int(gaps.sum())) / float(updates)


def ratio_to_power(counter: EnergySeries, power: EnergySeries | None) -> float | None:
    """Return the counter's energy over the integrated power, between the same two updates of the counter.

    These are the first and the last update within the time that the power readings cover; None without two of them.
    """
    if power is None or len(power) < 2:
        return None
    inside = counter.t_ns[(counter.t_ns >= power.t_ns[0]) & (counter.t_ns <= power.t_ns[-1])]
    if len(inside) < 2:
        return None
    start_ns, end_ns = int(inside[0]), int(inside[-1])
    counted, integrated = counter.energy_mj(start_ns, end_ns), power.energy_mj(start_ns, end_ns)
    return counted / integrated if counted is not None and integrated else None


def verdict(facts: DomainFacts) -> str:
    """Return in one line what the domain is good for."""
    if facts.moves < 2:
        return "not usable: its counter did not change while it was observed"
    if facts.source == "estimate":
        return "an estimate: taken only with --energy cpu, and it proves nothing"
    if facts.power_ratio is not None and not 0.9 <= facts.power_ratio <= 1.1:
        return "doubtful: counter and integrated power disagree by more than 10 %"
    if "power" in facts.source:
        return "fair: integrated power, for totals; its gain may be 5 % off"
    if facts.period_s is None or facts.period_s > 1:
        return "coarse: for totals of minutes, not for single requests"
    simulated = "simulated, no measurement of hardware; " if "simulated" in facts.source else ""
    return f"good: {simulated}totals from {10 * facts.period_s:.2g} s up are sound"
