"""loadgen report: analyse a run folder again."""

from pathlib import Path
from typing import Any

import click

from loadgen.cli.options import boundary_options


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--request-id", metavar="ID", help="Print one request: ID is the X-Request-Id that was sent, RUN_ID-INDEX."
)
@boundary_options()
@click.option("--json", "as_json", is_flag=True, help="Print summary.json, or search.json, instead of the tables.")
def report(run: Path, request_id: str | None, as_json: bool, **stated: Any) -> None:
    """Analyse the run folder RUN again: write its attribution, summary.json and report.html.

    With the folder of a search, print its answer, and write its report.html. With --request-id nothing is written.
    The options of the boundary stand in place of those that the run states, in what this command writes.
    """
    from rich.console import Console

    assumptions = {name: value for name, value in stated.items() if value is not None}
    if request_id is not None:
        from loadgen.report.request_facts import render_request, request_with_id
        from loadgen.results.summarize import load_run

        row = request_with_id(load_run(run, assumptions=assumptions), request_id)
        if as_json:
            import msgspec

            click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2))
        else:
            render_request(row, Console())
        return
    if not (run / "run.json").is_file() and (run / "search.json").is_file():
        from loadgen.load_search.folder import rewrite_page
        from loadgen.report.search_terminal import print_search

        result = rewrite_page(run)
        if as_json:
            click.echo((run / "search.json").read_text(), nl=False)
        else:
            print_search(Console(), result)
        return
    from loadgen.report import terminal
    from loadgen.report.write import finish

    analysed = finish(run, assumptions=assumptions)
    if as_json:
        click.echo((run / "summary.json").read_text(), nl=False)
    else:
        terminal.render_terminal(analysed, Console(), run)
