"""Compare runs side by side, and hold their numbers against gates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import ge, gt, le, lt
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.errors import LoadgenError
from loadgen.record import ErrorKind
from loadgen.report.format import UNKNOWN, clean, joules, number, seconds
from loadgen.report.run_facts import HEADLINES, is_simulated, summary_of, title, verdict_remarks
from loadgen.results import difference
from loadgen.results.summary import Summary, WorkloadSummary

if TYPE_CHECKING:
    from loadgen.results.difference import Difference, Differences
    from loadgen.results.run_folder import RunResult

TABLE_METRICS = (
    "requests.completed",
    "requests.failed",
    "rate.achieved_rps",
    "schedule_lag_s.p99",
    *difference.PATHS,
    "energy.measured_joules",
    "energy.joules_per_token",
)
"""Paths into summary.json that the table shows."""

_WORKLOAD_METRICS = ("ttft_s.p99", "tpot_s.p50", "joules_per_request.p50", "joules_per_output_token")


@dataclass(frozen=True)
class ComparedValue:
    """One metric of one run, relative to the first run's. None is unknown."""

    value: float | None
    ratio: float | None
    difference: float | None


@dataclass(frozen=True)
class Gate:
    """`path` `op` `bound`; the bound is relative to the first run's value when `relative`: 0.03 is +3 %."""

    text: str
    path: str
    op: Literal[">", ">=", "<", "<="]
    bound: float
    relative: bool


@dataclass(frozen=True)
class Verdict:
    """The outcome of a gate for one run. `value` and `limit` are None when unknown, which fails the gate."""

    gate: Gate
    run: int
    value: float | None
    limit: float | None
    failed: bool


# ---------------------------------------------------------------- metrics

PARTS = ("by_workload", "by_model")
"""Fields of a summary that hold the numbers of a part of its requests, by name."""


def known_paths(summaries: Sequence[Summary]) -> list[str]:
    """Return every path to a number in summary.json, with the workloads of these runs."""
    names = {part: sorted({name for summary in summaries for name in getattr(summary, part)}) for part in PARTS}
    return list(_leaves(Summary, names))


def _leaves(kind: Any, names: Mapping[str, Sequence[str]], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        options = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        for option in options:
            if option in (int, float):
                yield path
            elif field.name == "by_error":
                yield from (f"{path}.{error}" for error in get_args(ErrorKind))
            elif field.name in PARTS:
                for name in names[field.name]:
                    yield from _leaves(WorkloadSummary, names, f"{path}.{name}.")
            elif isinstance(option, type) and issubclass(option, msgspec.Struct):
                yield from _leaves(option, names, f"{path}.")


def value_at(summary: Summary, path: str) -> float | None:
    """Return the number at a known path; None when it or a parent is absent. An error kind that did not occur is 0."""
    if ".by_error." in f".{path}":
        parent, _, kind = path.rpartition(".")
        errors = _lookup(summary, parent)
        return None if errors is None else float(errors.get(kind, 0))
    value = _lookup(summary, path)
    return None if value is None else float(value)


def _lookup(summary: Summary, path: str) -> Any:
    value: Any = summary
    part, _, inner = path.partition(".")
    if part in PARTS:
        # A name may hold dots: the longest one that fits is meant.
        parts = getattr(summary, part)
        fitting = [name for name in parts if inner.startswith(f"{name}.")]
        if not fitting:
            return None
        name = max(fitting, key=len)
        value, path = parts[name], inner.removeprefix(f"{name}.")
    return reduce(lambda parent, field: getattr(parent, field, None), path.split("."), value)


def compare_runs(summaries: Sequence[Summary], paths: Sequence[str]) -> dict[str, list[ComparedValue]]:
    """Return path -> a value for every run, in order."""

    def compared(value: float | None, base: float | None) -> ComparedValue:
        if value is None or base is None:
            return ComparedValue(value, None, None)
        return ComparedValue(value, value / base if base else None, value - base)

    rows = {path: [value_at(summary, path) for summary in summaries] for path in paths}
    return {path: [compared(value, row[0]) for value in row] for path, row in rows.items()}


def metrics(summaries: Sequence[Summary]) -> list[str]:
    """Return the paths of the table, with those of each workload if there are several; without numbers no run knows."""
    parts = []
    for part in PARTS:
        names = sorted({name for summary in summaries for name in getattr(summary, part)})
        parts += [f"{part}.{name}.{path}" for name in names for path in _WORKLOAD_METRICS] if len(names) > 1 else []
    reasoning = any("reasoning" in summary.output_kinds for summary in summaries)
    return [
        path
        for path in (*TABLE_METRICS, *parts)
        if (reasoning or not path.startswith("ttfa_s"))
        and any(value_at(summary, path) is not None for summary in summaries)
    ]


# ---------------------------------------------------------------- gates

_GATE = re.compile(
    r"\s*(?P<path>[^\s<>=]+)\s*(?P<op>>=|<=|>|<)\s*(?P<bound>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>%|/s|[a-zA-Zµ]*)\s*"
)
_COMPARISONS = {">": gt, ">=": ge, "<": lt, "<=": le}
_ACCEPTED = "PATH>NUMBER, with a unit (100ms, 0.1s, 2J, 300W) or without, or PATH>+3% (also >=, <, <=)"

UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "J": {"J": 1, "mJ": 1e-3, "kJ": 1e3, "MJ": 1e6},
    "W": {"W": 1, "kW": 1e3},
    "/s": {"/s": 1},
    "": {},
}
"""Units of a gate's bound, by the unit of the number in summary.json: name -> factor."""


