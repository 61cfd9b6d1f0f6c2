"""Runs side by side, and gates on what became of a number."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from operator import ge, gt, le, lt
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.errors import LoadgenError
from loadgen.record import ErrorKind
from loadgen.report.format import UNKNOWN, clean, joules, number, seconds
from loadgen.report.run_facts import is_simulated, summary_of, title
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Summary, WorkloadSummary

METRICS = (
    "requests.completed",
    "requests.failed",
    "rate.achieved_rps",
    "schedule_lag_s.p99",
    "ttft_s.p50",
    "ttft_s.p99",
    "tpot_s.p50",
    "tpot_s.p99",
    "e2e_s.p50",
    "response_s.p99",
    "tokens.output_per_s",
    "goodput.rps",
    "energy.measured_joules",
    "energy.mean_watts",
    "energy.joules_per_request.p50",
    "energy.joules_per_request.p99",
    "energy.joules_per_output_token",
    "energy.joules_per_token",
)
"""What the table shows: paths into summary.json."""

WORKLOAD_METRICS = ("ttft_s.p99", "tpot_s.p50", "joules_per_request.p50", "joules_per_output_token")


@dataclass(frozen=True)
class Cell:
    """One metric of one run, beside the same of the first. None is unknown."""

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
    """`failed` with the value that failed it: None when it was unknown."""

    gate: Gate
    run: int
    value: float | None
    limit: float | None
    failed: bool


# ---------------------------------------------------------------- metrics


def known_paths(summaries: Sequence[Summary]) -> list[str]:
    """Every path to a number in summary.json, with the workloads that these runs have."""
    workloads = sorted({name for summary in summaries for name in summary.by_workload})
    return list(_leaves(Summary, workloads))


def _leaves(kind: Any, workloads: Sequence[str], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        options = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        for option in options:
            if option in (int, float):
                yield path
            elif field.name == "by_error":
                yield from (f"{path}.{error}" for error in get_args(ErrorKind))
            elif field.name == "by_workload":
                for name in workloads:
                    yield from _leaves(WorkloadSummary, workloads, f"{path}.{name}.")
            elif isinstance(option, type) and issubclass(option, msgspec.Struct):
                yield from _leaves(option, workloads, f"{path}.")


def value_at(summary: Summary, path: str) -> float | None:
    """The number at a known path; None when it, or what should hold it, is absent. An error kind not met is 0."""
    if ".by_error." in f".{path}":
        before, _, kind = path.rpartition(".")
        errors = _at(summary, before)
        return None if errors is None else float(errors.get(kind, 0))
    found = _at(summary, path)
    return None if found is None else float(found)


def _at(summary: Summary, path: str) -> Any:
    if path.startswith("by_workload."):
        # A workload's name may hold dots: the longest one that fits is meant.
        rest = path.removeprefix("by_workload.")
        fitting = [name for name in summary.by_workload if rest.startswith(f"{name}.")]
        if not fitting:
            return None
        name = max(fitting, key=len)
        return _follow(summary.by_workload[name], rest.removeprefix(f"{name}."))
    return _follow(summary, path)


def _follow(value: Any, path: str) -> Any:
    return reduce(lambda found, name: getattr(found, name, None), path.split("."), value)


def compare_runs(summaries: Sequence[Summary], paths: Sequence[str]) -> dict[str, list[Cell]]:
    """Path -> a cell for every run, in order."""
    values = {path: [value_at(summary, path) for summary in summaries] for path in paths}
    return {path: [_cell(value, row[0]) for value in row] for path, row in values.items()}


def _cell(value: float | None, first: float | None) -> Cell:
    if value is None or first is None:
        return Cell(value, None, None)
    return Cell(value, value / first if first else None, value - first)


def metrics(summaries: Sequence[Summary]) -> list[str]:
    """METRICS and, when there are several workloads, those of each; without what no run knows."""
    names = sorted({name for summary in summaries for name in summary.by_workload})
    each = [f"by_workload.{name}.{path}" for name in names for path in WORKLOAD_METRICS] if len(names) > 1 else []
    return [p for p in (*METRICS, *each) if any(value_at(summary, p) is not None for summary in summaries)]


# ---------------------------------------------------------------- gates

_GATE = re.compile(
    r"\s*(?P<path>[^\s<>=]+)\s*(?P<op>>=|<=|>|<)\s*(?P<bound>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?P<pc>%?)\s*"
)
_HOLDS = {">": gt, ">=": ge, "<": lt, "<=": le}


def parse_gate(text: str, paths: Sequence[str]) -> Gate:
    """`PATH>NUMBER`, or `PATH>+3%` against the first run; also >=, <, <=. LoadgenError when it is anything else."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise LoadgenError(f"--fail-if {clean(text)!r} is not PATH>NUMBER or PATH>+3% (also >=, <, <=)")
    path, bound, relative = match["path"], match["bound"], bool(match["pc"])
    if relative and bound[0] not in "+-":
        raise LoadgenError(f"--fail-if {clean(text)!r}: a percentage is a change from the first run, write +{bound}%")
    if not relative and bound[0] == "+":
        raise LoadgenError(f"--fail-if {clean(text)!r}: write {bound}% for a change, {bound[1:]} for a value")
    if path not in paths:
        close = ", ".join(get_close_matches(path, paths, n=3, cutoff=0.4)) or "see summary.json"
        raise LoadgenError(f"--fail-if: summary.json has no number at {clean(path)!r}; close: {close}")
    op: Any = match["op"]
    return Gate(text.strip(), path, op, float(bound) / 100 if relative else float(bound), relative)


