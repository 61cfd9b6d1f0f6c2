"""Converts wall-clock instants to monotonic ones, across steps of the wall clock. Pure: anchors are arguments."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.clock import Anchor

STEP_NS = 1 * NS_PER_MS
"""A smaller change of the offset is slewing, and follows the newest anchor."""
MAX_STEPS = 32


class ClockSync:
    """The offset between the clocks over time: each offset is in force from its anchor on."""

    def __init__(self, anchor: Anchor) -> None:
        self._offsets: deque[tuple[int, int]] = deque([(0, anchor.offset_ns)], maxlen=MAX_STEPS)
        """(monotonic ns from which the offset holds, wall - monotonic)"""

    def observe(self, anchor: Anchor) -> None:
        offset_ns = anchor.offset_ns
        since_ns, previous_ns = self._offsets[-1]
        if abs(offset_ns - previous_ns) < STEP_NS:
            self._offsets[-1] = (since_ns, offset_ns)
        else:
            self._offsets.append((anchor.monotonic_ns, offset_ns))

    def monotonic_ns(self, wall_ns: int) -> int:
        """Convert with the newest offset that was in force at the instant it gives, else with the oldest one."""
        for since_ns, offset_ns in reversed(self._offsets):
            if wall_ns - offset_ns >= since_ns:
                return wall_ns - offset_ns
        return wall_ns - self._offsets[0][1]

    def unix_ns(self, monotonic_ns: int) -> int:
        """Convert with the offset that was in force at the instant, else with the oldest one."""
        for since_ns, offset_ns in reversed(self._offsets):
            if monotonic_ns >= since_ns:
                return monotonic_ns + offset_ns
        return monotonic_ns + self._offsets[0][1]
