"""The fit of the cost model's prices to the energy that a counter measured in windows of time.

Non-negative least squares regresses the energy of each window on the work that was done in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.attribution.cost_model import (
    COLUMNS,
    Coefficients,
    columns_of,
    columns_of_engines,
    foreign_features,
    free_time,
    guessed_windows,
    overlap,
    step_features,
    sum_by,
    unseen_time,
)
from loadgen.stats.nnls import nnls
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats

MIN_WINDOWS = 50
"""Windows needed to find a counter's phase."""

MIN_IDLE_S = 0.5
"""Pure idle time needed for the idle power to be a measurement."""

OUTLIER_RATIO = 10.0
"""A window whose residual is more than this many times the median residual is an outlier."""
_OUTLIER_PASSES = 3
"""Times that the median is taken again, without the outliers of the fit before."""

DURATION_NS = 300_000
"""Uncertainty of a step's duration as a client sees it: both of its ends reach the client with a varying delay."""
LEAST_MISFIT = 0.002
"""Smallest relative error of a law that is believed."""


class Rows(NamedTuple):
    """Windows, and steps at the power limit, in time order."""

    features: Floats
    energy_j: Floats
    weights: Floats
    """Reciprocal of each row's uncertainty, 1/J."""


class Fit(NamedTuple):
    """The coefficients of a domain and the windows that they are based on: n of them, K coefficients.

    features: float64[n, K]. target_j: float64[n], energy without that of idle time. energy_j: float64[n], measured.
    kept: bool[W], which windows of the series these are. Without a fit n is 0. rows: what the coefficients are fitted
    to where the power limit held in some windows; None: the windows.
    """

    coefficients: Coefficients
    features: Floats
    target_j: Floats
    energy_j: Floats
    kept: NDArray[np.bool_]
    rows: Rows | None = None
    beside: tuple[tuple[Coefficients, list[int]], ...] = ()
    """Coefficients of each engine, where several share the GPU, and which columns of `features` they price."""

    @property
    def engines(self) -> list[tuple[Coefficients, list[int]]]:
        """Coefficients of each engine on the GPU, and the columns that they price."""
        return list(self.beside) or [(self.coefficients, list(range(len(self.coefficients.columns))))]

    @property
    def values(self) -> Floats:
        """The prices of the columns of `features`, float64[K]."""
        values = np.zeros(1 + max(max(columns) for _, columns in self.engines))
        for coefficients, columns in self.engines:
            values[columns] = coefficients.values
        return values


def fit_coefficients(series: EnergySeries, steps: EngineSteps, per_step: Floats | None = None) -> Coefficients:
    """Return the coefficients of `fit_windows`."""
    return fit_windows(series, steps, per_step).coefficients


class WindowWork(NamedTuple):
    """Work and energy of the W windows of a counter. features: float64[W, K]. target: float64[W], joules without those
    of the time that no step covers. busy: the windows to fit."""

    features: Floats
    target: Floats
    busy: NDArray[np.bool_]
    energy_j: Floats
    idle_w: float | None
    idle_se_w: float | None


def window_work(series: EnergySeries, steps: EngineSteps, per_step: Floats) -> WindowWork:
    """Return what was done in each window, and the idle power, which is measured in windows without a step or request.

    per_step: `step_features` of the same steps.
    """
    energy_j = np.diff(series.mj) / MJ_PER_J
    duration_s = np.diff(series.t_ns) / NS_PER_S
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    busy_s = np.bincount(window, share * (steps.end_ns - steps.start_ns)[step], minlength=len(energy_j)) / NS_PER_S
    foreign = foreign_features(steps, series.t_ns)
    measured = np.ones(len(energy_j), bool) if series.gap is None else ~series.gap[1:]  # False: the counter restarted
    is_busy = (busy_s > 0) | foreign.any(axis=1)
    guessed = guessed_windows(steps, series.t_ns)
    idle = ~is_busy & ~guessed & (unseen_time(steps, series.t_ns) == 0) & measured
    idle_s = float(duration_s[idle].sum())
    idle_w = float(energy_j[idle].sum() / idle_s) if idle_s >= MIN_IDLE_S else None
    watts = energy_j[idle] / duration_s[idle]
    columns = [sum_by(window, share * column[step], len(energy_j)) for column in per_step.T]
    target = energy_j - (idle_w or 0.0) * free_time(steps, series.t_ns) / NS_PER_S
    idle_se_w = float(watts.std(ddof=1) / np.sqrt(len(watts))) if idle_w is not None and len(watts) > 1 else None
    busy = is_busy & measured
    if (busy & ~guessed).sum() >= MIN_WINDOWS:
        busy &= ~guessed
    at_limit = series.at_limit  # of one engine, its steps take the place of these windows (rows_at_limit)
    if steps.parts and at_limit is not None and (busy & ~at_limit).sum() >= MIN_WINDOWS:
        busy &= ~at_limit
    return WindowWork(np.stack(columns, axis=1) + foreign, target, busy, energy_j, idle_w, idle_se_w)


