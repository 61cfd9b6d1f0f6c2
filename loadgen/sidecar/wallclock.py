"""Wall-clock instants -> monotonic ones, across steps of the wall clock. Pure: the anchors come from outside."""

from collections import deque

from loadgen.clock import Anchor
from loadgen.units import NS_PER_MS

STEP_NS = 1 * NS_PER_MS
"""A smaller move of the wall clock is slewing, and follows the newest anchor."""
KEEP = 32


class WallClock:
    """The offset between the clocks over time: each one is in force from its anchor on."""

    def __init__(self, first: Anchor) -> None:
        self._offsets: deque[tuple[int, int]] = deque([(0, first.wall_ns - first.monotonic_ns)], maxlen=KEEP)
        """(monotonic ns from which it holds, wall - monotonic)"""

    def observe(self, anchor: Anchor) -> None:
        offset_ns = anchor.wall_ns - anchor.monotonic_ns
        since_ns, known_ns = self._offsets[-1]
        if abs(offset_ns - known_ns) < STEP_NS:
            self._offsets[-1] = (since_ns, offset_ns)
        else:
            self._offsets.append((anchor.monotonic_ns, offset_ns))

    def monotonic_ns(self, wall_ns: int) -> int:
        """By the newest offset that was in force at the instant it gives; the oldest one for times before all."""
        for since_ns, offset_ns in reversed(self._offsets):
            if wall_ns - offset_ns >= since_ns:
                return wall_ns - offset_ns
        return wall_ns - self._offsets[0][1]
