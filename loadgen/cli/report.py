"""loadgen report: analyse a run folder again."""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the tables.")
def report(run: Path, as_json: bool) -> None:
    """Analyse the run folder RUN again: write its attribution, summary.json and report.html."""
    from rich.console import Console

    from loadgen.report import terminal
    from loadgen.report.write import finish

    result = finish(run)
    if as_json:
        click.echo((run / "summary.json").read_text(), nl=False)
    else:
        terminal.render_terminal(result, Console(), run)
