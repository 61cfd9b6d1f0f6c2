"""Gates: limits for the numbers of summary.json that fail a comparison, stated as `ttft_s.p99>100ms` or `...>+3%`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import ge, gt, le, lt
from typing import TYPE_CHECKING, Any, Literal

from loadgen.errors import LoadgenError
from loadgen.report.format import clean
from loadgen.results.summary_paths import Side, mean_at

if TYPE_CHECKING:
    from loadgen.results.difference import Differences


@dataclass(frozen=True)
class Gate:
    """`path` `op` `bound`; the bound is relative to the first run's value when `relative`: 0.03 is +3 %."""

    text: str
    path: str
    op: Literal[">", ">=", "<", "<="]
    bound: float
    relative: bool


@dataclass(frozen=True)
class Outcome:
    """The outcome of a gate for one run, or for the mean of its repeats. `value` and `limit` are None when unknown,
    which fails the gate."""

    gate: Gate
    run: int
    """Place in the comparison: 1 is the first after the baseline."""
    value: float | None
    limit: float | None
    failed: bool
    undecided: str = ""
    """Reason why a confident gate cannot tell, and so fails. Empty where it can."""


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
        share = f", or {float(bound) / 100:g} for a share" if unit_of(path) == "" else ""
        raise LoadgenError(
            f"--fail-if {clean(text)!r}: a percentage is a change from the first run, write +{bound}%{share}"
        )
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


def check_gate(
    gate: Gate, sides: Sequence[Side], differences: Sequence[Differences] = (), confident: bool = False
) -> list[Outcome]:
    """Return an outcome for every side after the first, which is the baseline; of a single side, for that one.

    A number that is unknown fails the gate: it was not shown to pass. `confident`: a relative gate fails only where the
    95 % interval of the change, from `differences`, lies beyond the bound as a whole.
    """
    base = mean_at(sides[0], gate.path)
    if gate.relative and len(sides) < 2:
        raise LoadgenError(f"--fail-if {gate.text!r} is relative to the first run, and there is only one run")
    limit = gate.bound if not gate.relative else None if base is None else base * (1 + gate.bound)
    outcomes = []
    for run in range(1, len(sides)) if len(sides) > 1 else range(1):
        value = mean_at(sides[run], gate.path)
        failed = value is None or limit is None or bool(_COMPARISONS[gate.op](value, limit))
        undecided = ""
        if failed and confident and gate.relative and value is not None and limit is not None:
            row = differences[run - 1].rows.get(gate.path)
            if row is None or row.half_width is None:
                undecided = row.reason if row else "this number has no interval"
            else:
                failed = abs(value - limit) > row.half_width
        outcomes.append(Outcome(gate, run, value, limit, failed, undecided))
    return outcomes
