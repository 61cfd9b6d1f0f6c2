"""loadgen compare: set run folders side by side, and check them against limits."""

from pathlib import Path
from typing import Any

import click


class _Allowed(click.ParamType[str]):
    """A kind of objection; the choices are loaded only when the option is used."""

    name = "what"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from loadgen.report.comparability import ALLOWED

        return click.Choice(ALLOWED).convert(value, param, ctx)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option(
    "--fail-if", "gates", multiple=True, metavar="EXPR", help="Exit 1 if EXPR holds or is unknown. Repeatable."
)
@click.option(
    "--allow",
    "allowed",
    multiple=True,
    type=_Allowed(),
    metavar="WHAT",
    help="Compare runs that are unfinished, failed or different all the same, or that differ in the rate, seed, model, "
    "... that is named in the refusal. Repeatable.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the comparison as a page.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every number of every run as JSON.")
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[Path, ...],
    gates: tuple[str, ...],
    allowed: tuple[str, ...],
    page: Path | None,
    as_json: bool,
) -> None:
    """Compare run folders: each metric of each run, its ratio to that of the first run, and the difference with half
    of its 95 % interval.

    EXPR is a path into summary.json, a comparison, and a number with or without a unit, or a change from the first run.
    The runs after the first are checked.

    \b
    --fail-if 'energy.joules_per_output_token>+3%'
    --fail-if 'ttft_s.p99>100ms'

    Runs that did not finish, that failed, or of which different things were asked are refused, each reason in one line.
    Exit status: 0 compared, and every gate passed; 1 a gate failed; 2 refused, or invalid input.
    """
    import msgspec
    from rich.console import Console

    from loadgen.errors import LoadgenError
    from loadgen.files import replacing
    from loadgen.report import compare as view
    from loadgen.report.comparability import objections
    from loadgen.report.run_facts import summary_of
    from loadgen.results.difference import find_differences
    from loadgen.results.summarize import load_run

    if page is not None and len(runs) < 2:
        raise LoadgenError("--html shows a comparison: name two runs or more (a run's own page is its report.html)")
    results = [load_run(run) for run in runs]
    letters = view.letters(len(results))
    if refusals := objections(results, letters, allowed):
        for refusal in refusals:
            click.echo(f"loadgen: {refusal.text} (--allow {refusal.kind} compares all the same)", err=True)
        ctx.exit(2)
    summaries = [summary_of(result) for result in results]
    paths = view.known_paths(summaries)
    verdicts = [v for text in gates for v in view.check_gate(view.parse_gate(text, paths), summaries)]
    differences = {
        letter: find_differences(results[0], result, ("A", letter))
        for letter, result in zip(letters[1:], results[1:], strict=True)
    }
    if page is not None:
        from loadgen.report.compare_page import render_compare_page

        every = objections(results, letters)
        with replacing(page) as file:
            file.write(render_compare_page(dict(zip(letters, results, strict=True)), differences, every).encode())
    if as_json:
        made = view.as_json(results, verdicts, list(differences.values()))
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2))
    else:
        view.render_comparison(results, Console(), verdicts, list(differences.values()))
    if any(verdict.failed for verdict in verdicts):
        ctx.exit(1)
