"""loadgen compare: set run folders side by side, and check them against limits."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option(
    "--fail-if", "gates", multiple=True, metavar="EXPR", help="Exit 1 if EXPR holds or is unknown. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print every number of every run as JSON.")
@click.pass_context
def compare(ctx: click.Context, runs: tuple[Path, ...], gates: tuple[str, ...], as_json: bool) -> None:
    """Compare run folders: each metric of each run, its ratio to that of the first run, and the difference.

    EXPR is a path into summary.json, a comparison, and a number or a change from the first run. The runs after the
    first are checked against it.

    \b
    --fail-if 'energy.joules_per_output_token>+3%'
    --fail-if 'ttft_s.p99>0.5'
    """
    import msgspec
    from rich.console import Console

    from loadgen.report import compare as view
    from loadgen.report.run_facts import summary_of
    from loadgen.results.summarize import load_run

    results = [load_run(run) for run in runs]
    summaries = [summary_of(result) for result in results]
    paths = view.known_paths(summaries)
    verdicts = [v for text in gates for v in view.check_gate(view.parse_gate(text, paths), summaries)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(view.as_json(results, verdicts)), indent=2))
    else:
        view.render_comparison(results, Console(), verdicts)
    if any(verdict.failed for verdict in verdicts):
        ctx.exit(1)
