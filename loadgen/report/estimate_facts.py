"""Facts about the estimated energy of a workload, as `loadgen estimate` prints them, beside a measured run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from loadgen.energy_model.estimate import bin_shares, estimates, mean_overlap, surface
from loadgen.energy_model.hardware import Hardware, Model, read_hardware, read_model
from loadgen.energy_model.offered_load import offered_load
from loadgen.errors import LoadgenError
from loadgen.results.summarize import load_run
from loadgen.units import J_PER_KWH
from loadgen.workload.token_bins import CountedPairs, count_pairs

if TYPE_CHECKING:
    from loadgen.energy_model.energy_profile import EnergyProfile
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.workload.length_source import CountedWorkload
    from loadgen.workload.schedule import ScheduledRequest

Shapes = tuple[Hardware | None, Model | None]
"""GPU and model of the FLOPs bound; None for one that is not known."""


def read_shapes(profile: EnergyProfile, hardware: str | None, model: str | None) -> Shapes:
    """Read the GPU and the model of the FLOPs bound; None for a name in the profile that has no file. The profile is
    that of this GPU already."""
    if model is not None and Path(model).stem != profile.model:
        raise LoadgenError(
            f"the profile was measured with model {profile.model}, not {model}: measure one with `loadgen profile`"
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


def choose_batch(
    profile: EnergyProfile, workload: CountedWorkload, batch: float | None, rps: float | None, run_batch: float | None
) -> tuple[float, dict[str, Any]]:
    """Return the batch of an estimate and where it comes from: given, by a rate, that of a run, or by the trace's rate.

    Raises LoadgenError when there is none of them.
    """
    if batch is not None:
        return batch, {"source": "--batch"}
    if rps is None and run_batch is not None:  # clamped to the measured batches; the output has both numbers
        batches = [point.batch for point in profile.cells]
        return min(max(run_batch, min(batches)), max(batches)), {"source": "--measured"}
    if rps is None and workload.rps is None:
        raise LoadgenError("how busy is the engine? These lengths have no rate: give --rps, --measured RUN or --batch")
    load = offered_load(profile, workload.pairs, rps if rps is not None else workload.rps or 0.0)
    source = "--rps" if rps is not None else "the trace's own rate"
    return load.batch, {"source": source} | msgspec.to_builtins(load)


def estimate_facts(
    trace: str,
    pairs: CountedPairs,
    profile: EnergyProfile,
    batch: float,
    shapes: Shapes,
    rates: dict[str, float | None],
) -> dict[str, Any]:
    """Return the estimates of all methods, and the bins that cost most, as JSON values.

    `rates` are pue, grid_intensity_g_per_kwh and price_per_kwh; emissions and cost are left out where theirs is None.
    """
    results = estimates(pairs, profile, batch, *shapes)
    requests = int(pairs.counts.sum())
    rows = []
    for result in results:
        kwh = result.joules / J_PER_KWH
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


def comparable_run(path: Path, profile: EnergyProfile) -> RunResult:
    """Load a run that `profile` can be compared with. LoadgenError if its energy, GPU or model does not allow it."""
    run = load_run(path)
    assert run.summary is not None
    if not run.summary.energy.valid or run.summary.energy.attributed_joules is None:
        reasons = "; ".join(run.summary.energy.reasons) or "no energy was measured"
        raise LoadgenError(f"{path} has no valid energy to compare with: {reasons}")
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


def mean_decoding(run: RunResult) -> float:
    """Return the mean number of requests that decode together, over the time that any does.

    The batch of a grid point shares its decode steps; a request that waits or is prefilled shares none. If no response
    had a second chunk, return the mean number of requests in flight.
    """
    spans = [(r.sent_ns, r.finished_ns) for r in run.records if r.sent_ns is not None and r.finished_ns is not None]
    decoded = [(r.chunk_ns[0], r.chunk_ns[-1]) for r in run.records if len(r.chunk_ns) > 1]
    return mean_overlap(np.array(decoded or spans, dtype=np.int64).reshape(-1, 2))


def _lengths_of(request: ScheduledRequest, record: RequestRecord) -> tuple[int, int]:
    """Return the requested lengths of a completed request; where none was requested, or known, those that the server
    counted. LoadgenError: neither is known."""
    inputs = request.input_tokens or record.input_tokens
    outputs = record.output_tokens if request.natural else request.output_tokens
    if inputs is None or outputs is None:
        raise LoadgenError(f"the lengths of request {request.index} are not known: the server did not count them")
    return inputs, outputs


def measured_facts(run: RunResult, profile: EnergyProfile, batch: float, shapes: Shapes, name: str) -> dict[str, Any]:
    """Compare the estimates for exactly the requests that the run completed with the energy measured meanwhile."""
    completed = [
        _lengths_of(request, record) for request, record in zip(run.schedule, run.records, strict=True) if record.ok
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
