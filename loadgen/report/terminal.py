"""The summary of a run on the terminal: 80 columns, and as readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.report.boundary_facts import beside_facts, boundary_facts, boundary_rows, host_rows, is_extended
from loadgen.report.engine_rows import ENGINE_HEADINGS, engine_note, engine_rows
from loadgen.report.format import UNKNOWN, clean, count, joules, percent, seconds, share, with_unit
from loadgen.report.run_facts import (
    HEADLINES,
    MARKS_LEGEND,
    RunPart,
    cache_note,
    ending,
    energy_cells,
    energy_note,
    engine_facts,
    failed_kinds,
    fit_warning,
    host_cell,
    is_simulated,
    kind_rows,
    latency_rows,
    left_out_note,
    load_facts,
    mark,
    parts_of,
    power_words,
    request_cells,
    server_line,
    span_facts,
    speculation_note,
    summary_of,
    title,
    verdict_remarks,
    whole_answers,
)
from loadgen.report.session_facts import session_facts
from loadgen.results.summary import Boundary, EnergySummary, Summary

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.verdict import Status

LABEL = 13
"""Columns of the labels on the left."""


def render_terminal(result: RunResult, console: Console, folder: Path | None = None) -> None:
    """Print the summary; with `folder`, where the run and its report are. LoadgenError when the run has no summary."""
    summary = summary_of(result)
    whole_run, *workloads = parts_of(summary)
    parts = [*workloads, whole_run]
    console.print()
    line = Text(title(result.info, summary), style="bold")
    if is_simulated(result.info):
        line.append("   SIMULATED: a model's numbers, not a machine's", style="bold yellow")
    console.print(line)
    _verdict(summary, console)
    _paragraph(console, server_line(result.info))
    run = f"run {clean(result.info.run_id)} · {seconds(summary.duration_s)} · {ending(summary)}"
    _paragraph(console, run, style="dim")
    _load(result, summary, parts, console)
    _latency(summary, parts, console)
    _kinds(summary, parts, console)
    _energy(summary, parts, console)
    _sessions(summary, console)
    if folder is not None:
        console.print()
        _line(console, "run folder", str(folder))
        _line(console, "report", str(folder / "report.html"))


_STYLES: dict[Status | None, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", None: "dim"}


def _verdict(summary: Summary, console: Console) -> None:
    """Print the verdict, and below it whatever its checks have to say."""
    status, remarks = summary.verdict.status, verdict_remarks(summary)
    _paragraph(console, HEADLINES[status], style=_STYLES[status])
    for remark in remarks:
        _paragraph(console, f"- {remark.text}", style=_STYLES[remark.status])


def _load(result: RunResult, summary: Summary, parts: list[RunPart], console: Console) -> None:
    _heading(console, "Load")
    table = figures_table("", "scheduled", "sent", "completed", "failed")
    for name, part in parts:
        table.add_row(*(Text(cell) for cell in (f"  {_name(name)}", *request_cells(part))))
    print_table(table, console)
    if kinds := failed_kinds(summary.requests):
        _line(console, "failed", kinds)
    tokens = summary.tokens
    _line(
        console,
        f"tokens in{mark(summary, 'tokens.input')}",
        f"{count(tokens.input)}   {with_unit(tokens.input_per_s, '/s')}",
    )
    _line(
        console,
        f"tokens out{mark(summary, 'tokens.output')}",
        f"{count(tokens.output)}   {with_unit(tokens.output_per_s, '/s')}",
    )
    for fact in (*load_facts(summary), *engine_facts(result.info), *span_facts(result.info)):
        _line(console, fact.label, f"{fact.workload}: {fact.text}" if fact.workload else fact.text)


def _latency(summary: Summary, parts: list[RunPart], console: Console) -> None:
    _heading(console, "Latency")
    table = figures_table("", "", "count", "mean", "p50", "p90", "p99", "max")
    table.columns[1].justify = "left"
    previous, rows = "", latency_rows(summary, parts)
    for row in rows:
        label = "" if row.label == previous else f"  {row.label}"
        values = [row.cells[key] for key in ("mean", "p50", "p90", "p99", "max")]
        table.add_row(*(Text(cell) for cell in (label, _name(row.part), row.counted, *values)))
        previous = row.label or previous
    print_table(table, console)
    if note := left_out_note(summary):
        _paragraph(console, note, indent=2, style="dim")
    if any("!" in row.label for row in rows):
        _paragraph(console, MARKS_LEGEND, indent=2, style="dim")


def _kinds(summary: Summary, parts: list[RunPart], console: Console) -> None:
    if not (rows := kind_rows(summary, parts)):
        return
    _heading(console, "Output by kind")
    table = figures_table("", "", "requests", "tokens", "share", "decode", "J/token")
    table.columns[1].justify = "left"
    previous = ""
    for row in rows:
        label = "" if row.kind == previous else f"  {row.kind}"
        table.add_row(*(Text(cell) for cell in (label, _name(row.part), *row.cells)))
        previous = row.kind
    print_table(table, console)


def _energy(summary: Summary, parts: list[RunPart], console: Console) -> None:
    energy = summary.energy
    _heading(console, f"Energy{mark(summary, 'energy')}")
    if note := energy_note(summary):
        _paragraph(console, note, style="" if energy.measured_joules is None else "bold red")
    poor_fit = fit_warning(energy.coefficients or {}) and " ".join(energy.fit_notes)
    for note in (poor_fit, speculation_note(summary), cache_note(energy)):
        if note:
            _paragraph(console, note, style="dim")
    if energy.measured_joules is None:
        return
    rows = [
        ("measured", energy.measured_joules),
        ("= idle", energy.idle_joules),
        ("+ attributed", energy.attributed_joules),
        ("    prefill", energy.prefill_joules),
        ("    decode", energy.decode_joules),
        ("+ unattributed", energy.unattributed_joules),
    ]
    accounts = [
        (f"  {name}", UNKNOWN if value is None else f"{value:,.3f} J", share(value, energy.measured_joules))
        for name, value in rows
    ]
    _accounts(accounts, console)
    console.print()
    host = ["host"] if energy.host is not None else []
    table = figures_table("", "prefill", "decode", "J/req p50", "p90", "p99", "J/out tok", "J/token", *host)
    for name, part in parts:
        spent = energy if isinstance(part, Summary) else part
        cells = [f"  {_name(name)}", joules(spent.prefill_joules), joules(spent.decode_joules), *energy_cells(spent)]
        cells += [host_cell(part)] if host else []
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table, console)
    method = f"source {energy.source or UNKNOWN} · method {energy.method or UNKNOWN}"
    if energy.came_whole:
        method += f" · {whole_answers(energy.came_whole)}"
    power = f"{power_words(energy)} · coverage {percent(energy.coverage)}"
    _paragraph(console, clean(f"{method} · {power}"), indent=2, style="dim")
    if energy.engines:
        _heading(console, "Engines")
        table = figures_table("", *ENGINE_HEADINGS[1:])
        for row in engine_rows(energy.engines):
            table.add_row(*(Text(cell) for cell in (f"  {row[0]}", *row[1:])))
        print_table(table, console)
        _paragraph(console, engine_note(energy.engines, summary.requests.sent), indent=2, style="dim")
    _host_and_boundary(energy, console)


def _host_and_boundary(energy: EnergySummary, console: Console) -> None:
    """Print the host's accounts; and the boundary where more than the accelerators or a factor is in it."""
    if energy.host is not None:
        _heading(console, "Energy of the host")
        _accounts(host_rows(energy.host), console)
        for reason in energy.host.reasons:
            _paragraph(console, clean(reason), indent=2, style="yellow")
    beside = beside_facts(energy.domains)
    if energy.boundary is not None and (beside or is_extended(energy.boundary)):
        print_boundary(energy.boundary, console)
        for label, text in beside:
            _line(console, label, text)


