"""Traces and token bins on a terminal: a table of facts, and a heat map of the joint lengths."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loadgen.report.trace_facts import ALIKE, DIFFERENCES, TraceFacts, fact_name, format_fact

if TYPE_CHECKING:
    from loadgen.workload.token_bins import CountedPairs

SHARE_LEVELS = (0.0, 0.003, 0.01, 0.03)
"""Shares of all requests above which a cell of the heat map takes its next shade."""


def print_traces(console: Console, traces: list[TraceFacts], differences: dict[str, float | None]) -> None:
    """Print the facts of traces side by side, how two of them differ, and a heat map of each."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for key in dict.fromkeys(key for facts, _ in traces for key in facts):
        table.add_row(
            fact_name(key), *(escape(format_fact(facts.get(key), decimal, spark_line)) for facts, _ in traces)
        )
    console.print(table)
    if differences:
        console.print(f"\nDifferences. {ALIKE}")
    for key, value in differences.items():
        console.print(f"  {DIFFERENCES[key]} {'unknown' if value is None else f'{value:.4f}'}")
    lowest = min(int(description.pairs.inputs.min()) for _, description in traces)
    for facts, description in traces:
        console.print(heat_map(facts["name"], description.pairs, lowest, console.encoding), soft_wrap=True)


def decimal(value: float) -> str:
    """Format with up to three decimals, without trailing zeros."""
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def spark_line(values: list[float]) -> str:
    """Draw one character per value, from nothing to the highest."""
    highest = max(values)
    steps = " ▁▂▃▄▅▆▇█" if (sys.stdout.encoding or "").lower().startswith("utf") else " .:-=+*#@"
    return "".join(steps[math.ceil(8 * value / highest)] for value in values) + f" up to {highest:,.3g}"


def heat_map(name: str, pairs: CountedPairs, lowest: int, encoding: str) -> Text:
    """Draw powers of 2 of the input to the right and of the output upwards; the shade is the share of requests.

    The first column is that of `lowest` input tokens, so that the maps of two traces stand column under column.
    """
    shades = " ░▒▓█" if encoding.lower().startswith("utf") else " .:+#"
    x, y = (np.ceil(np.log2(lengths)).astype(int) for lengths in (pairs.inputs, pairs.outputs))
    cells = np.zeros((y.max() + 1, x.max() + 1))
    np.add.at(cells, (y, x), pairs.counts / pairs.counts.sum())
    level = np.searchsorted(SHARE_LEVELS, cells)
    low, high = math.ceil(math.log2(lowest)), int(x.max())
    lines = [f"\n{name}: output tokens up, input tokens right, both up to the power of 2 shown"]
    for row in range(int(y.max()), int(y.min()) - 1, -1):
        lines.append(f"{_power_label(row):>5} |" + "".join(shades[k] * 5 for k in level[row, low:]))
    lines.append(f"{'':>5} +" + "".join(f"{_power_label(column):>5}" for column in range(low, high + 1)))
    legend = (f"{shade} over {100 * share:g} %" for shade, share in zip(shades[2:], SHARE_LEVELS[1:], strict=True))
    lines.append(f"       share: blank none, {shades[1]} up to {100 * SHARE_LEVELS[1]:g} %, " + ", ".join(legend))
    return Text("\n".join(lines))


def _power_label(k: int) -> str:
    return f"{2**k}" if k < 10 else f"{2 ** (k - 10)}k" if k < 20 else f"{2 ** (k - 20)}M"
