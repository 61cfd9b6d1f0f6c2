"""The answer of a search on the terminal, with a table of its probes by rate, in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loadgen.report.format import clean, joules, percent, plural, seconds
from loadgen.report.search_text import (
    answer,
    attained,
    best_setting,
    duration_text,
    estimate_text,
    has_energy,
    outcome_text,
    probe_note,
    ranked,
    rate_text,
)

if TYPE_CHECKING:
    from rich.console import Console

    from loadgen.results.search_result import Probe, SearchResult

_COLOURS = {"ok": "bold green", "warning": "bold yellow", "failed": "bold red"}


def print_search(console: Console, result: SearchResult) -> None:
    """Print the answer with what a reader must know about it, the settings if there are several, and the probes."""
    with console.capture() as captured:
        _print_parts(console, result)
    for line in captured.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")  # rich fills lines of tables and paragraphs with spaces


def _print_parts(console: Console, result: SearchResult) -> None:
    outcome, best = answer(result), best_setting(result)
    console.print()
    heading = Text(outcome.head, style=_COLOURS[outcome.status])
    if result.simulated:
        heading.append("   SIMULATED: a model's numbers", style="bold yellow")
    console.print(heading)
    for sentence in outcome.sentences:
        console.print(Padding(Text(clean(sentence, 1_000)), (0, 0, 0, 2)))
    if len(result.settings) > 1:
        console.print()
        console.print(_settings_table(result))
    if best is not None and best.probes:
        console.print()
        if best.name:
            console.print(Text(f"The probes of {clean(best.name, 60)}", style="dim"))
        console.print(_probes_table(best.probes, result))
    probes = [probe for setting in result.settings for probe in setting.probes]
    spent = f"{duration_text(result.spent_s)} of the budget of {duration_text(result.budget_s)}"
    console.print()
    console.print(Text(f"{spent} went into {plural(len(probes), 'probe')}.", style="dim"))


def _probes_table(probes: tuple[Probe, ...], result: SearchResult) -> Table:
    """Return the probes in the order of their rates, which is that of the curve."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    e2e, energy = "e2el" in result.limits_ms, has_energy(result)
    names = ["rate", "requests", "good", "TTFT p99", "TPOT p99", *(["E2E p99"] if e2e else [])]
    for name in [*names, *(["J/good"] if energy else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for probe in sorted(probes, key=lambda probe: probe.rate_rps):
        table.add_row(
            f"{rate_text(probe.rate_rps)}/s",
            f"{probe.requests:,}",
            percent(attained(probe)),
            seconds(probe.ttft_p99_s),
            seconds(probe.tpot_p99_s),
            *([seconds(probe.e2e_p99_s)] if e2e else []),
            *([joules(probe.joules_per_good_request)] if energy else []),
            probe_note(probe),
            style="dim" if probe.overloaded else None,
        )
    return table


def _settings_table(result: SearchResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("setting", overflow="fold")  # the column that gives way
    for name in ("requests/s", *(["J/good"] if has_energy(result) else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for setting in ranked(result):
        table.add_row(
            Text(clean(setting.name, 60)),
            Text(estimate_text(setting.rate)),  # a Text, since "[unknown, 14.0]" would be markup
            *([Text(estimate_text(setting.least_joules, joules))] if has_energy(result) else []),
            outcome_text(setting, result),
            style="bold" if setting.name == result.best else None,
        )
    return table
