"""Fits the live ledger's prices: to the windows of the counter, and where those do not tell, to what GPUs share.

An engine at its limit makes steps that are all alike: as many tokens, as many streams, the same energy. Their windows
fit whatever price of a step, of its tokens or of its context, and small errors in the place of a span's work decide.
How alike they are is the variance v of the share that the step itself has in the energy of a window. Where that share
has an error of variance ALIKE, least squares has 1 - ALIKE / (v + ALIKE) of a slope (Fuller, Measurement Error Models,
1987). PRIOR, scaled to the energy, stands in for what is missing: with ALIKE (ALIKE / (v + ALIKE))^2 of the weight of
the windows, so that it says nothing where they differ. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.attribution.cost_model import COLUMNS, Coefficients
from loadgen.attribution.window_fit import fit_windows
from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.sidecar.foreign_energy import PRIOR, windows_beside_others
from loadgen.sidecar.live_errors import LiveErrors
from loadgen.stats.nnls import nnls

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries

ALIKE = 0.1**2
"""Variance of the error of a step's share in the energy of a window."""
CONTEXT_TOKENS = 750
"""Tokens of context that a decode reads for the energy of computing one, of a model with grouped queries: between what
the recordings of STEP_TOKENS have, 879 and 635."""


@dataclass(frozen=True)
class LiveFit:
    """Prices, with the windows and the steps that they are fitted to."""

    prices: Coefficients
    series: EnergySeries
    steps: EngineSteps

    @cached_property
    def errors(self) -> LiveErrors:
        """Errors of the prices."""
        return LiveErrors.of_fit(self.prices, self.series, self.steps)


def fit_live(series: EnergySeries, steps: EngineSteps) -> LiveFit:
    """Fit the prices to a counter as it was polled, and to steps, beside which other clients may have worked."""
    series, steps = windows_beside_others(align_to_counter_clock(series), steps)
    return LiveFit(fit_prices(series, steps), series, steps)


def fit_prices(series: EnergySeries, steps: EngineSteps) -> Coefficients:
    """Return the prices of the steps, by the windows and the prior."""
    fit = fit_windows(series, steps)
    if not len(fit.target_j):
        return fit.coefficients
    features, target = fit.features, fit.target_j
    if fit.rows is not None:
        weights = fit.rows.weights
        features, target = fit.rows.features * weights[:, None], fit.rows.energy_j * weights
    modelled_j = float(fit.features.sum(axis=0) @ PRIOR.values)
    token_j = PRIOR.prefill_token_j * max(float(fit.target_j.sum()), 0.0) / max(modelled_j, 1e-9)
    if token_j == 0:
        return fit.coefficients
    expected = PRIOR.values * (token_j / PRIOR.prefill_token_j)
    expected[COLUMNS.index("decode_context_j")] = token_j / CONTEXT_TOKENS
    costs = features * expected
    totals = costs.sum(axis=1)
    share = np.divide(costs[:, 0], totals, out=np.zeros(len(totals)), where=totals > 0)
    variance = float(np.average((share - np.average(share, weights=totals)) ** 2, weights=totals))
    weight = np.sqrt(ALIKE * float((target**2).sum())) * ALIKE / (variance + ALIKE)
    names = ("step_j", "decode_token_j", "decode_context_j")
    prior = np.zeros((len(names), len(COLUMNS)))
    for row, name in enumerate(names):
        prior[row, COLUMNS.index(name)] = weight / expected[COLUMNS.index(name)]
        prior[row, COLUMNS.index("prefill_token_j")] = -weight / token_j
    values, _ = nnls(np.vstack((features, prior)), np.concatenate((target, np.zeros(len(names)))))
    return msgspec.structs.replace(fit.coefficients, **dict(zip(COLUMNS, values.tolist(), strict=True)))
