"""loadgen estimate: predict what a workload costs from a measured energy profile."""

from pathlib import Path
from typing import Any

import click

from loadgen.cli.options import HARDWARE_NAMES, MODEL_NAMES, PROFILE_NAMES, SOURCE_NAMES, FiniteRange, SectionedCommand

_POSITIVE = FiniteRange(min=0, min_open=True)


@click.command(
    cls=SectionedCommand,
    sections={"profile": "Prediction", "pue": "Facility, carbon and cost", "as_json": "Output"},
)
@click.argument("trace", metavar="TRACE|BINS", shell_complete=SOURCE_NAMES)
@click.option(
    "--profile",
    required=True,
    metavar="NAME",
    shell_complete=PROFILE_NAMES,
    help="Name in profiles/energy, or a .json file.",
)
@click.option(
    "--batch",
    type=_POSITIVE,
    help="Number of requests that decode together.  [default: by --rps, else the run's, else by the trace's own rate]",
)
@click.option("--rps", "--request-rate", type=_POSITIVE, help="Requests per second, which give the batch.")
@click.option(
    "--hardware",
    shell_complete=HARDWARE_NAMES,
    metavar="NAME",
    help="GPU to estimate for; a profile of another one is transferred by both data sheets.  [default: the profile's]",
)
@click.option(
    "--cells",
    metavar="NAME",
    shell_complete=PROFILE_NAMES,
    help="Profile of a few cells of that GPU, which correct the transfer.",
)
@click.option(
    "--model",
    shell_complete=MODEL_NAMES,
    metavar="NAME",
    help="Model of the FLOPs bound.  [default: the profile's]",
)
@click.option(
    "--measured", type=click.Path(path_type=Path), metavar="RUN", help="Run folder whose measured energy is compared."
)
@click.option(
    "--pue",
    type=FiniteRange(min=1.0),
    default=1.0,
    show_default=True,
    help="Power usage effectiveness: facility power / IT power.",
)
@click.option(
    "--grid-intensity", type=_POSITIVE, metavar="G", help="Carbon intensity of the grid in grams of CO2e per kWh."
)
@click.option("--grid-source", metavar="TEXT", help="Source and date of --grid-intensity, for the report.")
@click.option("--price", type=_POSITIVE, metavar="P", help="Price per kWh, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(trace: str, as_json: bool, **options: Any) -> None:
    """Predict the GPU energy of TRACE (any format, or bins) four ways.

    \b
    interpolated  between the measured grid points, at every request's own lengths
    two-phase     a model of prefill and decode fitted to the grid points, also beyond them
    ceiling       every length rounded up to a bin edge, as arXiv 2504.17674 does
    ideal         power limit / peak rate x FLOPs

    All but the ideal assume that BATCH requests are decoded together all the time. A rate gives the batch, by Little's
    law and the times that the profile measured.
    """
    import json

    from rich.console import Console

    from loadgen.api.estimate import estimate as estimated
    from loadgen.report.estimate_terminal import print_estimate

    if options["batch"] is not None and options["rps"] is not None:
        raise click.UsageError("--rps gives the batch: use --batch or --rps, not both")
    facts = estimated(trace, **options).to_dict()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        print_estimate(Console(highlight=False), facts)
