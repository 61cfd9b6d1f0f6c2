"""Compare runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.report.boundary_difference import boundary_differences
from loadgen.report.boundary_facts import is_extended
from loadgen.report.cache_difference import saved_between
from loadgen.report.format import UNKNOWN, clean, joules, number, seconds
from loadgen.report.gates import unit_of
from loadgen.report.run_facts import (
    HEADLINES,
    MARKS_LEGEND,
    ending,
    is_simulated,
    mark,
    summary_of,
    title,
    verdict_remarks,
)
from loadgen.report.terminal import print_table
from loadgen.results import difference
from loadgen.results.summary_paths import PARTS, Side, known_paths, mean_at
from loadgen.results.verdict import worst

if TYPE_CHECKING:
    from loadgen.report.gates import Outcome
    from loadgen.results.difference import Difference, Differences
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary

BOUNDARY_METRICS = (
    "energy.host.measured_joules",
    "energy.boundary.total_joules",
    "energy.boundary.co2e_grams",
    "energy.boundary.cost",
    "energy.boundary.cost_per_million_output_tokens",
)
"""Paths of the numbers beyond the accelerators' energy. The table has those that all of its runs know."""
TABLE_METRICS = (
    "requests.completed",
    "requests.failed",
    "rate.achieved_rps",
    "schedule_lag_s.p99",
    *difference.PATHS,
    "energy.measured_joules",
    "energy.joules_per_token",
    *BOUNDARY_METRICS,
)
"""Paths into summary.json that the table shows."""

_WORKLOAD_METRICS = ("ttft_s.p99", "tpot_s.p50", "joules_per_request.p50", "joules_per_output_token")


@dataclass(frozen=True)
class ComparedValue:
    """One metric of one run, relative to the first run's. None is unknown."""

    value: float | None
    ratio: float | None
    difference: float | None


def compare_runs(sides: Sequence[Side], paths: Sequence[str]) -> dict[str, list[ComparedValue]]:
    """Return path -> a value for every side, in order: the mean over its repeats."""

    def compared(value: float | None, base: float | None) -> ComparedValue:
        if value is None or base is None:
            return ComparedValue(value, None, None)
        return ComparedValue(value, value / base if base else None, value - base)

    rows = {path: [mean_at(side, path) for side in sides] for path in paths}
    return {path: [compared(value, row[0]) for value in row] for path, row in rows.items()}


def metrics(sides: Sequence[Side]) -> list[str]:
    """Return the paths of the table, with those of each workload if there are several; without numbers no run knows.

    A total that is no more than the accelerators' energy is left out.
    """
    parts, summaries = [], flat(sides)
    for part in PARTS:
        names = sorted({name for summary in summaries for name in getattr(summary, part)})
        parts += [f"{part}.{name}.{path}" for name in names for path in _WORKLOAD_METRICS] if len(names) > 1 else []
    reasoning = any("reasoning" in summary.output_kinds for summary in summaries)
    extended = any(summary.energy.boundary and is_extended(summary.energy.boundary) for summary in summaries)
    left_out = (*(() if reasoning else ("ttfa_s",)), *(() if extended else ("energy.boundary",)))
    return [
        path
        for path in (*TABLE_METRICS, *parts)
        if not path.startswith(left_out)
        and (all if path in BOUNDARY_METRICS else any)(mean_at(side, path) is not None for side in sides)
    ]


def flat(sides: Sequence[Side]) -> list[Summary]:
    """Return the summaries of all runs of all sides."""
    return [summary for side in sides for summary in side]


# ---------------------------------------------------------------- views

Runs = Sequence["RunResult"]
"""One side of a comparison: a run, or its repeats."""


