"""Small blocking HTTP requests with limits on time and size.

Connections and exceptions are those of http.client, whose parser makes an e-mail message of every head: that costs more
than the rest of a read. Pages are read several times a second, and a head says nothing that is needed but its status
and where the body ends.
"""

from __future__ import annotations

import base64
import http.client
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError, NoAnswerError

if TYPE_CHECKING:
    import socket
    from email.message import Message

TIMEOUT_S = 2.0
"""Limit of each wait for the server: to connect, and for the next bytes."""
MAX_WAITS = 10
"""A whole response may take as many times as long."""
MAX_BODY_BYTES = 8 << 20
_PART_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 16
"""Limit of a head, and of a line or the trailers of a chunked body."""
MAX_INTERIM = 100
"""Interim responses before one that counts."""

_TARGET = re.compile(r"/[!-~]*")
_FIELD = re.compile(r"[!-9;-~]+: [\t -~\xa0-\xff]*")
_LINE_END, _HEAD_END = re.compile(rb"\n"), re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) +([1-5][0-9][0-9])\b[^\n]*\n")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding|connection)[ \t]*:[ \t]*([^\r\n]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}[ \t]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*[;\r\n]")


REQUEST_ERRORS = (OSError, http.client.HTTPException)
"""The exceptions that a request may raise."""


class HttpResponse(NamedTuple):
    """One response, and when its request was sent and its head received."""

    status: int
    fields: bytes
    """The fields of its head, as they came."""
    body: bytes
    sent_ns: int
    received_ns: int

    @property
    def headers(self) -> Message:
        """The fields by name."""
        return message_from_bytes(self.fields)


class BodyTooLargeError(http.client.HTTPException):
    """A body that exceeds the client's limit."""


