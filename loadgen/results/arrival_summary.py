"""The arrivals of a run in numbers: the rate that was achieved, and each stream held against its arrival process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.results.summary import ArrivalCheck, Rate
from loadgen.results.verdict import Check
from loadgen.stats.distributions import index_of_dispersion
from loadgen.units import NS_PER_S
from loadgen.workload.arrival_check import MIN_DISPERSION_S, realized_arrivals

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary
    from loadgen.stats.arrays import Floats
    from loadgen.workload.schedule import ArrivalSpec

NEAR_RATE, FAR_RATE = 0.1, 0.25
"""Shares by which a rate may differ from the requested one: to be the requested one, and to be it but for chance."""
MIN_SENT = 0.99
"""Share of the scheduled arrivals that must be sent."""


def sent_rate(result: RunResult) -> Rate:
    """Return the requested rate and the achieved one: gaps per second between the first and the last request sent."""
    sent_ns = [record.sent_ns for record in result.records if record.sent_ns is not None]
    sent = np.sort(np.array(sent_ns, dtype=np.int64))
    offsets_s = (sent - sent[0]) / NS_PER_S if len(sent) else np.zeros(0)
    spread_s = float(offsets_s[-1]) if len(sent) > 1 else 0.0
    return Rate(
        requested_rps=result.info.requested_rps,
        achieved_rps=(len(sent) - 1) / spread_s if spread_s > 0 else None,
        index_of_dispersion=index_of_dispersion(offsets_s, 1.0) if spread_s >= MIN_DISPERSION_S else None,
    )


def check_arrivals(result: RunResult, spec: ArrivalSpec) -> ArrivalCheck:
    """Compare the arrivals of one stream with its process."""
    starts = [r for r in result.schedule if not r.parents and spec.workload in (None, r.workload)]
    scheduled = np.array([request.offset_ns for request in starts], dtype=np.int64) / NS_PER_S
    law = (spec.process, spec.rate_rps, spec.burstiness, spec.shape)
    check = ArrivalCheck(
        of="sessions" if spec.sessions else "requests",
        process=spec.process,
        asked_rps=spec.rate_rps,
        turns=spec.turns,
        scheduled=realized_arrivals(scheduled, *law),
        sent=realized_arrivals(_sent_s(result, {request.index for request in starts}), *law, planned=scheduled),
        as_asked=None,
        verdict="not judged: --max-concurrency closed the loop",
    )
    return check if result.info.config.get("max_concurrency") else judge_arrivals(check)


def judge_arrivals(check: ArrivalCheck) -> ArrivalCheck:
    """Return the check with its verdict: as requested when neither the scheduled nor the sent arrivals have faults, all
    were sent, and their rate is near the requested one. A rate can be far from it by chance when arrivals are few."""
    sent, of = check.sent, check.of
    for stage, arrivals in (("as scheduled", check.scheduled), ("as sent", sent)):
        if arrivals.faults:
            return _with_verdict(check, False, f"not as asked, {stage}: {'; '.join(arrivals.faults)}")
    if sent.count < MIN_SENT * check.scheduled.count:
        return _with_verdict(check, False, f"not as asked: {sent.count:,} of {check.scheduled.count:,} {of} were sent")
    if sent.rate is None:
        return _with_verdict(check, None, f"too few {of} to tell ({sent.count})")
    if sent.rate_ratio is None or abs(sent.rate_ratio - 1) <= NEAR_RATE:
        return _with_verdict(check, True, "as asked")
    rates = f"{sent.rate:.3g} {of}/s for {sent.rate / sent.rate_ratio:.3g}/s"
    if abs(sent.rate_ratio - 1) <= FAR_RATE:
        return _with_verdict(check, True, f"as asked but for chance: {rates}, with {sent.count:,} {of}")
    return _with_verdict(check, False, f"not as asked: {rates}, because {sent.count:,} {of} are few for this process")


def _with_verdict(check: ArrivalCheck, as_asked: bool | None, verdict: str) -> ArrivalCheck:
    return msgspec.structs.replace(check, as_asked=as_asked, verdict=verdict)


def combine_checks(result: RunResult, checks: Mapping[str | None, ArrivalCheck]) -> ArrivalCheck:
    """Return the check of several streams together: no process of its own, and as requested when each of them is."""
    scheduled = np.array([request.offset_ns for request in result.schedule], dtype=np.int64) / NS_PER_S
    sent = _sent_s(result, {request.index for request in result.schedule})
    verdicts = [check.as_asked for check in checks.values()]
    return ArrivalCheck(
        of="requests",
        process=None,
        asked_rps=result.info.requested_rps,
        scheduled=realized_arrivals(scheduled, "several", None),
        sent=realized_arrivals(sent, "several", None),
        as_asked=False if False in verdicts else None if None in verdicts else True,
        verdict="; ".join(f"{name}: {check.verdict}" for name, check in checks.items()),
    )


def check_load(result: RunResult, summary: Summary) -> Check:
    """Return whether the load was the requested one. A closed loop has no arrivals of its own to judge."""
    if result.info.config.get("max_concurrency"):
        reason = "--max-concurrency closed the loop: the server's slowness delayed later requests"
        return Check(name="load", status=None, reason=reason)
    arrivals = summary.arrivals
    if arrivals is None or arrivals.as_asked is None:
        return Check(name="load", status=None)
    if arrivals.as_asked:
        return Check(name="load", status="ok")
    detail = arrivals.verdict.removeprefix("not as asked").lstrip(":, ")  # of several streams it begins with a name
    reason = f"requests did not come as requested: {detail}"
    return Check(name="load", status="warning", reason=reason, rows=["rate", "arrivals"])


def _sent_s(result: RunResult, indices: set[int]) -> Floats:
    """Return the sorted instants in seconds, from the start of the run, at which these requests were sent."""
    sent = [record.sent_ns for record in result.records if record.sent_ns is not None and record.index in indices]
    return np.sort((np.array(sent, dtype=np.int64) - (result.info.start_ns or 0)) / NS_PER_S)
