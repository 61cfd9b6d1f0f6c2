"""Many sockets watched by one event loop, and when the kernel took in what they receive."""

import asyncio
import select
import selectors
import socket
import struct
import sys
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE

from loadgen.clock import anchor
from loadgen.record import StampedBy
from loadgen.units import NS_PER_S

try:
    from loadgen.client._token_reader import Reader as Compiled
except ImportError:  # not Linux, or no compiler when this was installed
    Compiled = None  # type: ignore[assignment, misc]

Ancillary = list[tuple[int, int, bytes]]

SO_TIMESTAMPNS = 35
"""Of Linux. Python's socket module does not have it."""
_TIMESPEC = struct.Struct("@ll")
ROOM_FOR_A_STAMP = socket.CMSG_SPACE(_TIMESPEC.size)
OFFSET_GOOD_FOR_NS = 10_000_000


class ArrivalClock:
    """When bytes arrived, on CLOCK_MONOTONIC: the kernel's stamp of the last segment read (socket(7), SO_TIMESTAMPNS).

    However late this process reads, the stamp is right. Where the kernel gives none, the time of reading has to do.
    """

    def __init__(self) -> None:
        self.stamped_by: StampedBy | None = None
        """None before anything was read."""
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
            self.stamped_by = "reading"
            return read_ns
        if read_ns > self._good_until_ns:
            self._look(read_ns)
        seconds, ns = _TIMESPEC.unpack(ancillary[0][2])
        arrived_ns: int = seconds * NS_PER_S + ns - self._wall_minus_monotonic_ns
        return arrived_ns if sent_ns <= arrived_ns <= read_ns else read_ns

    def _look(self, now_ns: int) -> None:
        self.stamped_by = self.stamped_by or "kernel"
        both = anchor()
        self._wall_minus_monotonic_ns = both.wall_ns - both.monotonic_ns
        self._good_until_ns = now_ns + OFFSET_GOOD_FOR_NS


Ready = Callable[[int], None]
"""Told which of READ and WRITE a socket is ready for. One that broke is ready to be read."""
READ, WRITE = 0x1, 0x4
ENDED = 0x8 | 0x10 | 0x2000
"""It broke, was hung up on, or the other side has sent its last; bytes may be left. All as epoll(7) has them."""
_EDGE = 1 << 31
_NEWS = READ | 0x2000 | _EDGE
MANY = 256
"""Sockets served before the loop gets its turn again."""


class Sockets:
    """Calls back whoever has something to read, or room to write: one turn of the loop for all of them.

    Once for what has come, whether or not all of it is then read: who leaves some asks to be called `again`. (To be
    called as long as anything is left, the kernel looks at every socket twice more.) uvloop's own watching stops at a
    reset, and what came before it would stay unread.
    """

    def __init__(self) -> None:
        self._poll = Poll()
        self.tokens = Compiled(self._poll.fileno()) if reads_tokens() else None
        """Reads the tokens of streams that are lent to it."""
        self._told = self.tokens or _Told(self._poll)
        self._open: dict[int, socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._poll.fileno(), self._told.serve)

    def watch(self, sock: socket.socket, ready: Ready, writes: bool = False) -> None:
        fd = sock.fileno()
        self._poll.register(fd, _NEWS | WRITE if writes else _NEWS)
        self._told.watch(fd, ready)
        self._open[fd] = sock

    def again(self, sock: socket.socket, writes: bool = False) -> None:
        """Calls back if there is something to read even now, or, from now on, `writes`: room to write."""
        self._poll.modify(sock.fileno(), _NEWS | WRITE if writes else _NEWS)

    def close_one(self, sock: socket.socket) -> None:
        if (fd := sock.fileno()) >= 0:
            self._poll.unregister(fd)
            self._told.forget(fd)
            del self._open[fd]
            sock.close()

    def close(self) -> None:
        """All of them."""
        self._loop.remove_reader(self._poll.fileno())
        for sock in list(self._open.values()):
            self.close_one(sock)
        self._poll.close()


class _Told:
    """What of `Compiled` is needed where it cannot be had."""

    def __init__(self, poll: "select.epoll | Selector") -> None:
        self._poll = poll
        self._ready: dict[int, Ready] = {}

    def watch(self, fd: int, ready: Ready) -> None:
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        del self._ready[fd]

    def serve(self) -> None:
        find = self._ready.get
        for fd, events in self._poll.poll(0, MANY):
            if ready := find(fd):  # one before it may have closed it
                ready(events)


class Selector:
    """`select.epoll`, as far as `Sockets` needs it, where there is none."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close
        self.unregister = self._selector.unregister

    def fileno(self) -> int:
        return self._selector.fileno()

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, _known(events))

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, _known(events))

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        ready = self._selector.select(timeout)[:most]
        return [(key.fd, (events & EVENT_READ and READ) | (events & EVENT_WRITE and WRITE)) for key, events in ready]


def _known(events: int) -> int:
    """`selectors` has its own numbers."""
    return (EVENT_READ if events & READ else 0) | (EVENT_WRITE if events & WRITE else 0)


Poll = select.epoll if hasattr(select, "epoll") else Selector
"""gevent takes `select.epoll` away where it patches Python (locust); the client does not run there."""


def reads_tokens() -> bool:
    """Whether tokens are read by compiled code. Their times and records are the same without."""
    return Compiled is not None and Poll is not Selector
