"""loadgen study FILE: run a matrix of comparisons."""

import sys
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Its folder.  [default: runs/study-FILE]")
@click.option("--plan", "only_plan", is_flag=True, help="List the runs in their order; start nothing.")
def study(file: Path, out: Path | None, only_plan: bool) -> None:
    """Run the comparisons that FILE asks for: servers and knobs x models x workloads x batches or rates x repeats.

    Run it again to go on where it stopped, whatever stopped it. DIR gets a folder a run, results.csv and report.html.

    \b
    loadgen study studies/simulated.toml                 try it: no GPU, no server needed
    loadgen study studies/frameworks.toml --plan
    """  # fmt: skip
    from loadgen import matrix

    if only_plan:
        for cell in matrix.plan(matrix.read_study(file)):
            click.echo(cell.name)
        return
    from loadgen import study as studies

    folder = out or Path("runs") / f"study-{file.stem}"
    try:
        rows = studies.run(file, folder, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        click.echo(f"\nstopped; the same command goes on from here ({folder})", err=True)
        sys.exit(130)
    click.echo(f"{len(rows)} runs: {folder / 'results.csv'}, {folder / 'report.html'}")
