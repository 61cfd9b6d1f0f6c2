"""The summary on the terminal: 80 columns, and as readable without colour."""

from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.report.format import UNKNOWN, clean, count, joules, number, percent, seconds, share, watts, with_unit
from loadgen.report.run_facts import (
    LATENCIES,
    arrival_lines,
    distribution,
    energy_reasons,
    is_simulated,
    parts_of,
    remarks,
    server_line,
    stream_goodputs,
    summary_of,
    timekeeping,
    title,
    within,
)
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Distribution, EnergySummary, Goodput, LengthCheck, Summary, WorkloadSummary

LABEL = 12
"""Columns of the labels on the left."""

Parts = list[tuple[str, Summary | WorkloadSummary]]


def render_terminal(result: RunResult, console: Console, folder: Path | None = None) -> None:
    """Print the summary; with `folder`, where the run and its report are. LoadgenError when the run has no summary."""
    summary = summary_of(result)
    _head(result, summary, console)
    everything, *each = parts_of(summary)
    parts = [*each, everything]
    _load(summary, parts, console)
    _latency(parts, console)
    _energy(result, summary, parts, console)
    _close(summary, folder, console)


def _head(result: RunResult, summary: Summary, console: Console) -> None:
    console.print()
    first = Text(title(result.info, summary), style="bold")
    if is_simulated(result.info):
        first.append("   SIMULATED: a model's numbers, not a machine's", style="bold yellow")
    console.print(first)
    if summary.instrument.kept_time is False:
        _say(console, "SPOILED: this client's own slowness is in these times (see Remarks)", style="bold red")
    _say(console, server_line(result.info))
    ended = summary.stopped_by or "not ended by itself"
    _say(console, f"run {clean(result.info.run_id)} · {seconds(summary.duration_s)} · {ended}", style="dim")


def _load(summary: Summary, parts: Parts, console: Console) -> None:
    rate, lag, good = summary.rate, summary.schedule_lag_s, summary.goodput
    _heading(console, "Load")
    table = _table("", "scheduled", "sent", "completed", "failed")
    for name, part in parts:
        counts = part.requests
        numbers = (counts.scheduled, counts.sent, counts.completed, counts.failed)
        table.add_row(*(Text(cell) for cell in (f"  {_name(name)}", *(count(n) for n in numbers))))
    console.print(table)
    if kinds := summary.requests.by_error:
        _line(console, "failed", ", ".join(f"{n:,} {clean(kind)}" for kind, n in sorted(kinds.items()) if n))
    asked = with_unit(rate.requested_rps, "/s")
    _line(console, "rate", f"{with_unit(rate.achieved_rps, '/s')} sent, {asked} asked")
    _line(console, "dispersion", f"{number(rate.index_of_dispersion)}  (1 Poisson, 0 constant; 1 s windows)")
    for name, told in arrival_lines(summary):
        _line(console, "arrivals", f"{name}: {told}" if name else told)
    _line(console, "sent late", f"p50 {seconds(lag.p50)}   p99 {seconds(lag.p99)}   max {seconds(lag.max)}")
    if summary.instrument.loop_delay_s or summary.instrument.kept_time is not None:
        _line(console, "instrument", timekeeping(summary))
    _line(console, "tokens in", f"{count(summary.tokens.input)}   {with_unit(summary.tokens.input_per_s, '/s')}")
    _line(console, "tokens out", f"{count(summary.tokens.output)}   {with_unit(summary.tokens.output_per_s, '/s')}")
    if summary.lengths is not None:
        _line(console, "lengths", _lengths(summary.lengths))
    if good is not None:
        _line(console, "goodput", _good(good))
    for name, met in stream_goodputs(summary):
        _line(console, f"  {name}", _good(met))


def _good(good: Goodput) -> str:
    return f"{with_unit(good.rps, '/s')}, {percent(good.ratio)} of requests within {within(good)}"