def as_json(
    sides: Sequence[Runs], outcomes: Sequence[Outcome] = (), differences: Sequence[Differences] = ()
) -> dict[str, Any]:
    """Return plain values: every known number, not only those of the table. A side is called by its first run."""
    of_sides = [[summary_of(run) for run in side] for side in sides]
    rows = compare_runs(of_sides, known_paths(flat(of_sides)))
    runs = [side[0].run_id for side in of_sides]
    return {
        "runs": runs,
        "repeats": [[summary.run_id for summary in side] for side in of_sides],
        "verdicts": [worst(summary.verdict.status for summary in side) for side in of_sides],
        "metrics": {path: [msgspec.to_builtins(cell) for cell in cells] for path, cells in rows.items()},
        "differences": [
            {
                "run": run,
                "from": runs[0],
                "paired": found.paired,
                "metrics": {
                    path: msgspec.to_builtins(row) | {"interval": row.interval} for path, row in found.rows.items()
                },
            }
            for run, found in zip(runs[1:], differences, strict=True)
        ],
        "gates": [
            {
                "gate": outcome.gate.text,
                "run": runs[outcome.run],
                "value": outcome.value,
                "limit": outcome.limit,
                "failed": outcome.failed,
                "undecided": outcome.undecided or None,
            }
            for outcome in outcomes
        ],
    }


def render_comparison(
    sides: Sequence[Runs],
    console: Console,
    outcomes: Sequence[Outcome] = (),
    differences: Sequence[Differences] = (),
) -> None:
    """Print the runs, a table of each later side against the first with its differences, and the outcomes of gates."""
    names = letters(len(sides))
    for letter, side in zip(names, sides, strict=True):
        for result in side:
            _print_run(letter, result, console)
    if len({is_simulated(result.info) for side in sides for result in side}) > 1:
        console.print(Text("Simulated and measured runs are side by side.", style="bold yellow"))
    of_sides = [[summary_of(run) for run in side] for side in sides]
    if len(sides) == 1:
        _print_table(of_sides, names, None, console)
    for letter, later, runs, found in zip(names[1:], of_sides[1:], sides[1:], differences, strict=True):
        _print_table([of_sides[0], later], ["A", letter], found, console)
        for line in (MEANING.format(letter), *interval_notes(found, metrics([of_sides[0], later]), letter)):
            console.print(Text(line, style="dim"))
        for line in pair_notes(sides[0], runs, letter, paired=found.paired):
            console.print(Text(line))
    for outcome in outcomes:
        console.print(Text(describe(outcome), style="bold red" if outcome.failed else "green"))


def pair_notes(a: Runs, b: Runs, letter: str, *, paired: bool) -> list[str]:
    """Return sentences on a later side beside the first: what a prefix cache saved, and how their boundaries differ."""
    saved = saved_between(a, b, letter) if paired else None
    of_a, of_b = ([summary_of(run) for run in side] for side in (a, b))
    return [*([saved] if saved else []), *boundary_differences(of_a, of_b, letter)]


MEANING = (
    "± is half of the 95 % interval of {}−A: the smallest change that could have shown. A true change 1.4 times as "
    "large shows in 4 of 5 such comparisons. * the interval excludes 0, as 1 in 20 does by chance."
)


def _print_run(letter: str, result: RunResult, console: Console) -> None:
    summary = summary_of(result)
    simulated = "   SIMULATED" if is_simulated(result.info) else ""
    line = f"{title(result.info, summary)}   {clean(summary.run_id)}{simulated}"
    console.print(Text.assemble((f"{letter}  ", "bold"), line))
    rates = f"{number(summary.rate.achieved_rps)} requests/s sent, {number(summary.rate.requested_rps)} requested"
    console.print(Text(f"   {ending(summary)} · {rates} · {HEADLINES[summary.verdict.status]}"))
    for remark in verdict_remarks(summary):
        console.print(Text(f"   - {remark.text}", style="red" if remark.status == "failed" else "yellow"))