def unit_of(path: str) -> str:
    """Return the unit of the number at a path: s, J, W, /s, or nothing."""
    if "joules" in path:
        return "J"
    if path.endswith(("_per_s", "_rps", ".rps")):
        return "/s"
    return "W" if path.endswith("_watts") else "s" if re.search(r"_s(\.|$)", path) else ""


def parse_gate(text: str, paths: Sequence[str]) -> Gate:
    """Parse `PATH>NUMBER`, where the number may have a unit, or `PATH>+3%` against the first run; also >=, <, <=.

    Raise LoadgenError for anything else.
    """
    match = _GATE.fullmatch(text)
    if match is None:
        raise LoadgenError(f"--fail-if {clean(text)!r} is not {_ACCEPTED}")
    path, bound, unit = match["path"], match["bound"], match["unit"]
    if unit == "%" and bound[0] not in "+-":
        raise LoadgenError(f"--fail-if {clean(text)!r}: a percentage is a change from the first run, write +{bound}%")
    if unit != "%" and bound[0] == "+":
        raise LoadgenError(f"--fail-if {clean(text)!r}: write {bound}% for a change, {bound[1:]}{unit} for a value")
    if path not in paths:
        close = ", ".join(get_close_matches(path, paths, n=3, cutoff=0.4))
        hint = f"; close: {close}" if close else ""
        raise LoadgenError(f"--fail-if: summary.json has no number at {clean(path)!r}{hint}")
    op: Any = match["op"]
    if unit == "%":
        return Gate(text.strip(), path, op, float(bound) / 100, relative=True)
    factors = {"": 1.0} | UNITS[unit_of(path)]
    if unit not in factors:
        accepted = f"{', '.join(UNITS[unit_of(path)])} or no unit" if len(factors) > 1 else "no unit"
        raise LoadgenError(f"--fail-if {clean(text)!r}: {clean(path)} takes {accepted}, not {unit}; or a change, +3%")
    return Gate(text.strip(), path, op, float(bound) * factors[unit], relative=False)


def check_gate(gate: Gate, summaries: Sequence[Summary]) -> list[Verdict]:
    """Return a verdict for every run after the first, which is the baseline; of a single run, for that one.

    A number that is unknown fails the gate: it was not shown to pass.
    """
    base = value_at(summaries[0], gate.path)
    if gate.relative and len(summaries) < 2:
        raise LoadgenError(f"--fail-if {gate.text!r} is relative to the first run, and there is only one run")
    limit = gate.bound if not gate.relative else None if base is None else base * (1 + gate.bound)
    verdicts = []
    for run in range(1, len(summaries)) if len(summaries) > 1 else range(1):
        value = value_at(summaries[run], gate.path)
        failed = value is None or limit is None or bool(_COMPARISONS[gate.op](value, limit))
        verdicts.append(Verdict(gate, run, value, limit, failed))
    return verdicts


# ---------------------------------------------------------------- views


