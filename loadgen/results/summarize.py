"""A run folder's records and samples -> attribution and summary. Pure: the same folder gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from loadgen.results import metrics
from loadgen.results.arrival_summary import check_arrivals, combine_checks, sent_rate
from loadgen.results.checks import judge
from loadgen.results.energy_summary import energy_shares, summarize_energy
from loadgen.results.output_kinds import output_kinds
from loadgen.results.provenance import provenance_of
from loadgen.results.run_attribution import attribute_run
from loadgen.results.run_folder import SCHEMA_VERSION, RunResult, read_run
from loadgen.results.saturation import server_load
from loadgen.results.speculation import speculation_summary
from loadgen.results.summary import (
    ArrivalCheck,
    Distribution,
    EnergySummary,
    Goodput,
    Instrument,
    Latency,
    Summary,
    WorkloadSummary,
)
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.workload.schedule import ScheduledRequest


def load_run(path: Path, schedule: Sequence[ScheduledRequest] | None = None) -> RunResult:
    """Read a run folder and derive its attribution and summary. `schedule` saves reading it from the folder."""
    return analyse_run(read_run(path, schedule))


def analyse_run(result: RunResult) -> RunResult:
    """Return the same run with its attribution and summary derived from what was recorded."""
    start_ns, end_ns = span(result)
    attribution, series = attribute_run(result, start_ns, end_ns)
    prompts_counted = metrics.prompts_are_counted(result.schedule, result.records)
    energy = summarize_energy(result, attribution, series, start_ns, end_ns, prompts_counted=prompts_counted)
    analysed = replace(result, attribution=attribution)
    duration_s = (end_ns - start_ns) / NS_PER_S
    return replace(analysed, summary=_summarize(analysed, energy, start_ns, duration_s, prompts_counted))


def span(result: RunResult) -> tuple[int, int]:
    """Return the run's first scheduled instant, over the requests that were sent, and the end of its last request."""
    starts = [record.scheduled_ns for record in result.records if record.sent_ns is not None]
    ends = [record.finished_ns for record in result.records if record.finished_ns is not None]
    start_ns = min(starts, default=result.info.start_ns or 0)
    return start_ns, max(ends, default=start_ns)


def _summarize(
    result: RunResult, energy: EnergySummary, start_ns: int, duration_s: float, prompts_counted: bool
) -> Summary:
    records = result.records
    lag = metrics.distribution_s(record.lag_ns for record in records)
    latencies = _latencies(records, result.info.stopped_by)
    checks = {spec.workload: check_arrivals(result, spec) for spec in result.info.asked}
    arrivals = checks.get(None) or (combine_checks(result, checks) if checks else None)
    shares = result.shares

    errors = result.attribution.sums if result.attribution else {}

    def part_summary(name: str, part: Sequence[RequestRecord], check: ArrivalCheck | None) -> WorkloadSummary:
        return WorkloadSummary(
            requests=metrics.request_counts(part),
            **_latencies(part, result.info.stopped_by),
            tokens=metrics.token_counts(part, duration_s, prompts_counted),
            output_kinds=output_kinds(part, shares),
            goodput=_goodput(result.info.config, part, duration_s),
            arrivals=check,
            **energy_shares(part, shares, errors.get(name), prompts_counted=prompts_counted),
        )

    summary = Summary(
        schema_version=SCHEMA_VERSION,
        run_id=result.info.run_id,
        run=provenance_of(result.info),
        duration_s=duration_s,
        stopped_by=result.info.stopped_by,
        requests=metrics.request_counts(records),
        rate=sent_rate(result),
        arrivals=arrivals,
        server=server_load(result, start_ns),
        schedule_lag_s=lag,
        **latencies,
        tokens=metrics.token_counts(records, duration_s, prompts_counted),
        output_kinds=output_kinds(records, shares),
        lengths=metrics.length_check(
            [(item.input_tokens, None if item.natural else item.output_tokens) for item in result.schedule],
            records,
            _accepted(result),
        ),
        endings=metrics.natural_endings(result.schedule, records),
        goodput=_goodput(result.info.config, records, duration_s),
        speculation=speculation_summary(result.engine, result.attribution),
        energy=energy,
        by_workload={
            name: part_summary(f"workload {name}", part, checks.get(name))
            for name, part in sorted(_records_by_workload(records).items())
        },
        by_model={
            name: part_summary(f"model {name}", part, None) for name, part in sorted(_records_by_model(result).items())
        },
        instrument=_instrument(result),
    )
    verdict = judge(result, summary)
    client = verdict.check("client").status
    kept_time = None if client is None else client != "failed"
    instrument = msgspec.structs.replace(summary.instrument, kept_time=kept_time, verdicts=verdict.reasons)
    return msgspec.structs.replace(summary, verdict=verdict, instrument=instrument)


