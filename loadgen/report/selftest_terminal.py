"""The result of a self-test on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from loadgen.report.format import count, number, percent, seconds
from loadgen.results.summary import Distribution
from loadgen.results.timekeeping import MAX_LATE_P99_S

if TYPE_CHECKING:
    from loadgen.run.selftest import Selftest


def print_selftest(console: Console, result: Selftest) -> None:
    """Print the plan, the errors of this client, what it reached, and the verdict with its reasons."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    planned, capacity = result.plan, result.capacity
    say(f"{number(planned.rps)} requests/s, {number(planned.streams)} streams, a token every {seconds(planned.itl_s)}")
    say(f"{count(result.completed)} of {count(result.requests)} requests answered in {seconds(result.duration_s)}\n")
    console.print(error_table(result))
    one_by_one, bulk = count(round(capacity.events_per_s)), count(round(capacity.bulk_events_per_s))
    say(f"\n  reached   {count(result.streams)} streams at once, {count(round(result.events_per_s))} events/s")
    say(f"  used      {percent(result.busy)} of a core in each of {result.processes} processes")
    by = "compiled code" if result.compiled else "Python: not Linux, or no compiler when it was installed"
    say(f"  read by   {by}")
    say(f"  waited    {percent(result.waited)} of the time for a core that others had")
    say(f"  one core  {one_by_one} events/s one by one: {count(round(capacity.streams))} such streams (estimates)")
    say(f"            {bulk} events/s many at once, {count(round(capacity.requests_per_s))} requests/s of one token\n")
    if result.safe:
        say(f"SAFE: the p99 of every error is within {seconds(MAX_LATE_P99_S)}", "bold green")
    else:
        say("NOT SAFE", "bold red")
    for reason in result.reasons:
        say(f"- {reason}")


def error_table(result: Selftest) -> Table:
    """Return the p50, p99 and maximum of every error that the self-test measured."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for i, heading in enumerate(("", "p50", "p99", "max", "")):
        table.add_column(heading, justify="right" if 0 < i < 4 else "left", no_wrap=True)
    rows = [
        ("lag", result.lag_s, "sent - scheduled"),
        ("loop delay", result.loop_delay_s, "the event loop woke up late"),
        ("TTFT error", result.errors.ttft_s, "against the server's stamps"),
        ("ITL error", result.errors.itl_s, "against the server's stamps"),
        ("way there", result.errors.arrival_s, "request arrived - sent"),
        ("way back", result.errors.token_s, f"token {'came' if result.stamped_by == 'kernel' else 'read'} - written"),
        ("server late", result.server_late_s, "the test's server, in no error"),
    ]
    for name, measured, meaning in rows:
        errors = measured or Distribution(count=0)
        table.add_row(f"  {name}", seconds(errors.p50), seconds(errors.p99), seconds(errors.max), meaning)
    return table
