"""Statistics of a run as functions of weights: how often each request, or each bin of time, is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.results.metrics import came_in_one_piece, meets_limit, slo_of
from loadgen.results.over_time import over_time
from loadgen.results.summarize import span
from loadgen.stats.block_bootstrap import Ratio, Spread
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats, Ints

LATENCIES = ("ttft_s", "ttfa_s", "tpot_s", "itl_s", "e2e_s", "response_s")
JOULES = "energy.joules_per_request"
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MIN_REQUESTS = 20
"""Fewest requests with a value whose scatter says anything."""
MIN_BEYOND = 10
"""Fewest requests beyond a percentile, and fewest good and missed ones, whose scatter says anything."""

Statistic = Callable[["Floats"], "Floats"]
"""Weights, one row per resample -> values, one row per resample and one column per path."""


class Part(NamedTuple):
    """A statistic, and the series over the elements that shows how far they depend on one another in it."""

    statistic: Statistic
    series: Floats


class Resampled(NamedTuple):
    """Numbers of one run over the same elements: its requests, or bins of its time."""

    of: str
    """Noun of the elements."""
    n: int
    parts: dict[tuple[str, ...], Part]
    """Statistics by the paths into summary.json of their columns."""
    reasons: dict[str, str]
    """Reason why the scatter of the number at a path is not known from this run."""
    deciding: dict[str, Ints]
    """Places of the elements whose number decides the value at a path: those beyond a percentile, or the fewer of the
    good and the missed. A path without them depends on all elements."""


def limits_of(run: RunResult) -> dict[str, dict[str, float]]:
    """Return the limits of goodput by workload."""
    return {name: slo_of(run.info.config, name) for name in sorted({record.workload for record in run.records})}


# ---------------------------------------------------------------- requests


def over_requests(run: RunResult) -> Resampled:
    """Return latencies, joules and the ratio of goodput over the requests in the order of the schedule."""
    records = _in_order(run)
    n = len(records)
    parts: dict[tuple[str, ...], Part] = {}
    reasons: dict[str, str] = {}
    deciding: dict[str, Ints] = {}
    for name, (values, owners) in values_of(run).items():
        if len(values):
            spread = Spread(values, owners, n, tuple(PERCENTILES.values()))
            parts[name_and(name)] = Part(spread, _ranks(values, owners, n))
            beyond = _beyond(name, values, owners)
            deciding |= beyond
            reasons |= _thin_tails(name, owners, beyond)
    limited, good = _goodness(records, run)
    met, missed = int(good.sum()), int(limited.sum() - good.sum())
    if met + missed:
        parts["goodput.ratio",] = _ratio(good, limited)
    deciding["goodput.ratio"] = np.flatnonzero((limited > 0) & (good == (met <= missed)))
    if min(met, missed) < MIN_BEYOND:
        reasons["goodput.ratio"] = f"of {met + missed:,} requests {met:,} met every limit"
    joules = [share.joules if (share := run.shares.get(record.index)) else None for record in records]
    tokens = np.array([record.output_tokens or 0 for record in records], dtype=np.float64)
    tokens[[spent is None for spent in joules]] = 0.0
    if tokens.any():
        parts["energy.joules_per_output_token",] = _ratio(np.array([spent or 0.0 for spent in joules]), tokens)
    return Resampled("requests", n, parts, reasons, deciding)


def _ratio(amounts: Floats, base: Floats) -> Part:
    """Return a ratio of sums. It varies as the sum of amount - ratio x base does, to first order."""
    return Part(Ratio(amounts, base), amounts - amounts.sum() / base.sum() * base)


def name_and(name: str) -> tuple[str, ...]:
    """Return the paths of the mean and the percentiles of a distribution."""
    return tuple(f"{name}.{statistic}" for statistic in ("mean", *PERCENTILES))


def _in_order(run: RunResult) -> list[RequestRecord]:
    """Return the records in the order of the schedule."""
    planned = {request.index: request.offset_ns for request in run.schedule}
    return sorted(run.records, key=lambda record: (planned.get(record.index, record.scheduled_ns), record.index))


def values_of(run: RunResult) -> dict[str, tuple[Floats, Ints]]:
    """Return the values that the distributions of summary.json count, in seconds or joules, by their path; beside each
    value the place of its request in the schedule."""
    records = _in_order(run)
    completed = [(i, record) for i, record in enumerate(records) if record.ok]
    streamed = [(i, record) for i, record in completed if not came_in_one_piece(record)]
    shares = run.shares
    columns = {
        name: _column((i, getattr(record, f"{name.removesuffix('_s')}_ns")) for i, record in of)
        for name, of in (
            *((name, streamed) for name in ("ttft_s", "ttfa_s", "tpot_s")),
            *((name, completed) for name in ("e2e_s", "response_s")),
        )
    }
    gaps = [np.diff(record.chunk_ns).astype(np.float32) for _, record in streamed]
    owners = np.repeat(np.array([i for i, _ in streamed], dtype=np.int64), [len(part) for part in gaps])
    columns["itl_s"] = (np.concatenate([*gaps, np.zeros(0, np.float32)]), owners)
    in_seconds = {name: (values / NS_PER_S, owners) for name, (values, owners) in columns.items()}
    return in_seconds | {JOULES: _column((i, shares[r.index].joules) for i, r in completed if r.index in shares)}


def _column(pairs: Iterable[tuple[int, float | None]]) -> tuple[Floats, Ints]:
    known = [(i, value) for i, value in pairs if value is not None]
    return np.array([value for _, value in known], dtype=np.float64), np.array([i for i, _ in known], dtype=np.int64)


def _beyond(name: str, values: Floats, owners: Ints) -> dict[str, Ints]:
    """Return the places of the requests that have a value beyond each percentile."""
    thresholds = np.quantile(values, list(PERCENTILES.values()))
    return {
        f"{name}.{key}": np.flatnonzero(np.bincount(owners[values > threshold]))
        for key, threshold in zip(PERCENTILES, thresholds, strict=True)
    }


def _thin_tails(name: str, owners: Ints, beyond: dict[str, Ints]) -> dict[str, str]:
    """Return the percentiles beyond which too few requests lie, or all where too few have a value: their scatter is not
    in this run."""
    if (known := int(np.count_nonzero(np.bincount(owners)))) < MIN_REQUESTS:
        return dict.fromkeys(name_and(name), f"{known} requests have it, {MIN_REQUESTS} are needed")
    return {
        path: f"{n} {'request lies' if n == 1 else 'requests lie'} beyond it, {MIN_BEYOND} are needed"
        for path, places in beyond.items()
        if (n := len(places)) < MIN_BEYOND
    }


def _ranks(values: Floats, owners: Ints, n: int) -> Floats:
    """Return the rank of each request by its mean value, and the middle one for a request without: busy periods show in
    ranks whatever the distribution."""
    counts = np.bincount(owners, minlength=n)
    has = counts > 0
    means = np.bincount(owners, values, minlength=n)[has] / counts[has]
    ranks = np.full(n, (len(means) - 1) / 2)
    ranks[has] = np.argsort(np.argsort(means))
    return ranks


def _goodness(records: Sequence[RequestRecord], run: RunResult) -> tuple[Floats, Floats]:
    """Return for each request whether it has limits, and whether it met them all."""
    limits = limits_of(run)
    limited = [bool(limits[record.workload]) for record in records]
    good = [
        has and record.ok and all(meets_limit(record, name, limit) for name, limit in limits[record.workload].items())
        for has, record in zip(limited, records, strict=True)
    ]
    return np.array(limited, dtype=np.float64), np.array(good, dtype=np.float64)


# ---------------------------------------------------------------- time


def per_second(run: RunResult) -> Resampled | None:
    """Return rates and power over the bins of `over_time`, of a second in most runs; None if nothing was sent."""
    found = over_time(run)
    if found is None:
        return None
    start_ns, end_ns = span(run)
    edges_s = np.clip(found.bins.edges_s, 0, (end_ns - start_ns) / NS_PER_S)
    within = np.diff(edges_s) > 0
    finished = [record for record in run.records if record.finished_ns is not None]
    ends_s = np.array([(record.finished_ns or 0) - start_ns for record in finished], dtype=np.float64) / NS_PER_S
    good = found.bins.sums(ends_s, _goodness(finished, run)[1])[within]
    tokens, watts, seconds = found.output_tokens[within], found.watts[within], np.diff(edges_s)[within]
    parts: dict[tuple[str, ...], Part] = {}
    parts["goodput.rps",] = _ratio(good, seconds)
    parts["tokens.output_per_s",] = _ratio(tokens, seconds)
    measured = np.isfinite(watts)
    if measured.any():
        parts["energy.mean_watts",] = _ratio(np.nan_to_num(watts) * seconds, measured * seconds)
    reasons = {"goodput.rps": f"{int(good.sum())} requests are good"} if good.sum() < MIN_BEYOND else {}
    return Resampled("bins of time", int(within.sum()), parts, reasons, {})