def _print_table(sides: Sequence[Side], names: Sequence[str], found: Differences | None, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    changes = (f"{names[1]}/A", f"{names[1]}−A", "±") if found else ()
    for heading in (*names, *changes):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, cells in compare_runs(sides, metrics(sides)).items():
        marks = {mark(summary, _row(path)) for summary in flat(sides)}
        label = path.removeprefix("by_workload.") + max(marks, key=len)
        row = [label, *(quantity(path, cell.value) for cell in cells)]
        if found:
            row += [ratio(cells[1].ratio), signed(path, cells[1].difference), half_width(found.rows.get(path))]
        table.add_row(*(Text(text) for text in row))
    console.print()
    print_table(table, console)
    if any("!" in str(cell) for cell in table.columns[0].cells):
        console.print(Text(f"{MARKS_LEGEND}, in any of the runs", style="dim"))


def _row(path: str) -> str:
    """Return the row of summary.json that a check names for a number of the table, also for that of a part."""
    of_part = next((metric for metric in _WORKLOAD_METRICS if path.endswith(f".{metric}")), path)
    number_of = of_part if path.startswith(tuple(f"{part}." for part in PARTS)) else path
    return "energy" if number_of.startswith("joules") else number_of


def signed(path: str, difference: float | None) -> str:
    """Format a difference with its sign."""
    if not difference:
        return quantity(path, difference)
    return ("+" if difference > 0 else "−") + quantity(path, abs(difference))


def half_width(row: Difference | None) -> str:
    """Format half the width of an interval, with a star where it excludes 0."""
    if row is None or row.half_width is None:
        return f"{UNKNOWN}  "
    return quantity(row.path, row.half_width) + (" *" if row.excludes_zero else "  ")


def interval_notes(
    found: Differences, shown: Sequence[str], letter: str = "B", label: Callable[[str], str] = str
) -> list[str]:
    """Return how the intervals were made, and the reasons for having none with the numbers that they concern.

    label: the name of the number at a path.
    """
    how = (
        f"A and {letter} had the same schedule: its chance cancels in the intervals."
        if found.paired
        else f"A and {letter} had different schedules or numbers of runs: their chance is in the intervals."
    )
    reasons: dict[str, list[str]] = {}
    for path, row in found.rows.items():
        if row.reason and path in shown:
            reasons.setdefault(row.reason, []).append(label(path))
    return [how, *(f"No interval ({reason}): {', '.join(paths)}" for reason, paths in reasons.items())]


def ratio(value: float | None) -> str:
    """Format with three decimals: compared runs often differ by a few percent only."""
    return UNKNOWN if value is None else f"{value:.3f}"


def quantity(path: str, value: float | None) -> str:
    """Format in the unit that the path names."""
    if value is None:
        return UNKNOWN
    match unit_of(path):
        case "J":
            return joules(value)
        case "s":
            return seconds(value)
        case "W":
            return f"{number(value, 4)} W"
    if path.endswith("_grams"):
        return f"{number(value, 4)} g"
    return f"{value:,.0f}" if path.startswith("requests.") else number(value, 4)


def describe(outcome: Outcome) -> str:
    """Return a line such as "FAILED ttft_s.p99>0.5: B has 0.61"."""
    gate, run = outcome.gate, letter_of(outcome.run)
    head = "FAILED" if outcome.failed else "passed"
    if outcome.value is None or outcome.limit is None:
        return f"{head} {gate.text}: {f'{run} or its baseline' if gate.relative else run} is unknown"
    limit = f" (limit {quantity(gate.path, outcome.limit)})" if gate.relative else ""
    doubt = f"; its interval is unknown: {outcome.undecided}" if outcome.undecided else ""
    return f"{head} {gate.text}: {run} has {quantity(gate.path, outcome.value)}{limit}{doubt}"


def gate_name(outcome: Outcome) -> str:
    """Return the name of a gate's test case: the gate, and the side where there are several."""
    return f"{outcome.gate.text} ({letter_of(outcome.run)})"


def letters(n: int) -> list[str]:
    """Return the names of n runs: A, B, C, ..."""
    return [letter_of(place) for place in range(n)]


def letter_of(place: int) -> str:
    """Return the name of the run at a place of the comparison."""
    return chr(ord("A") + place) if place < 26 else f"R{place + 1}"
