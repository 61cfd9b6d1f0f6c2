"""loadgen estimate: predict what a workload costs from a measured energy profile."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.errors import LoadgenError

if TYPE_CHECKING:  # numpy and rich are imported when a command runs, not when help is printed
    from rich.console import Console

    from loadgen.energy_model.energy_profile import EnergyProfile
    from loadgen.energy_model.hardware import Hardware, Model
    from loadgen.results.run_folder import RunResult
    from loadgen.workload.token_bins import CountedPairs

_BINS_SHOWN = 10


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("trace", metavar="TRACE|BINS")
@click.option(
    "--profile", "profile_name", required=True, metavar="NAME", help="A name in profiles/energy, or a .json file."
)
@click.option(
    "--batch",
    type=_POSITIVE,
    help="Requests that decode together.  [default: the run's with --measured, else the most]",
)
@click.option("--hardware", metavar="NAME", help="GPU of the FLOPs bound.  [default: the profile's]")
@click.option("--model", metavar="NAME", help="Model of the FLOPs bound.  [default: the profile's]")
@click.option("--measured", type=click.Path(path_type=Path), metavar="RUN", help="Compare with the joules of a run.")
@click.option(
    "--pue",
    type=click.FloatRange(min=1.0),
    default=1.0,
    show_default=True,
    help="Power usage effectiveness: facility power / IT power.",
)
@click.option(
    "--grid-intensity", type=_POSITIVE, metavar="G", help="Carbon intensity of the grid in grams of CO2e per kWh."
)
@click.option("--price", type=_POSITIVE, metavar="P", help="Price per kWh, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(
    trace: str,
    profile_name: str,
    batch: float | None,
    hardware: str | None,
    model: str | None,
    measured: Path | None,
    pue: float,
    grid_intensity: float | None,
    price: float | None,
    as_json: bool,
) -> None:
    """Predict the GPU energy of TRACE (any format, or bins) four ways.

    \b
    interpolated  between the measured grid points, at every request's own lengths
    two-phase     a model of prefill and decode fitted to the grid points, also beyond them
    ceiling       every length rounded up to a bin edge, as arXiv 2504.17674 does
    ideal         power limit / peak rate x FLOPs

    All but the ideal assume that BATCH requests are decoded together all the time.
    """
    import json

    from loadgen.energy_model.energy_profile import read_energy_profile

    profile = read_energy_profile(profile_name)
    pairs = _pairs(trace)
    run = _run(measured, profile) if measured else None
    batches = [cell.batch for cell in profile.cells]
    mean_decoding = _mean_decoding(run) if run else None
    if batch is None:  # clamped to the measured batches; the output has both numbers
        batch = float(max(batches)) if mean_decoding is None else min(max(mean_decoding, min(batches)), max(batches))
    shapes = _shapes(profile, hardware, model)
    rates = {"pue": pue, "grid_intensity_g_per_kwh": grid_intensity, "price_per_kwh": price}
    answer = _answer(trace, pairs, profile, batch, shapes, rates)
    if run:
        answer["measured"] = _compare(run, profile, batch, shapes, str(measured)) | {"mean_decoding": mean_decoding}
    if as_json:
        click.echo(json.dumps(answer, indent=1))
        return
    from rich.console import Console

    _show(answer, Console(highlight=False))


def _pairs(name: str) -> "CountedPairs":
    from loadgen.workload.length_source import length_chunks
    from loadgen.workload.token_bins import count_pairs

    return count_pairs(length_chunks(name))


def _shapes(
    profile: "EnergyProfile", hardware: str | None, model: str | None
) -> "tuple[Hardware | None, Model | None]":
    """Read the shapes for the FLOPs bound; None for a name in the profile that has no file."""
    from loadgen.energy_model.hardware import read_hardware, read_model

    for kind, requested, own in (("GPU", hardware, profile.gpu), ("model", model, profile.model)):
        if requested is not None and Path(requested).stem != own:
            raise LoadgenError(
                f"the profile was measured with {kind} {own}, not {requested}: measure one with `loadgen profile`"
            )
    return _or_none(read_hardware, hardware, profile.gpu), _or_none(read_model, model, profile.model)


def _or_none(read: Any, requested: str | None, own: str) -> Any:
    """Read the requested file, which must exist, or else the profile's own, which may be missing."""
    try:
        return read(requested or own)
    except LoadgenError:
        if requested is not None:
            raise
        return None


def _answer(
    trace: str,
    pairs: "CountedPairs",
    profile: "EnergyProfile",
    batch: float,
    shapes: "tuple[Hardware | None, Model | None]",
    rates: dict[str, float | None],
) -> dict[str, Any]:
    import msgspec

    from loadgen.energy_model.estimate import JOULES_PER_KWH, bin_shares, estimates, surface

    results = estimates(pairs, profile, batch, *shapes)
    requests = int(pairs.counts.sum())
    rows = []
    for result in results:
        kwh = result.joules / JOULES_PER_KWH
        row = msgspec.to_builtins(result) | {"kwh": kwh, "joules_per_request": result.joules / requests}
        if rates["grid_intensity_g_per_kwh"] is not None:
            row["co2e_kg"] = kwh * rates["pue"] * rates["grid_intensity_g_per_kwh"] / 1000  # type: ignore[operator]
        if rates["price_per_kwh"] is not None:
            row["cost"] = kwh * rates["pue"] * rates["price_per_kwh"]  # type: ignore[operator]
        rows.append(row)
    grid = surface(profile, batch)
    return {
        "trace": trace,
        "requests": requests,
        "input_tokens": int(pairs.inputs @ pairs.counts),
        "output_tokens": int(pairs.outputs @ pairs.counts),
        "profile": profile.name,
        "simulated": profile.simulated,
        "batch": batch,
        "assumed": {name: value for name, value in rates.items() if value is not None},
        "estimates": rows,
        "two_phase": msgspec.to_builtins(grid.fit),
        "bins": msgspec.to_builtins(bin_shares(pairs, grid)),
    }


