"""The latency limits of a run as lines of its charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from loadgen.report.charts.chart import Limit
from loadgen.report.format import clean, seconds
from loadgen.report.latencies import LIMITED
from loadgen.results.metrics import slo_of

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult

_METRICS = {field.removesuffix("_s"): metric for metric, field in LIMITED.items()}


def workloads(result: RunResult) -> list[str]:
    """Return the workloads in the order of their colours."""
    return sorted({record.workload for record in result.records} | {request.workload for request in result.schedule})


def latency_limits(result: RunResult, latency: str, of: Literal["x", "y"]) -> tuple[Limit, ...]:
    """Return the limits of a latency on an axis, once each; with the workloads' names unless all have the same."""
    names = workloads(result)
    by_limit: dict[float, list[str]] = {}
    for name in names:
        limit_ms = slo_of(result.info.config, name).get(_METRICS.get(latency, ""))
        if limit_ms is not None:
            by_limit.setdefault(limit_ms / 1000, []).append(clean(name))
    limits = []
    for value, limited in sorted(by_limit.items()):
        whose = "" if len(limited) == len(names) else f" of {', '.join(limited)}"
        limits.append(Limit(value, f"limit {seconds(value)}{whose}", of))
    return tuple(limits)
