"""Arrival times by the kernel: the receive timestamps of Linux (socket(7), SO_TIMESTAMPNS) on CLOCK_MONOTONIC."""

import socket
import struct
import sys
from typing import TYPE_CHECKING

from loadgen.clock import anchor
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import StampedBy

Ancillary = list[tuple[int, int, bytes]]

SO_TIMESTAMPNS = 35
"""The option and the type of its control message, on Linux. Python's socket module does not define it."""
_TIMESPEC = struct.Struct("@ll")
TIMESTAMP_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
"""Room that `recvmsg` needs for the control message."""
OFFSET_VALID_NS = 10_000_000
"""Validity of a measured offset between the clocks: the wall clock may be set or slewed meanwhile."""


def enable_timestamps(sock: socket.socket) -> None:
    """Ask the kernel to stamp what `sock` receives, where it can."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def kernel_wall_ns(ancillary: Ancillary) -> int | None:
    """Return the kernel's stamp of the last segment that was read, in wall-clock time; None if there is none."""
    for _, kind, value in ancillary:
        if kind == SO_TIMESTAMPNS and len(value) == _TIMESPEC.size:
            seconds, ns = _TIMESPEC.unpack(value)
            return int(seconds * NS_PER_S + ns)
    return None


class ArrivalClock:
    """Arrival times on CLOCK_MONOTONIC, from the kernel's stamp of the last segment read.

    The stamp is right however late this process reads. Where the kernel gives none, the time of reading is used.
    """

    def __init__(self) -> None:
        self.stamped_by: StampedBy | None = None
        """The source of arrival times; None before anything was read."""
        self._wall_minus_monotonic_ns = 0
        self._offset_valid_until_ns = 0

    def arrived_ns(self, ancillary: Ancillary, sent_ns: int, read_ns: int) -> int:
        """Return when the bytes arrived that were read at `read_ns` in response to a request sent at `sent_ns`.

        Stamps are wall-clock time: one outside of the two was made before the clock was set, and is not used.
        """
        if not ancillary:
            self.stamped_by = "reading"
            return read_ns
        if read_ns > self._offset_valid_until_ns:
            self.stamped_by = self.stamped_by or "kernel"
            self._wall_minus_monotonic_ns = anchor().offset_ns
            self._offset_valid_until_ns = read_ns + OFFSET_VALID_NS
        seconds, ns = _TIMESPEC.unpack(ancillary[0][2])  # as in `kernel_wall_ns`, without a call in the hot path
        arrived_ns: int = seconds * NS_PER_S + ns - self._wall_minus_monotonic_ns
        return arrived_ns if sent_ns <= arrived_ns <= read_ns else read_ns
