"""Many sockets watched by one event loop."""

import asyncio
import select
import selectors
import socket
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE

try:
    from loadgen.client._token_reader import Reader as CompiledReader
except ImportError:  # not Linux, or no compiler when this was installed
    CompiledReader = None  # type: ignore[assignment, misc]

OnEvents = Callable[[int], None]
"""Called with the events of a socket: READ, WRITE and those of ENDED. A broken socket can be read."""
READ, WRITE = 0x1, 0x4
ENDED = 0x8 | 0x10 | 0x2000
"""The connection broke, was hung up, or the other side has sent its last; bytes may be left. Values of epoll(7)."""
_EDGE = 1 << 31
_INTEREST = READ | 0x2000 | _EDGE
MAX_EVENTS = 256
"""Sockets served before the event loop gets its turn again."""


class SocketPoller:
    """Edge-triggered epoll that serves all ready sockets in one callback of the event loop.

    A socket is reported once for what has arrived, whether or not all of it is then read: its owner has to `rearm` it
    if something may be left. (Level-triggered, the kernel would look at every socket twice more.) uvloop's own watching
    stops at a reset, and what came before the reset would stay unread.
    """

    def __init__(self) -> None:
        self._poll = Poll()
        self.token_reader = CompiledReader(self._poll.fileno()) if reads_tokens() else None
        """Reads the tokens of the sockets that are lent to it."""
        self._dispatcher = self.token_reader or _Dispatcher(self._poll)
        self._sockets: dict[int, socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._poll.fileno(), self._dispatcher.serve)

    def watch(self, sock: socket.socket, on_events: OnEvents, writes: bool = False) -> None:
        """Report when `sock` has something to read, and with `writes` also when it takes bytes."""
        fd = sock.fileno()
        self._poll.register(fd, _INTEREST | WRITE if writes else _INTEREST)
        self._dispatcher.watch(fd, on_events)
        self._sockets[fd] = sock

    def rearm(self, sock: socket.socket, writes: bool = False) -> None:
        """Report `sock` once more if it has something to read now; from now on report writability only if `writes`."""
        self._poll.modify(sock.fileno(), _INTEREST | WRITE if writes else _INTEREST)

    def close_socket(self, sock: socket.socket) -> None:
        """Stop watching `sock` and close it; nothing happens if it is closed already."""
        if (fd := sock.fileno()) >= 0:
            self._poll.unregister(fd)
            self._dispatcher.forget(fd)
            del self._sockets[fd]
            sock.close()

    def close(self) -> None:
        """Close all sockets."""
        self._loop.remove_reader(self._poll.fileno())
        for sock in list(self._sockets.values()):
            self.close_socket(sock)
        self._poll.close()


class _Dispatcher:
    """Replaces `CompiledReader` where it is not available, except for reading tokens."""

    def __init__(self, poll: "select.epoll | SelectorPoll") -> None:
        self._poll = poll
        self._callbacks: dict[int, OnEvents] = {}

    def watch(self, fd: int, on_events: OnEvents) -> None:
        self._callbacks[fd] = on_events

    def forget(self, fd: int) -> None:
        del self._callbacks[fd]

    def serve(self) -> None:
        callback_of = self._callbacks.get
        for fd, events in self._poll.poll(0, MAX_EVENTS):
            if on_events := callback_of(fd):  # an earlier callback may have closed it
                on_events(events)


class SelectorPoll:
    """The part of `select.epoll` that `SocketPoller` needs, for systems without epoll."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close
        self.unregister = self._selector.unregister

    def fileno(self) -> int:
        return self._selector.fileno()

    def register(self, fd: int, events: int) -> None:
        self._selector.register(fd, _selector_events(events))

    def modify(self, fd: int, events: int) -> None:
        self._selector.modify(fd, _selector_events(events))

    def poll(self, timeout: float, max_events: int) -> list[tuple[int, int]]:
        keys = self._selector.select(timeout)[:max_events]
        return [(key.fd, (events & EVENT_READ and READ) | (events & EVENT_WRITE and WRITE)) for key, events in keys]


def _selector_events(events: int) -> int:
    """Convert events to the numbers of `selectors`."""
    return (EVENT_READ if events & READ else 0) | (EVENT_WRITE if events & WRITE else 0)


Poll = select.epoll if hasattr(select, "epoll") else SelectorPoll
"""gevent removes `select.epoll` where it patches Python (locust); the client does not run there."""


def reads_tokens() -> bool:
    """Return whether compiled code reads tokens. Their times and records are the same without it."""
    return CompiledReader is not None and Poll is not SelectorPoll
