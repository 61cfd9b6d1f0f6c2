"""The only module that reads a clock. All others take time as an argument."""

import time
from typing import NamedTuple

monotonic_ns = time.monotonic_ns
"""Nanoseconds of CLOCK_MONOTONIC: the clock of every instant in a run."""

thread_cpu_ns = time.thread_time_ns
"""CPU time that the calling thread has used, in nanoseconds."""


class Anchor(NamedTuple):
    """One moment on both clocks. It converts the run's monotonic instants to wall-clock time."""

    wall_ns: int
    monotonic_ns: int

    @property
    def offset_ns(self) -> int:
        """Return the wall clock less the monotonic one: what turns an instant of a run into Unix time."""
        return self.wall_ns - self.monotonic_ns


def anchor() -> Anchor:
    """Read both clocks as close together as this machine allows.

    The wall clock is read between two reads of the monotonic clock and paired with their middle, so the error is at
    most half the time between the two. The tightest of five attempts is returned.
    """

    def attempt() -> tuple[int, Anchor]:
        start_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        end_ns = time.monotonic_ns()
        return end_ns - start_ns, Anchor(wall_ns, (start_ns + end_ns) // 2)

    return min(attempt() for _ in range(5))[1]
