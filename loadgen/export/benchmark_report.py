"""A run as llm-d's Benchmark Report 0.2, its energy included.

The format is that of llm-d-benchmark at 8bc9f1d, llmdbenchmark/analysis/benchmark_report/schema_v0_2.py. It has power,
in Watts, and no joules: those are in `results.observability.loadgen_energy`, which the format leaves open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from loadgen.results.metrics import CUT_OFF, distribution
from loadgen.results.over_time import over_time
from loadgen.results.provenance import provenance_of
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.over_time import OverTime
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Distribution, Summary
    from loadgen.stats.arrays import Floats

LABEL = "engine"
"""Name of the one component that a run knows of: the server it was sent to."""
_STATISTICS = {
    "mean": "mean", "std": "stddev", "min": "min", "p50": "p50", "p75": "p75", "p90": "p90", "p95": "p95",
    "p99": "p99", "p99_9": "p99p9", "max": "max",
}  # fmt: skip
"""The report's name of each statistic."""


def benchmark_report(result: RunResult) -> dict[str, Any]:
    """Return the report. What is not known is absent."""
    summary, info, course = result.summary, result.info, over_time(result)
    assert summary is not None
    return {
        "version": "0.2",
        "run": {
            "uid": info.run_id,
            "time": _time(info, summary.duration_s),
            "keywords": ["loadgen", *(["simulated"] if info.server.get("simulated") else [])],
        },
        "scenario": _known({"stack": [_component(info)], "load": _load(result)}),
        "results": {
            "request_performance": {"aggregate": _performance(result, summary)},
            "observability": _observability(info, summary, course),
        },
    }


def _time(info: RunInfo, duration_s: float) -> dict[str, str]:
    started = provenance_of(info).started
    if started is None:
        return {"duration": f"PT{duration_s}S"}
    end = datetime.fromisoformat(started).timestamp() + duration_s
    return {"start": started, "end": _iso(end), "duration": f"PT{duration_s}S"}


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _component(info: RunInfo) -> dict[str, Any]:
    """Return the engine as a component of the kind `generic`: its accelerators and parallelism are not known here."""
    config = {key: value for key, value in info.server.items() if key not in ("base_url", "addresses", "proxy")}
    return {
        "metadata": {"label": LABEL, "cfg_id": hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()},
        "standardized": {
            "kind": "generic",
            "tool": info.server.get("engine") or "unknown",
            "tool_version": info.server.get("engine_version") or "unknown",
            "model": {"name": info.server.get("model")},
            "devices": provenance_of(info).devices,
        },
        "native": {"config": config},
    }


def _load(result: RunResult) -> dict[str, Any] | None:
    """Return the workload; None where no prompt's planned length is known, which the format requires."""
    info, schedule = result.info, result.schedule
    inputs = [request.input_tokens for request in schedule if request.input_tokens is not None]
    outputs = [request.output_tokens for request in schedule if request.output_tokens and not request.natural]
    if not inputs:
        return None
    rate, concurrency = info.requested_rps, info.config.get("max_concurrency")
    words = sum(request.words is not None for request in schedule)
    standardized = {
        "tool": "loadgen",
        "tool_version": info.loadgen_version,
        "parallelism": info.config.get("processes") or 1,
        "source": "sampled" if words == len(schedule) else "unknown" if words else "random",
        "input_seq_len": _lengths(inputs),
        "output_seq_len": _lengths(outputs),
        "rate_qps": rate or None,
        "concurrency": concurrency or None,
        "multi_turn": {"enabled": True} if any(request.parents for request in schedule) else None,
    }
    return {
        "metadata": {"cfg_id": info.schedule_sha256},
        "standardized": _known(standardized),
        "native": {"args": {"command": info.command}, "config": info.config},
    }


def _lengths(values: Sequence[int]) -> dict[str, Any] | None:
    """Return planned lengths: their mean and range."""
    if not values:
        return None
    kind = "fixed" if min(values) == max(values) else "other"
    return {"distribution": kind, "value": sum(values) / len(values), "min": min(values), "max": max(max(values), 1)}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _statistics(spread: Distribution, units: str) -> dict[str, Any] | None:
    if spread.mean is None:
        return None
    named = {name: getattr(spread, field) for field, name in _STATISTICS.items()}
    return {"units": units} | _known(named)


def _rate(value: float | None, units: str) -> dict[str, Any] | None:
    return None if value is None else {"units": units, "mean": value}


def _performance(result: RunResult, summary: Summary) -> dict[str, Any]:
    done, counts, tokens = [r for r in result.records if r.ok], summary.requests, summary.tokens
    cut_off = sum(counts.by_error.get(kind, 0) for kind in CUT_OFF)
    rates = [rate for rate in (tokens.input_per_s, tokens.output_per_s) if rate is not None]
    inputs = distribution(record.input_tokens if tokens.input is not None else None for record in done)
    per_token = distribution(
        r.e2e_ns / NS_PER_S / r.output_tokens for r in done if r.e2e_ns is not None and r.output_tokens
    )
    served = counts.completed / summary.duration_s if summary.duration_s else None
    return {
        "requests": _known({
            "total": counts.sent,
            "failures": counts.failed - cut_off,
            "incomplete": cut_off,
            "input_length": _statistics(inputs, "count"),
            "output_length": _statistics(distribution(record.output_tokens for record in done), "count"),
        }),
        "latency": _known({
            "time_to_first_token": _statistics(summary.ttft_s, "s"),
            "normalized_time_per_output_token": _statistics(per_token, "s/token"),
            "time_per_output_token": _statistics(summary.tpot_s, "s/token"),
            "inter_token_latency": _statistics(summary.itl_s, "s/token"),
            "request_latency": _statistics(summary.e2e_s, "s"),
        }),
        "throughput": _known({
            "input_token_rate": _rate(tokens.input_per_s, "tokens/s"),
            "output_token_rate": _rate(tokens.output_per_s, "tokens/s"),
            "total_token_rate": _rate(sum(rates) if len(rates) == 2 else None, "tokens/s"),
            "request_rate": _rate(served, "queries/s"),
        }),
    }  # fmt: skip


def _observability(info: RunInfo, summary: Summary, course: OverTime | None) -> dict[str, Any]:
    energy = summary.energy
    joules = _known(msgspec.to_builtins(energy)) | {"units": "J, W and s, by the end of each name"}
    if course is None:
        return {"loadgen_energy": joules}
    inside = course.run_s > 0
    power = _statistics(distribution(_floats(course.watts[inside])), "Watts")
    if power and energy.mean_watts is not None:
        power["mean"] = energy.mean_watts  # of the energy itself; the rest is of bins
    aggregate = {
        "power_consumption": power,
        "running_requests": _statistics(distribution(_floats(course.running[inside])), "count"),
        "waiting_requests": _statistics(distribution(_floats(course.waiting[inside])), "count"),
    }
    component: dict[str, Any] = {"component_label": LABEL, "aggregate": _known(aggregate)}
    if power and (started := provenance_of(info).started) is not None:
        second_0 = datetime.fromisoformat(started).timestamp()
        middles = (course.bins.edges_s[:-1] + course.bins.edges_s[1:]) / 2
        points = [
            {"ts": _iso(second_0 + float(at)), "value": float(watts)}
            for at, watts in zip(middles, course.watts, strict=True)
            if np.isfinite(watts)
        ]
        component["time_series"] = {"power_consumption": {"units": "Watts", "series": points}}
    return {"components": [component], "loadgen_energy": joules}


def _floats(values: Floats) -> list[float]:
    """Return the known values."""
    return [float(value) for value in values if np.isfinite(value)]
