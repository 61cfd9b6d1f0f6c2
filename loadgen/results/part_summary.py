"""The numbers that a run and its parts, workloads and models, have in common: outcomes, latencies, tokens, goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from loadgen.results import metrics
from loadgen.results.energy_summary import energy_shares, sum_joules
from loadgen.results.output_kinds import output_kinds
from loadgen.results.summary import (
    ArrivalCheck,
    Distribution,
    Goodput,
    KindOutput,
    Latency,
    RequestCounts,
    TokenCounts,
    WorkloadSummary,
)
from loadgen.workload.tags import rows_by_tag

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy
    from loadgen.record import Kind, RequestRecord
    from loadgen.results.run_folder import RunResult


class _Numbers(TypedDict):
    requests: RequestCounts
    ttft_s: Latency
    ttfa_s: Latency
    tpot_s: Latency
    itl_s: Distribution
    e2e_s: Latency
    response_s: Latency
    tokens: TokenCounts
    output_kinds: dict[Kind, KindOutput]
    goodput: Goodput | None


def part_numbers(
    result: RunResult,
    records: Sequence[RequestRecord],
    shares: Mapping[int, RequestEnergy],
    duration_s: float,
    prompts_counted: bool,
) -> _Numbers:
    """Return the numbers of these requests of the run. shares: energy by index of the request.

    Latencies are of completed requests only: a request that failed fast is not a fast request. The times of tokens are
    not known where an answer came in one piece.
    """
    completed = [record for record in records if record.ok]
    streamed = [record for record in completed if not metrics.came_in_one_piece(record)]
    failed = sum(not record.ok for record in metrics.judged(records, result.info.stopped_by))
    return {
        "requests": metrics.request_counts(records),
        "ttft_s": metrics.latency_s((record.ttft_ns for record in streamed), failed),
        "ttfa_s": metrics.latency_s((record.ttfa_ns for record in streamed), failed),
        "tpot_s": metrics.latency_s((record.tpot_ns for record in streamed), failed),
        "itl_s": metrics.inter_token_s(streamed),
        "e2e_s": metrics.latency_s((record.e2e_ns for record in completed), failed),
        "response_s": metrics.latency_s((record.response_ns for record in completed), failed),
        "tokens": metrics.token_counts(records, duration_s, prompts_counted),
        "output_kinds": output_kinds(records, shares),
        "goodput": goodput(result.info.config, records, duration_s),
    }


def part_summaries(
    result: RunResult,
    by: Literal["workload", "model", "tag"],
    duration_s: float,
    prompts_counted: bool,
    checks: Mapping[str | None, ArrivalCheck] | None = None,
) -> dict[str, WorkloadSummary]:
    """Return the summary of each workload, model or tag, by its name. checks: the arrivals of the workloads."""
    match by:
        case "workload":
            parts = records_by_workload(result.records)
        case "model":
            parts = records_by_model(result)
        case "tag":
            tags = rows_by_tag(result.schedule).items()
            parts = {name: [result.records[row] for row in rows] for name, rows in tags}
    errors, shares = result.attribution.sums if result.attribution else {}, result.shares
    return {
        name: WorkloadSummary(
            **part_numbers(result, records, shares, duration_s, prompts_counted),
            arrivals=(checks or {}).get(name),
            **energy_shares(records, shares, errors.get(f"{by} {name}"), prompts_counted=prompts_counted),
            host_joules=sum_joules(shares[record.index].host_joules for record in records) if shares else None,
        )
        for name, records in sorted(parts.items())
    }


def records_by_workload(records: Sequence[RequestRecord]) -> dict[str, list[RequestRecord]]:
    """Return the records of each workload."""
    by_workload: dict[str, list[RequestRecord]] = {}
    for record in records:
        by_workload.setdefault(record.workload, []).append(record)
    return by_workload


def records_by_model(result: RunResult) -> dict[str, list[RequestRecord]]:
    """Return the records of each model that was requested; nothing where all are of one."""
    by_model: dict[str, list[RequestRecord]] = {}
    for request, record in zip(result.schedule, result.records, strict=True):
        by_model.setdefault(request.model or result.info.server.get("model") or "", []).append(record)
    return by_model if len(by_model) > 1 else {}


def goodput(config: dict[str, Any], records: Sequence[RequestRecord], duration_s: float) -> Goodput | None:
    """Hold each request against the limits of its workload; requests without any are left out. None without limits."""
    by_workload = records_by_workload(records)
    slos = {name: metrics.slo_of(config, name) for name in by_workload}
    limited = {name: metrics.goodput(by_workload[name], slo, duration_s) for name, slo in slos.items() if slo}
    if not limited:
        return None
    good, scheduled = sum(part.good for part in limited.values()), sum(len(by_workload[name]) for name in limited)
    slo_ms = next(iter(limited.values())).slo_ms
    common = slo_ms if all(slo == slo_ms for slo in slos.values()) else {}
    return Goodput(
        slo_ms=common,
        good=good,
        ratio=good / scheduled,
        rps=good / duration_s if duration_s > 0 else None,
        met={metric: sum(part.met[metric] for part in limited.values()) for metric in common},
    )