def _accounts(rows: Sequence[tuple[str, str, str]], console: Console) -> None:
    """Print energy accounts: name, energy and share."""
    accounts = Table.grid(padding=(0, 3, 0, 0))
    accounts.add_column()
    accounts.add_column(justify="right")
    accounts.add_column(justify="right")
    for row in rows:
        accounts.add_row(*row)
    console.print(accounts)


def print_boundary(boundary: Boundary, console: Console) -> None:
    """Print the parts that an energy includes, and what follows from it by the stated factors."""
    _heading(console, "Boundary")
    for part, amount, basis, note in boundary_rows(boundary):
        _line(console, part, f"{amount:>14}   {basis}" + (f": {note}" if note else ""))
    for label, text in boundary_facts(boundary):
        _line(console, label, text)


def _sessions(summary: Summary, console: Console) -> None:
    if summary.sessions is None:
        return
    _heading(console, "Sessions")
    for label, text in session_facts(summary.sessions):
        _line(console, label, text)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _paragraph(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    # Text, never markup: a model may be called "[red]".
    for line in wrap(text, console.width - indent, subsequent_indent="  " if text.startswith("- ") else ""):
        console.print(Text(" " * indent + line, style=style))


def _line(console: Console, label: str, text: str) -> None:
    lines = wrap(text, console.width - LABEL - 3, break_on_hyphens=False) or [""]
    for i, line in enumerate(lines):
        margin = f"  {_name(label)}" if i == 0 else ""
        console.print(Text.assemble((margin.ljust(LABEL + 3), "dim"), line))


def figures_table(*headings: str, labels: int = 1) -> Table:
    """Return a table without rows, whose first columns are labels, and the rest figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1), header_style="dim", show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < labels else "right", no_wrap=True)
    return table


def print_table(table: Table, console: Console) -> None:
    """Print a table; with narrow gaps where it is wider than the terminal, and if need be in several parts below one
    another, each with the labels, since a terminal would cut off its figures."""
    if _width(table, console) > console.width:
        table.padding = (0, 1, 0, 0)
    labels = [column for column in table.columns if column.justify == "left"]
    figures = table.columns[len(labels) :]
    if _width(table, console) <= console.width or len(figures) < 2:
        console.print(table)
        return
    half = (len(figures) + 1) // 2
    for columns in (figures[:half], figures[half:]):
        part = figures_table(*(str(column.header) for column in (*labels, *columns)), labels=len(labels))
        for row in zip(*(column.cells for column in (*labels, *columns)), strict=True):
            part.add_row(*row)
        print_table(part, console)


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=1000)).maximum


def _name(workload: str) -> str:
    """Return a label that fits into its column. The ends of a long one tell models of one family apart."""
    label = clean(workload)
    return label if len(label) <= LABEL else f"{label[: LABEL // 2 - 1]}…{label[-(LABEL // 2 + 1) :]}"
