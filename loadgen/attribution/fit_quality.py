"""The worth of a fit: what it explains of windows that it was not made of, and which coefficients it tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.attribution.window_fit import Rows
from loadgen.stats.nnls import block_of, held_out_predictions

if TYPE_CHECKING:
    from loadgen.attribution.cost_model import Coefficients
    from loadgen.attribution.uncertainty import ErrorModel
    from loadgen.attribution.window_fit import Fit

MIN_WINDOWS = 50
"""Windows needed to hold some of them out."""

BLOCKS = 5
"""Blocks of neighbouring windows: each is predicted by the fit of the others. Neighbours are alike, so single windows
would be predicted by what they have in common with the next ones."""

UNCERTAIN = 0.3
"""A coefficient with a larger relative standard error is not determined."""

ALIKE = 0.8
"""Two coefficients whose errors correlate by more than this, and that are both uncertain, were not told apart."""

NOTHING_VARIED = 1e-3
"""Windows whose energy varies by a smaller part than this leave nothing to explain."""


class FitQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of the fit of one energy domain."""

    held_out_error_j2: float | None
    """Sum of squared residuals of windows that were held out of the fit; None with fewer than MIN_WINDOWS windows."""
    held_out_variance_j2: float | None
    """Sum of their squared distances from the mean of the windows that the fit was made of."""
    variation: float
    """Standard deviation of the windows' energy / its mean."""
    noise: float
    """Typical part of a window's energy that neither the law explains nor windows of like work have in common."""
    se: dict[str, float]
    """Standard error of each coefficient that is not zero, by its name."""
    uncertain: dict[str, float]
    """Relative standard error of each coefficient that is not determined: it is larger than UNCERTAIN."""
    alike: list[tuple[str, str]]
    """Pairs of uncertain coefficients that were not told apart: what one gains, the other loses."""


def fit_quality(fit: Fit, coefficients: Coefficients, model: ErrorModel) -> FitQuality:
    """Judge a fit by its own windows. coefficients, model: of one engine, its prices and the components of their
    error."""
    values, columns = coefficients.values, coefficients.columns
    errors = np.sqrt(np.diag(model.covariance))
    used = np.flatnonzero(values > 0).tolist()
    uncertain = [k for k in used if errors[k] > UNCERTAIN * values[k]]
    alike = [
        (columns[i], columns[k])
        for i in used
        for k in used
        if i < k and (i in uncertain or k in uncertain) and abs(model.covariance[i, k]) > ALIKE * errors[i] * errors[k]
    ]
    mean_j = float(fit.energy_j.mean()) if len(fit.energy_j) else 0.0
    error_j2, variance_j2 = held_out(fit) or (None, None)
    return FitQuality(
        held_out_error_j2=error_j2,
        held_out_variance_j2=variance_j2,
        variation=float(fit.energy_j.std()) / mean_j if mean_j > 0 else 0.0,
        noise=float(np.sqrt(max(model.single - model.misfit, 0.0))),
        se={columns[k]: float(errors[k]) for k in used},
        uncertain={columns[k]: float(errors[k] / values[k]) for k in uncertain},
        alike=alike,
    )


def held_out(fit: Fit) -> tuple[float, float] | None:
    """Return the squared error of rows that are predicted by a fit of the other BLOCKS - 1 blocks, and that of a
    prediction by the others' mean. None with fewer than MIN_WINDOWS rows: windows, or steps at the power limit."""
    rows = fit.rows or Rows(fit.features, fit.target_j, np.ones(len(fit.target_j)))
    energy_j = rows.energy_j
    if len(energy_j) < MIN_WINDOWS:
        return None
    block = block_of(len(energy_j), BLOCKS)
    predicted_j = held_out_predictions(rows.features, energy_j, BLOCKS, rows.weights)
    others_j = np.array([energy_j[block != held_out].mean() for held_out in range(BLOCKS)])[block]
    return float(((energy_j - predicted_j) ** 2).sum()), float(((energy_j - others_j) ** 2).sum())


def held_out_r_squared(fits: list[FitQuality]) -> float | None:
    """Return the share of the held-out windows' variance that the fits of all domains explain: 1 for a law that holds,
    below 0 for one that predicts worse than the mean does. None when none was held out, or when nothing varied."""
    errors = [fit.held_out_error_j2 for fit in fits]
    variances = [fit.held_out_variance_j2 for fit in fits]
    variance = sum(value or 0.0 for value in variances)
    if None in errors or all(fit.variation < NOTHING_VARIED for fit in fits):
        return None
    return 1 - sum(value or 0.0 for value in errors) / variance
