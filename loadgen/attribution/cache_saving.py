"""Joules that a prefix cache saved a request, and joules of prompt tokens that were computed again.

A prefill of u new tokens on c cached ones is priced by the fitted law at t u + a (u c + u^2 / 2), a prefill of the
whole prompt at t (u + c) + a (u + c)^2 / 2: the cache saved t c + a c^2 / 2. Uncached, the prompt would have taken
c / B steps more, with B the tokens that a step may compute, and have paid of each the share that it paid of the steps
in which it was prefilled. A mixture of experts reads its experts in each of them; where the time of steps has a price,
the work takes time by the fitted pace.

"Would have cost" is what the law charges this request for more work, all else equal: the same requests beside it, the
same prices, no power limit that was not met. A run without the cache is another run. Its prefills hold up everybody
else's decodes, requests wait for one another and share steps that they did not share here, and prompts of others are
not cached either. A pair of runs measures that; this does not.

Computed again are the prompt tokens that an earlier request had in the same places and that no cache held, or not any
more (evicted), and the context of a preempted stream. The text of a compacted context is new: it is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.cost_model import columns_of, feature_column

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats

USUAL_BUDGET = 8192
"""Tokens that a step may compute, where the run does not show it: the usual choice of servers on such GPUs."""


class CacheWork(NamedTuple):
    """Work of each of n requests in the units of the law's K prices. NaN: not known.

    saved: float64[n, K], that of its cached tokens, which was not done. again: float64[n, K], that which was done for
    tokens that had been computed before.
    """

    saved: Floats
    again: Floats


class CacheJoules(NamedTuple):
    """Joules of `CacheWork`, float64[n] each, with their standard errors by the covariance of the prices. NaN: not
    known."""

    saved_j: Floats
    saved_se_j: Floats
    recomputed_j: Floats
    recomputed_se_j: Floats


def cache_work(
    steps: EngineSteps, records: Sequence[RequestRecord], reusable: Sequence[int | None] | None = None
) -> CacheWork:
    """Return what the cache saved each of the first requests of `steps`, and what was computed again.

    A request whose cached tokens are not known, or that got no token, has no known saving. reusable: tokens at the
    beginning of each prompt that an earlier request had computed; None: not known.
    """
    requests, columns = len(records), len(columns_of(steps))
    cached = np.array([np.nan if record.cached_tokens is None else record.cached_tokens for record in records], float)
    row = np.flatnonzero(steps.prefilling & (steps.request < requests))
    step_share = feature_column(steps, "step_j")[row]
    iterations = np.bincount(steps.request[row], steps.iterations[steps.step[row]], minlength=requests)
    paid = np.bincount(steps.request[row], step_share, minlength=requests)
    share = np.divide(paid, iterations, out=np.full(requests, np.nan), where=iterations > 0)
    saved = _prefill_work(steps, cached, cached / 2, share)
    if reusable is None:
        return CacheWork(saved, np.full((requests, columns), np.nan))
    evicted = np.array([np.nan if tokens is None else tokens for tokens in reusable], float) - cached
    evicted = np.maximum(evicted, 0.0)  # NaN stays NaN
    again = _prefill_work(steps, evicted, cached + evicted / 2, share)
    return CacheWork(saved, again + _preempted_work(steps, requests))


def cache_joules(work: CacheWork, prices: Floats, covariance: Floats) -> CacheJoules:
    """Return the joules of work at the fitted prices. prices: float64[K]. covariance: float64[K, K], of the prices."""
    columns: list[Floats] = []
    for features in work:
        columns += [features @ prices, np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", features, covariance, features), 0))]
    return CacheJoules(*columns)


def _prefill_work(steps: EngineSteps, tokens: Floats, context: Floats, share: Floats) -> Floats:
    """Return float64[n, K]: the work of so many more prompt tokens with so much context before each, on average.

    share: float64[n], the part of a step that the request paid in its prefill.
    """
    budget = float(steps.budget or USUAL_BUDGET)
    count = tokens / budget
    nothing = np.zeros(len(tokens))
    columns = [count * share, tokens, tokens * context, nothing, nothing]
    if steps.experts is not None:
        reads = steps.experts.share(np.array([budget]))
        columns += [count * share * reads, count * steps.experts.computed(np.array([budget]), reads)]
    features = np.stack(columns, axis=1)
    if steps.pace is None:
        return features
    return np.column_stack((features, features @ np.array(steps.pace)))


def _preempted_work(steps: EngineSteps, requests: int) -> Floats:
    """Return float64[n, K]: the work of prefills after a request's first token."""
    first = np.zeros(max(requests, int(steps.request.max(initial=-1)) + 1), np.int64)
    first[steps.request[::-1]] = steps.step[::-1]  # the first row of a request, written last, is its first token
    again = np.flatnonzero(steps.prefilling & (steps.request < requests))
    again = again[steps.step[again] > first[steps.request[again]]]
    work = np.zeros((requests, len(columns_of(steps))))
    for k, column in enumerate(columns_of(steps) if len(again) else ()):
        work[:, k] = np.bincount(steps.request[again], feature_column(steps, column)[again], minlength=requests)
    return work
