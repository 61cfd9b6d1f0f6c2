"""Whether a client kept time. A run says it of itself, `loadgen selftest` of a machine before the run."""

from collections.abc import Sequence
from typing import Any

from loadgen.record import StampedBy
from loadgen.results.summary import Distribution

MAX_LATE_P99_S = 0.005
"""A client that is later than this once in a hundred times has its own slowness in its numbers."""

MIN_WAITED = 0.01
"""Waiting less than this does not move a p99."""

WHAT_IS_LATE = {
    "lag": "this client sent late: schedule lag p99 {}; its latencies carry that error",
    "loop_delay": "this client's event loop woke late: p99 {}; its time stamps can carry that error",
    "ttft_error": "this client's TTFT is wrong: error p99 {} against the server's own stamps",
    "itl_error": "this client's gaps between tokens are wrong: error p99 {} against the server's own stamps",
}


def loop_delay_that_tells(
    loop_delay: Distribution | None, stamped_by: StampedBy | None, itl_s: float | None
) -> Distribution | None:
    """`loop_delay`, unless it cannot be in the times: stamps of the kernel stay right however late they are read.

    One read has one stamp, its last segment's. So a loop that is later than the time between two tokens reads two at
    once, and its delay does count.
    """
    harmless = stamped_by == "kernel" and itl_s is not None and (_p99(loop_delay) or 0.0) < itl_s
    return None if harmless else loop_delay


def faults(
    processes: Sequence[dict[str, Any]] = (), waited: float | None = None, **late: Distribution | None
) -> list[str]:
    """Why the times of a run carry this client's own slowness. Empty when it kept time, as far as is known.

    late: distributions in seconds, under the names of WHAT_IS_LATE. processes: what became of each, when there were
    several. waited: share of the run in which the client was ready to run and others had the cores; a reason for being
    late, and no fault by itself.
    """
    found = [
        says.format(f"{late_p99 * 1000:.1f} ms")
        for name, says in WHAT_IS_LATE.items()
        if (late_p99 := _p99(late.get(name))) is not None and late_p99 > MAX_LATE_P99_S
    ]
    if found and waited is not None and waited > MIN_WAITED:
        found.append(f"the machine was busy: for {waited:.0%} of the run this client waited for a core that others had")
    return found + [
        f"process {number} of {len(processes)} ended early ({one['ended']}): {one['lost']} of its {one['requests']} "
        "requests have no answer of their own, and the load was lower from then on"
        for number, one in enumerate(processes, 1)
        if one["ended"] != "completed"
    ]


def kept_time(processes: Sequence[dict[str, Any]] = (), **late: Distribution | None) -> bool | None:
    """None when nothing is known of how late anything was."""
    if faults(processes, None, **late):
        return False
    return True if any(_p99(one) is not None for one in late.values()) else None


def _p99(one: Distribution | None) -> float | None:
    return None if one is None else one.p99