def _accepted(result: RunResult) -> list[str]:
    """Return the options for an exact length that the server accepted and that --extra-body left as they are."""
    changed = result.info.config.get("extra_body") or {}
    return [name for name in ("ignore_eos", "min_tokens") if result.info.server.get(name) and name not in changed]


class _Latencies(TypedDict):
    ttft_s: Latency
    ttfa_s: Latency
    tpot_s: Latency
    itl_s: Distribution
    e2e_s: Latency
    response_s: Latency


def _latencies(records: Sequence[RequestRecord], stopped_by: str | None) -> _Latencies:
    """Return the latencies of completed requests only: a request that failed fast is not a fast request.

    The times of tokens are not known where an answer came in one piece.
    """
    completed = [record for record in records if record.ok]
    streamed = [record for record in completed if not metrics.came_in_one_piece(record)]
    failed = sum(not record.ok for record in metrics.judged(records, stopped_by))
    return {
        "ttft_s": metrics.latency_s((record.ttft_ns for record in streamed), failed),
        "ttfa_s": metrics.latency_s((record.ttfa_ns for record in streamed), failed),
        "tpot_s": metrics.latency_s((record.tpot_ns for record in streamed), failed),
        "itl_s": metrics.inter_token_s(streamed),
        "e2e_s": metrics.latency_s((record.e2e_ns for record in completed), failed),
        "response_s": metrics.latency_s((record.response_ns for record in completed), failed),
    }


# ---------------------------------------------------------------- workloads


def _records_by_workload(records: Sequence[RequestRecord]) -> dict[str, list[RequestRecord]]:
    by_workload: dict[str, list[RequestRecord]] = {}
    for record in records:
        by_workload.setdefault(record.workload, []).append(record)
    return by_workload


def _records_by_model(result: RunResult) -> dict[str, list[RequestRecord]]:
    """Return the records of each model that was requested; nothing where all are of one."""
    by_model: dict[str, list[RequestRecord]] = {}
    for request, record in zip(result.schedule, result.records, strict=True):
        by_model.setdefault(request.model or result.info.server.get("model") or "", []).append(record)
    return by_model if len(by_model) > 1 else {}


def _goodput(config: dict[str, Any], records: Sequence[RequestRecord], duration_s: float) -> Goodput | None:
    """Hold each request against the limits of its workload; requests without any are left out. None without limits."""
    by_workload = _records_by_workload(records)
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


# ---------------------------------------------------------------- the client


def _instrument(result: RunResult) -> Instrument:
    """Return the client's own cost and lateness; it has no verdicts until the run is judged."""
    costs = result.info.instrument
    delay = costs.get("loop_delay_s")
    return Instrument(
        loop_delay_s=msgspec.convert({"count": 0} | delay, Distribution) if delay else None,
        waited_s=costs.get("waited_s"),
        stamped_by=costs.get("stamped_by"),
        compiled=costs.get("compiled"),
        cpu_s=costs.get("cpu_s"),
        max_rss_bytes=costs.get("max_rss_bytes"),
        sampler_period_s=costs.get("sampler_period_s"),
        verdicts=[],
    )