# -- against a measured run -------------------------------------------------------------------------------------------


def _run(path: Path, profile: "EnergyProfile") -> "RunResult":
    from loadgen.results.summarize import load_run

    run = load_run(path)
    assert run.summary is not None
    if not run.summary.energy.valid or run.summary.energy.attributed_joules is None:
        reasons = "; ".join(run.summary.energy.reasons) or "no energy was measured"
        raise LoadgenError(f"{path} has no energy to compare with: {reasons}")
    if bool(run.info.server.get("simulated")) != profile.simulated:
        kinds = {True: "simulated", False: "real"}
        raise LoadgenError(
            f"profile {profile.name} is of a {kinds[profile.simulated]} GPU, {path} of a "
            f"{kinds[not profile.simulated]} one: they cannot be compared"
        )
    served = profile.provenance.get("served_model", profile.model)
    if run.info.server["model"] not in (served, profile.model):
        raise LoadgenError(f"profile {profile.name} is of model {served}, {path} of {run.info.server['model']}")
    return run


def _mean_decoding(run: "RunResult") -> float:
    """Return the mean number of requests that decode together, over the time that any does.

    The batch of a grid point shares its decode steps; a request that waits or is prefilled shares none. If no response
    had a second chunk, return the mean number of requests in flight.
    """
    import numpy as np

    from loadgen.energy_model.estimate import mean_overlap

    spans = [(r.sent_ns, r.finished_ns) for r in run.records if r.sent_ns is not None and r.finished_ns is not None]
    decoded = [(r.chunk_ns[0], r.chunk_ns[-1]) for r in run.records if len(r.chunk_ns) > 1]
    return mean_overlap(np.array(decoded or spans, dtype=np.int64).reshape(-1, 2))


def _compare(
    run: "RunResult",
    profile: "EnergyProfile",
    batch: float,
    shapes: "tuple[Hardware | None, Model | None]",
    name: str,
) -> dict[str, Any]:
    """Compare the estimates for exactly the requests that the run completed with the energy measured meanwhile."""
    import numpy as np

    from loadgen.energy_model.estimate import estimates
    from loadgen.workload.token_bins import count_pairs

    completed = [
        (request.input_tokens, request.output_tokens)
        for request, record in zip(run.schedule, run.records, strict=True)
        if record.ok
    ]
    if not completed:
        raise LoadgenError(f"{name}: no request completed")
    lengths = np.array(completed, dtype=np.int64)
    assert run.summary is not None
    energy = run.summary.energy
    measured = (energy.attributed_joules or 0.0) + (energy.unattributed_joules or 0.0)
    return {
        "run": name,
        "requests": len(completed),
        "joules": measured,
        "idle_joules": energy.idle_joules,
        "ratios": {
            result.method: result.joules / measured
            for result in estimates(count_pairs([(lengths[:, 0], lengths[:, 1])]), profile, batch, *shapes)
        },
    }


# -- on the terminal --------------------------------------------------------------------------------------------------


def _show(answer: dict[str, Any], console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    simulated = " (simulated)" if answer["simulated"] else ""
    console.print(
        f"{escape(answer['trace'])}: {answer['requests']:,} requests, {answer['input_tokens']:,} input and "
        f"{answer['output_tokens']:,} output tokens"
    )
    console.print(f"estimate from {answer['profile']}{simulated} at batch {answer['batch']:.4g}\n")
    table = Table(box=None, pad_edge=False)
    extra = [name for name in ("co2e_kg", "cost") if name in answer["estimates"][0]]
    ratios = answer.get("measured", {}).get("ratios")
    for column in ("method", "kWh", "J/request", *extra, *(["/ measured"] if ratios else [])):
        table.add_column(column.replace("co2e_kg", "kg CO2e"), justify="left" if column == "method" else "right")
    for row in answer["estimates"]:
        spread = f" ±{row['stderr_joules'] / row['joules']:.1%}" if row["stderr_joules"] is not None else ""
        table.add_row(
            row["method"],
            f"{row['kwh']:.4g}{spread}",
            f"{row['joules_per_request']:.4g}",
            *(f"{row[name]:.4g}" for name in extra),
            *([f"{ratios[row['method']]:.3f}"] if ratios else []),
        )
    console.print(table)
    console.print()
    for row in answer["estimates"]:
        console.print(f"{row['method']}: {escape(row['note'])}", soft_wrap=True)
    if ratios:
        run = answer["measured"]
        console.print(
            f"\nmeasured: {run['joules']:,.0f} J while requests were in flight (and {run['idle_joules']:,.0f} J idle), "
            f"{run['requests']:,} requests of {escape(run['run'])}, {run['mean_decoding']:.4g} decoded together",
            soft_wrap=True,
        )
    if answer["assumed"]["pue"] != 1.0 or extra:
        console.print("\nassumed: " + ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in answer["assumed"].items()))
    _show_bins(answer, console)


def _show_bins(answer: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left", title="\nbins that cost most", title_style="")
    for column in ("input up to", "output up to", "requests", "share of energy", "ceiling / interpolated"):
        table.add_column(column, justify="right")
    total = sum(row["interpolated_joules"] for row in answer["bins"])
    for row in answer["bins"][:_BINS_SHOWN]:
        table.add_row(
            f"{row['input_edge']:,}",
            f"{row['output_edge']:,}",
            f"{row['requests']:,}",
            f"{row['interpolated_joules'] / total:.1%}",
            f"{row['ceiling_joules'] / row['interpolated_joules']:.2f}",
        )
    console.print(table)
