"""Prices other clients' work in each window of the energy counter, and chooses the windows to fit beside it. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.attribution.cost_model import Coefficients, foreign_features, free_time, overlap, step_features
from loadgen.attribution.window_fit import MIN_WINDOWS
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats

STEP_TOKENS = 160
"""Prompt tokens that cost as much as a step, before anything is fitted: a GPU computes about as many 16-bit operations
for a byte that it reads (an A100 156, an H100 295), and a step reads every weight once. 160 lies between what
recordings of an H200 and an H100 have (`python -m benchmarks.accuracy.attribution_gpu prices`: 139 and 189)."""
PRIOR = Coefficients(step_j=1.0, prefill_token_j=1 / STEP_TOKENS, prefill_context_j=0.0,
                     decode_token_j=1 / STEP_TOKENS, decode_context_j=0.0, idle_w=None)  # fmt: skip


def foreign_cost(
    series: EnergySeries, steps: EngineSteps, prices: Coefficients, shares: Floats, idle_w: float | None
) -> Floats | None:
    """Return float64[W], joules under the model of other clients in each window; None if there are none.

    The engine's counters say how much they used in an interval, and the meter says when: in proportion to what each
    window measured beyond our shares and idle power.
    """
    foreign = steps.foreign
    if foreign is None:
        return None
    model_j = foreign_features(steps, series.t_ns) @ prices.values
    step_j = np.bincount(steps.step, shares, minlength=steps.count)
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    ours_j = np.bincount(window, share * step_j[step], minlength=len(model_j))
    idle_j = (idle_w or 0.0) * free_time(steps, series.t_ns) / NS_PER_S
    rest_j = np.maximum(np.diff(series.mj) / MJ_PER_J - idle_j - ours_j, 0.0)
    interval = np.searchsorted(foreign.edges_ns, (series.t_ns[1:] + series.t_ns[:-1]) // 2, side="right")
    sums = [np.bincount(interval, joules)[interval] for joules in (model_j, rest_j)]
    return np.where(
        sums[1] > 0, rest_j * np.divide(sums[0], sums[1], out=np.zeros_like(rest_j), where=sums[1] > 0), model_j
    )


def windows_beside_others(series: EnergySeries, steps: EngineSteps) -> tuple[EnergySeries, EngineSteps]:
    """Return the windows and the steps to fit. An interval in which other clients worked is one window: their work has
    no finer time.

    Where they worked in less than half of the windows, the others are all that is fitted. Context of other clients'
    prompts is unknown, so beside them the price of a prompt token includes its attention.
    """
    foreign = steps.foreign
    if foreign is None:
        return series, steps
    interval = np.searchsorted(foreign.edges_ns, series.t_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(foreign.decode))
    there = ((foreign.decode > 0) | (foreign.prefill > 0))[np.where(inside, interval, 0)] & inside
    beside = there[:-1] | there[1:]
    if 2 * beside.sum() <= len(beside) and (~beside).sum() >= MIN_WINDOWS:
        left_out = beside if series.gap is None else series.gap[1:] | beside
        return replace(series, gap=np.concatenate(([False], left_out))), replace(steps, foreign=None)
    kept = np.concatenate(([True], ~there[1:] | (interval[1:] != interval[:-1])))
    kept[-1] = True
    gap = None if series.gap is None else np.concatenate(([False], np.diff(np.cumsum(series.gap)[kept]) > 0))
    coarse = replace(series.at(kept), gap=gap)
    context = np.where(steps.prefilling, 0.0, steps.context).astype(np.float32)
    return coarse, replace(steps, context=context)


def prior_prices(series: EnergySeries, steps: EngineSteps, idle_w: float | None) -> Coefficients:
    """Return prices before the first fit: PRIOR, scaled so that the work costs the energy above idle power."""
    model = step_features(steps).sum(axis=0) + foreign_features(steps, series.t_ns).sum(axis=0)
    idle_j = (idle_w or 0.0) * float(free_time(steps, series.t_ns).sum()) / NS_PER_S
    work = float(model @ PRIOR.values)
    scale = max(series.total_mj / MJ_PER_J - idle_j, 1e-3) / work if work > 0 else 1.0
    scaled = {name: getattr(PRIOR, name) * scale for name in ("step_j", "prefill_token_j", "decode_token_j")}
    return msgspec.structs.replace(PRIOR, **scaled)
