"""loadgen selftest: measure this client on this machine, before a run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.options import POSITIVE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from loadgen.run.selftest import Selftest


@click.command()
@click.argument("trace", type=click.Path(path_type=Path), required=False)
@click.option("--rps", "--request-rate", type=POSITIVE, help="Planned requests/s.  [default: 4, or as it follows]")
@click.option("--streams", "--concurrency", type=POSITIVE, help="Planned requests in flight at once.")
@click.option("--itl", "itl_ms", type=POSITIVE, metavar="MS", help="Between tokens.  [default: 20, or as it follows]")
@click.option("--ttft", "ttft_ms", type=POSITIVE, default=50.0, show_default=True, metavar="MS", help="Before tokens.")
@click.option("--duration", type=POSITIVE, default=10.0, show_default=True, metavar="S", help="Of sending, then drain.")
@click.option("--processes", type=click.IntRange(min=1, max=256), default=1, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result for programs.")
def selftest(
    trace: Path | None,
    rps: float | None,
    streams: float | None,
    itl_ms: float | None,
    ttft_ms: float,
    duration: float,
    processes: int,
    seed: int,
    as_json: bool,
) -> None:
    """Run a planned load against a server of known timing on this machine; exit 1 when it would not be safe.

    \b
    loadgen selftest --streams 500
    loadgen selftest traces/chat.jsonl --rps 20 --duration 30 --processes 2

    Without TRACE all requests have 1,000 tokens in and 200 out. --rps, --streams and --itl are bound by Little's law:
    give one or two of them. The test's server takes a core of this machine, which the planned one may not.
    """  # fmt: skip
    import msgspec
    from rich.console import Console

    from loadgen.report.progress_view import view
    from loadgen.run.selftest import planned_run, run_selftest
    from loadgen.workload.schedule import build_schedule
    from loadgen.workload.trace import Trace, TraceRequest, read_trace

    request = TraceRequest(arrival_s=0.0, input_tokens=1000, output_tokens=200, workload="chat")
    source = read_trace(trace) if trace else Trace("even", (request,), "")
    output_tokens = sum(request.output_tokens for request in source.requests) / len(source.requests)
    planned = planned_run(
        output_tokens, rps=rps, streams=streams, itl_s=itl_ms and itl_ms / 1000, ttft_s=ttft_ms / 1000
    )
    schedule = build_schedule(
        source, seed=seed, rps=planned.rps, arrival="trace" if trace else "poisson", duration_s=duration
    )
    result = run_selftest(schedule, planned, processes, view("none" if as_json else "auto", Console(stderr=True)))
    if result is None:
        sys.exit(130)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        _show(result, Console())
    if not result.safe:
        sys.exit(1)


def _show(result: "Selftest", console: "Console") -> None:
    from loadgen.report.format import count, number, percent, seconds
    from loadgen.results.timekeeping import MAX_LATE_P99_S

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    planned, capacity = result.plan, result.capacity
    say(f"{number(planned.rps)} requests/s, {number(planned.streams)} streams, a token every {seconds(planned.itl_s)}")
    say(f"{count(result.completed)} of {count(result.requests)} requests answered in {seconds(result.duration_s)}\n")
    console.print(_lateness(result))
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


def _lateness(result: "Selftest") -> "Table":
    from rich.table import Table

    from loadgen.report.format import seconds
    from loadgen.results.summary import Distribution

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
