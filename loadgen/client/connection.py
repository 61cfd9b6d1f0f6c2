"""Plain HTTP/1.1 connections, kept alive. All that comes in on them has the instant at which it arrived."""

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from loadgen.client.http1 import Body, Head, HTTPError, Response
from loadgen.client.openai_api import ProtocolError
from loadgen.client.socket_poller import ENDED, ROOM_FOR_A_STAMP, WRITE, ArrivalClock, Sockets
from loadgen.client.sse import SSEError
from loadgen.client.stream import RequestError
from loadgen.clock import monotonic_ns
from loadgen.record import StampedBy

READ_BYTES = 64 << 10

Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_OURS = {"accept-encoding", "connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"}
_FIELD = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+: *[\t\x20-\x7e]*")


def plain(base_url: str, headers: dict[str, str]) -> bool:
    """Whether nothing about this server needs a complete HTTP client: no TLS, proxy, login in the URL or odd header."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return (
        parts.scheme == "http"
        and re.fullmatch(r"[A-Za-z0-9._:-]+", host) is not None
        and "@" not in parts.netloc
        and re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path) is not None
        and not parts.query
        and not parts.fragment
        and ("http" not in getproxies() or bool(proxy_bypass(host)))
        and not netrc.exists()
        and all(name.lower() not in _OURS and _FIELD.fullmatch(f"{name}: {value}") for name, value in headers.items())
    )


class ServerDisconnectedError(ConnectionError):
    """The connection ended before the answer did."""


class StaleError(ConnectionError):
    """A connection of no use, found so before a byte of an answer came: another one may do better."""


class RefusedError(StaleError):
    """Nobody took the connection at that address."""


Over = Callable[[Exception | None], None]
"""Told once how an exchange ended: None is well."""


class Asked(Body, Protocol):
    """Who an answer is for."""

    sent_ns: int | None

    def end(self, arrived_ns: int) -> None:
        """It is all there."""


class Connection:
    """One request at a time."""

    __slots__ = ("_answer", "_connecting", "_lent", "_over", "_pooled", "_receive", "_response", "_socket", "_sockets",
                 "_unsent", "_wire")  # fmt: skip

    def __init__(
        self, wire: "ConnectionPool", sock: socket.socket, sockets: Sockets, connecting: Address | None
    ) -> None:
        """`connecting`: where to, if that is still going on."""
        self._wire, self._socket, self._sockets, self._connecting = wire, sock, sockets, connecting
        self._receive = sock.recvmsg
        self._unsent: bytes | memoryview = b""
        self._answer: Asked
        self._over: Over = _nobody
        self._response: Response | None = None
        self._lent = False
        """Whether `Sockets.tokens` reads the tokens that come."""
        self._pooled = False
        """Whether it has been idle: the other side may have closed it since."""
        sockets.watch(sock, self._ready, writes=connecting is not None)

    def ask(self, request: bytes, answer: Asked, over: Over) -> None:
        """Sends, and comes back at once. `over` gets what the response or the connection is wrong with, an answer cut
        short included (ServerDisconnectedError)."""
        self._answer, self._over = answer, over
        self._response = Response(answer)
        if self._connecting:
            self._unsent = request
        else:
            answer.sent_ns = monotonic_ns()
            self._send(request)

    def abort(self) -> None:
        """Of an exchange in progress nothing is told any more."""
        self._take_back()
        self._over, self._response = _nobody, None
        self._sockets.close_one(self._socket)

    def _send(self, data: bytes | memoryview) -> None:
        """As much as the socket takes; the rest when it takes more. That it is broken is found when it is read."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)
        unsent = memoryview(data)[sent:] if sent < len(data) else b""
        if bool(unsent) != bool(self._unsent):
            self._sockets.again(self._socket, writes=bool(unsent))
        self._unsent = unsent

    def _connected(self, address: Address) -> bool:
        """It has been tried."""
        if err := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            over = self._over
            self.abort()
            self._wire.forget(address)
            over(RefusedError(err, _failed(err, address)))
            return False
        self._connecting = None
        self._answer.sent_ns = monotonic_ns()
        return True

    def _ready(self, events: int) -> None:
        self._take_back()
        if self._connecting and not self._connected(self._connecting):
            return
        if events & WRITE and self._unsent:
            self._send(self._unsent)
        try:
            data, ancillary, _, _ = self._receive(READ_BYTES, ROOM_FOR_A_STAMP)
        except BlockingIOError:
            return
        except OSError as err:
            self._lost(str(err))
            return
        read_ns = monotonic_ns()
        if not data or self._response is None:
            self._lost(_ENDED)  # or it sent bytes that nobody asked for
            return
        if events & ENDED or len(data) == READ_BYTES:  # more may be left to read
            self._sockets.again(self._socket, writes=bool(self._unsent))
        self._took(self._response, data, self._wire.clock.arrived_ns(ancillary, self._answer.sent_ns or 0, read_ns))

    def _took(self, response: Response, data: bytes, arrived_ns: int) -> None:
        try:
            response.feed(data, arrived_ns)
        except Exception as err:  # whatever it is, it is this answer's alone: the other sockets are not told again
            self._end(response, err)
            return
        if response.complete:
            self._end(response, None)
        elif (tokens := self._sockets.tokens) and (around := response.around_token()):
            since_ns, last_ns = self._answer.sent_ns or 0, response.last_arrival_ns
            tokens.take_over(self._socket.fileno(), *around, since_ns, last_ns, self._spilt)
            self._lent = True

    def _spilt(self, instants: bytes, data: bytes, arrived_ns: int, err: int) -> None:
        """Tokens were read, and now something else, or the connection broke: reading is ours again."""
        self._lent = False
        assert self._response is not None
        self._response.tokens(instants)
        if not data:
            self._lost(str(OSError(err, os.strerror(err))) if err else _ENDED)
            return
        if len(data) == READ_BYTES:
            self._sockets.again(self._socket, writes=bool(self._unsent))
        if arrived_ns < 0:
            arrived_ns = self._wire.clock.arrived_ns([], 0, monotonic_ns())
        self._took(self._response, data, arrived_ns)

    def _take_back(self) -> None:
        if self._lent and self._response and self._sockets.tokens:
            self._lent = False
            self._response.tokens(self._sockets.tokens.give_back(self._socket.fileno()))

    def _lost(self, why: str) -> None:
        if (response := self._response) is None:
            self._wire.idle_ones.remove(self)
            self.abort()
        elif response.eof():
            self._end(response, None)
        elif self._pooled and not response.begun:
            self._end(response, StaleError(why))
        else:
            self._end(response, ServerDisconnectedError(why))

    def _end(self, response: Response, err: Exception | None) -> None:
        over, self._over, self._response = self._over, _nobody, None
        if err or not response.keep_alive or self._unsent:
            self.abort()
        else:
            self._pooled = True
            self._wire.idle_ones.append(self)
        if err is None:
            try:
                self._answer.end(response.last_arrival_ns)
            except (RequestError, ProtocolError, SSEError) as problem:
                err = problem
        over(err)


