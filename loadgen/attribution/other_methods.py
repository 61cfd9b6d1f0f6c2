"""The attribution methods of other tools, for comparison (benchmarks/accuracy/attribution_oracle.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadgen.attribution.cost_model import overlap

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySeries
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats, Ints

OtherMethod = Literal["output-tokens", "per-request", "residency", "whole-gpu"]
"""output-tokens: the run's joules per output token times a request's (ML.ENERGY). per-request: the run's joules over
its requests (AIPerf). residency: each window shared equally by the requests in flight. whole-gpu: all that the GPU used
while a request was in flight (proposed for TGI): a joule counts once per request, so the sum is too large."""


def request_shares_mj(series: Sequence[EnergySeries], records: Sequence[RequestRecord], method: OtherMethod) -> Floats:
    """Return float64[n], millijoules of each request under `method`. series: already clipped to the run."""
    if method in ("residency", "whole-gpu"):  # a request that was not sent is in flight from 0 to 0
        starts_ns = np.array([record.sent_ns or 0 for record in records], dtype=np.int64)
        ends = [record.finished_ns or 0 if record.sent_ns is not None else 0 for record in records]
        ends_ns = np.maximum(np.array(ends, dtype=np.int64), starts_ns)
        if method == "residency":
            return np.asarray(np.sum([_residency(domain, starts_ns, ends_ns) for domain in series], axis=0))
        # E(finished) - E(sent), with the cumulative energy E interpolated between the counter's updates.
        energy_mj = [np.interp([starts_ns, ends_ns], domain.t_ns, domain.mj) for domain in series]
        return np.asarray(np.sum([at_end - at_start for at_start, at_end in energy_mj], axis=0))
    if method == "output-tokens":
        weights = [float(record.output_tokens or 0) for record in records]
    else:
        weights = [float(record.sent_ns is not None) for record in records]
    measured_mj, total = sum(domain.total_mj for domain in series), sum(weights)
    return np.array(weights) * (measured_mj / total) if total > 0 else np.zeros(len(weights))


def _residency(series: EnergySeries, starts_ns: Ints, ends_ns: Ints) -> Floats:
    """Return sum_w E_w t_iw / t_w: t_iw is the time of request i in flight in window w, t_w that of all requests."""
    windows = len(series) - 1
    request, window, share = overlap(series.t_ns, starts_ns, ends_ns)
    time_ns = share * (ends_ns - starts_ns)[request]
    in_window = np.bincount(window, time_ns, minlength=windows).astype(np.float64)
    rate = np.divide(np.diff(series.mj).astype(np.float64), in_window, out=np.zeros(windows), where=in_window > 0)
    return np.bincount(request, time_ns * rate[window], minlength=len(starts_ns)).astype(np.float64)
