"""loadgen compare: set run folders side by side, and check them against limits."""

from pathlib import Path
from typing import Any

import click

from loadgen.cli.options import FILE


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
    "--confident",
    is_flag=True,
    help="Let a change fail a gate only where its whole 95 % interval lies beyond the bound.",
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
@click.option("--html", "page", type=FILE, metavar="FILE", help="Write the comparison as a page.")
@click.option("--markdown", type=FILE, metavar="FILE", help="Write it as Markdown, for the summary of a CI job.")
@click.option("--junit", type=FILE, metavar="FILE", help="Write each gate as a test case, as JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print every number of every run as JSON.")
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[Path, ...],
    gates: tuple[str, ...],
    confident: bool,
    allowed: tuple[str, ...],
    page: Path | None,
    markdown: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare run folders: each metric of each run, its ratio to that of the first run, and the difference with half
    of its 95 % interval.

    A RUN may be a folder of run folders: they are repeats, whose means are compared, and the interval is from how far
    they lie apart.

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

    from loadgen.api.compare import runs_in
    from loadgen.errors import LoadgenError
    from loadgen.files import replace_file
    from loadgen.report import compare as view
    from loadgen.report.comparability import objections_of_sides
    from loadgen.report.gates import check_gate, parse_gate
    from loadgen.report.junit import Case, junit_xml
    from loadgen.report.run_facts import summary_of
    from loadgen.results.difference import differences_of_sides
    from loadgen.results.summary_paths import known_paths

    sides = [runs_in(run) for run in runs]
    if page is not None and (len(sides) < 2 or any(len(side) > 1 for side in sides)):
        raise LoadgenError("--html shows single runs: name two or more (a run's own page is its report.html)")
    if refusals := objections_of_sides(sides, view.letters(len(sides)), allowed):
        for refusal in refusals:
            click.echo(f"loadgen: {refusal.text} (--allow {refusal.kind} compares all the same)", err=True)
        if junit is not None:
            replace_file(junit, junit_xml("compare", [Case(text, "error", text) for _, text in refusals]))
        ctx.exit(2)
    of_sides = [[summary_of(run) for run in side] for side in sides]
    paths, letters = known_paths(view.flat(of_sides)), view.letters(len(sides))
    parsed = [parse_gate(text, paths) for text in gates]
    differences = [
        differences_of_sides(sides[0], side, ("A", letter)) for letter, side in zip(letters[1:], sides[1:], strict=True)
    ]
    outcomes = [outcome for gate in parsed for outcome in check_gate(gate, of_sides, differences, confident)]
    if page is not None:
        from loadgen.report.compare_page import render_compare_page

        every = objections_of_sides(sides, letters)
        named = dict(zip(letters, (side[0] for side in sides), strict=True))
        replace_file(page, render_compare_page(named, dict(zip(letters[1:], differences, strict=True)), every).encode())
    if markdown is not None:
        from loadgen.report.markdown import comparison_markdown

        replace_file(markdown, comparison_markdown(sides, outcomes, differences).encode())
    if junit is not None:
        cases = [
            Case(view.gate_name(outcome), "failure" if outcome.failed else "passed", view.describe(outcome))
            for outcome in outcomes
        ]
        replace_file(junit, junit_xml("compare", cases))
    if as_json:
        made = view.as_json(sides, outcomes, differences)
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2))
    else:
        view.render_comparison(sides, Console(), outcomes, differences)
    if any(outcome.failed for outcome in outcomes):
        ctx.exit(1)
