"""Estimate the energy of traces with transformers and with vLLM, by the two-phase model fitted to the cells of each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.paper.ingest import session
from benchmarks.paper.offline_results import MAIN
from benchmarks.paper.plots import Line, alone, picture
from benchmarks.paper.published import FIGURE_1, TABLE_4
from benchmarks.paper.words import percent, percents, sig, table
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile
from loadgen.energy_model.estimate import TwoPhase, ceiling_pairs, fit_two_phase, ideal, surface
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.report import svg
from loadgen.report.format import joules as in_joules
from loadgen.stats.arrays import Floats
from loadgen.stats.intervals import Interval
from loadgen.units import J_PER_KWH
from loadgen.workload.length_source import length_chunks
from loadgen.workload.token_bins import CountedPairs, count_pairs

ROOT = Path(__file__).parents[2]
VLLM_PROFILE = "h200-vllm-0.20.2-llama-3.1-8b"
TRACES = ("azure-2024-chat", "azure-2024-code", "burstgpt", "azure-2023-chat", "azure-2023-code")
CASE_BATCHES = (8, 64)
MOST_BOUND = 0.20
"""Largest error bound, as a share of a window's joules, of a window that counts in a cell of the profile."""


GRID = ((128, 512, 2048), (1, 128, 512), (8, 64))
"""Inputs, outputs and batches of the profile: `loadgen estimate` interpolates only where no corner is missing."""


@cache
def transformers_cells() -> tuple[GridPoint, ...]:
    """Return every measured size of generate() with its repeats pooled; prefill alone counts as one output token."""
    parts_by_size: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for name in MAIN:
        if not name.startswith("hf-eager") or session(name).get("sampling"):
            continue
        for cell in session(name)["cells"]:
            for output, parts in ((1, cell["prefill"]), (cell["output_tokens"], cell["full"])):
                parts_by_size.setdefault((cell["input_tokens"], output, cell["batch"]), []).extend(parts)
    return tuple(filter(None, (_cell(size, parts) for size, parts in sorted(parts_by_size.items()))))


def transformers_profile() -> EnergyProfile:
    method = "whole batches of equal requests, in-process; measured by benchmarks/paper/measure_offline.py"
    stage = session("hf-eager")["stages"]["hf-eager"]
    return EnergyProfile(
        gpu="h200",
        engine="transformers-5.17-eager",
        model="llama-3.1-8b",
        simulated=False,
        idle_w=stage["resident_w"],
        provenance={
            "how": method,
            "transformers": stage["transformers"],
            "torch": stage["torch"],
            "weights": "random",
            "energy": session("hf-eager")["energy"]["domains"],
            "made_by": "python -m benchmarks.paper, from the hf-eager sessions of docs/results/h200-2026/offline",
            "left_out": f"windows whose bound of error is above {MOST_BOUND:.0%}",
        },
        cells=tuple(c for c in transformers_cells() if all(v in axis for v, axis in zip(_size(c), GRID, strict=True))),
    )


def _size(cell: GridPoint) -> tuple[int, int, int]:
    return cell.input, cell.output, cell.batch


def _cell(size: tuple[int, int, int], parts: list[dict[str, Any]]) -> GridPoint | None:
    usable = [p for p in parts if p["joules"] is not None and p["u_joules"] <= MOST_BOUND * p["joules"]]
    if not usable:
        return None
    n, o, batch = size
    joules_per_request = [part["joules"] / part["batches"] / batch for part in usable]
    return GridPoint(
        input=n,
        output=o,
        batch=batch,
        joules_per_request=round(fmean(joules_per_request), 6),
        stderr=round(stdev(joules_per_request) / len(joules_per_request) ** 0.5, 6)
        if len(joules_per_request) > 1
        else None,
        repeats=len(joules_per_request),
        requests=sum(part["batches"] for part in usable) * batch,
        duration_s=round(sum(part["seconds"] for part in usable), 3),
        settled=False,
    )