_ENDED = "the server ended it"


def _nobody(_: Exception | None) -> None:
    """Who an aborted exchange is told to."""


def _settle(over: "asyncio.Future[None]", err: Exception | None) -> None:
    if err:
        over.set_exception(err)
    else:
        over.set_result(None)


MAX_PAGE_BYTES = 8 << 20


class FetchedPage(NamedTuple):
    status: int
    body: bytes


class _Reader:
    """Puts a page together."""

    def __init__(self) -> None:
        self.sent_ns: int | None = None
        self.status = 0
        self.body = bytearray()

    def head(self, head: Head) -> None:
        self.status = head.status

    def feed(self, data: bytes, arrived_ns: int) -> None:
        self.body += data
        if len(self.body) > MAX_PAGE_BYTES:
            raise HTTPError(f"a page of more than {MAX_PAGE_BYTES} bytes")

    def frames(self, data: bytes, at: int, arrived_ns: int) -> int:
        return at

    def around_token(self) -> None:
        return None

    def tokens(self, instants: bytes) -> None:
        pass

    def end(self, arrived_ns: int) -> None:
        pass


class ConnectionPool:
    """Connections to one plain server. `headers` go with every request."""

    def __init__(self, base_url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(base_url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        fields = {name.lower(): f"{name}: {value}\r\n" for name, value in headers.items()}
        self._fields = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n" + "".join(fields.values())
        self._sockets: Sockets | None = None
        self.addresses: list[Address] = []
        """Where the server is, as far as that is known and has not proved wrong."""
        self.idle_ones: list[Connection] = []
        self.clock = ArrivalClock()

    def request(self, path: str, body: bytes, request_id: str) -> bytes:
        """The bytes of a POST."""
        head = f"POST {self._path}{path}{self._fields}X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode("ascii") + body

    async def fetch(self, path: str, body: bytes | None) -> FetchedPage:
        """GET, or POST. OSError: nobody is there. HTTPError: what answers does not do so in HTTP. Unusual."""
        method, length = ("GET", "") if body is None else ("POST", f"Content-Length: {len(body)}\r\n")
        request = f"{method} {path}{self._fields}{length}\r\n".encode("ascii") + (body or b"")
        if not self.addresses:
            await self.look_up()
        while True:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            connection, page = self.idle() or self.connect(), _Reader()
            connection.ask(request, page, partial(_settle, over))
            try:
                await over
            except StaleError:
                if not self.addresses:
                    raise
            except ServerDisconnectedError as err:
                raise HTTPError(str(err)) from err
            except asyncio.CancelledError:
                connection.abort()
                raise
            else:
                return FetchedPage(page.status, bytes(page.body))

    async def look_up(self) -> None:
        """Finds the addresses. OSError: there are none."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self.addresses = [(family, address) for family, _, _, _, address in found]

    def forget(self, address: Address) -> None:
        """Nobody answers there. Others may have found the same before."""
        self.addresses = [other for other in self.addresses if other != address]

    def idle(self) -> Connection | None:
        """Takes a connection from the pool."""
        return self.idle_ones.pop() if self.idle_ones else None

    def connect(self) -> Connection:
        """A new connection, to the first address. OSError when it cannot even be tried."""
        address = family, where = self.addresses[0]
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clock.start(sock)
            if (err := sock.connect_ex(where)) not in (0, errno.EINPROGRESS):
                self.forget(address)
                raise OSError(err, _failed(err, address))
            self._sockets = self._sockets or Sockets()
            return Connection(self, sock, self._sockets, address if err else None)
        except BaseException:
            sock.close()
            raise

    @property
    def stamped_by(self) -> StampedBy | None:
        """None before anything came."""
        return self.clock.stamped_by

    def close(self) -> None:
        self.idle_ones.clear()
        if self._sockets:
            self._sockets.close()


def _failed(err: int, address: Address) -> str:
    return f"{os.strerror(err)}: {address[1][:2]}"
