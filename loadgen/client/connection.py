"""One plain HTTP/1.1 connection. All bytes that it receives carry the instant at which they arrived."""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.client.http1 import Body, Response
from loadgen.client.kernel_timestamps import TIMESTAMP_BYTES, ArrivalClock
from loadgen.client.socket_poller import ENDED, WRITE, SocketPoller
from loadgen.clock import monotonic_ns

if TYPE_CHECKING:
    from loadgen.client.token_template import TokenTemplate

READ_BYTES = 64 << 10
GRACE_S = 0.25
"""Time for a body to end after its content is over, so that the connection can be used again."""

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class ServerDisconnectedError(ConnectionError):
    """The connection ended before the response did."""


class StaleError(ConnectionError):
    """The connection proved unusable before a byte of a response arrived; another connection may do better."""


class RefusedError(StaleError):
    """The server's host refused the connection at `address`."""

    def __init__(self, code: int, address: Address) -> None:
        super().__init__(code, connect_failure(code, address))
        self.address = address


def connect_failure(code: int, address: Address) -> str:
    """Describe why connecting to `address` failed, given the errno."""
    return f"{os.strerror(code)}: {address[1][:2]}"


OnDone = Callable[[Exception | None, int], None]
"""Called once, at the end of an exchange, with the error (None if the response is complete) and the instant at which
the last bytes arrived. The error may be a response cut short (ServerDisconnectedError), a StaleError, or whatever the
receiver or the HTTP parser raised."""


class Receiver(Body, Protocol):
    """Receives a response, and learns when its request was sent."""

    sent_ns: int | None


