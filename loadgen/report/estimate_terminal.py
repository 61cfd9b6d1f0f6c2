"""An estimate of energy on a terminal: the methods side by side, their notes, and the bins that cost most."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadgen.report.format import clean, plural

BINS_SHOWN = 10


def print_estimate(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts of `estimate_facts`, with what was measured under "measured" if that is there."""
    simulated = " (simulated)" if facts["simulated"] else ""
    console.print(
        f"{escape(facts['trace'])}: {facts['requests']:,} requests, {facts['input_tokens']:,} input and "
        f"{facts['output_tokens']:,} output tokens"
    )
    console.print(f"estimate from {facts['profile']}{simulated} at batch {facts['batch']:.4g}")
    if "transfer" in facts:
        console.print(transfer_line(facts["transfer"]), soft_wrap=True)
    if "batch_from" in facts:
        console.print(f"batch: {batch_origin(facts['batch_from'])}", soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False)
    extra = [name for name in ("co2e_kg", "cost") if name in facts["estimates"][0]]
    ratios = facts.get("measured", {}).get("ratios")
    for column in ("method", "kWh", "J/request", *extra, *(["/ measured"] if ratios else [])):
        table.add_column(column.replace("co2e_kg", "kg CO2e"), justify="left" if column == "method" else "right")
    for row in facts["estimates"]:
        spread = f" ±{row['stderr_joules'] / row['joules']:.1%}" if row["stderr_joules"] is not None else ""
        table.add_row(
            row["method"],
            f"{row['kwh']:.4g}{spread}",
            f"{row['joules_per_request']:.4g}",
            *(f"{row[name]:.4g}" for name in extra),
            *([f"{ratios[row['method']]:.3f}"] if ratios else []),
        )
    console.print(table)
    console.print()
    for row in facts["estimates"]:
        console.print(f"{row['method']}: {escape(row['note'])}", soft_wrap=True)
    if ratios:
        run = facts["measured"]
        console.print(
            f"\nmeasured: {run['joules']:,.0f} J while requests were in flight (and {run['idle_joules']:,.0f} J idle), "
            f"{run['requests']:,} requests of {escape(run['run'])}, {run['mean_decoding']:.4g} decoded together",
            soft_wrap=True,
        )
    if facts["assumed"]["pue"] != 1.0 or extra:
        source = f" (grid intensity: {escape(clean(facts['grid_source']))})" if facts.get("grid_source") else ""
        rates = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in facts["assumed"].items())
        console.print(f"\nassumed: {rates}{source}", soft_wrap=True)
    console.print(bins_table(facts["bins"]))


def transfer_line(transfer: dict[str, Any]) -> str:
    """Return how the profile was carried over to another GPU."""
    cells = transfer["cells"]
    by = f"and {plural(cells, 'measured cell')}" if cells else "alone"
    return (
        f"transferred to {escape(transfer['gpu'])} by the data sheets {by}: the joules of reading weights and contexts "
        f"x {transfer['reads']:.3f}, those of computing x {transfer['products']:.3f}"
    )


def batch_origin(load: dict[str, Any]) -> str:
    """Return where the batch comes from, and what its rate means for the engine."""
    if "rps" not in load:
        return f"from {load['source']}"
    rate = f"{load['rps']:.4g} requests/s ({load['source']})"
    capacity = f"{load['capacity_rps']:.4g}/s at the largest batch of the profile"
    if load["is_beyond_capacity"]:
        return f"{rate} is beyond the capacity of {capacity}: the queue grows without end, and that batch is used"
    return (
        f"{rate} at random keep {load['in_flight']:.4g} in flight by Little's law, at least one for "
        f"{load['busy']:.0%} of the time; the capacity is {capacity}"
    )


def bins_table(bins: list[dict[str, Any]]) -> Table:
    """Return the BINS_SHOWN bins that cost most, with their share of the energy of all."""
    table = Table(box=None, pad_edge=False, title_justify="left", title="\nbins that cost most", title_style="")
    for column in ("input up to", "output up to", "requests", "share of energy", "ceiling / interpolated"):
        table.add_column(column, justify="right")
    total = sum(row["interpolated_joules"] for row in bins)
    for row in bins[:BINS_SHOWN]:
        table.add_row(
            f"{row['input_edge']:,}",
            f"{row['output_edge']:,}",
            f"{row['requests']:,}",
            f"{row['interpolated_joules'] / total:.1%}",
            f"{row['ceiling_joules'] / row['interpolated_joules']:.2f}",
        )
    return table
