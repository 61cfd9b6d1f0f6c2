"""One HTTP/1.1 response from a blocking socket, read within limits of time and size.

http.client makes an e-mail message of each head, which takes more CPU than the rest of a request. Here only the status
and the framing of the body are parsed, and the other fields are kept as they arrive, so that a server whose fields are
malformed can be read. `loadgen.client.http1` is strict, since aiohttp can take what it refuses.
"""

from __future__ import annotations

import http.client
import re
import select
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket

MAX_HEAD_BYTES = 1 << 16
"""Limit of a head, of a line of a chunked body, and of its trailers."""
MAX_INTERIM = 100
"""Limit of the interim responses before the final one."""
_PART_BYTES = 1 << 16

_LINE_END, _HEAD_END = re.compile(rb"\n"), re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) +([1-5][0-9][0-9])\b[^\n]*\n")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding|connection)[ \t]*:[ \t]*([^\r\n]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}[ \t]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*[;\r\n]")


class Incoming:
    """The bytes that a socket receives, with one limit for all waits: a server that sends a byte now and then does not
    hold up the caller."""

    def __init__(self, connection: socket.socket, wait_s: float) -> None:
        """wait_s: limit of each wait."""
        self._connection, self._wait_s = connection, wait_s
        self._pending = b""
        self.end_s = 0.0
        """Instant at which the last wait ends, by `monotonic`."""
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)

    @property
    def is_ready(self) -> bool:
        """True if there are bytes, or the connection has ended. Before a request that means that the server sent more
        than a response: it would be taken for the response to the next request."""
        return bool(self._pending or self._ready.poll(0))

    def some(self) -> bytes:
        """Return the next bytes; none at the end of the connection."""
        if self._pending:
            pending, self._pending = self._pending, b""
            return pending
        if (remaining_s := self.end_s - monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(min(self._wait_s, remaining_s))
        return self._connection.recv(_PART_BYTES)

    def until(self, end: re.Pattern[bytes]) -> bytes:
        """Return the bytes up to this end, inclusive; none if the connection ended before the first of them."""
        data = self.some()
        while data and not (match := end.search(data)):
            if len(data) > MAX_HEAD_BYTES:
                raise http.client.HTTPException("a head without an end")
            if not (more := self.some()):
                raise http.client.IncompleteRead(data)
            data += more
        if data and match:
            data, self._pending = data[: match.end()], data[match.end() :]
        return data

    def parts(self, length: int | None) -> Iterator[bytes]:
        """Yield `length` bytes as they arrive. None: all until the end of the connection."""
        while length is None or length > 0:
            part = self.some()
            if not part:
                if length is not None:
                    raise http.client.IncompleteRead(part, length)
                return
            if length is not None:
                part, self._pending = part[:length], part[length:]
                length -= len(part)
            yield part


class Framing(NamedTuple):
    """The status of a response, and where its body ends (RFC 9112, 6.3)."""

    status: int
    chunked: bool
    length: int | None
    """Bytes of the body; None when it is chunked or ends with the connection."""
    persistent: bool
    """True if the connection can be used for another request."""

    def parts(self, incoming: Incoming) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        if not self.chunked:
            yield from incoming.parts(self.length)
            return
        while True:
            size = _SIZE.match(line := incoming.until(_LINE_END))
            if size is None:
                raise http.client.HTTPException(f"a chunk's size {line[:40]!r}")
            if (length := int(size[1], 16)) == 0:
                break
            yield from incoming.parts(length)
            if incoming.until(_LINE_END) not in (b"\r\n", b"\n"):
                raise http.client.HTTPException("a chunk longer than its size")
        trailers = 0
        while (line := incoming.until(_LINE_END)) not in (b"\r\n", b"\n"):
            trailers += len(line)
            if not line or trailers > MAX_HEAD_BYTES:
                raise http.client.HTTPException("trailers without an end")


def read_head(incoming: Incoming) -> tuple[Framing, bytes]:
    """Read the head of a response, and return its framing and its fields. Interim responses are skipped."""
    for _ in range(MAX_INTERIM):
        if not (head := incoming.until(_HEAD_END)):
            raise http.client.RemoteDisconnected("the server closed the connection without a response")
        status_line = _STATUS.match(head)
        if status_line is None:
            raise http.client.BadStatusLine(repr(head[:60]))
        fields, status = head[status_line.end() :], int(status_line[2])
        if status >= 200:
            return framing_of(status, status_line[1], fields), fields
    raise http.client.HTTPException("interim responses without an end")


def framing_of(status: int, minor: bytes, fields: bytes) -> Framing:
    """Return the framing of the body. minor: of the HTTP version; before 1.1 a connection ends with its body."""
    values = {name.lower(): value for name, value in _FRAMING.findall(fields)}
    chunked, length = b"chunked" in values.get(b"transfer-encoding", b"").lower(), None
    if status in (204, 304):
        length = 0
    elif not chunked and (digits := values.get(b"content-length")) is not None:
        if not _LENGTH.fullmatch(digits):
            raise http.client.HTTPException(f"content-length {digits[:40]!r}")
        length = int(digits)
    stays = minor == b"1" and b"close" not in values.get(b"connection", b"").lower()
    return Framing(status, chunked, length, stays and (chunked or length is not None))
