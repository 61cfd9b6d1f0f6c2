"""One HTTP/1.1 response, parsed from bytes as they arrive (RFC 9112). No I/O.

The parser is strict: whatever is not plainly right is an error. It supports only what a streaming API needs: interim
responses are skipped, and a body is chunked, of a given length, or ends with the connection. A response that needs more
(a redirect, a compressed body, a proxy's challenge) is `Unusual`; aiohttp can handle it.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from loadgen.client.token_template import TokenTemplate

MAX_HEAD_BYTES = 64 << 10
MAX_FRAMING_BYTES = 4 << 10
"""Limit of a chunk's size line, and of all trailers together."""


class HTTPError(ValueError):
    """Bytes that are not an HTTP response."""


class Unusual(Exception):  # noqa: N818 - nothing is wrong
    """A response that this parser leaves to a complete HTTP client."""


class Head(NamedTuple):
    """Status line and fields of a response, as far as the client needs them."""

    status: int
    reason: str
    content_type: str
    """Lower case, without parameters; empty if the response has none."""
    length: int | None
    """Bytes of the body; None when it is chunked or ends with the connection."""
    chunked: bool
    keep_alive: bool
    fields: bytes = b""
    """The fields as they came, each after its CRLF."""


_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([^\r\n\0]*))?")
# The group is not repeated by *+: that does not match before Python 3.11.5, and Debian 12 has 3.11.2 (CPython 106052).
_FIELDS = re.compile(rb"(?:\r\n[!#-'*+\-.0-9A-Z^-z|~]++:[^\r\n\0]*+)*\r\n\r\n")
_BODY_FIELD = re.compile(rb"\n(content-(?:type|length|encoding)|transfer-encoding|connection):([^\r]*)", re.IGNORECASE)
_LENGTH = re.compile(r"([0-9]{1,18})(?:, *\1)*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


@lru_cache(maxsize=16)  # without a Date field the head of a server never changes, with one only once a second
def parse_head(raw: bytes) -> Head:
    """Parse status line and fields, blank line included. Raises HTTPError and Unusual."""
    status_line = raw.partition(b"\r\n")[0]
    end = len(status_line)
    if not _FIELDS.fullmatch(raw, end):
        raise HTTPError(f"not an HTTP response: {raw[:60]!r}")
    return _parse_relevant(status_line, tuple(_BODY_FIELD.findall(raw, end)))._replace(fields=raw[end:])


@lru_cache(maxsize=64)  # apart from request ids and dates, heads repeat
def _parse_relevant(status_line: bytes, body_fields: tuple[tuple[bytes, bytes], ...]) -> Head:
    """Parse the parts of a head that describe the body and the connection."""
    match = _STATUS.fullmatch(status_line)
    if match is None:
        raise HTTPError(f"not an HTTP response: {status_line[:60]!r}")
    minor, code, reason = match.groups()
    fields: dict[bytes, str] = {}
    for raw_name, value in body_fields:
        name, text = raw_name.lower(), value.strip(b" \t").decode("latin-1")
        fields[name] = f"{fields[name]}, {text}" if name in fields else text
    status = int(code)
    compressed = fields.get(b"content-encoding", "identity") != "identity"
    if status in (101, 407) or 300 <= status < 400 or compressed:
        raise Unusual(f"status {status}")
    coding, length = fields.get(b"transfer-encoding", "").lower(), fields.get(b"content-length")
    if coding not in ("", "chunked"):
        raise Unusual(f"transfer-encoding {coding}")
    connection = fields.get(b"connection", "").lower()
    persistent = "close" not in connection and (minor == b"1" or "keep-alive" in connection)
    return Head(
        status=status,
        reason=(reason or b"").decode("latin-1"),
        content_type=fields.get(b"content-type", "").partition(";")[0].strip().lower(),
        length=None if coding or length is None else _parse_length(length),
        chunked=bool(coding),
        keep_alive=persistent and not (coding and length),  # both: a sign of request smuggling (RFC 9112, 6.3)
    )


def _parse_length(value: str) -> int:
    """Parse a Content-Length, which may be a list of equal values (RFC 9110, 8.6)."""
    match = _LENGTH.fullmatch(value)
    if match is None:
        raise HTTPError(f"content-length {value[:40]!r}")
    return int(match[1])


@lru_cache(maxsize=4096)
def _chunk_size(line: bytes) -> int | None:
    """Return the size that a chunk's first line gives, without its CRLF; None if it gives none."""
    match = _SIZE.fullmatch(line)
    return int(match[1], 16) if match else None


class Body(Protocol):
    """The receiver of a response."""

    @property
    def template(self) -> TokenTemplate | None:
        """Takes whole chunks that are tokens in place of `feed`; None if no such chunk is known or may come next."""

    @property
    def is_done(self) -> bool:
        """True once the body needs no more bytes, though it may go on."""

    def head(self, head: Head) -> None:
        """Take the head, once, before the rest."""

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """Take the next bytes of the body."""


class Response:
    """Parser of one response. Feed it what was read; it feeds `body`. Raises HTTPError, Unusual, and what `body`
    raises."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pending = b""
        """Bytes of an incomplete element, parsed again together with those that follow."""
        self._remaining = 0
        """Bytes that the body, or the current chunk, still lacks."""
        self._parse = Response._parse_head
        self.keep_alive = False
        self.started = False
        """True once a byte of it has arrived."""
        self.complete = False
        self.last_arrival_ns = 0

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """Take the bytes of one read, which arrived at `arrived_ns`."""
        self.started = True
        self.last_arrival_ns = arrived_ns = max(arrived_ns, self.last_arrival_ns)  # two clocks: ns of jitter
        if self._parse is Response._parse_chunks and not self._pending and (template := self._body.template):
            if (start := template.skip(data, 0, arrived_ns)) == len(data):
                return  # true of most reads of a stream
            data = data[start:]
        unparsed: bytes | None = self._pending + data if self._pending else data
        self._pending = b""
        while unparsed:
            if self.complete:
                self.keep_alive = False  # more bytes than were requested: do not trust the connection
                return
            element, parse = unparsed, self._parse
            unparsed = parse(self, element, arrived_ns)
            if unparsed is None:  # the element is incomplete
                self._pending = element
                return

    def template(self) -> TokenTemplate | None:
        """Return the body's template if a chunk may begin with the next byte."""
        return self._body.template if self._parse is Response._parse_chunks and not self._pending else None

    def add_tokens(self, template: TokenTemplate, instants: bytes) -> None:
        """Take tokens of `template` that were read elsewhere: their arrival times as int64."""
        if instants:
            self.last_arrival_ns = int.from_bytes(instants[-8:], sys.byteorder)
            template.extend(instants)

    def eof(self) -> bool:
        """Take the end of the connection; return whether it is a proper end of the body."""
        if self._parse is Response._parse_until_eof:
            self.complete = True
        return self.complete

    # Each parser takes unparsed bytes and returns what it leaves of them, or None if it needs more to do anything.

    def _parse_head(self, data: bytes, arrived_ns: int) -> bytes | None:
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
            self._parse = Response._parse_chunks
        elif head.length is not None or head.status == 204:
            self._remaining = head.length or 0
            self._parse = Response._parse_length
            self.complete = self._remaining == 0
        else:
            self.keep_alive = False
            self._parse = Response._parse_until_eof
        self._body.head(head)
        return data[end + 4 :]

    def _parse_length(self, data: bytes, arrived_ns: int) -> bytes:
        piece = data[: self._remaining]
        self._remaining -= len(piece)
        self._body.feed(piece, arrived_ns)
        self.complete = self._remaining == 0
        return data[len(piece) :]

    def _parse_until_eof(self, data: bytes, arrived_ns: int) -> bytes:
        self._body.feed(data, arrived_ns)
        return b""

    def _parse_chunks(self, data: bytes, arrived_ns: int) -> bytes | None:
        body, start, total = self._body, 0, len(data)
        while True:
            if template := body.template:
                start = template.skip(data, start, arrived_ns)
            if start == total:
                return b""
            end = data.find(b"\r\n", start, start + MAX_FRAMING_BYTES)
            if end < 0:
                if total - start >= MAX_FRAMING_BYTES or _SIZE.match(data, start) is None:
                    raise HTTPError(f"chunk size {data[start : start + 40]!r}")
                self._pending = data[start:]
                return b""
            size, first = _chunk_size(data[start:end]), end + 2
            if size is None:
                raise HTTPError(f"chunk size {data[start : min(end, start + 40)]!r}")
            if size == 0:
                self._parse = Response._parse_trailers
                return data[end:]
            stop = first + size
            if not data.startswith(b"\r\n", stop):
                self._remaining = size
                self._parse = Response._parse_partial_chunk
                return data[first:]
            body.feed(data[first:stop], arrived_ns)
            start = stop + 2

    def _parse_partial_chunk(self, data: bytes, arrived_ns: int) -> bytes:
        """Feed what is there of a chunk: its bytes must not wait for its end."""
        piece = data[: self._remaining]
        self._remaining -= len(piece)
        if self._remaining == 0:
            self._parse = Response._parse_chunk_end
        self._body.feed(piece, arrived_ns)
        return data[len(piece) :]

    def _parse_chunk_end(self, data: bytes, arrived_ns: int) -> bytes | None:
        if data[:2] == b"\r\n":
            self._parse = Response._parse_chunks
            return data[2:]
        if data == b"\r":
            return None
        raise HTTPError(f"a chunk longer than its size: {data[:40]!r}")

    def _parse_trailers(self, data: bytes, arrived_ns: int) -> bytes | None:
        """Parse from the CRLF of the last size line on, so that an empty trailer section ends like any other."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_FRAMING_BYTES:
                raise HTTPError("trailers without an end")
            return None
        self.complete = True
        return data[end + 4 :]
