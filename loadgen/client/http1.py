"""One HTTP/1.1 response, from bytes as they arrive (RFC 9112). No I/O. Strict: what is not plainly right is an error.

Only what a streaming API needs: interim responses are skipped, a body is chunked, of a known length, or ends with the
connection. What would need more (a redirect, a compressed body, a proxy's question) is `Unusual`: aiohttp can do it.
"""

import re
import sys
from functools import lru_cache
from typing import NamedTuple, Protocol

MAX_HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 4 << 10
"""Of a chunk's size line, and of all trailers together."""


class HTTPError(ValueError):
    """Bytes that are not an HTTP response."""


class Unusual(Exception):  # noqa: N818 - nothing is wrong
    """A response that this reader leaves to a complete HTTP client."""


class Head(NamedTuple):
    status: int
    reason: str
    content_type: str
    length: int | None
    """Of the body; None when it is chunked or ends with the connection."""
    chunked: bool
    keep_alive: bool


_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([^\r\n\0]*))?")
_FIELDS = re.compile(rb"(?:\r\n[!#-'*+\-.0-9A-Z^-z|~]++:[^\r\n\0]*+)*+\r\n\r\n")
_HEARD = re.compile(rb"\n(content-(?:type|length|encoding)|transfer-encoding|connection):([^\r]*)", re.IGNORECASE)
_LENGTH = re.compile(r"([0-9]{1,18})(?:, *\1)*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


@lru_cache(maxsize=16)  # a server that sends no date says the same every time, others for a second
def parse_head(raw: bytes) -> Head:
    """Status line and fields, blank line included."""
    end = raw.find(b"\r\n")
    if end < 0 or not _FIELDS.fullmatch(raw, end):
        raise HTTPError(f"not an HTTP response: {raw[:60]!r}")
    return _head(raw[:end], tuple(_HEARD.findall(raw, end)))


@lru_cache(maxsize=64)  # what is said of the body is the same again and again, request ids and dates apart
def _head(first: bytes, heard: tuple[tuple[bytes, bytes], ...]) -> Head:
    match = _STATUS.fullmatch(first)
    if match is None:
        raise HTTPError(f"not an HTTP response: {first[:60]!r}")
    minor, code, reason = match.groups()
    fields: dict[bytes, str] = {}
    for raw_name, value in heard:
        name, text = raw_name.lower(), value.strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {text}" if name in fields else text
    status = int(code)
    if (
        status == 101
        or 300 <= status < 400
        or status == 407
        or fields.get(b"content-encoding", "identity") != "identity"
    ):
        raise Unusual(f"status {status}")
    coding, length = fields.get(b"transfer-encoding", "").lower(), fields.get(b"content-length")
    if coding not in ("", "chunked"):
        raise Unusual(f"transfer-encoding {coding}")
    connection = fields.get(b"connection", "").lower()
    return Head(
        status=status,
        reason=(reason or b"").decode("latin-1"),
        content_type=fields.get(b"content-type", "").partition(";")[0].strip().lower(),
        length=None if coding or length is None else _length(length),
        chunked=bool(coding),
        keep_alive="close" not in connection
        and (minor == b"1" or "keep-alive" in connection)
        and not (coding and length),
    )


def _length(value: str) -> int:
    match = _LENGTH.fullmatch(value)
    if match is None:
        raise HTTPError(f"content-length {value[:40]!r}")
    return int(match[1])


@lru_cache(maxsize=4096)
def _size(line: bytes) -> int | None:
    """Of a chunk, by its first line."""
    match = _SIZE.fullmatch(line)
    return int(match[1], 16) if match else None


class Body(Protocol):
    """Who takes a response's body."""

    def head(self, head: Head) -> None:
        """Once, before the rest."""

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """The next bytes of the body."""

    def frames(self, data: bytes, at: int, arrived_ns: int) -> int:
        """May take whole chunks of `data` from `at` on itself; gives the position of the first that it leaves."""

    def around_token(self) -> tuple[bytes, bytes] | None:
        """What is before and after the text of a chunk, its CRLF included, that is one more token whatever the text, if
        such chunks are known and one may come next."""

    def tokens(self, instants: bytes) -> None:
        """Takes tokens of that kind that were read elsewhere: when each came, as int64."""


class Response:
    """Feed it what was read; it tells `body`. Raises HTTPError, Unusual, and what `body` raises."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._rest = b""
        self._left = 0
        self._take = Response._take_head
        self.keep_alive = False
        self.begun = False
        """Whether a byte of it has come."""
        self.complete = False
        self.last_arrival_ns = 0

    def feed(self, data: bytes, arrived_ns: int) -> None:
        self.begun = True
        self.last_arrival_ns = arrived_ns = max(arrived_ns, self.last_arrival_ns)  # two clocks: ns of jitter
        if self._take is Response._take_size and not self._rest:
            if (at := self._body.frames(data, 0, arrived_ns)) == len(data):
                return  # as most reads of a stream
            data = data[at:]
        rest: bytes | None = self._rest + data if self._rest else data
        self._rest = b""
        while rest:
            if self.complete:
                self.keep_alive = False  # bytes that nobody asked for: do not trust what comes next
                return
            before, take = rest, self._take
            rest = take(self, rest, arrived_ns)
            if rest is None:  # it needs more
                self._rest = before
                return

    def around_token(self) -> tuple[bytes, bytes] | None:
        """As of the body, if a chunk may begin now."""
        return self._body.around_token() if self._take is Response._take_size and not self._rest else None

    def tokens(self, instants: bytes) -> None:
        """The body's, which were read elsewhere."""
        if instants:
            self.last_arrival_ns = int.from_bytes(instants[-8:], sys.byteorder)
            self._body.tokens(instants)

    def eof(self) -> bool:
        """The connection has ended: whether that is a proper end of the body."""
        if self._take is Response._take_until_eof:
            self.complete = True
        return self.complete

    def _take_head(self, data: bytes, arrived_ns: int) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD_BYTES or not (data.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(data[:7])):
                raise HTTPError(f"not an HTTP response: {data[:60]!r}")
            if b"\n\n" in data:
                raise Unusual("lines of the head end in LF")
            return None
        head = parse_head(data[: end + 4])
        if head.status < 200:
            return data[end + 4 :]
        self.keep_alive = head.keep_alive
        if head.chunked:
            self._take = Response._take_size
        elif head.length is not None or head.status == 204:
            self._left = head.length or 0
            self._take = Response._take_length
            self.complete = self._left == 0
        else:
            self.keep_alive = False
            self._take = Response._take_until_eof
        self._body.head(head)
        return data[end + 4 :]

    def _take_length(self, data: bytes, arrived_ns: int) -> bytes:
        piece = data[: self._left]
        self._left -= len(piece)
        self._body.feed(piece, arrived_ns)
        self.complete = self._left == 0
        return data[len(piece) :]

    def _take_until_eof(self, data: bytes, arrived_ns: int) -> bytes:
        self._body.feed(data, arrived_ns)
        return b""

    def _take_size(self, data: bytes, arrived_ns: int) -> bytes | None:
        body, at, total = self._body, 0, len(data)
        while (at := body.frames(data, at, arrived_ns)) < total:
            end = data.find(b"\r\n", at, at + MAX_LINE_BYTES)
            if end < 0:
                if total - at >= MAX_LINE_BYTES or _SIZE.match(data[at:].rstrip(b"\r") or b"0") is None:
                    raise HTTPError(f"chunk size {data[at : at + 40]!r}")
                self._rest = data[at:]
                return b""
            size, start = _size(data[at:end]), end + 2
            if size is None:
                raise HTTPError(f"chunk size {data[at : min(end, at + 40)]!r}")
            if size == 0:
                self._take = Response._take_trailers
                return data[end:]
            stop = start + size
            if not data.startswith(b"\r\n", stop):
                self._left = size
                self._take = Response._take_chunk
                return data[start:]
            body.feed(data[start:stop], arrived_ns)
            at = stop + 2
        return b""

    def _take_chunk(self, data: bytes, arrived_ns: int) -> bytes:
        """A chunk of which not all is here: its bytes are news as they come."""
        piece = data[: self._left]
        self._left -= len(piece)
        if self._left == 0:
            self._take = Response._take_chunk_end
        self._body.feed(piece, arrived_ns)
        return data[len(piece) :]

    def _take_chunk_end(self, data: bytes, arrived_ns: int) -> bytes | None:
        if data[:2] == b"\r\n":
            self._take = Response._take_size
            return data[2:]
        if data == b"\r":
            return None
        raise HTTPError(f"a chunk longer than its size: {data[:40]!r}")

    def _take_trailers(self, data: bytes, arrived_ns: int) -> bytes | None:
        """From the CRLF before them, so that no trailers at all look like some."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_LINE_BYTES:
                raise HTTPError("trailers without an end")
            return None
        self.complete = True
        return data[end + 4 :]
