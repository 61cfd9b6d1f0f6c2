"""loadgen report: analyse a run folder again."""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print summary.json, or search.json, instead of the tables.")
def report(run: Path, as_json: bool) -> None:
    """Analyse the run folder RUN again: write its attribution, summary.json and report.html.

    With the folder of a search, print its answer, and write its report.html.
    """
    from rich.console import Console

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

    analysed = finish(run)
    if as_json:
        click.echo((run / "summary.json").read_text(), nl=False)
    else:
        terminal.render_terminal(analysed, Console(), run)
