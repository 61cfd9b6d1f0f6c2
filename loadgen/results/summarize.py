"""A run folder's records and samples -> attribution and summary. Pure: the same folder gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.results import metrics
from loadgen.results.arrival_summary import check_arrivals, combine_checks, sent_rate
from loadgen.results.checks import judge
from loadgen.results.energy_boundary import share_host, summarize_boundary
from loadgen.results.part_summary import part_numbers, part_summaries
from loadgen.results.provenance import provenance_of
from loadgen.results.run_attribution import attribute_run
from loadgen.results.run_folder import SCHEMA_VERSION, RunResult, read_run
from loadgen.results.saturation import server_load
from loadgen.results.session_summary import account_sessions
from loadgen.results.speculation import speculation_summary
from loadgen.results.summary import Distribution, EnergySummary, Instrument, SessionSummary, Summary
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.workload.schedule import ScheduledRequest


def load_run(
    path: Path, schedule: Sequence[ScheduledRequest] | None = None, assumptions: Mapping[str, Any] | None = None
) -> RunResult:
    """Read a run folder and derive its attribution and summary. `schedule` saves reading it from the folder.

    assumptions: options of the boundary (share_host, pue, ...) in place of those that the run states.
    """
    result = read_run(path, schedule)
    if assumptions:
        config = {**result.info.config, **assumptions}
        result = replace(result, info=msgspec.structs.replace(result.info, config=config))
    return analyse_run(result)


def analyse_run(result: RunResult) -> RunResult:
    """Return the same run with its attribution and summary derived from what was recorded."""
    start_ns, end_ns = span(result)
    attribution, series = attribute_run(result, start_ns, end_ns)
    attribution, host = share_host(result, attribution, start_ns, end_ns)
    prompts_counted = metrics.prompts_are_counted(result.schedule, result.records)
    energy = summarize_boundary(result, attribution, series, host, start_ns, end_ns, prompts_counted=prompts_counted)
    analysed = replace(result, attribution=attribution)
    accounts, sessions = account_sessions(analysed, start_ns)
    summary = _summarize(analysed, energy, sessions, start_ns, (end_ns - start_ns) / NS_PER_S, prompts_counted)
    return replace(analysed, sessions=accounts, summary=summary)


def span(result: RunResult) -> tuple[int, int]:
    """Return the run's first scheduled instant, over the requests that were sent, and the end of its last request."""
    starts = [record.scheduled_ns for record in result.records if record.sent_ns is not None]
    ends = [record.finished_ns for record in result.records if record.finished_ns is not None]
    start_ns = min(starts, default=result.info.start_ns or 0)
    return start_ns, max(ends, default=start_ns)


def _summarize(
    result: RunResult,
    energy: EnergySummary,
    sessions: SessionSummary | None,
    start_ns: int,
    duration_s: float,
    prompts_counted: bool,
) -> Summary:
    records = result.records
    lag = metrics.distribution_s(record.lag_ns for record in records)
    checks = {spec.workload: check_arrivals(result, spec) for spec in result.info.asked}
    arrivals = checks.get(None) or (combine_checks(result, checks) if checks else None)
    summary = Summary(
        schema_version=SCHEMA_VERSION,
        run_id=result.info.run_id,
        run=provenance_of(result.info),
        duration_s=duration_s,
        stopped_by=result.info.stopped_by,
        **part_numbers(result, records, result.shares, duration_s, prompts_counted),
        rate=sent_rate(result),
        arrivals=arrivals,
        server=server_load(result, start_ns),
        schedule_lag_s=lag,
        lengths=metrics.length_check(
            [(item.input_tokens, None if item.natural else item.output_tokens) for item in result.schedule],
            records,
            _accepted(result),
        ),
        endings=metrics.natural_endings(result.schedule, records),
        speculation=speculation_summary(result.engine, result.attribution),
        energy=energy,
        sessions=sessions,
        by_workload=part_summaries(result, "workload", duration_s, prompts_counted, checks),
        by_model=part_summaries(result, "model", duration_s, prompts_counted),
        by_tag=part_summaries(result, "tag", duration_s, prompts_counted),
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