def check_gate(gate: Gate, summaries: Sequence[Summary]) -> list[Verdict]:
    """One for every run after the first, which is the baseline; of a single run, for that one."""
    first = value_at(summaries[0], gate.path)
    if gate.relative and len(summaries) < 2:
        raise LoadgenError(f"--fail-if {gate.text!r} is relative to the first run, and there is only one run")
    runs = range(1, len(summaries)) if len(summaries) > 1 else range(1)
    return [_verdict(gate, run, value_at(summaries[run], gate.path), first) for run in runs]


def _verdict(gate: Gate, run: int, value: float | None, first: float | None) -> Verdict:
    limit = gate.bound if not gate.relative else None if first is None else first * (1 + gate.bound)
    # What nobody measured has not passed.
    failed = value is None or limit is None or bool(_HOLDS[gate.op](value, limit))
    return Verdict(gate, run, value, limit, failed)


# ---------------------------------------------------------------- views


def as_json(results: Sequence[RunResult], verdicts: Sequence[Verdict] = ()) -> dict[str, Any]:
    """Plain values. Every known number, not only those of the table."""
    summaries = [summary_of(result) for result in results]
    rows = compare_runs(summaries, known_paths(summaries))
    return {
        "runs": [summary.run_id for summary in summaries],
        "metrics": {path: [msgspec.to_builtins(cell) for cell in cells] for path, cells in rows.items()},
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


def render_comparison(results: Sequence[RunResult], console: Console, verdicts: Sequence[Verdict] = ()) -> None:
    summaries = [summary_of(result) for result in results]
    for letter, result, summary in zip(_letters(len(results)), results, summaries, strict=True):
        simulated = "   SIMULATED" if is_simulated(result.info) else ""
        told = f"{title(result.info, summary)}   {clean(summary.run_id)}{simulated}"
        console.print(Text.assemble((f"{letter}  ", "bold"), told))
        if not summary.energy.valid:
            console.print(Text(f"   energy not valid: {clean('; '.join(summary.energy.reasons))}", style="red"))
    if len({is_simulated(result.info) for result in results}) > 1:
        console.print(Text("Simulated and measured runs are side by side.", style="bold yellow"))
    console.print()
    console.print(_table(compare_runs(summaries, metrics(summaries)), len(results)))
    for verdict in verdicts:
        console.print(Text(told_verdict(verdict), style="bold red" if verdict.failed else "green"))


def _table(rows: dict[str, list[Cell]], num_runs: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    table.add_column("A", justify="right", no_wrap=True)
    for letter in _letters(num_runs)[1:]:
        for heading in (letter, f"{letter}/A", f"{letter}−A"):
            table.add_column(heading, justify="right", no_wrap=True)
    for path, cells in rows.items():
        table.add_row(*(Text(cell) for cell in _row(path, cells)))
    return table


def _row(path: str, cells: list[Cell]) -> list[str]:
    row = [path.removeprefix("by_workload."), quantity(path, cells[0].value)]
    for cell in cells[1:]:
        row += [quantity(path, cell.value), ratio(cell.ratio), _signed(path, cell.difference)]
    return row


def ratio(value: float | None) -> str:
    """Four digits: what is compared is often within a few percent."""
    return UNKNOWN if value is None else f"{value:.3f}"


def quantity(path: str, value: float | None) -> str:
    """In the unit that the path's last name with one says."""
    if value is None:
        return UNKNOWN
    if "joules" in path:
        return joules(value)
    if re.search(r"_s(\.|$)", path) and "_per_s" not in path:
        return seconds(value)
    return f"{value:,.0f}" if path.startswith("requests.") else number(value, 4)


def _signed(path: str, difference: float | None) -> str:
    if difference is None:
        return UNKNOWN
    return ("+" if difference > 0 else "") + quantity(path, difference)


def told_verdict(verdict: Verdict) -> str:
    """Like "FAILED ttft_s.p99>0.5: B has 0.61"."""
    gate, run = verdict.gate, _letters(verdict.run + 1)[-1]
    head = "FAILED" if verdict.failed else "passed"
    if verdict.value is None or verdict.limit is None:
        return f"{head} {gate.text}: {run} or its baseline is unknown"
    limit = f" (limit {quantity(gate.path, verdict.limit)})" if gate.relative else ""
    return f"{head} {gate.text}: {run} has {quantity(gate.path, verdict.value)}{limit}"


def _letters(n: int) -> list[str]:
    return [chr(ord("A") + i) if i < 26 else f"R{i + 1}" for i in range(n)]
