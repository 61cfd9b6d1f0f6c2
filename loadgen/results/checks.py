"""The ten checks of a run: what was recorded, and the numbers derived from it -> the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loadgen.results import metrics
from loadgen.results.answer_checks import check_lengths, check_streaming, check_token_counts
from loadgen.results.arrival_summary import check_load
from loadgen.results.client_check import check_client
from loadgen.results.energy_summary import imbalance_mj
from loadgen.results.failure_limit import FailureLimit
from loadgen.results.prefix_cache import prefix_cache
from loadgen.results.saturation import check_server
from loadgen.results.verdict import LATENCY_ROWS, LAW_ROWS, Check, Status, Verdict
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Summary

_DEAD_AFTER = 3
"""This many last requests that all could not connect are a server that died."""


def judge(result: RunResult, summary: Summary) -> Verdict:
    """Return the verdict on a run. `summary` holds its numbers and no verdict yet."""
    checks: Sequence[Callable[[RunResult, Summary], Check]] = (
        finished,
        failures,
        check_load,
        check_server,
        check_client,
        check_lengths,
        check_streaming,
        check_token_counts,
        lambda run, _: prefix_cache(run),
        energy,
    )
    return Verdict.of([check(result, summary) for check in checks])


def finished(result: RunResult, summary: Summary) -> Check:
    """Return whether the run ended by itself, with a server that was there to the end.

    An interrupted run is a warning: the numbers of the requests that it sent hold. An aborted or killed one failed, for
    requests in flight were cut off.
    """
    unsent, counts = summary.requests.by_error.get("not_sent", 0), summary.requests
    unfinished = f"{counts.completed:,} of {counts.scheduled:,} requests completed"
    if summary.stopped_by == "interrupted":
        reason = f"the run was interrupted: {unsent:,} of {counts.scheduled:,} requests were not sent"
        return Check(name="finished", status="warning", reason=reason, rows=["requests"])
    if summary.stopped_by == "aborted":
        reason = f"the run was aborted: {unfinished}, requests in flight were cut off"
        return Check(name="finished", status="failed", reason=reason, rows=["requests", *LATENCY_ROWS])
    if summary.stopped_by is None:
        reason = f"the run did not end by itself: the client was killed, {unfinished}"
        return Check(name="finished", status="failed", reason=reason, rows=["requests", *LATENCY_ROWS])
    refused = _last_refused(result.records)
    if len(refused) >= _DEAD_AFTER:
        died_s = (refused[0].scheduled_ns - (result.info.start_ns or 0)) / NS_PER_S
        reason = f"the server was gone from {died_s:.1f} s on: none of the last {len(refused):,} requests could connect"
        return Check(name="finished", status="failed", reason=reason, rows=["requests", *LATENCY_ROWS])
    return Check(name="finished", status="ok")


def _last_refused(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return the requests after the last that the server took, all of which could not connect.

    A request whose connection was refused was never sent: its place is the instant that it was due.
    """
    tried = [record for record in records if record.error not in metrics.CUT_OFF]
    tried.sort(key=lambda record: record.scheduled_ns if record.sent_ns is None else record.sent_ns)
    taken = max((i for i, record in enumerate(tried) if record.error != "connect"), default=-1)
    return tried[taken + 1 :]


def failures(result: RunResult, summary: Summary) -> Check:
    """Return whether more requests failed than --max-failed allows.

    Requests that the end of an interrupted or killed run cut off or left unsent are not counted: see `finished`.
    """
    judged = metrics.judged(result.records, summary.stopped_by)
    failed = [record for record in judged if record.error is not None]
    if not failed:
        return Check(name="failures", status="ok" if judged else None)
    limit = FailureLimit.parse(result.info.config.get("max_failed") or FailureLimit.DEFAULT)
    kinds = Counter(f"{record.error}" for record in failed).most_common()
    words = next((record.detail for record in failed if record.error == kinds[0][0] and record.detail), None)
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    reason = f"{len(failed):,} of {len(judged):,} requests failed ({by_kind}{f'; {words}' if words else ''})"
    if len(failed) == len(judged):
        return Check(name="failures", status="failed", reason=f"no request completed: {reason}", rows=[*LATENCY_ROWS])
    if limit.exceeded(len(failed), len(judged)):
        reason = f"{reason}, more than the limit of {limit.text}"
        return Check(name="failures", status="failed", reason=reason, rows=[*LATENCY_ROWS])
    return Check(name="failures", status="warning", reason=reason, rows=[*LATENCY_ROWS])


def energy(result: RunResult, summary: Summary) -> Check:
    """Return whether the joules support claims.

    No energy is nothing to judge when none was requested, or when `auto` knew no source. It failed when there was a
    source that gave nothing, or when the accounts do not add up, which is a bug of this program.
    """
    accounts, passed_over = summary.energy, cpu_alone(result.info)
    if imbalance := imbalance_mj(result.attribution):
        reason: str | None = f"the accounts do not add up to what was measured: {imbalance:+,} mJ"
        return Check(name="energy", status="failed", reason=reason, rows=["energy"])
    if accounts.valid:
        return Check(name="energy", status="warning" if passed_over else "ok", reason=passed_over, rows=["energy"])
    source, opened = result.info.config.get("energy"), bool(result.info.domains)
    if accounts.measured_joules is None and (source == "none" or (source in ("auto", None) and not opened)):
        reason = None if source == "none" else f"no energy was measured: {'; '.join(accounts.reasons)}"
        return Check(name="energy", status=None, reason=reason, rows=["energy"])
    reasons = accounts.reasons if passed_over is None else [*accounts.reasons, passed_over]
    status: Status = "failed" if accounts.measured_joules is None else "warning"
    of, rows = (" of requests", list(LAW_ROWS)) if accounts.totals_valid else ("", ["energy"])
    reason = f"the energy{of} is not valid: {'; '.join(dict.fromkeys(reasons))}"
    return Check(name="energy", status=status, reason=reason, rows=rows)


def cpu_alone(info: RunInfo) -> str | None:
    """Return why the joules are the CPU's when `auto` looked for a GPU first; None when they are what was requested."""
    if not info.energy_reasons or not info.domains or any(domain.name.startswith("gpu:") for domain in info.domains):
        return None
    reasons = "; ".join(info.energy_reasons)
    return f"the joules are the CPU's, no GPU's are in them ({reasons}); if that is meant, say --energy rapl"