class Connection:
    """One connection that carries one exchange at a time.

    While no exchange is in progress, the connection is in `idle`, the stack of the pool that it belongs to: it adds
    itself after a complete response and removes itself when the server closes it.
    """

    __slots__ = ("_clock", "_connecting", "_idle", "_lent", "_on_done", "_overdue", "_poller", "_receive", "_receiver",
                 "_response", "_reused", "_socket", "_unsent")  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        poller: SocketPoller,
        clock: ArrivalClock,
        idle: "list[Connection]",
        connecting: Address | None,
    ) -> None:
        """`connecting` is the address while the connection is still being established."""
        self._socket, self._poller, self._clock, self._idle, self._connecting = sock, poller, clock, idle, connecting
        self._receive = sock.recvmsg
        self._unsent: bytes | memoryview = b""
        self._receiver: Receiver
        self._on_done: OnDone = _ignore
        self._response: Response | None = None
        self._overdue: Response | None = None
        """The last response whose content was over before its body."""
        self._lent: TokenTemplate | None = None
        """The template by which the compiled reader reads tokens from the socket, while it does."""
        self._reused = False
        """True once the connection has been idle: the server may have closed it since."""
        poller.watch(sock, self._on_events, writes=connecting is not None)

    def send(self, request: bytes, receiver: Receiver, on_done: OnDone) -> None:
        """Send as much of `request` as the socket takes, and return at once; the rest follows when the socket takes
        more. A broken connection is noticed when it is read."""
        self._receiver, self._on_done = receiver, on_done
        self._response = Response(receiver)
        if self._connecting:
            self._unsent = request
            return
        receiver.sent_ns = monotonic_ns()
        try:
            sent = self._socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(request):
            self._unsent = memoryview(request)[sent:]
            self._poller.rearm(self._socket, writes=True)

    def abort(self) -> None:
        """Close the connection. `on_done` of an exchange in progress is not called."""
        self._take_back()
        self._on_done, self._response = _ignore, None
        self._poller.close_socket(self._socket)

    def _send_rest(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        self._unsent = memoryview(self._unsent)[sent:] or b""
        if not self._unsent:
            self._poller.rearm(self._socket, writes=False)

    def _connected(self, address: Address) -> bool:
        """Conclude the attempt to connect; False if the address refused it."""
        if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            on_done = self._on_done
            self.abort()
            on_done(RefusedError(code, address), 0)
            return False
        self._connecting = None
        self._receiver.sent_ns = monotonic_ns()
        return True

    def _on_events(self, events: int) -> None:
        self._take_back()
        if self._connecting and not self._connected(self._connecting):
            return
        if events & WRITE and self._unsent:
            self._send_rest()
        try:
            data, ancillary, _, _ = self._receive(READ_BYTES, TIMESTAMP_BYTES)
        except BlockingIOError:
            return
        except OSError as err:
            self._lost(str(err))
            return
        read_ns = monotonic_ns()
        if not data or self._response is None:
            self._lost(_ENDED)  # or it sent bytes that were not requested
            return
        if events & ENDED or len(data) == READ_BYTES:  # more may be left to read
            self._poller.rearm(self._socket, writes=bool(self._unsent))
        self._take(self._response, data, self._clock.arrived_ns(ancillary, self._receiver.sent_ns or 0, read_ns))

    def _take(self, response: Response, data: bytes, arrived_ns: int) -> None:
        try:
            response.feed(data, arrived_ns)
        except Exception as err:  # any fault concerns this response alone: events of other sockets must be served
            self._end(response, err)
            return
        if response.complete:
            self._end(response, None)
        elif self._receiver.is_done:
            if self._overdue is not response:
                self._overdue = response
                asyncio.get_running_loop().call_later(GRACE_S, self._end_open, response)
        elif (reader := self._poller.token_reader) and (template := response.template()):
            since_ns, last_ns = self._receiver.sent_ns or 0, response.last_arrival_ns
            reader.take_over(
                self._socket.fileno(), template.prefix, template.suffix, since_ns, last_ns, self._take_spilt
            )
            if template.keep:
                reader.keep_words(self._socket.fileno())
            self._lent = template

    def _end_open(self, response: Response) -> None:
        """End a response whose content is over and whose body is not."""
        if self._response is response:
            self._end(response, ServerDisconnectedError("the body does not end"))

    def _take_spilt(self, instants: bytes, data: bytes, arrived_ns: int, code: int) -> None:
        """Continue after the compiled reader, which read tokens at `instants` and then either other `data` or the end
        of the connection (`code` is its errno, or 0)."""
        template, self._lent = self._lent, None
        assert self._response and template
        self._response.add_tokens(template, instants)
        self._keep_words(template)
        if not data:
            self._lost(str(OSError(code, os.strerror(code))) if code else _ENDED)
            return
        if len(data) == READ_BYTES:
            self._poller.rearm(self._socket, writes=bool(self._unsent))
        if arrived_ns < 0:
            arrived_ns = self._clock.arrived_ns([], 0, monotonic_ns())
        self._take(self._response, data, arrived_ns)

    def _take_back(self) -> None:
        """Take reading back from the compiled reader, with the tokens that it has read."""
        if self._lent and self._response and self._poller.token_reader:
            template, self._lent = self._lent, None
            self._response.add_tokens(template, self._poller.token_reader.give_back(self._socket.fileno()))
            self._keep_words(template)

    def _keep_words(self, template: "TokenTemplate") -> None:
        """Hand over the bytes of the tokens that the compiled reader has read, if somebody wants their words."""
        if template.keep and self._poller.token_reader:
            template.keep(self._poller.token_reader.kept_words(self._socket.fileno()))

    def _lost(self, reason: str) -> None:
        if (response := self._response) is None:
            self._idle.remove(self)
            self.abort()
        elif response.eof():
            self._end(response, None)
        elif self._reused and not response.started:
            self._end(response, StaleError(reason))
        else:
            self._end(response, ServerDisconnectedError(reason))

    def _end(self, response: Response, error: Exception | None) -> None:
        on_done, self._on_done, self._response = self._on_done, _ignore, None
        if error or not response.keep_alive or self._unsent:
            self.abort()
        else:
            self._reused = True
            self._idle.append(self)
        on_done(error, response.last_arrival_ns)


_ENDED = "the server ended it"


def _ignore(_error: Exception | None, _last_arrival_ns: int) -> None:
    """Ignore the end of an exchange that was aborted."""
