"""Plain HTTP/1.1 connections, kept alive, on which every read is stamped before anything else is done with it."""

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from loadgen.answer import Answer, RequestError
from loadgen.clock import monotonic_ns
from loadgen.http1 import HTTPError, Response, Unusual
from loadgen.openai_api import ProtocolError
from loadgen.sse import SSEError

READ_BUFFER_BYTES = 256 << 10
_BUFFER = memoryview(bytearray(READ_BUFFER_BYTES))
"""One for all connections: a loop fills it and hands it over in one go."""

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
    """The connection ended before the answer did. `begun`: whether a byte of it had come."""

    def __init__(self, why: str, begun: bool) -> None:
        super().__init__(why)
        self.begun = begun


class Connection(asyncio.BufferedProtocol):
    """One request at a time."""

    def __init__(self, idle: "list[Connection]", sock: socket.socket) -> None:
        self._idle = idle
        self._socket = sock
        self._transport: asyncio.Transport
        self._response: Response | None = None
        self._over: asyncio.Future[None]

    async def ask(self, request: bytes, answer: Answer) -> None:
        """Sends; returns when the response is complete. ServerDisconnectedError when it never will be."""
        response = self._response = Response(answer)
        self._over = asyncio.get_running_loop().create_future()
        answer.sent_ns = monotonic_ns()
        self._write(request)
        try:
            await self._over
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._response = None
        if response.keep_alive and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self._idle.append(self)
        else:
            self._transport.abort()
        answer.end(response.last_read_ns)

    def abort(self) -> None:
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        """To the socket at once: a loop may keep a write back until its turn ends, and the stamp would be too early."""
        try:
            sent = self._socket.send(data)
        except OSError:  # full, or broken: the transport waits, or says so
            sent = 0
        if sent < len(data):
            self._transport.write(data[sent:])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        read_ns = monotonic_ns()
        if self._response is None or self._over.done():
            self._transport.abort()  # bytes that nobody asked for
            return
        try:
            self._response.feed(bytes(_BUFFER[:nbytes]), read_ns)
        except (HTTPError, Unusual, RequestError, ProtocolError, SSEError) as err:
            self._over.set_exception(err)
            return
        if self._response.complete:
            self._over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._response is None or self._over.done():
            return
        if self._response.eof():
            self._over.set_result(None)
        else:
            began = self._response.begun
            self._over.set_exception(ServerDisconnectedError(str(exc) if exc else "the server ended it", began))


class Wire:
    """Connections to one plain server. `headers` go with every request."""

    def __init__(self, base_url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(base_url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        fields = {name.lower(): f"{name}: {value}\r\n" for name, value in headers.items()}
        self._fields = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n" + "".join(fields.values())
        self._idle: list[Connection] = []
        self._addresses: list[tuple[socket.AddressFamily, tuple[object, ...]]] = []

    async def post(self, path: str, body: bytes, request_id: str, answer: Answer) -> None:
        """A second time when a pooled connection turns out to be dead before a byte of answer came.

        Servers close idle connections, and llama.cpp closes after every stream while announcing keep-alive.
        """
        head = f"POST {self._path}{path}{self._fields}X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode("ascii") + body
        if self._idle:
            connection = self._idle.pop()
            try:
                return await connection.ask(request, answer)
            except ServerDisconnectedError as err:
                if err.begun:
                    raise
        return await (await self._connect()).ask(request, answer)

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()

    async def _connect(self) -> Connection:
        """To the first address that takes us; addresses are looked up once, and again when none does."""
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [(family, address) for family, _, _, _, address in found]
        while True:
            family, address = self._addresses[0]
            try:
                return await self._connect_to(family, address)
            except OSError:  # others may have found the same meanwhile
                self._addresses = [other for other in self._addresses if other != (family, address)]
                if not self._addresses:
                    raise

    async def _connect_to(self, family: socket.AddressFamily, address: tuple[object, ...]) -> Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            _, connection = await loop.create_connection(lambda: Connection(self._idle, sock), sock=sock)
        except BaseException:
            sock.close()
            raise
        return connection
