"""Was this client on time: how many requests it sent late, and whether its event loop woke in time to stamp tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loadgen.results.summary import Distribution
from loadgen.results.timekeeping import MAX_LATE_P99_S, MIN_WAITED, loop_delay_that_tells
from loadgen.results.verdict import LATENCY_ROWS, Check, Status
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary

_LATE_NS = round(MAX_LATE_P99_S * NS_PER_S)
_MAX_LATE_SHARE = 0.01
"""Share of the requests that may be sent late."""
_MAX_OF_RESPONSE = 0.05
"""Share of all Response times that may be lateness before they support no claim."""
_MIN_LATE = 3
"""Smallest number of late requests that is a remark: one slow moment of the machine is not a slow client."""
_VERY_LATE_NS = 100 * NS_PER_MS
"""One request that is later than this is a remark all the same."""


def check_client(result: RunResult, summary: Summary) -> Check:
    """Return whether this client was on time, and the latencies that its lateness is in.

    A request that is sent late makes Response longer, which counts from the schedule. TTFT, TPOT, ITL and E2E count
    from the send. An event loop that wakes late reads tokens late, which changes them too unless the kernel stamped
    them. With --max-concurrency, requests wait for earlier ones, and no send is judged.
    """
    costs = result.info.instrument
    waited_s, delay = costs.get("waited_s"), costs.get("loop_delay_s")
    loop_delay = loop_delay_that_tells(
        msgspec.convert({"count": 0} | delay, Distribution) if delay else None,
        costs.get("stamped_by"),
        summary.itl_s.p50,
    )
    late = [*_late_sends(result), *_late_wakes(loop_delay)]
    waited = waited_s / summary.duration_s if waited_s is not None and summary.duration_s > 0 else 0.0
    if late and waited > MIN_WAITED:
        reason = f"the machine was busy: for {waited:.0%} of the run this client waited for a core that others had"
        late.append(("warning", reason, []))
    faults = [*_lost_processes(result), *late]
    if not faults:
        is_known = summary.schedule_lag_s.count > 0 or delay is not None
        return Check(name="client", status="ok" if is_known else None)
    rows = {row for _, _, touched in faults for row in touched}
    return Check(
        name="client",
        status="failed" if any(status == "failed" for status, _, _ in faults) else "warning",
        reason="; ".join(reason for _, reason, _ in faults),
        rows=[*[row for row in LATENCY_ROWS if row in rows], *sorted(rows.difference(LATENCY_ROWS))],
    )


Fault = tuple[Status, str, list[str]]
"""A status, its reason, and the rows that it touches."""


def _late_sends(result: RunResult) -> list[Fault]:
    if result.info.config.get("max_concurrency"):
        return []
    lags_ns = [record.lag_ns for record in result.records if record.lag_ns is not None]
    late_ns = [lag for lag in lags_ns if lag > _LATE_NS]
    is_many = len(late_ns) >= _MIN_LATE and len(late_ns) > _MAX_LATE_SHARE * len(lags_ns)
    if not is_many and max(late_ns, default=0) <= _VERY_LATE_NS:
        return []
    reason = (
        f"this client sent {len(late_ns):,} of {len(lags_ns):,} requests more than {_LATE_NS / NS_PER_MS:g} ms late, "
        f"at most {max(late_ns) / NS_PER_MS:.1f} ms: Response counts from the schedule and carries that error; "
        "TTFT, TPOT, ITL and E2E count from the send and do not"
    )
    completed = [record for record in result.records if record.ok]
    response_ns = sum(record.response_ns or 0 for record in completed)
    is_failed = is_many and sum(record.lag_ns or 0 for record in completed) > _MAX_OF_RESPONSE * response_ns
    return [("failed" if is_failed else "warning", reason, ["response_s"])]


def _late_wakes(loop_delay: Distribution | None) -> list[Fault]:
    """Return the fault of an event loop that woke late more than once in a hundred times; once in ten is a failure."""
    if loop_delay is None or loop_delay.p99 is None or loop_delay.p99 <= MAX_LATE_P99_S:
        return []
    reason = (
        f"this client's event loop woke late: p99 {loop_delay.p99 * 1000:.1f} ms; its time stamps can carry that error"
    )
    is_frequent = loop_delay.p90 is not None and loop_delay.p90 > MAX_LATE_P99_S
    return [("failed" if is_frequent else "warning", reason, list(LATENCY_ROWS))]


def _lost_processes(result: RunResult) -> list[Fault]:
    processes = result.info.instrument.get("processes") or []
    return [
        (
            "failed",
            f"process {number} of {len(processes)} ended early ({process['ended']}): {process['lost']} of its "
            f"{process['requests']} requests have no answer of their own, and the load was lower from then on",
            ["rate", "requests"],
        )
        for number, process in enumerate(processes, 1)
        if process["ended"] != "completed"
    ]
