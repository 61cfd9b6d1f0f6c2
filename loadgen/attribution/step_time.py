"""Decide whether the time that steps take has a price of its own, and whose it is.

Part of a GPU's power is drawn as long as a step lasts, whatever is computed in it. Where the duration of a step follows
from its work, the prices of work contain that part. On a real GPU it need not: a host that is late between two kernels,
a copy, lower clocks. Windows of a server that is always busy then hardly differ by their work, and the law explains
nothing of them, but the number of steps in a window, and so its energy, follows from how long they take.

A client sees each step's duration. It is divided by a law of the same form as the energy's, c + sum(a_i) in seconds,
fitted to the durations of all steps, and scaled to the one that was measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.cost_model import overlap, step_features
from loadgen.attribution.expert_choice import window_evidence, with_experts
from loadgen.attribution.window_fit import Fit, fit_windows, fit_without_outliers
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats

HOLDS = 0.8
"""A law that explains this share of the variance of held-out windows needs no price of time."""

IMPROVEMENT = 0.5
"""Time has a price if that reduces the held-out squared error below this share."""


def fit_law(series: EnergySeries, steps: EngineSteps) -> tuple[EngineSteps, Fit]:
    """Return dense steps with what the windows show of their law (reads of experts, a price of time), and its fit."""
    if steps.parts:
        return fit_laws(series, steps)
    per_step = step_features(steps)
    read = with_experts(series, steps, per_step)
    per_step = per_step if read.experts is None else step_features(read)
    timed = with_time(series, read, per_step)
    return timed, fit_windows(series, timed, per_step if timed.pace is None else step_features(timed))


def fit_laws(series: EnergySeries, steps: EngineSteps) -> tuple[EngineSteps, Fit]:
    """Return the steps of engines that share a GPU with what the windows show of the law of each, and their fit.

    The time of the GPU has a price always, and one for all: what the GPU draws whatever runs is drawn once while steps
    of two engines run at once, which no price of their work can tell.
    """
    dense = steps
    for number, engine in enumerate(dense.engines):
        steps = _with_engine(steps, number, with_pace(engine, step_features(engine)))
    for number, engine in enumerate(dense.engines):
        per_step = step_features(engine)
        read = with_experts(series, engine, per_step, steps)
        if read.experts is not None:
            steps = _with_engine(steps, number, with_pace(read, step_features(read)))
    return steps, fit_windows(series, steps)


def _with_engine(steps: EngineSteps, number: int, engine: EngineSteps) -> EngineSteps:
    parts = [part._replace(steps=engine) if n == number else part for n, part in enumerate(steps.parts)]
    return replace(steps, parts=tuple(parts))


def with_time(series: EnergySeries, steps: EngineSteps, per_step: Floats) -> EngineSteps:
    """Return the steps with a price of their time, or as they are where their work explains the windows, or where time
    does not. At the power limit time is evidence already, and of other clients' steps it is not known.

    per_step: `step_features` of the same steps.
    """
    at_limit = series.at_limit
    if steps.foreign is not None or (at_limit is not None and at_limit.any()):
        return steps
    windows = window_evidence(series, steps, per_step)
    if windows is None:
        return steps
    by_work = windows.held_out_error([])
    if by_work < (1 - HOLDS) * float(((windows.target - windows.target.mean()) ** 2).sum()):
        return steps
    seconds = (steps.end_ns - steps.start_ns) / NS_PER_S
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    busy_s = np.bincount(window, share * seconds[step], minlength=len(series) - 1).astype(np.float64)[windows.rows]
    if windows.held_out_error([busy_s]) > IMPROVEMENT * by_work:
        return steps
    return with_pace(steps, per_step)


def with_pace(steps: EngineSteps, per_step: Floats) -> EngineSteps:
    """Return the steps with the pace that their durations show, but for those far off. per_step: their features."""
    seconds = steps.seconds
    pace, _, _ = fit_without_outliers(per_step, seconds, seconds > 0)
    return replace(steps, pace=tuple(pace.tolist()))
