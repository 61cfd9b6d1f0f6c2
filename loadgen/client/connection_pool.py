"""Kept-alive connections to one plain HTTP server."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from loadgen.client.connection import (
    Address,
    Connection,
    RefusedError,
    ServerDisconnectedError,
    StaleError,
    connect_failure,
)
from loadgen.client.http1 import Head, HTTPError
from loadgen.client.kernel_timestamps import ArrivalClock, enable_timestamps
from loadgen.client.socket_poller import SocketPoller
from loadgen.telemetry.traceparent import TRACEPARENT, traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.client.server_url import ServerURL
    from loadgen.client.surroundings import Proxy
    from loadgen.record import StampedBy

MAX_FETCHED_BYTES = 8 << 20

_OWN_FIELDS = {
    "accept-encoding", "connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade",
}  # fmt: skip
_FIELD = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+: *[\t\x20-\x7e]*")


def is_plain(url: ServerURL, headers: dict[str, str], proxy: Proxy | None) -> bool:
    """Return whether this package's own HTTP client suffices for the server: no TLS, no proxy, and no header that the
    client sets itself."""
    return (
        url.scheme == "http"
        and re.fullmatch(r"[A-Za-z0-9._:-]+", url.host) is not None
        and proxy is None
        and all(
            name.lower() not in _OWN_FIELDS and _FIELD.fullmatch(f"{name}: {value}") for name, value in headers.items()
        )
    )


def _field_lines(*headers: Mapping[str, str]) -> str:
    """Return header lines; a later header replaces an earlier one of the same name."""
    lines = {name.lower(): f"{name}: {value}\r\n" for group in headers for name, value in group.items()}
    return "".join(lines.values())


class FetchedPage(NamedTuple):
    """One page. A redirect is not followed: headers may hold keys, which are for the server that the user named."""

    status: int
    body: bytes
    location: str | None = None
    """URL that a redirect leads to."""


class _PageReceiver:
    """Collects the body of a response of limited size."""

    template = None
    is_done = False

    def __init__(self) -> None:
        self.sent_ns: int | None = None
        self.status = 0
        self.body = bytearray()

    def head(self, head: Head) -> None:
        self.status = head.status

    def feed(self, data: bytes, arrived_ns: int) -> None:
        self.body += data
        if len(self.body) > MAX_FETCHED_BYTES:
            raise HTTPError(f"a page of more than {MAX_FETCHED_BYTES} bytes")


def _settle(done: asyncio.Future[Exception | None], error: Exception | None, _last_arrival_ns: int) -> None:
    if not done.done():
        done.set_result(error)


class ConnectionPool:
    """Connections to one plain server. `headers` are part of every request."""

    def __init__(self, url: ServerURL, headers: dict[str, str]) -> None:
        self._url = url
        self._headers = headers
        self._first_fields = f" HTTP/1.1\r\nHost: {url.netloc}\r\n"
        self._fields = self._first_fields + _field_lines(headers)
        self._traced = TRACEPARENT not in {name.lower() for name in headers}
        """True if each request has a trace of its own: the user gives no `traceparent`."""
        self._poller: SocketPoller | None = None
        self._clock = ArrivalClock()
        self.addresses: list[Address] = []
        """Resolved addresses of the server that have not failed."""
        self._connections = 0
        """Connections that were begun."""
        self.idle: list[Connection] = []

    @property
    def stamped_by(self) -> StampedBy | None:
        """The source of arrival times; None before anything arrived."""
        return self._clock.stamped_by

    def request(self, path: str, body: bytes, request_id: str, headers: Mapping[str, str]) -> bytes:
        """Return the bytes of a POST request; `headers` are those of this request alone."""
        fields = self._fields if not headers else self._first_fields + _field_lines(self._headers, headers)
        traced = self._traced and TRACEPARENT not in headers
        trace = f"{TRACEPARENT}: {traceparent(request_id)}\r\n" if traced else ""
        head = (
            f"POST {self._url.target(path)}{fields}X-Request-Id: {request_id}\r\n{trace}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body

    async def resolve(self) -> None:
        """Look the server's addresses up. OSError: it has none."""
        loop = asyncio.get_running_loop()
        entries = await loop.getaddrinfo(self._url.host, self._url.port or 80, type=socket.SOCK_STREAM)
        self.addresses = [(family, address) for family, _, _, _, address in entries]

    def preferred(self) -> list[Address]:
        """Return the addresses of the first one's family: the other family often leads to the same servers, and is
        for when none of these is left."""
        return [address for address in self.addresses if address[0] == self.addresses[0][0]]

    def connect(self) -> Connection:
        """Return a new connection, perhaps still being established. OSError: no address can be reached.

        Connections go round over the addresses: behind a name with several there are often as many servers.
        """
        while True:
            preferred = self.preferred()
            address = preferred[self._connections % len(preferred)]
            try:
                connection = self._connect_to(address)
            except OSError:
                self._forget(address)
                if not self.addresses:
                    raise
            else:
                self._connections += 1
                return connection

    def _connect_to(self, address: Address) -> Connection:
        family, sockaddr = address
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_timestamps(sock)
            if (code := sock.connect_ex(sockaddr)) not in (0, errno.EINPROGRESS):
                raise OSError(code, connect_failure(code, address))
            self._poller = self._poller or SocketPoller()
            return Connection(sock, self._poller, self._clock, self.idle, address if code else None)
        except BaseException:
            sock.close()
            raise

    def can_retry(self, error: StaleError) -> bool:
        """Return whether a new connection may succeed after `error`: an address is left that has not refused."""
        if isinstance(error, RefusedError):
            self._forget(error.address)
        return bool(self.addresses)

    def _forget(self, address: Address) -> None:
        """Drop an address that failed; another exchange may have dropped it already."""
        self.addresses = [other for other in self.addresses if other != address]

    async def fetch(self, target: str, body: bytes | None) -> FetchedPage:
        """GET `target`, or POST `body` to it. OSError: no connection. HTTPError: the response is not HTTP. Unusual."""
        method, length = ("GET", "") if body is None else ("POST", f"Content-Length: {len(body)}\r\n")
        request = f"{method} {target}{self._fields}{length}\r\n".encode("ascii") + (body or b"")
        if not self.addresses:
            await self.resolve()
        while True:
            done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
            connection, page = self.idle.pop() if self.idle else self.connect(), _PageReceiver()
            connection.send(request, page, partial(_settle, done))
            try:
                error = await done
            except asyncio.CancelledError:
                connection.abort()
                raise
            if error is None:
                return FetchedPage(page.status, bytes(page.body))
            if isinstance(error, ServerDisconnectedError):
                raise HTTPError(str(error)) from error
            if not (isinstance(error, StaleError) and self.can_retry(error)):
                raise error

    def close(self) -> None:
        self.idle.clear()
        if self._poller:
            self._poller.close()