COEFFICIENTS = ("request", "input_token", "input_token_squared", "step", "output_token", "context_token")
RESAMPLES = 400


@dataclass(frozen=True)
class Case:
    """A trace at a batch. The model is linear: joules of a request = coefficients · needs of the mean request."""

    trace: str
    batch: int
    requests: int
    needs: Floats
    needs_rounded_up: Floats
    """Needs of the mean request with lengths rounded up to the paper's edges."""
    eager_interpolated: float
    vllm_interpolated: float
    dense: float
    sparse: float
    sparse_rounded_up: float


@cache
def cases() -> tuple[Case, ...]:
    estimated = []
    for trace in TRACES:
        bins = json.loads((ROOT / f"profiles/workloads/{trace}.json").read_text())
        pairs = count_pairs(length_chunks(trace))
        estimated += [_case(trace, bins["count"], pairs, batch) for batch in CASE_BATCHES]
    return tuple(estimated)


def _case(trace: str, requests: int, pairs: CountedPairs, batch: int) -> Case:
    hardware, model = read_hardware("h200"), read_model("llama-3.1-8b")
    drawn = int(pairs.counts.sum())
    rounded, _ = ceiling_pairs(pairs)
    dense, sparse = (estimate.joules / drawn for estimate in ideal(pairs, hardware, model))
    profiles = transformers_profile(), read_energy_profile(VLLM_PROFILE)
    interpolated = [surface(profile, batch).total(pairs)[0] / drawn for profile in profiles]
    sparse_rounded_up = ideal(rounded, hardware, model)[1].joules / drawn
    needs = [needs_of(estimate, batch) for estimate in (pairs, rounded)]
    return Case(trace, batch, requests, *needs, *interpolated, dense, sparse, sparse_rounded_up)


def needs_of(pairs: CountedPairs, batch: int) -> Floats:
    """Return [6]: the factor of each coefficient of the two-phase model, as a mean over the requests."""
    n, o = pairs.inputs.astype(np.float64), pairs.outputs.astype(np.float64)
    units = (
        TwoPhase(**{name: float(name == coefficient) for name in COEFFICIENTS}, rms=0.0) for coefficient in COEFFICIENTS
    )
    return np.array([unit.joules(n, o, batch) @ pairs.counts for unit in units]) / pairs.counts.sum()


def coefficients(fit: TwoPhase) -> Floats:
    return np.array([getattr(fit, name) for name in COEFFICIENTS])


@cache
def fits() -> tuple[TwoPhase, TwoPhase]:
    """Return the fitted models of transformers and of vLLM."""
    eager, vllm = map(fit_two_phase, (transformers_cells(), read_energy_profile(VLLM_PROFILE).cells))
    assert eager and vllm
    return eager, vllm


@cache
def resampled() -> tuple[Floats, Floats]:
    """Return [RESAMPLES, 6] per framework: fits to as many cells drawn with replacement."""
    rng = np.random.default_rng(0)

    def one(cells: Sequence[GridPoint]) -> Floats:
        while (fit := fit_two_phase([cells[i] for i in rng.integers(len(cells), size=len(cells))])) is None:
            pass
        return coefficients(fit)

    eager, vllm = transformers_cells(), read_energy_profile(VLLM_PROFILE).cells
    return np.array([one(eager) for _ in range(RESAMPLES)]), np.array([one(vllm) for _ in range(RESAMPLES)])


def case_saved(base: Floats, variant: Floats) -> Interval:
    """Return 1 - vLLM with `variant` / transformers with `base`; low and high enclose 95 % of the resampled fits."""
    eager, vllm = map(coefficients, fits())
    draws = 1 - resampled()[1] @ variant / (resampled()[0] @ base)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(1 - float(vllm @ variant / (eager @ base)), float(low), float(high), RESAMPLES)


def kwh(case: Case, joules_each: float) -> str:
    return sig(joules_each * case.requests / J_PER_KWH)


