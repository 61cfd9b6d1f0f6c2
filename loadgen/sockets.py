"""Many sockets watched by one event loop, and when the kernel took in what they receive."""

import asyncio
import selectors
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from loadgen.clock import anchor
from loadgen.units import NS_PER_S

Ancillary = list[tuple[int, int, bytes]]

SO_TIMESTAMPNS = 35
"""Of Linux. Python's socket module does not have it."""
_TIMESPEC = struct.Struct("@ll")
ROOM_FOR_A_STAMP = socket.CMSG_SPACE(_TIMESPEC.size)
OFFSET_GOOD_FOR_NS = 10_000_000


class ArrivalClock:
    """When bytes arrived, on CLOCK_MONOTONIC: by the kernel's stamp of the last segment read (socket(7), SO_TIMESTAMPNS).

    However late this process reads, the stamp is right. Where the kernel gives none, the time of reading has to do.
    """

    def __init__(self) -> None:
        self.by_kernel: bool | None = None
        """Whether the kernel stamps; None before anything was read."""
        self._wall_minus_monotonic_ns = 0
        self._good_until_ns = 0

    def start(self, sock: socket.socket) -> None:
        """Asks for the stamps of `sock`."""
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

    def arrived_ns(self, ancillary: Ancillary, sent_ns: int, read_ns: int) -> int:
        """Of what was read at `read_ns`, in answer to what went out at `sent_ns`. Stamps are wall-clock time: one that
        lies outside of the two was made before somebody set the clock."""
        if not ancillary:
            self.by_kernel = False
            return read_ns
        if read_ns > self._good_until_ns:
            self._look(read_ns)
        seconds, ns = _TIMESPEC.unpack(ancillary[0][2])
        arrived_ns: int = seconds * NS_PER_S + ns - self._wall_minus_monotonic_ns
        return arrived_ns if sent_ns <= arrived_ns <= read_ns else read_ns

    def _look(self, now_ns: int) -> None:
        if self.by_kernel is None:
            self.by_kernel = True
        both = anchor()
        self._wall_minus_monotonic_ns = both.wall_ns - both.monotonic_ns
        self._good_until_ns = now_ns + OFFSET_GOOD_FOR_NS


class Sockets:
    """Calls back whoever has something to read, or room to write: one turn of the loop for all of them. Always as things
    stand now (level-triggered): uvloop's own watching stops at a reset and would leave what came before it unread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._selector.fileno(), self._serve)  # type: ignore[attr-defined]

    def watch(self, sock: socket.socket, ready: Callable[[bool], None]) -> None:
        """`ready(writable)` from now on."""
        self._selector.register(sock, selectors.EVENT_READ, ready)

    def watch_writes(self, sock: socket.socket, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        self._selector.modify(sock, events, self._selector.get_key(sock).data)

    def close_one(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._selector.unregister(sock)
            sock.close()

    def close(self) -> None:
        """All of them."""
        self._loop.remove_reader(self._selector.fileno())  # type: ignore[attr-defined]
        for key in list(self._selector.get_map().values()):
            self.close_one(key.fileobj)
        self._selector.close()

    def _serve(self) -> None:
        for key, events in self._selector.select(0):
            if key.fileobj.fileno() >= 0:  # type: ignore[union-attr] # one before it may have closed it
                key.data(events & selectors.EVENT_WRITE != 0)
