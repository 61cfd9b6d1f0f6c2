"""Choose the requests that a page shows one by one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.stats.distributions import by_rank

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Ints

MAX_DRAWN = 1_000
EXTREMES = 50
"""Requests that are kept at each end of each quantity."""


def drawn_requests(result: RunResult, limit: int = MAX_DRAWN) -> Ints:
    """Return the indices of up to `limit` requests that were sent, in ascending order.

    Of more requests it keeps the EXTREMES highest and lowest of TTFT, TPOT, E2E, schedule lag and joules, and fills up
    with the others at even distances in the order of the schedule. The same run has the same ones.
    """
    sent = [record for record in result.records if record.sent_ns is not None]
    indices = np.array([record.index for record in sent], dtype=np.int64)
    if len(sent) <= limit:
        return np.sort(indices)
    shares = result.shares
    quantities = (
        [record.ttft_ns for record in sent],
        [record.tpot_ns for record in sent],
        [record.e2e_ns for record in sent],
        [record.lag_ns for record in sent],
        [share.joules if (share := shares.get(record.index)) else None for record in sent],
    )
    kept = np.zeros(len(sent), dtype=bool)
    ends = min(EXTREMES, limit // (2 * len(quantities)))
    for values in quantities:
        known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        order = np.argsort(known, kind="stable")[: np.isfinite(known).sum()]
        kept[order[:ends]] = kept[order[len(order) - ends :]] = True
    others = np.flatnonzero(~kept)
    kept[others[by_rank(len(others), limit - int(kept.sum()))]] = True
    return np.sort(indices[kept])