def traces() -> str:
    eager, vllm = map(coefficients, fits())
    body = []
    for c in cases():
        e, v = float(eager @ c.needs), float(vllm @ c.needs)
        body.append(
            [
                c.trace,
                f"{c.requests:,}",
                str(c.batch),
                kwh(c, e),
                kwh(c, v),
                percents(case_saved(c.needs, c.needs)),
                kwh(c, c.dense),
                kwh(c, c.sparse),
                percent(e / c.dense - 1, True),
                percent(v / c.dense - 1, True),
                percent(c.eager_interpolated / e - 1, True),
                percent(c.vllm_interpolated / v - 1, True),
            ]
        )
    head = ["trace", "requests", "batch", "transformers eager, kWh", "vLLM, kWh", "saved [95 %]", "ideal dense, kWh"]
    more = [
        "ideal sparse, kWh",
        "eager above dense",
        "vLLM above dense",
        "interpolated against two-phase: eager",
        "vLLM",
    ]
    return table(head + more, body)


def table_4() -> str:
    """Return the table by the paper's method: lengths rounded up, sparse peak.

    The last row of each trace compares few requests in flight with many.
    """
    eager, vllm = map(coefficients, fits())
    body = []
    for trace, (above_eager, above_vllm, paper) in TABLE_4.items():
        few, many = (next(c for c in cases() if (c.trace, c.batch) == (trace, b)) for b in CASE_BATCHES)
        for base, variant in ((few, few), (many, many), (few, many)):
            e, v = float(eager @ base.needs_rounded_up), float(vllm @ variant.needs_rounded_up)
            lower_bound = base.sparse_rounded_up
            batches = str(base.batch) if base is variant else f"{base.batch} → {variant.batch}"
            body.append(
                [
                    trace,
                    batches,
                    f"{kwh(base, e)}, {kwh(base, v)}",
                    "{1:g}, {2:g}".format(*FIGURE_1[trace]),
                    percent(e / lower_bound - 1, True),
                    percent(above_eager, True),
                    percent(v / lower_bound - 1, True),
                    percent(above_vllm, True),
                    percents(case_saved(base.needs_rounded_up, variant.needs_rounded_up)),
                    percent(paper),
                ]
            )
    head = ["trace", "batch", "kWh: eager, vLLM", "paper", "eager above ideal", "paper", "vLLM above ideal", "paper"]
    return table([*head, "saved [95 %]", "paper"], body)


def profile_fit() -> str:
    body = [
        [label, *(f"{getattr(fit, name):.3g}" for name in COEFFICIENTS), percent(fit.rms), str(count)]
        for label, fit, count in zip(
            ("transformers, eager", "vLLM, CUDA graphs"),
            fits(),
            (len(transformers_cells()), len(read_energy_profile(VLLM_PROFILE).cells)),
            strict=True,
        )
    ]
    head = ["", "a0, J/request", "a1, J/input token", "a2, J/input token²", "c, J/step", "b, J/output token"]
    return table([*head, "k, J/context token", "rms", "cells"], body)


def figure() -> str:
    """Draw J per request of each trace at both batches, and the ideal at the dense peak."""
    x = svg.Axis(0.6, len(TRACES) + 0.4, False, tuple((float(i + 1), name) for i, name in enumerate(TRACES)))
    eager, vllm = map(coefficients, fits())
    lines = []
    for index, batch in enumerate(CASE_BATCHES):
        at_batch = [c for c in cases() if c.batch == batch]
        for fit, name, colour in ((eager, "transformers eager", index), (vllm, "vLLM", index + 2)):
            points = [(i + 0.8 + 0.1 * colour, alone(float(fit @ c.needs))) for i, c in enumerate(at_batch)]
            lines.append(Line(f"{name}, batch {batch}", points, colour, joined=False))
    dense_points = [(i + 1.2, alone(c.dense)) for i, c in enumerate(c for c in cases() if c.batch == CASE_BATCHES[0])]
    lines.append(Line("ideal, dense peak", dense_points, 5, joined=False))
    y = svg.log_axis(1, 500, in_joules)
    return picture("J per request, estimated (two-phase)", "", lines, x, y)
