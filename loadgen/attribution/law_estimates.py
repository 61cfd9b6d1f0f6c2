"""Estimates of a run by the fitted law alone, beside the division of its energy: joules of rejected drafts, joules that
a prefix cache saved, and joules of what was computed again. The accounts do not contain them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.cache_saving import CacheJoules, CacheWork, cache_joules, cache_work
from loadgen.attribution.speculation import rejected_energy

if TYPE_CHECKING:
    from loadgen.attribution.cost_model import Coefficients
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.attribution.uncertainty import ErrorModel
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats, Ints


class LawEstimates(NamedTuple):
    """Estimates of one energy domain. rejected: `rejected_energy`. work: None without a fit. prices: float64[K]."""

    rejected: tuple[float, float] | None
    work: CacheWork | None
    prices: Floats
    model: ErrorModel


def law_estimates(
    steps: EngineSteps,
    shares: Floats,
    member_j: Floats,
    coefficients: Coefficients,
    model: ErrorModel,
    records: Sequence[RequestRecord],
    reusable: Sequence[int | None] | None,
) -> LawEstimates:
    """Return the estimates for our requests, which are the first ones of `steps`.

    shares, member_j: as for `rejected_energy`. reusable: as for `cache_work`.
    """
    rejected = rejected_energy(steps, shares, member_j, len(records), coefficients, model.covariance)
    work = cache_work(steps, records, reusable) if model.windows else None
    return LawEstimates(rejected, work, coefficients.values, model)


def cache_joules_of_run(domains: Sequence[LawEstimates], requests: int) -> CacheJoules:
    """Return the joules that the cache saved each request, and those that were computed again, over all domains."""
    total = np.zeros((4, requests))
    for domain in domains:
        if domain.work is None:
            return CacheJoules(*np.full((4, requests), np.nan))
        saved_j, saved_se_j, again_j, again_se_j = cache_joules(domain.work, domain.prices, domain.model.covariance)
        total += (saved_j, saved_se_j**2, again_j, again_se_j**2)
    return CacheJoules(total[0], np.sqrt(total[1]), total[2], np.sqrt(total[3]))


def cache_errors_of_sum(domains: Sequence[LawEstimates], rows: Ints) -> tuple[float | None, float | None]:
    """Return the standard errors of the joules that the cache saved these requests together, and of those that were
    computed again, over the requests for which they are known; None where they are known for none."""
    variances: list[float | None] = [0.0, 0.0]
    for domain in domains:
        for part, features in enumerate(domain.work or (None, None)):
            variance = None
            if features is not None and not np.isnan(features[rows]).all():
                total = np.nansum(features[rows], axis=0)
                variance = float(total @ domain.model.covariance_of_sums @ total)
            before = variances[part]
            variances[part] = None if before is None or variance is None else before + variance
    saved, again = (None if variance is None else float(np.sqrt(max(variance, 0.0))) for variance in variances)
    return saved, again
