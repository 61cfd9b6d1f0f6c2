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

POSITIVE = click.FloatRange(min=0, min_open=True)
BINS_SHOWN = 10


@click.command()
@click.argument("trace", metavar="TRACE|BINS")
@click.option("--profile", "profile_name", required=True, metavar="NAME", help="In profiles/energy, or a .json file.")
@click.option(
    "--batch", type=POSITIVE, help="Requests that decode together.  [default: the run's with --measured, else the most]"
)
@click.option("--hardware", metavar="NAME", help="For the FLOPs bound.  [default: the profile's GPU]")
@click.option("--model", metavar="NAME", help="Shape, for the FLOPs bound.  [default: the profile's model]")
@click.option("--measured", type=click.Path(path_type=Path), metavar="RUN", help="Set a run's measured joules beside.")
@click.option("--pue", type=click.FloatRange(min=1.0), default=1.0, show_default=True, help="Building over computers.")
@click.option("--grid-intensity", type=POSITIVE, metavar="G", help="Grams of CO2e per kWh.")
@click.option("--price", type=POSITIVE, metavar="P", help="Per kWh, in any currency.")
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
    interpolated  between the cells that were measured, at every request's own lengths
    two-phase     a model fitted to the cells: prefill and decode, also beyond them
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
    together = _together(run) if run else None
    if batch is None:  # held to what was measured; the answer has both numbers
        batch = float(max(batches)) if together is None else min(max(together, min(batches)), max(batches))
    shapes = _shapes(profile, hardware, model)
    money = {"pue": pue, "grid_intensity_g_per_kwh": grid_intensity, "price_per_kwh": price}
    answer = _answer(trace, pairs, profile, batch, shapes, money)
    if run:
        answer["measured"] = _beside(run, profile, batch, shapes, str(measured)) | {"mean_decoding": together}
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
    """What the FLOPs bound needs; None where the profile's own names have no file."""
    from loadgen.energy_model.hardware import read_hardware, read_model

    for what, asked, own in (("GPU", hardware, profile.gpu), ("model", model, profile.model)):
        if asked is not None and Path(asked).stem != own:
            raise LoadgenError(
                f"the profile was measured with {what} {own}, not {asked}: measure one with `loadgen profile`"
            )
    return _or_none(read_hardware, hardware, profile.gpu), _or_none(read_model, model, profile.model)


def _or_none(read: Any, asked: str | None, own: str) -> Any:
    """An asked-for file must be there; the profile's own may be missing."""
    try:
        return read(asked or own)
    except LoadgenError:
        if asked is not None:
            raise
        return None


def _answer(
    trace: str,
    pairs: "CountedPairs",
    profile: "EnergyProfile",
    batch: float,
    shapes: "tuple[Hardware | None, Model | None]",
    money: dict[str, float | None],
) -> dict[str, Any]:
    import msgspec

    from loadgen.energy_model.estimate import JOULES_PER_KWH, bin_shares, estimates, surface

    found = estimates(pairs, profile, batch, *shapes)
    requests = int(pairs.counts.sum())
    rows = []
    for each in found:
        kwh = each.joules / JOULES_PER_KWH
        row = msgspec.to_builtins(each) | {"kwh": kwh, "joules_per_request": each.joules / requests}
        if money["grid_intensity_g_per_kwh"] is not None:
            row["co2e_kg"] = kwh * money["pue"] * money["grid_intensity_g_per_kwh"] / 1000  # type: ignore[operator]
        if money["price_per_kwh"] is not None:
            row["cost"] = kwh * money["pue"] * money["price_per_kwh"]  # type: ignore[operator]
        rows.append(row)
    cells = surface(profile, batch)
    return {
        "trace": trace,
        "requests": requests,
        "input_tokens": int(pairs.inputs @ pairs.counts),
        "output_tokens": int(pairs.outputs @ pairs.counts),
        "profile": profile.name,
        "simulated": profile.simulated,
        "batch": batch,
        "assumed": {name: value for name, value in money.items() if value is not None},
        "estimates": rows,
        "two_phase": msgspec.to_builtins(cells.fit),
        "bins": msgspec.to_builtins(bin_shares(pairs, cells)),
    }


# -- beside a measured run --------------------------------------------------------------------------------------------


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


def _together(run: "RunResult") -> float:
    """Mean number of requests decoded together, while one was; in flight together, where no answer had a second chunk.

    What a cell's batch shares is the step that decodes. A request that waits, or is prefilled, shares none.
    """
    import numpy as np

    from loadgen.energy_model.estimate import mean_overlap

    spans = [(r.sent_ns, r.finished_ns) for r in run.records if r.sent_ns is not None and r.finished_ns is not None]
    decoded = [(r.chunk_ns[0], r.chunk_ns[-1]) for r in run.records if len(r.chunk_ns) > 1]
    return mean_overlap(np.array(decoded or spans, dtype=np.int64).reshape(-1, 2))


def _beside(
    run: "RunResult",
    profile: "EnergyProfile",
    batch: float,
    shapes: "tuple[Hardware | None, Model | None]",
    name: str,
) -> dict[str, Any]:
    """The same methods on exactly the requests that the run completed, over what it measured while they were there."""
    import numpy as np

    from loadgen.energy_model.estimate import estimates
    from loadgen.workload.token_bins import count_pairs

    done = [
        (request.input_tokens, request.output_tokens)
        for request, record in zip(run.schedule, run.records, strict=True)
        if record.ok
    ]
    if not done:
        raise LoadgenError(f"{name}: no request completed")
    lengths = np.array(done, dtype=np.int64)
    assert run.summary is not None
    energy = run.summary.energy
    measured = (energy.attributed_joules or 0.0) + (energy.unattributed_joules or 0.0)
    return {
        "run": name,
        "requests": len(done),
        "joules": measured,
        "idle_joules": energy.idle_joules,
        "ratios": {
            each.method: each.joules / measured
            for each in estimates(count_pairs([(lengths[:, 0], lengths[:, 1])]), profile, batch, *shapes)
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
    beside = answer.get("measured", {}).get("ratios")
    for column in ("method", "kWh", "J/request", *extra, *(["/ measured"] if beside else [])):
        table.add_column(column.replace("co2e_kg", "kg CO2e"), justify="left" if column == "method" else "right")
    for row in answer["estimates"]:
        spread = f" ±{row['stderr_joules'] / row['joules']:.1%}" if row["stderr_joules"] is not None else ""
        table.add_row(
            row["method"],
            f"{row['kwh']:.4g}{spread}",
            f"{row['joules_per_request']:.4g}",
            *(f"{row[name]:.4g}" for name in extra),
            *([f"{beside[row['method']]:.3f}"] if beside else []),
        )
    console.print(table)
    console.print()
    for row in answer["estimates"]:
        console.print(f"{row['method']}: {escape(row['note'])}", soft_wrap=True)
    if beside:
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
    for row in answer["bins"][:BINS_SHOWN]:
        table.add_row(
            f"{row['input_edge']:,}",
            f"{row['output_edge']:,}",
            f"{row['requests']:,}",
            f"{row['interpolated_joules'] / total:.1%}",
            f"{row['ceiling_joules'] / row['interpolated_joules']:.2f}",
        )
    console.print(table)