def _lengths(lengths: LengthCheck) -> str:
    """Asked against counted by the server, input then output."""

    def off(asked: int, counted: int, worst: int | None) -> str:
        return f"{counted - asked:+,} of {asked:,} (worst request {count(worst)})"

    told_in = off(lengths.input_asked, lengths.input_counted, lengths.input_max_off)
    told_out = off(lengths.output_asked, lengths.output_counted, lengths.output_max_off)
    return f"counted − asked: input {told_in}, output {told_out}"


def _latency(parts: Parts, console: Console) -> None:
    _heading(console, "Latency")
    table = _table("", "", "count", "mean", "p50", "p90", "p99", "max")
    table.columns[1].justify = "left"
    for field, short, _ in LATENCIES:
        for i, (name, part) in enumerate(parts):
            spread = distribution(part, field)
            values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max)
            cells = [
                f"  {short}" if i == 0 else "",
                _name(name),
                count(spread.count),
                *(seconds(value) for value in values),
            ]
            table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _energy(result: RunResult, summary: Summary, parts: Parts, console: Console) -> None:
    energy = summary.energy
    _heading(console, "Energy")
    if energy.measured_joules is None:
        _warn(console, "NO ENERGY: nothing measured the joules of this run", energy_reasons(result))
        return
    if not energy.valid:
        _warn(console, "ENERGY NOT VALID", energy_reasons(result))
    _ledger(energy, console)
    table = _table("", "prefill", "decode", "J/req p50", "p90", "p99", "J/out tok", "J/token")
    for name, part in parts:
        spent = part if isinstance(part, WorkloadSummary) else energy
        table.add_row(*(Text(cell) for cell in _energy_row(name, spent)))
    console.print(table)
    told = f"source {energy.source or UNKNOWN} · method {energy.method or UNKNOWN}"
    mean = f"mean {watts(energy.mean_watts)}, idle {watts(energy.idle_watts)}"
    _say(console, clean(f"{told} · {mean} · coverage {percent(energy.coverage)}"), indent=2, style="dim")


def _ledger(energy: EnergySummary, console: Console) -> None:
    measured = energy.measured_joules
    rows = [
        ("measured", measured),
        ("= idle", energy.idle_joules),
        ("+ attributed", energy.attributed_joules),
        ("    prefill", energy.prefill_joules),
        ("    decode", energy.decode_joules),
        ("+ unattributed", energy.unattributed_joules),
    ]
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(f"  {name}", UNKNOWN if value is None else f"{value:,.3f} J", share(value, measured))
    console.print(table)
    console.print()


def _energy_row(name: str, part: EnergySummary | WorkloadSummary) -> list[str]:
    spread: Distribution = part.joules_per_request or Distribution(count=0)
    values = (part.prefill_joules, part.decode_joules, spread.p50, spread.p90, spread.p99)
    return [f"  {_name(name)}", *(joules(v) for v in (*values, part.joules_per_output_token, part.joules_per_token))]


def _close(summary: Summary, folder: Path | None, console: Console) -> None:
    if found := remarks(summary):
        _heading(console, "Remarks")
        for remark in found:
            _say(console, f"- {remark}", indent=2, style="yellow")
    if folder is not None:
        console.print()
        _line(console, "run folder", str(folder))
        _line(console, "report", str(folder / "report.html"))


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _say(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    # Text, never markup: a model may be called "[red]".
    for line in wrap(text, console.width - indent, subsequent_indent="  " if text.startswith("- ") else ""):
        console.print(Text(" " * indent + line, style=style))


def _line(console: Console, label: str, text: str) -> None:
    lines = wrap(text, console.width - LABEL - 3) or [""]
    for start, line in zip([f"  {_name(label)}", *[""] * len(lines)], lines, strict=False):
        console.print(Text.assemble((start.ljust(LABEL + 3), "dim"), line))


def _warn(console: Console, head: str, reasons: list[str]) -> None:
    console.print(Text(head, style="bold red"))
    for reason in reasons:
        _say(console, f"- {reason}", indent=2)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1), header_style="dim", show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def _name(workload: str) -> str:
    return clean(workload, LABEL)
