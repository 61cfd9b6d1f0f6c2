"""Predict what a workload costs, from a program and for the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from loadgen.api.checked import checked
from loadgen.api.run import Run
from loadgen.energy_model.energy_profile import read_energy_profile
from loadgen.energy_model.estimate import BinShare, TwoPhase
from loadgen.energy_model.transfer import Transfer, on_gpu
from loadgen.errors import LoadgenError
from loadgen.report.estimate_facts import (
    choose_batch,
    comparable_run,
    estimate_facts,
    mean_decoding,
    measured_facts,
    read_shapes,
)
from loadgen.results.factors import GridSource
from loadgen.workload.length_source import CountedWorkload, count_workload
from loadgen.workload.load import Positive
from loadgen.workload.token_bins import count_pairs
from loadgen.workload.trace import Trace


class MethodEstimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Energy of a workload by one method."""

    method: str
    """"interpolated", "two-phase", "ceiling" or an ideal one: see `loadgen estimate --help`."""
    joules: float
    stderr_joules: float | None
    """Standard error of joules; None is unknown."""
    note: str
    kwh: float
    joules_per_request: float
    co2e_kg: float | None = None
    """Emissions; None without `grid_intensity`."""
    cost: float | None = None
    """Cost in the currency of `price`; None without it."""


class MeasuredEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy that a run measured, beside the estimates for the requests that it completed."""

    run: str
    requests: int
    joules: float
    """Measured energy without idle."""
    idle_joules: float | None
    ratios: dict[str, float]
    """Estimated / measured joules, by method."""
    mean_decoding: float
    """Mean number of requests that decoded together."""


class WorkloadEstimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Predicted energy of a workload."""

    trace: str
    requests: int
    input_tokens: int
    output_tokens: int
    profile: str
    simulated: bool
    """True if the profile was measured on the simulator."""
    batch: float
    """Number of requests that are taken to decode together."""
    batch_from: dict[str, Any]
    """Origin of the batch, and the load that gave it."""
    assumed: dict[str, float]
    grid_source: str | None = None
    """Source and date of the grid intensity, as stated."""
    estimates: list[MethodEstimate]
    two_phase: TwoPhase | None
    """The fitted model; None where the profile is too small for it."""
    bins: list[BinShare]
    """Bins that cost most."""
    transfer: Transfer | None = None
    """The transfer of the profile to another GPU; None where it was measured on this one. Estimates from a transferred
    profile have no standard error, as that of the transfer is not known."""
    measured: MeasuredEnergy | None = None
    """The run of `measured`; None without it."""

    def method(self, name: str) -> MethodEstimate:
        """Return the estimate of one method. KeyError: it does not apply here."""
        by_name = {estimate.method: estimate for estimate in self.estimates}
        if name not in by_name:
            raise KeyError(f"no method {name!r}; there is {', '.join(by_name)}")
        return by_name[name]

    def to_dict(self) -> dict[str, Any]:
        """Return what `loadgen estimate --json` prints."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


class _Stated(msgspec.Struct, frozen=True, kw_only=True):
    batch: Positive | None
    rps: Positive | None
    pue: Annotated[float, msgspec.Meta(ge=1, le=1e9)]
    grid_intensity: Positive | None
    grid_source: GridSource | None
    price: Positive | None


def estimate(
    trace: str | os.PathLike[str] | Trace,
    *,
    profile: str | os.PathLike[str],
    batch: float | None = None,
    rps: float | None = None,
    hardware: str | None = None,
    cells: str | os.PathLike[str] | None = None,
    model: str | None = None,
    measured: Run | str | os.PathLike[str] | None = None,
    pue: float = 1.0,
    grid_intensity: float | None = None,
    grid_source: str | None = None,
    price: float | None = None,
) -> WorkloadEstimate:
    """Predict the GPU energy of a workload from a measured energy profile, as `loadgen estimate` does.

    A parameter does what the option with its name does, and has the same default.

    trace: a file of any format, bins, the name of a shipped one, or a `Trace`.
    profile: a name in profiles/energy, or a .json file that `loadgen profile` wrote.
    batch: requests that decode together; by default it follows from `rps`, else from the run `measured`, else from the
        trace's own rate.
    hardware: a name in profiles/hardware, or a .toml file, of the GPU to estimate for; by default the profile's. A
        profile of another GPU is transferred to it by both data sheets.
    cells: a profile of a few cells that were measured on that GPU, which correct the transfer.
    model: a .toml file of the profile's model, if profiles/models has none.
    measured: a run to compare with.
    pue: facility power / IT power.
    grid_intensity: grams of CO2e per kWh.
    grid_source: source and date of `grid_intensity`, for the report.
    price: per kWh, in any currency.

    LoadgenError: the profile, the trace and the run do not fit together, or nothing gives the batch.
    """
    if batch is not None and rps is not None:
        raise LoadgenError("rps gives the batch: give batch or rps, not both")
    stated = {"batch": batch, "rps": rps, "pue": pue, "grid_intensity": grid_intensity, "grid_source": grid_source,
              "price": price}  # fmt: skip
    given = checked(stated, _Stated)
    source_profile = read_energy_profile(os.fspath(profile))
    of_cells = read_energy_profile(os.fspath(cells)) if cells is not None else None
    energy_profile, transfer = on_gpu(source_profile, hardware, of_cells)
    name, workload = _workload(trace)
    folder = measured.path if isinstance(measured, Run) else None if measured is None else Path(measured)
    run = comparable_run(folder, energy_profile) if folder else None
    run_batch = mean_decoding(run) if run else None
    chosen, batch_source = choose_batch(energy_profile, workload, given.batch, given.rps, run_batch)
    shapes = read_shapes(energy_profile, hardware, model)
    rates = {"pue": given.pue, "grid_intensity_g_per_kwh": given.grid_intensity, "price_per_kwh": given.price}
    facts = estimate_facts(name, workload.pairs, energy_profile, chosen, shapes, rates) | {"batch_from": batch_source}
    if given.grid_source is not None:
        facts["grid_source"] = given.grid_source
    if transfer:
        rows = [row | {"stderr_joules": None} for row in facts["estimates"]]
        facts |= {"profile": source_profile.name, "estimates": rows, "transfer": msgspec.to_builtins(transfer)}
    if run:
        compared = measured_facts(run, energy_profile, chosen, shapes, str(folder))
        facts["measured"] = compared | {"mean_decoding": run_batch}
    return msgspec.convert(facts, WorkloadEstimate)


def _workload(trace: str | os.PathLike[str] | Trace) -> tuple[str, CountedWorkload]:
    """Return the name of a workload, its lengths and its rate."""
    if not isinstance(trace, Trace):
        return os.fspath(trace), count_workload(os.fspath(trace))
    lengths = [(request.input_tokens, request.output_tokens) for request in trace.requests]
    if not lengths or any(tokens is None for pair in lengths for tokens in pair):
        raise LoadgenError(f"{trace.name}: expected requests with both of their lengths")
    inputs, outputs = np.array(lengths, dtype=np.int64).T
    return trace.name, CountedWorkload(count_pairs([(inputs, outputs)]), trace.mean_rps)
