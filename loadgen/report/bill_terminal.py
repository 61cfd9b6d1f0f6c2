"""A bill on the terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from loadgen.report.format import UNKNOWN, clean, count, joules, number, plural, seconds, share
from loadgen.report.terminal import figures_table, print_boundary, print_table
from loadgen.results.bill import bill_table
from loadgen.results.bill_boundary import bill_boundary
from loadgen.units import J_PER_KWH, NS_PER_S, j_from_mj, s_from_ns

if TYPE_CHECKING:
    from rich.console import Console

    from loadgen.results.bill import BillSums

HEADINGS = ("requests", "tokens in", "tokens out", "energy", "share", "s.e. ≤")
PRICED = {"co2e_grams": "CO2e g", "cost": "cost"}
SHARED = {
    "none": "a line of its own",
    "by-tokens": "shared by input and output tokens",
    "by-energy": "shared by energy",
}


def render_bill(bill: BillSums, console: Console) -> None:
    """Print the lines of a bill, their sum, and what it leaves open."""
    priced = {"co2e_grams": bill.factors.grid_intensity, "cost": bill.factors.price}
    shown = [name for name, factor in priced.items() if factor is not None]
    table = figures_table(*bill.by, *HEADINGS, *(PRICED[name] for name in shown), labels=len(bill.by))
    rows = list(bill_table(bill).rows())
    for row in rows:
        is_group = row["account"] == "requests"
        names = [clean(row[name] or (UNKNOWN if is_group else ""), 40) for name in bill.by]
        if not is_group:
            names[0] = f"({row['account']}) {names[0]}".rstrip()
        error = None if row["max_se_mj"] is None else j_from_mj(row["max_se_mj"])
        cells = [count(row["requests"]), count(row["input_tokens"]), count(row["output_tokens"])]
        energy_mj = row["energy_mj"]
        cells += [_joules(energy_mj), share(energy_mj, bill.counter_mj)]
        table.add_row(*map(Text, (*names, *cells, joules(error), *(number(row[name]) for name in shown))))
    boundary = bill_boundary(bill)
    total = ["= counter", *([""] * (len(bill.by) - 1)), "", "", "", _joules(bill.counter_mj), "", ""]
    total += [number(getattr(boundary, name)) for name in shown]
    table.add_row(*map(Text, total), style="bold")
    print_table(table, console)
    if bill.factors.stated:
        print_boundary(boundary, console)
        console.print()
    for note in bill_notes(bill):
        console.print(Text(note))


def _joules(energy_mj: int) -> str:
    return f"{j_from_mj(energy_mj):,.3f} J"


def bill_notes(bill: BillSums) -> list[str]:
    """Return what a reader of the bill has to know, a sentence each."""
    if bill.from_unix_ns is None or bill.to_unix_ns is None:
        return ["No period of the ledger ends in this time."]
    begin, end = (
        datetime.fromtimestamp(instant_ns // NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")
        for instant_ns in (bill.from_unix_ns, bill.to_unix_ns)
    )
    measured = seconds(s_from_ns(bill.measured_ns))
    kwh = number(j_from_mj(bill.counter_mj) / J_PER_KWH)
    notes = [f"{begin} to {end} UTC, {measured} measured: {kwh} kWh. Idle energy is {SHARED[bill.share_idle]}."]
    groups = bill.groups.values()
    if partial := sum(group.partial for group in groups):
        notes.append(f"{plural(partial, 'request')} not measured whole: they used more than is billed.")
    if unknown := sum(group.without_tokens for group in groups):
        notes.append(f"{plural(unknown, 'request')} with unknown tokens, which are in no count of tokens.")
    if uncertain := sum(group.without_error for group in groups):
        notes.append(f"{plural(uncertain, 'request')} with an unknown standard error, which is in no s.e.")
    if bill.lost_requests:
        notes.append(f"{plural(bill.lost_requests, 'request')} without a line (the disk was full) in unattributed.")
    if bill.torn:
        notes.append(f"{plural(bill.torn, 'file')} with lines at the end that were not written whole: left out.")
    return notes