class Incoming:
    """The bytes that a socket receives until an instant: a server that sends one now and then does not hold the
    caller."""

    def __init__(self, connection: socket.socket, wait_s: float) -> None:
        """wait_s: limit of each wait."""
        self._connection, self._wait_s = connection, wait_s
        self._pending = b""
        self.end_s = 0.0
        """Limit of all waits, by `monotonic`."""

    def some(self) -> bytes:
        """Return the next bytes; none at the end of the connection."""
        if self._pending:
            pending, self._pending = self._pending, b""
            return pending
        if (left_s := self.end_s - monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(min(self._wait_s, left_s))
        return self._connection.recv(_PART_BYTES)

    def until(self, end: re.Pattern[bytes]) -> bytes:
        """Return the bytes up to and with this end; none if the connection ended before them."""
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
        """Yield so many bytes as they come; None: up to the end of the connection."""
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


class HttpClient:
    """One kept-alive connection to an http(s) server. No redirects, no proxies."""

    def __init__(
        self,
        parts: SplitResult,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        verify: bool = True,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        """`parts` gives scheme, host and port; its path is not used. `headers` are part of every request. verify: False
        for a server whose certificate nobody signed."""
        self._headers = dict(headers or {})
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._timeout_s = timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = None if verify else _unverified()
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
        self._address = parts.netloc.rpartition("@")[2]
        self._incoming: Incoming
        """The bytes that the open connection receives."""

    def request(self, method: str, path: str, body: bytes | None = None) -> HttpResponse:
        """Send a request and read its response. Raises REQUEST_ERRORS, BodyTooLargeError among them; the connection is
        then closed, and the next request opens another."""
        try:
            if not _TARGET.fullmatch(path):
                raise ValueError
            length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
            request = f"{method} {path} HTTP/1.1\r\n".encode() + self._fields + length + b"\r\n" + (body or b"")
            if self._connection.sock is None:
                self._open()
            self._connection.sock.settimeout(self._timeout_s)
            sent_ns = self._clock()
            self._connection.sock.sendall(request)
            self._incoming.end_s = monotonic() + MAX_WAITS * self._timeout_s
            framing, fields = read_head(self._incoming)
            received_ns = self._clock()
            content = self._body(framing.parts(self._incoming))
        except REQUEST_ERRORS:
            self.close()
            raise
        except ValueError:
            self.close()
            raise http.client.InvalidURL("a host, path or header that cannot be sent") from None  # its text has them
        if not framing.persistent:
            self.close()
        return HttpResponse(framing.status, fields, content, sent_ns, received_ns)

    def _open(self) -> None:
        self._connection.connect()
        self._incoming = Incoming(self._connection.sock, self._timeout_s)

    @cached_property
    def _fields(self) -> bytes:
        """Return the fields that all requests have. Raises ValueError when they cannot be sent."""
        fields = {"Host": self._address.encode("idna").decode(), "Accept-Encoding": "identity", **self._headers}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        if not all(map(_FIELD.fullmatch, lines)):
            raise ValueError
        return "\r\n".join((*lines, "")).encode("latin-1")

    def _body(self, parts: Iterator[bytes]) -> bytes:
        """Read a body within the limit of its size."""
        body = bytearray()
        for part in parts:
            body += part
            if len(body) > self._max_body_bytes:
                raise BodyTooLargeError(f"more than {self._max_body_bytes >> 20} MiB")
        return bytes(body)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()


class Framing(NamedTuple):
    """The status of a response, and where its body ends (RFC 9112, 6.3)."""

    status: int
    chunked: bool
    length: int | None
    """Is None when the body is chunked, or ends with the connection."""
    persistent: bool
    """True if the connection can be used for another request."""

    def parts(self, incoming: Incoming) -> Iterator[bytes]:
        """Read the body."""
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
    """Read the head of a response; return its framing, and its fields as they came. Interim responses are skipped."""
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
    """Return what the fields say of the body. minor: of the version; before 1.1 a connection ends with its body."""
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


def http_get(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> HttpResponse:
    """GET `url` over a connection of its own. Raises REQUEST_ERRORS."""
    parts = urlsplit(url)
    client = HttpClient(parts, headers=headers, timeout_s=timeout_s, max_body_bytes=max_body_bytes)
    try:
        return client.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    finally:
        client.close()


class PageClient:
    """Reads the pages of an energy meter or an engine. Its error messages hold no credentials."""

    def __init__(
        self,
        url: str,
        token: str | None,
        clock: Callable[[], int],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        verify: bool = True,
    ) -> None:
        """Raises MeterError if `url` is not an http(s) URL. `token`, or else `headers`, takes the place of the user and
        password in the URL."""
        parts = _split(url)
        self.hostname = parts.hostname or ""
        self.path = base_path(parts.path)
        self.url = public_url(parts._replace(path=self.path))
        self._client = HttpClient(
            parts, headers=headers or _credentials(parts, token), timeout_s=timeout_s, max_body_bytes=max_body_bytes,
            verify=verify, clock=clock,
        )  # fmt: skip

    def get(self, path: str) -> HttpResponse:
        """GET a page, once more if the server had closed the connection meanwhile. Raises MeterError, and NoAnswerError
        where there is no server."""
        try:
            try:
                return self._client.request("GET", self.path + path)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                return self._client.request("GET", self.path + path)
        except BodyTooLargeError as err:
            raise MeterError(f"{self.url}{path.split('?')[0]} sent {err}") from err
        except REQUEST_ERRORS as err:
            reason = "no answer in time" if isinstance(err, TimeoutError) else getattr(err, "strerror", None)
            away = isinstance(err, OSError) and not isinstance(err, ssl.SSLError)
            kind = NoAnswerError if away else MeterError
            raise kind(f"{self.url} cannot be read: {reason or type(err).__name__}") from err

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._client.close()


def public_url(parts: SplitResult) -> str:
    """Return a URL as it may be printed: without user, password, query and fragment. ValueError: a malformed port."""
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def base_path(path: str) -> str:
    """Return the path below which /energy and /metrics are: users may give the URL of the API, or of a page itself."""
    path = path.rstrip("/")
    for suffix in ("/v1", "/metrics", "/energy"):
        path = path.removesuffix(suffix)
    return path.rstrip("/")


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
    except ValueError as err:
        raise MeterError("the URL has a malformed host or port") from err
    if not usable:
        raise MeterError(f"{public_url(parts)!r} is no http:// or https:// address")
    return parts


def _credentials(parts: SplitResult, token: str | None) -> dict[str, str]:
    """Return the Authorization header, if there are credentials."""
    if token is not None:
        if not token.isascii() or not token.isprintable():
            raise MeterError("the energy token holds characters that cannot be sent in a header")
        return {"Authorization": f"Bearer {token}"}
    if parts.username is not None:
        return {"Authorization": basic(unquote(parts.username), unquote(parts.password or ""))}
    return {}
