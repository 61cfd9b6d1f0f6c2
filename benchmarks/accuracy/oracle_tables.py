"""The tables of docs/concepts/attribution.md, from the scores of attribution_oracle.py."""

import re
from typing import Any

from loadgen.attribution.shapley import METHODS

_STRANGERS = re.compile(r"mix \d+/s, \d+ % foreign")
_SPANS = ", spans"
_AGENTS = "agents, "


def table_of_loads(rows: list[dict[str, Any]], client_only: str) -> list[str]:
    """Return the table of all loads but those of `table_of_strangers`. client_only: end of the names of loads whose
    errors stand beside those of the same load with the engine's counters."""
    by_name = {(row["scenario"], row["method"]): row for row in rows}
    lines = [
        "| load | requests | **shapley** | client only | 95 % interval holds | output-tokens | per-request | residency"
        " | whole-gpu | sum of whole-gpu |",
        "|" + "---|" * 10,
    ]
    for (name, method), row in by_name.items():
        if (
            method != "shapley"
            or name.endswith(client_only)
            or name.startswith(_AGENTS)
            or re.fullmatch(r"mix \d+/s, \d+ % foreign(, spans)?", name)
        ):
            continue
        alone = by_name.get((f"{name}{client_only}", method))
        others = [f"{100 * by_name[name, other]['median']:.0f} %" for other in METHODS[1:]]
        whole = by_name[name, "whole-gpu"]["sum_over_total"]
        cells = [name, f"{row['requests']:,}", f"**{_errors(row)}** %", f"{_errors(alone)} %" if alone else "-"]
        lines.append(f"| {' | '.join([*cells, _interval(row), *others, f'{whole:.1f} ×'])} |")
    return lines


def table_of_strangers(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of loads beside other clients, by what is known of those."""
    of_method = {row["scenario"]: row for row in rows if row["method"] == "shapley"}
    lines = [
        "| load | requests of ours | **spans** | 95 % interval holds | **counters** | 95 % interval holds |",
        "|" + "---|" * 6,
    ]
    for name, row in of_method.items():
        if _STRANGERS.fullmatch(name) and (spans := of_method.get(name + _SPANS)):
            cells = [
                name,
                f"{row['requests']:,}",
                f"**{_errors(spans)}** %",
                _interval(spans),
                f"**{_errors(row)}** %",
                _interval(row),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def table_of_agents(rows: list[dict[str, Any]]) -> list[str]:
    """Return the table of sessions of agents."""
    lines = [
        "| load | requests | error per request | per session: median, worst | 95 % interval holds | saved by the cache:"
        " estimate / truth | computed again: estimate / truth |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        if row["method"] == "shapley" and row["scenario"].startswith(_AGENTS):
            cells = [
                row["scenario"].removeprefix(_AGENTS),
                f"{row['requests']:,}",
                f"**{_errors(row)}** %",
                f"{100 * row['session_median']:.2f} %, {100 * row['session_max']:.1f} %",
                _interval(row),
                *(_joules(row, name) for name in ("saved", "recomputed")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _joules(row: dict[str, Any], name: str) -> str:
    """Return an estimate and the truth in kJ; "-" without a cache, and where there is less than 1 kJ to estimate."""
    estimate, truth = row["cache"][name], row["cache_truth"][name]
    return "-" if truth is None or truth < 1000 else f"{estimate / 1000:.1f} / {truth / 1000:.1f} kJ"


def _errors(row: dict[str, Any]) -> str:
    return " / ".join(f"{100 * row[name]:.1f}" for name in ("median", "p90", "p99"))


def _interval(row: dict[str, Any]) -> str:
    return f"{100 * row['covered']:.0f} %, ± {100 * row['half_width']:.1f} %"