def as_json(
    results: Sequence[RunResult], verdicts: Sequence[Verdict] = (), differences: Sequence[Differences] = ()
) -> dict[str, Any]:
    """Return plain values: every known number, not only those of the table."""
    summaries = [summary_of(result) for result in results]
    rows = compare_runs(summaries, known_paths(summaries))
    return {
        "runs": [summary.run_id for summary in summaries],
        "verdicts": [summary.verdict.status for summary in summaries],
        "metrics": {path: [msgspec.to_builtins(cell) for cell in cells] for path, cells in rows.items()},
        "differences": [
            {
                "run": summary.run_id,
                "from": summaries[0].run_id,
                "paired": found.paired,
                "metrics": {
                    path: msgspec.to_builtins(row) | {"interval": row.interval} for path, row in found.rows.items()
                },
            }
            for summary, found in zip(summaries[1:], differences, strict=True)
        ],
        "gates": [
            {
                "gate": v.gate.text,
                "run": summaries[v.run].run_id,
                "value": v.value,
                "limit": v.limit,
                "failed": v.failed,
            }
            for v in verdicts
        ],
    }


def render_comparison(
    results: Sequence[RunResult],
    console: Console,
    verdicts: Sequence[Verdict] = (),
    differences: Sequence[Differences] = (),
) -> None:
    """Print the runs, a table of each later run against the first with its differences, and the verdicts of gates."""
    summaries = [summary_of(result) for result in results]
    for letter, result, summary in zip(letters(len(results)), results, summaries, strict=True):
        simulated = "   SIMULATED" if is_simulated(result.info) else ""
        line = f"{title(result.info, summary)}   {clean(summary.run_id)}{simulated}"
        console.print(Text.assemble((f"{letter}  ", "bold"), line))
        ended = summary.stopped_by or "did not end by itself"
        rates = f"{number(summary.rate.achieved_rps)} requests/s sent, {number(summary.rate.requested_rps)} requested"
        console.print(Text(f"   {ended} · {rates} · {HEADLINES[summary.verdict.status]}"))
        for remark in verdict_remarks(summary):
            console.print(Text(f"   - {remark.text}", style="red" if remark.status == "failed" else "yellow"))
    if len({is_simulated(result.info) for result in results}) > 1:
        console.print(Text("Simulated and measured runs are side by side.", style="bold yellow"))
    if len(results) == 1:
        _print_table(summaries, ["A"], None, console)
    for letter, summary, found in zip(letters(len(results))[1:], summaries[1:], differences, strict=True):
        _print_table([summaries[0], summary], ["A", letter], found, console)
        meaning = (
            f"± is half of the 95 % interval of {letter}−A: the smallest change that these two runs could have shown. "
            "* the interval excludes 0, as 1 in 20 does by chance."
        )
        for line in (meaning, *interval_notes(found, metrics([summaries[0], summary]), letter)):
            console.print(Text(line, style="dim"))
    for verdict in verdicts:
        console.print(Text(describe_verdict(verdict), style="bold red" if verdict.failed else "green"))


def _print_table(
    summaries: Sequence[Summary], names: Sequence[str], found: Differences | None, console: Console
) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    changes = (f"{names[1]}/A", f"{names[1]}−A", "±") if found else ()
    for heading in (*names, *changes):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, cells in compare_runs(summaries, metrics(summaries)).items():
        row = [path.removeprefix("by_workload."), *(quantity(path, cell.value) for cell in cells)]
        if found:
            row += [ratio(cells[1].ratio), signed(path, cells[1].difference), half_width(found.rows.get(path))]
        table.add_row(*(Text(text) for text in row))
    console.print()
    console.print(table)


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
        else f"A and {letter} had different schedules: their chance is in the intervals."
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
    return f"{value:,.0f}" if path.startswith("requests.") else number(value, 4)


def describe_verdict(verdict: Verdict) -> str:
    """Return a line such as "FAILED ttft_s.p99>0.5: B has 0.61"."""
    gate, run = verdict.gate, letters(verdict.run + 1)[-1]
    head = "FAILED" if verdict.failed else "passed"
    if verdict.value is None or verdict.limit is None:
        return f"{head} {gate.text}: {run} or its baseline is unknown"
    limit = f" (limit {quantity(gate.path, verdict.limit)})" if gate.relative else ""
    return f"{head} {gate.text}: {run} has {quantity(gate.path, verdict.value)}{limit}"


def letters(n: int) -> list[str]:
    """Return the names of n runs: A, B, C, ..."""
    return [chr(ord("A") + i) if i < 26 else f"R{i + 1}" for i in range(n)]
