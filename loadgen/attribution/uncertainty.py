"""Standard errors of the requests' joules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.cost_model import COLUMNS, feature_column, overlap

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats

CHUNK_DELAY_NS = 500_000
"""Uncertainty of the delay from a step's end to its chunk at the client: it shifts a request against the counter."""


def joules_variance(
    series: EnergySeries, steps: EngineSteps, shares: Floats, joules: Floats, covariance: Floats, misfit: float | None
) -> Floats:
    """Return float64[n], J^2: the variance of each request's joules, as the sum of three independent parts.

    The fit: g' Cov g, with g the derivative of the request's joules by the coefficients (windows stay what they are:
    what one request gains, the others in the window lose). The misfit: the model's relative error of a window, on what
    the request does not own alone, misfit * joules * (1 - share): no smaller for many windows, because a law that is
    wrong for a request is wrong in all of them. The ends: the request's mean power, times the uncertainty of its two
    instants against the counter's (each uniform in the counter's slack plus CHUNK_DELAY_NS, so sqrt(2/3) of it).
    """
    requests = len(joules)
    if len(series) < 2 or not len(shares):
        return np.zeros(requests)
    gradient = joules_gradient(series, steps, shares, requests)
    from_fit = np.einsum("ni,ij,nj->n", gradient, covariance, gradient)
    begin = np.full(requests, np.iinfo(np.int64).max)
    end = np.zeros(requests, np.int64)
    np.minimum.at(begin, steps.request, steps.start_ns[steps.step])
    np.maximum.at(end, steps.request, steps.end_ns[steps.step])
    begin = np.minimum(begin, end)
    period_ns = float(np.median(np.diff(series.t_ns)))
    at_ends = np.interp([begin, end], series.t_ns, series.mj / 1000)
    owned = np.divide(joules, at_ends[1] - at_ends[0], out=np.ones(requests), where=at_ends[1] > at_ends[0])
    from_misfit = (misfit or 0.0) * joules * np.clip(1 - owned, 0, 1)
    slack_ns = CHUNK_DELAY_NS + (0.0 if series.slack_ns is None else float(np.median(series.slack_ns)))
    length_ns = np.maximum(end - begin, period_ns)
    from_ends = joules / length_ns * slack_ns * np.sqrt(2 / 3)
    return np.asarray(np.maximum(from_fit, 0) + from_misfit**2 + from_ends**2)


def joules_gradient(series: EnergySeries, steps: EngineSteps, shares: Floats, requests: int) -> Floats:
    """Return float64[n, 5]: d joules_i / d coefficient, for joules_i = sum_w E_w s_iw / s_w.

    E_w is the energy of window w, s_iw the cost shares of request i in it and s_w those of all requests. With x_iw the
    feature of the coefficient, the derivative is sum_w E_w / s_w (x_iw - s_iw x_w / s_w).
    """
    windows = len(series) - 1
    energy_j = np.diff(series.mj) / 1000
    step, window, overlap_share = overlap(series.t_ns, steps.start_ns, steps.end_ns)
    shares_by_step = np.bincount(steps.step, shares, minlength=steps.count)
    total = np.bincount(window, overlap_share * shares_by_step[step], minlength=windows)
    rate = np.divide(energy_j, total, out=np.zeros(windows), where=total > 0)
    step_rate = np.bincount(step, overlap_share * rate[window], minlength=steps.count)
    derivatives = []
    for column in COLUMNS:
        feature = feature_column(steps, column)
        by_step = np.bincount(steps.step, feature, minlength=steps.count)
        in_window = np.bincount(window, overlap_share * by_step[step], minlength=windows)
        mean = rate * in_window / np.where(total > 0, total, 1.0)
        step_mean = np.bincount(step, overlap_share * mean[window], minlength=steps.count).astype(np.float64)
        feature *= step_rate[steps.step]
        loss = step_mean[steps.step]
        loss *= shares
        feature -= loss
        del loss
        derivatives.append(np.bincount(steps.request, feature, minlength=requests))
        del feature  # arrays of M rows: the next column is made before this name is reused
    return np.stack(derivatives, axis=1)
