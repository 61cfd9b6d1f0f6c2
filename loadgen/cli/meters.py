"""`loadgen meters`: what can be read here, how well, and why the rest cannot."""

import textwrap
import threading
from collections.abc import Callable
from statistics import median

import click
import msgspec
import numpy as np

from loadgen.clock import monotonic_ns
from loadgen.energy.amd import open_amd
from loadgen.energy.counter_track import PowerTrack
from loadgen.energy.cpu_estimate import CpuEstimate
from loadgen.energy.meter import EnergyMeter
from loadgen.energy.nvml import NvmlMeter, open_nvml
from loadgen.energy.rapl import RaplMeter
from loadgen.energy.remote import RemoteMeter
from loadgen.energy.sampler import Sampler, SamplerReport
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries, series_by_domain
from loadgen.errors import MeterError
from loadgen.units import s_from_ns

POWER_POLL_S = 0.02
WIDTH = 80


class DomainFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of one domain over a few seconds. None: not observed."""

    name: str
    source: str
    uuid: str | None
    within: str | None
    moves: int
    period_s: float | None
    quantum_mj: int | None
    """The smallest step seen."""
    watts: float | None
    power_ratio: float | None
    """Counter over integrated power, between the same two moves."""
    verdict: str


class SourceFacts(msgspec.Struct, frozen=True, kw_only=True):
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


@click.command()
@click.option("--energy", "url", metavar="URL", help="Look at a sidecar, a DCGM exporter or a simulated server too.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.5, 600), help="How long to look.")
@click.option("--gpus", metavar="LIST", help="Only these GPUs: indices or UUIDs, comma-separated.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def meters(url: str | None, seconds: float, gpus: str | None, as_json: bool) -> None:
    """Which energy sources this machine has, and why others are not usable."""
    chosen = gpus.split(",") if gpus else None
    openers: dict[str, Callable[[], EnergyMeter]] = {
        "nvml": lambda: open_nvml(chosen),
        "amd": lambda: open_amd(chosen),
        "rapl": RaplMeter,
        "cpu": CpuEstimate,
    }
    if url is not None:
        openers[url] = lambda: RemoteMeter(url, gpus=chosen)
    sources = look(openers, seconds)
    if url is not None:
        sources[-1] = msgspec.structs.replace(sources[-1], name="URL")
    auto = next((s.name for s in sources if s.usable and s.name in ("nvml", "amd", "rapl")), None)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"auto": auto, "sources": sources})))
        return
    for source in sources:
        click.echo(source_text(source))
    if url is None:
        click.echo("URL     not asked: --energy http://HOST:PORT looks at a meter elsewhere")
    click.echo(f"\n--energy auto takes: {auto or 'none. Runs on this machine have no energy in their reports'}")


def look(openers: dict[str, Callable[[], EnergyMeter]], seconds: float) -> list[SourceFacts]:
    """Opens every source and samples all that open, side by side, for `seconds`."""
    opened: dict[str, _Look] = {}
    refused: dict[str, str] = {}
    for name, open_it in openers.items():
        try:
            opened[name] = _Look(open_it())
        except MeterError as err:
            refused[name] = str(err)
    if opened:
        _wait(list(opened.values()), seconds)
    return [
        opened[name].facts(name) if name in opened else SourceFacts(name=name, usable=False, reason=refused[name])
        for name in openers
    ]


def _wait(looks: list["_Look"], seconds: float) -> None:
    pause = threading.Event()
    end_ns = monotonic_ns() + round(seconds * 1e9)
    for each in looks:
        each.start()
    while monotonic_ns() < end_ns:
        pause.wait(POWER_POLL_S)
        for each in looks:
            each.observe_power()
    for each in looks:
        each.stop()


class _Look:
    """One open meter, its sampler, and the power read beside it."""

    def __init__(self, meter: EnergyMeter) -> None:
        self.meter = meter
        self.samples: list[EnergySample] = []
        self.sampler = Sampler(meter, self.samples.extend)
        self._tracks = {domain.name: PowerTrack(domain.name, keep_s=0.0) for domain in meter.domains}
        self._power: list[EnergySample] = []
        self._report: SamplerReport | None = None
        self._start_ns = monotonic_ns()
        self._end_ns = self._start_ns

    def start(self) -> None:
        self._start_ns = monotonic_ns()
        self.sampler.start()

    def observe_power(self) -> None:
        if isinstance(self.meter, NvmlMeter):
            for name, watts in self.meter.power_w().items():
                self._power += self._tracks[name].observe(monotonic_ns(), watts)

    def stop(self) -> None:
        self._report = self.sampler.stop()
        self._end_ns = monotonic_ns()
        if not self.sampler.hangs:
            self.meter.close()

    def facts(self, name: str) -> SourceFacts:
        assert self._report is not None
        series = series_by_domain(self.samples)
        power = series_by_domain(self._power)
        domains = [domain_facts(d, series.get(d.name), power.get(d.name)) for d in self.meter.domains]
        moved = any(domain.moves > 1 for domain in domains)
        return SourceFacts(
            name=name,
            usable=moved,
            reason=None if moved else "it answers, but nothing moved while it was watched",
            read_cost_s=self._report.read_cost_s,
            cpu_share=self._report.cpu_s / s_from_ns(self._end_ns - self._start_ns),
            errors=self._report.errors,
            resets=self._report.resets,
            domains=domains,
            notes=self.meter.notes,
        )


def domain_facts(domain: EnergyDomain, series: EnergySeries | None, power: EnergySeries | None) -> DomainFacts:
    """Period, quantum, watts and agreement with integrated power, from the moves that were seen."""
    moves = 0 if series is None else len(series)
    facts = DomainFacts(
        name=domain.name, source=domain.source, uuid=domain.uuid, within=domain.within, moves=moves,
        period_s=domain.period_s, quantum_mj=None, watts=None, power_ratio=None, verdict="",
    )  # fmt: skip
    if series is not None and moves > 1:
        steps = np.diff(series.mj)
        facts = msgspec.structs.replace(
            facts,
            period_s=_period_s(series) if domain.source == "nvml-counter" else domain.period_s,
            quantum_mj=int(steps[steps > 0].min()) if steps.any() else None,
            watts=series.total_mj / 1000 / s_from_ns(int(series.t_ns[-1] - series.t_ns[0])),
            power_ratio=_ratio(series, power) if domain.source == "nvml-counter" else None,
        )
    return msgspec.structs.replace(facts, verdict=verdict(facts))


def _period_s(series: EnergySeries) -> float:
    """The mean gap, a gap counting for as many moves as the median one fits into it: single misses do not bias it."""
    gaps = np.diff(series.t_ns)
    moves = np.maximum(np.round(gaps / median(gaps.tolist())), 1).sum()
    return s_from_ns(int(gaps.sum())) / float(moves)


def _ratio(counter: EnergySeries, power: EnergySeries | None) -> float | None:
    """Between the first and the last move that lie within what the power readings cover."""
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
        return "no use: nothing moved while it was watched"
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


def source_text(source: SourceFacts) -> str:
    """A few lines of at most 80 columns."""
    if not source.usable:
        return _wrapped(f"{source.name:7} not usable: {source.reason}", *_asides(source))
    cost = ""
    if source.read_cost_s is not None and source.cpu_share is not None:
        cost = f", one read takes {1000 * source.read_cost_s:.3g} ms, sampling {source.cpu_share:.1%} of a core"
    return "\n".join([f"{source.name:7} usable{cost}", *map(_domain_text, source.domains), *_asides(source)])


def _domain_text(facts: DomainFacts) -> str:
    measured = [
        facts.watts is not None and f"{facts.watts:.1f} W",
        facts.period_s is not None and f"period {1000 * facts.period_s:.4g} ms",
        facts.quantum_mj is not None and f"smallest step {facts.quantum_mj} mJ",
        facts.power_ratio is not None and f"counter / power {facts.power_ratio:.3f}",
    ]
    inside = f", within {facts.within}" if facts.within else ""
    return _wrapped(
        f"  {facts.name} ({facts.source}{inside})  " + ", ".join(m for m in measured if m), f"    {facts.verdict}"
    )


def _asides(source: SourceFacts) -> list[str]:
    errors = [f"{count} x {message}" for message, count in source.errors.items()]
    resets = [f"the counter restarted {source.resets} times"] if source.resets else []
    return [_wrapped(f"  note: {line}") for line in (*source.notes, *resets, *errors)]


def _wrapped(*lines: str) -> str:
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
        if line.lstrip() == line or len(line) > WIDTH
        else line
        for line in lines
    )
