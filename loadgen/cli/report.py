from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the page here, not to RUN/report.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the summary.")
def report(run: Path, out: Path | None, as_json: bool) -> None:
    """Summarize the run folder RUN again, and write its report.html."""
    import msgspec
    from rich.console import Console

    from loadgen import rundir
    from loadgen.analyse import analyse
    from loadgen.errors import LoadgenError
    from loadgen.report import html, text
    from loadgen.report.facts import summary_of

    result = analyse(rundir.read(run))
    summary, page = summary_of(result), html.render(result)
    path = out or run / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror}; choose another place with --out") from err
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(summary), indent=2))
        return
    text.render(result, Console(), None if out else run)
    if out:
        click.echo(f"  report {out}")
