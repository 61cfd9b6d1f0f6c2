"""loadgen bill: sum the ledger of a sidecar."""

import sys
from pathlib import Path

import click

from loadgen.cli.options import FILE, factor_options

BY = "model, workload, engine, day, and labels of `sidecar --label`"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--by", default="workload", show_default=True, metavar="LABEL,...", help=f"Lines of the bill: {BY}.")
@click.option("--from", "start", metavar="TIME", help="Bill the periods that end at this time or later.")
@click.option("--to", "end", metavar="TIME", help="Bill the periods that end before this time.")
@click.option(
    "--share-idle", type=click.Choice(["none", "by-tokens", "by-energy"]), default="none", show_default=True,
    help="Divide the idle energy of the bill among its lines, by input and output tokens or by energy; or leave it a "
    "line of its own.",
)  # fmt: skip
@factor_options()
@click.option("--csv", "as_csv", is_flag=True, help="Print the lines as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print the bill as JSON.")
@click.option("--parquet", type=FILE, metavar="FILE", help="Write the lines as Parquet.")
def bill(
    folder: Path,
    by: str,
    start: str | None,
    end: str | None,
    share_idle: str,
    pue: float | None,
    grid_intensity: float | None,
    grid_source: str | None,
    price: float | None,
    as_csv: bool,
    as_json: bool,
    parquet: Path | None,
) -> None:
    """Sum the ledger DIR of `loadgen sidecar --ledger DIR`: who used which joules.

    The lines sum to what the meter counted, in whole millijoules. Idle energy, unattributed energy, and that of
    requests that had not settled are lines of their own. TIME is a date or a time, in UTC unless it has a zone.
    --pue, --grid-intensity and --price give each line its CO2e and its cost.

    \b
    loadgen bill ledger --by model,workload --from 2026-11-01 --to 2026-12-01
    """
    from loadgen.api.bill import bill as make
    from loadgen.errors import LoadgenError

    if as_csv and as_json:
        raise LoadgenError("--csv and --json: choose one of the two")
    made = make(
        folder, by=by.split(","), start=start, end=end, share_idle=share_idle,  # type: ignore[arg-type]
        pue=pue, grid_intensity=grid_intensity, grid_source=grid_source, price=price,
    )  # fmt: skip
    if parquet is not None:
        from loadgen.export.table_files import parquet_bytes
        from loadgen.files import replace_file

        replace_file(parquet, parquet_bytes(made.lines))
    if as_csv:
        from loadgen.export.table_files import table_csv

        sys.stdout.buffer.writelines(table_csv(made.lines))
        sys.stdout.buffer.flush()
    elif as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(made.to_dict()), indent=2))
    else:
        from rich.console import Console

        from loadgen.report.bill_terminal import render_bill

        render_bill(made._sums, Console())
