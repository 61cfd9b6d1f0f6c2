"""The arrivals of a run in numbers: the rate that was achieved, and each stream held against its arrival process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.results.summary import ArrivalCheck, Rate
from loadgen.stats.distributions import index_of_dispersion
from loadgen.units import NS_PER_S
from loadgen.workload.arrival_check import realized_arrivals

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats
    from loadgen.workload.schedule import ArrivalSpec


def sent_rate(result: RunResult) -> Rate:
    """Return the requested rate and the achieved one: gaps per second between the first and the last request sent."""
    sent_ns = [record.sent_ns for record in result.records if record.sent_ns is not None]
    sent = np.sort(np.array(sent_ns, dtype=np.int64))
    offsets_s = (sent - sent[0]) / NS_PER_S if len(sent) else np.zeros(0)
    spread_s = float(offsets_s[-1]) if len(sent) > 1 else 0.0
    return Rate(
        requested_rps=result.info.requested_rps,
        achieved_rps=(len(sent) - 1) / spread_s if spread_s > 0 else None,
        index_of_dispersion=index_of_dispersion(offsets_s, 1.0) if spread_s >= 10 else None,
    )


def check_arrivals(result: RunResult, spec: ArrivalSpec) -> ArrivalCheck:
    """Compare the arrivals of one stream with its process."""
    starts = [r for r in result.schedule if r.after is None and spec.workload in (None, r.workload)]
    scheduled = np.array([request.offset_ns for request in starts], dtype=np.int64) / NS_PER_S
    law = (spec.process, spec.rate_rps, spec.burstiness, spec.shape)
    check = ArrivalCheck(
        of="sessions" if spec.sessions else "requests",
        process=spec.process,
        asked_rps=spec.rate_rps,
        scheduled=realized_arrivals(scheduled, *law),
        sent=realized_arrivals(_sent_s(result, {request.index for request in starts}), *law, planned=scheduled),
        as_asked=None,
        verdict="not judged: --max-concurrency closed the loop",
    )
    return check if result.info.config.get("max_concurrency") else judge_arrivals(check)


def judge_arrivals(check: ArrivalCheck) -> ArrivalCheck:
    """Return the check with its verdict: as requested when neither the scheduled nor the sent arrivals have faults."""
    for stage, arrivals in (("as scheduled", check.scheduled), ("as sent", check.sent)):
        if arrivals.faults:
            verdict = f"not as asked, {stage}: {'; '.join(arrivals.faults)}"
            return msgspec.structs.replace(check, as_asked=False, verdict=verdict)
    if check.sent.rate is None:
        return msgspec.structs.replace(check, verdict=f"too few {check.of} to tell ({check.sent.count})")
    return msgspec.structs.replace(check, as_asked=True, verdict="as asked")


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


def _sent_s(result: RunResult, indices: set[int]) -> Floats:
    """Return the sorted instants in seconds, from the start of the run, at which these requests were sent."""
    sent = [record.sent_ns for record in result.records if record.sent_ns is not None and record.index in indices]
    return np.sort((np.array(sent, dtype=np.int64) - (result.info.start_ns or 0)) / NS_PER_S)
