"""Standard errors of live requests: those of attribution/uncertainty.py, summed over the commits of energy.

What windows of the counter are off by is independent from one commit to the next, so its variances add. What the law
is off by is the same in all commits, so there the errors themselves add. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.cost_model import Coefficients, foreign_features, free_time, step_features, sum_by
from loadgen.attribution.uncertainty import (
    ErrorModel,
    JoulesErrors,
    divided_by_tokens,
    error_model,
    joules_gradient,
    request_windows,
    variance_of_ends,
)
from loadgen.attribution.window_fit import OUTLIER_RATIO, Fit, window_work
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.energy.series import EnergySeries
    from loadgen.stats.arrays import Floats


class PortionErrors(NamedTuple):
    """Errors of the joules that n requests are charged in one portion. windows_j2: float64[n], variance. law_j:
    float64[n], standard error."""

    windows_j2: Floats
    law_j: Floats


@dataclass(frozen=True)
class LiveErrors:
    """Fitted prices, and what the windows that they are fitted to show of their errors."""

    prices: Coefficients
    model: ErrorModel

    @classmethod
    def of_fit(cls, prices: Coefficients, series: EnergySeries, steps: EngineSteps) -> LiveErrors:
        work = window_work(series, steps, step_features(steps))
        residual = np.abs(work.target - work.features @ prices.values)
        median = float(np.median(residual[work.busy])) if work.busy.any() else 0.0
        kept = work.busy & (residual <= OUTLIER_RATIO * max(median, 1e-9))
        fit = Fit(prices, work.features[kept], work.target[kept], work.energy_j[kept], kept)
        return cls(prices, error_model(fit, series, steps))

    def of_portion(
        self,
        series: EnergySeries,
        steps: EngineSteps,
        costs: Floats,
        member_mj: Floats,
        foreign_j: Floats | None,
        requests: int,
    ) -> PortionErrors:
        """Return the errors of the joules that one domain's portion charges each request.

        costs, member_mj: float64[M]. What other clients used is inferred from the engine's counters, and its error is
        in every request beside them.
        """
        windows = len(series) - 1
        joules = sum_by(steps.request, member_mj, requests) / MJ_PER_J
        rows = request_windows(series, steps, member_mj / MJ_PER_J, requests)
        idle_j = (self.prices.idle_w or 0.0) * free_time(steps, series.t_ns) / NS_PER_S
        foreign = foreign_features(steps, series.t_ns)
        errors = JoulesErrors(
            model=self.model,
            rows=rows,
            energy_j=np.diff(series.mj) / MJ_PER_J,
            prefills=np.bincount(rows.window, rows.prefills, minlength=windows).astype(np.float64),
            inferred_j=np.zeros(windows) if foreign_j is None else foreign_j,
            gradient=joules_gradient(series, steps, costs, requests, foreign, self.prices.values, idle_j),
            division=np.zeros((requests, 2)),
            by_tokens=divided_by_tokens(series, steps, costs, self.prices, requests),
            ends=variance_of_ends(series, steps, joules, self.model.windows),
        )
        return PortionErrors(errors.of_windows(), np.sqrt(errors.of_law()))