def fit_windows(series: EnergySeries, steps: EngineSteps, per_step: Floats | None = None) -> Fit:
    """Regress the windows' energy on the work done in them, by non-negative least squares.

    Idle power is measured where no step overlaps and no request was in flight, then held fixed: a loaded run's busy
    windows do not determine it. Windows in which the work of other clients is guessed are no evidence, unless the rest
    are too few; windows at the power limit are replaced by their steps, or no evidence either where several engines
    share the GPU. per_step: `step_features` of the same steps, when the caller already has them.
    """
    per_step = step_features(steps) if per_step is None else per_step
    features, target, busy, energy_j, idle_w, idle_se_w = window_work(series, steps, per_step)
    values, error, kept = fit_without_outliers(features, target, busy)
    outliers = int(busy.sum() - kept.sum())
    r_squared = misfit = None
    if error is None:
        kept = np.zeros(len(kept), bool)
    else:
        variance = float(((target[kept] - target[kept].mean()) ** 2).sum())
        r_squared = 1 - error / variance if variance > 0 else None
        misfit = _misfit(target[kept] - features[kept] @ values, energy_j[kept])
    facts = Coefficients(
        **dict.fromkeys(COLUMNS, 0.0),
        idle_w=idle_w,
        idle_se_w=idle_se_w,
        r_squared=r_squared,
        misfit=misfit,
        outliers=outliers,
    )
    engines = [
        (_priced(facts, engine, values[columns]), columns)
        for engine, columns in zip(steps.engines, columns_of_engines(steps), strict=True)
    ]
    beside = tuple(engines) if steps.parts else ()
    fit = Fit(engines[0][0], features[kept], target[kept], energy_j[kept], kept, beside=beside)
    rows = rows_at_limit(series, steps, per_step, fit)
    return fit if rows is None else _refitted(fit, rows)


def _priced(facts: Coefficients, engine: EngineSteps, values: Floats) -> Coefficients:
    """Return what is known of a fit with the prices of one engine's columns."""
    prices = dict(zip(columns_of(engine), values.tolist(), strict=True))
    if engine.experts is not None:
        prices |= {f"expert_{name}": value for name, value in msgspec.structs.asdict(engine.experts).items()}
    return msgspec.structs.replace(facts, **prices)


def rows_at_limit(series: EnergySeries, steps: EngineSteps, per_step: Floats, windows: Fit) -> Rows | None:
    """Return the rows to fit instead of `windows`, the fit of all windows; None where the power limit held in none, and
    where that is not known.

    At the limit a window's energy is the limit times its length, whatever is done in it. But its power is constant, so
    a step's energy follows from its duration: the time is what identifies the work. A row's variance has the law's
    relative misfit in it, and a step's that of its duration. The work of other clients is in no step's features, and
    what two engines did while a step ran is not known: beside them the windows are all there is.
    """
    at_limit = series.at_limit
    if at_limit is None or not at_limit.any() or windows.coefficients.misfit is None:
        return None
    if steps.foreign is not None or steps.parts:
        return None
    limited = at_limit & windows.kept
    step, window, share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    inside = np.bincount(step, share * limited[window], minlength=steps.count) > 1 - 1e-9
    begin_mj, end_mj = np.interp([steps.start_ns[inside], steps.end_ns[inside]], series.t_ns, series.mj)
    others = ~limited[windows.kept]
    energy_j = np.concatenate((windows.target_j[others], (end_mj - begin_mj) / MJ_PER_J))
    duration_j = np.zeros(len(energy_j))
    duration_j[int(others.sum()) :] = (series.limit_w or 0.0) * DURATION_NS / NS_PER_S
    misfit = max(windows.coefficients.misfit, LEAST_MISFIT)
    weights = 1 / np.hypot(duration_j, misfit * np.maximum(energy_j, 1.0))
    features = np.concatenate((windows.features[others], per_step[inside]))
    begins_ns = np.concatenate((series.t_ns[:-1][windows.kept][others], steps.start_ns[inside]))
    order = np.argsort(begins_ns, kind="stable")
    return Rows(features[order], energy_j[order], weights[order])


