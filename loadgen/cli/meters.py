"""`loadgen meters`: what can be read here, how well, and why the rest cannot."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
import msgspec

from loadgen.cli.options import FiniteRange
from loadgen.energy.amd import open_amd
from loadgen.energy.choose import energy_token, open_meter
from loadgen.energy.cpu_estimate import CpuEstimate
from loadgen.energy.hwmon import HwmonMeter
from loadgen.energy.inspect import DomainFacts, SourceFacts, inspect_sources
from loadgen.energy.nvml import open_nvml
from loadgen.energy.rapl import RaplMeter
from loadgen.errors import LoadgenError, MeterError

if TYPE_CHECKING:
    from loadgen.energy.meter import EnergyMeter

_WIDTH = 80


@click.command()
@click.option(
    "--energy", "url", metavar="SOURCE",
    help="Look at this source too, such as the URL of a sidecar or of a DCGM exporter, or hwmon:SENSOR.",
)  # fmt: skip
@click.option("--seconds", default=3.0, show_default=True, type=FiniteRange(0.5, 600), help="How long to look.")
@click.option("--gpus", metavar="LIST", help="Only these GPUs: indices or UUIDs, comma-separated.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def meters(url: str | None, seconds: float, gpus: str | None, as_json: bool) -> None:
    """Which energy sources this machine has, and why others are not usable."""
    chosen = gpus.split(",") if gpus else None
    openers: dict[str, Callable[[], EnergyMeter]] = {
        "nvml": lambda: open_nvml(chosen),
        "amd": lambda: open_amd(chosen),
        "rapl": RaplMeter,
        "hwmon": HwmonMeter,
        "cpu": CpuEstimate,
    }
    if url is not None:
        openers[url] = lambda: _open(url, chosen)
    sources = inspect_sources(openers, seconds)
    if url is not None:
        sources[-1] = msgspec.structs.replace(sources[-1], name="URL")
    auto = next((s.name for s in sources if s.usable and s.name in ("nvml", "amd", "rapl", "hwmon")), None)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"auto": auto, "sources": sources})))
        return
    for source in sources:
        click.echo(source_text(source))
    if url is None:
        click.echo("URL     not asked: --energy http://HOST:PORT looks at a meter elsewhere")
    click.echo(f"\n--energy auto takes: {auto or 'none. Runs on this machine have no energy in their reports'}")


def _open(source: str, gpus: list[str] | None) -> "EnergyMeter":
    """Open what --energy of other commands names. Raises MeterError."""
    try:
        meter, reasons = open_meter(source, gpus=gpus, token=energy_token(source))
    except LoadgenError as err:
        raise MeterError(str(err.__cause__ or err)) from err  # its cause is without the advice to run `meters`
    if meter is None:
        raise MeterError("; ".join(reasons))
    return meter


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
        textwrap.fill(line, _WIDTH, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
        if line.lstrip() == line or len(line) > _WIDTH
        else line
        for line in lines
    )
