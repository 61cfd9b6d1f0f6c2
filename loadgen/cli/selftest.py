"""loadgen selftest: measure this client on this machine, before a run."""

import sys

import click

from loadgen.cli.log import logged
from loadgen.cli.options import POSITIVE, SOURCE_NAMES


@click.command()
@click.argument("trace", required=False, shell_complete=SOURCE_NAMES)
@click.option("--rps", "--request-rate", type=POSITIVE, help="Planned requests/s.  [default: 4, or by Little's law]")
@click.option("--streams", "--concurrency", type=POSITIVE, help="Planned requests in flight at once.")
@click.option(
    "--itl",
    "itl_ms",
    type=POSITIVE,
    metavar="MS",
    help="Planned time between tokens.  [default: 20, or by Little's law]",
)
@click.option(
    "--ttft",
    "ttft_ms",
    type=POSITIVE,
    default=50.0,
    show_default=True,
    metavar="MS",
    help="Planned time to first token.",
)
@click.option(
    "--duration", type=POSITIVE, default=10.0, show_default=True, metavar="S", help="Send for this long, then drain."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=256),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes of the client.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the arrivals.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@logged
def selftest(
    trace: str | None,
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
    loadgen selftest chat --rps 20 --duration 30 --processes 2

    TRACE is a file, or the name of a shipped trace; prompts are made up, also where it has words. Without it all
    requests have 1,000 input and 200 output tokens. Little's law relates --rps, --streams and --itl: give one or two of
    them. The timing server takes a core of this machine, which the planned server may not.
    """  # fmt: skip
    import msgspec
    from rich.console import Console

    from loadgen.report.progress_view import view
    from loadgen.report.selftest_terminal import print_selftest
    from loadgen.run.selftest import planned_run, run_selftest
    from loadgen.workload.length_source import read_lengths
    from loadgen.workload.schedule import build_schedule
    from loadgen.workload.trace import Trace, TraceRequest

    request = TraceRequest(arrival_s=0.0, input_tokens=1000, output_tokens=200, workload="chat")
    source = read_lengths(trace) if trace else Trace("even", (request,), "")
    lengths = [length for request in source.requests if (length := request.output_tokens) is not None]
    output_tokens = sum(lengths) / len(lengths) if lengths else 200.0
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
        print_selftest(Console(), result)
    if not result.safe:
        sys.exit(1)
