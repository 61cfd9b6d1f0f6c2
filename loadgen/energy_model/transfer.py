"""Carry an energy profile over to another GPU: by the two data sheets, and by a few cells that were measured there.

The joules of the two-phase model (`estimate`) come from what a GPU reads and what it computes:

reads       a0, c o / B and k sum of contexts: weights and contexts, at the memory's bandwidth
products    a1 n, a2 n^2 and b (o - 1): floating-point operations

Both GPUs are taken to spend the same share of their power limit at the same share of their peak rates, as the bound
`ideal` does: reads cost `limit_w / peak_bytes_per_s`, and products `limit_w / peak_flops`. Each cell keeps its ratio of
measured and modelled joules. Measured cells correct both costs, by ridge regression towards the data sheets (Hoerl and
Kennard, Technometrics 12, 1970): where the cells say nothing about a cost, its data sheet holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.energy_model.estimate import TwoPhase, fit_two_phase
from loadgen.energy_model.hardware import Hardware, read_hardware
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint
    from loadgen.stats.arrays import Floats

DATA_SHEET_ERROR = 0.1
"""Standard deviation that the relative error of a data sheet's factor is taken to have; it was 6 and 1 % from an H200
to an H100 (docs/results/gpus.md). It matters only for costs that the measured cells hardly show."""
_LEAST_RMS = 1e-3
"""Relative residual below which a cell is not trusted further: counters are not better."""


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Factors that carried a profile over to another GPU."""

    gpu: str
    """The other GPU."""
    reads: float
    """Factor of the joules of reading weights and contexts."""
    products: float
    """Factor of the joules of computing."""
    cells: int
    """Number of cells that were measured on the other GPU; with 0 the factors are those of the data sheets."""


def on_gpu(
    profile: EnergyProfile, hardware: str | None, cells: EnergyProfile | None
) -> tuple[EnergyProfile, Transfer | None]:
    """Return the profile on the GPU of `hardware`, else of `cells`, and its transfer; the profile itself where it was
    measured on that GPU and no cells correct it. Raises LoadgenError."""
    gpu = hardware or (cells.gpu if cells else profile.gpu)
    if Path(gpu).stem == profile.gpu and cells is None:
        return profile, None
    target = read_hardware(gpu)
    if cells is not None:
        wanted = (target.name, profile.engine, profile.model, profile.simulated)
        if (cells.gpu, cells.engine, cells.model, cells.simulated) != wanted:
            kinds = {True: "simulated", False: "real"}
            raise LoadgenError(
                f"the cells are those of {cells.name} ({kinds[cells.simulated]}): expected {profile.engine} with "
                f"{profile.model} on {target.name} ({kinds[profile.simulated]})"
            )
    return transferred(profile, read_hardware(profile.gpu), target, cells.cells if cells else ())


def transferred(
    profile: EnergyProfile, source: Hardware, target: Hardware, measured: Sequence[GridPoint] = ()
) -> tuple[EnergyProfile, Transfer]:
    """Return the profile on another GPU, and the factors of its cells.

    Measured cells of its grid replace its own; those between its grid points only correct the factors, because a grid
    with holes gives no estimate.

    The error of the transfer is not known, so the other cells have no standard error. Their durations assume that the
    power stays the same share of the limit. Raises LoadgenError if the profile is too small to fit the two-phase model.
    """
    fit = fit_two_phase(profile.cells)
    if fit is None:
        raise LoadgenError(
            f"profile {profile.name} cannot be transferred to {target.name}: its {len(profile.cells)} cells are too "
            "few to tell the joules of reading from those of computing"
        )
    power = target.limit_w / source.limit_w
    sheets = power * np.array(
        [source.peak_bytes_per_s / target.peak_bytes_per_s, source.peak_flops / target.peak_flops]
    )
    factors = corrected(sheets, fit, measured) if measured else sheets
    parts = joules_by_cost(fit, profile.cells)
    ratios = parts @ factors / parts.sum(axis=1)
    cells = {
        cell.key: msgspec.structs.replace(
            cell,
            joules_per_request=cell.joules_per_request * ratio,
            duration_s=None if cell.duration_s is None else cell.duration_s * ratio / power,
            stderr=None,
            prefill_joules=None,
            decode_joules=None,
        )
        for cell, ratio in zip(profile.cells, ratios.tolist(), strict=True)
    }
    cells |= {cell.key: cell for cell in measured if cell.key in cells}
    on_target = msgspec.structs.replace(profile, gpu=target.name, idle_w=None, cells=tuple(cells.values()))
    return on_target, Transfer(
        gpu=target.name, reads=float(factors[0]), products=float(factors[1]), cells=len(measured)
    )


def joules_by_cost(fit: TwoPhase, cells: Sequence[GridPoint]) -> Floats:
    """Return the modelled joules of a request of each cell, [cells, 2]: reads and products."""
    reads = msgspec.structs.replace(fit, input_token=0.0, input_token_squared=0.0, output_token=0.0)
    n, o, batch = np.array([cell.key for cell in cells], dtype=np.float64).T
    of_reads = reads.joules(n, o, batch)
    return np.column_stack([of_reads, fit.joules(n, o, batch) - of_reads])


def corrected(sheets: Floats, fit: TwoPhase, measured: Sequence[GridPoint]) -> Floats:
    """Return the factors that fit the measured cells, drawn to those of the data sheets.

    Minimizes the sum of the cells' squared relative residuals in units of the fit's own, plus that of the factors'
    relative distances from `sheets` in units of DATA_SHEET_ERROR.
    """
    joules = np.array([cell.joules_per_request for cell in measured])
    goals = np.concatenate([np.full(len(joules), 1 / max(fit.rms, _LEAST_RMS)), np.full(2, 1 / DATA_SHEET_ERROR)])
    shares = joules_by_cost(fit, measured) * sheets / joules[:, None]
    features = np.vstack([shares, np.eye(2)]) * goals[:, None]
    return np.asarray(sheets * np.linalg.lstsq(features, goals, rcond=None)[0])
