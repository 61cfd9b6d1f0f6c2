"""Judge whether a client's times can be trusted: those of a run, or those of `loadgen selftest` before a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.record import StampedBy
    from loadgen.results.summary import Distribution

MAX_LATE_P99_S = 0.005
"""A client that is later than this once in a hundred times has its own slowness in its numbers."""

MIN_WAITED = 0.01
"""A smaller share of time spent waiting for a core does not move a p99."""

FAULTS = {
    "lag": "this client sent late: schedule lag p99 {}; its latencies carry that error",
    "loop_delay": "this client's event loop woke late: p99 {}; its time stamps can carry that error",
    "ttft_error": "this client's TTFT is wrong: error p99 {} against the server's own stamps",
    "itl_error": "this client's gaps between tokens are wrong: error p99 {} against the server's own stamps",
}


def loop_delay_that_tells(
    loop_delay: Distribution | None, stamped_by: StampedBy | None, itl_s: float | None
) -> Distribution | None:
    """Return `loop_delay`, or None if it cannot affect the times: kernel timestamps are right however late they are
    read.

    One read has one timestamp, that of its last segment. So a loop that is later than the time between two tokens reads
    two at once, and then its delay does count.
    """
    harmless = stamped_by == "kernel" and itl_s is not None and (_p99(loop_delay) or 0.0) < itl_s
    return None if harmless else loop_delay


def faults(
    processes: Sequence[dict[str, Any]] = (), waited: float | None = None, **late: Distribution | None
) -> list[str]:
    """Return the reasons why this client's own slowness is in its times. Empty when none is known.

    late: distributions in seconds, named "lag", "loop_delay", "ttft_error" or "itl_error". processes: how each process
    ended, when there were several. waited: share of the run in which the client was ready to run and other processes
    had the cores; this explains lateness, and is no fault by itself.
    """
    reasons = [
        fault.format(f"{late_p99 * 1000:.1f} ms")
        for name, fault in FAULTS.items()
        if (late_p99 := _p99(late.get(name))) is not None and late_p99 > MAX_LATE_P99_S
    ]
    if reasons and waited is not None and waited > MIN_WAITED:
        reasons.append(
            f"the machine was busy: for {waited:.0%} of the run this client waited for a core that others had"
        )
    return reasons + [
        f"process {number} of {len(processes)} ended early ({process['ended']}): {process['lost']} of its "
        f"{process['requests']} requests have no answer of their own, and the load was lower from then on"
        for number, process in enumerate(processes, 1)
        if process["ended"] != "completed"
    ]


def kept_time(processes: Sequence[dict[str, Any]] = (), **late: Distribution | None) -> bool | None:
    """Return whether the times are valid; None when nothing is known of how late anything was."""
    if faults(processes, None, **late):
        return False
    return True if any(_p99(spread) is not None for spread in late.values()) else None


def _p99(spread: Distribution | None) -> float | None:
    return None if spread is None else spread.p99