def _refitted(windows: Fit, rows: Rows) -> Fit:
    """Return the fit with the coefficients of other rows; its windows stay what they are."""
    values, _ = nnls(rows.features * rows.weights[:, None], rows.energy_j * rows.weights)
    variance = float(((rows.energy_j - rows.energy_j.mean()) ** 2).sum())
    error = float(((rows.energy_j - rows.features @ values) ** 2).sum())
    coefficients = msgspec.structs.replace(
        windows.coefficients,
        **dict(zip(windows.coefficients.columns, values.tolist(), strict=True)),
        r_squared=1 - error / variance if variance > 0 else None,
        misfit=_misfit(windows.target_j - windows.features @ values, windows.energy_j),
    )
    return windows._replace(coefficients=coefficients, rows=rows)


def _misfit(residual_j: Floats, energy_j: Floats) -> float | None:
    nonzero = energy_j > 0
    return float(np.sqrt(np.mean((residual_j[nonzero] / energy_j[nonzero]) ** 2))) if nonzero.any() else None


def fit_without_outliers(
    a: Floats, b: Floats, rows: NDArray[np.bool_]
) -> tuple[Floats, float | None, NDArray[np.bool_]]:
    """Fit least squares without outliers -> (x, residual sum of squares, the rows it is based on).

    A client that slept for half a second saw its chunks late and all at once: the windows beside that are no evidence.
    A row is excluded when its residual is over OUTLIER_RATIO times the median residual. The residual sum of squares is
    None, and x is 0, when there are fewer than two rows per column.
    """
    enough, kept = 2 * a.shape[1], rows
    for _pass in range(_OUTLIER_PASSES):
        if kept.sum() < enough:
            break
        x, _ = nnls(a[kept], b[kept])
        residual = np.abs(b - a @ x)
        floor = 1e-9 * float(np.abs(b).max())
        kept = rows & (residual <= OUTLIER_RATIO * max(float(np.median(residual[rows])), floor))
    if kept.sum() < enough:
        return np.zeros(a.shape[1]), None, kept
    return *nnls(a[kept], b[kept]), kept


PHASES_NS = range(-30 * NS_PER_MS, 31 * NS_PER_MS, 3 * NS_PER_MS)
"""Shifts that are tried: a counter polled a few times a period is seen to update up to this late."""


def align_phase(series: EnergySeries, steps: EngineSteps) -> EnergySeries:
    """Shift a polled counter's series to where the model explains most of the variance of its windows.

    The period of its clock is known to microseconds after a minute, its phase only to a fraction of a poll; but 10 ms
    of 100 move a tenth of every prefill into the wrong window. Returns the series itself unless its update times are
    uncertain (slack > 0) and it has MIN_WINDOWS windows.
    """
    if len(series) < MIN_WINDOWS or series.slack_ns is None or not series.slack_ns.any() or not steps.count:
        return series
    aligned, unexplained, per_step = series, np.inf, step_features(steps)
    for shift in PHASES_NS:
        shifted = replace(series, t_ns=series.t_ns + shift)
        fit = fit_coefficients(replace(shifted, capped_ns=None), steps, per_step)  # by windows: steps have no phase
        if fit.misfit is not None and fit.r_squared is not None and 1 - fit.r_squared < unexplained:
            aligned, unexplained = shifted, 1 - fit.r_squared
    return aligned
