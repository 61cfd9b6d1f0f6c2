"""Small blocking HTTP requests with limits on time and size. Connections and exceptions are those of http.client."""

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
from loadgen.http_response import Incoming, read_head

if TYPE_CHECKING:
    from email.message import Message

TIMEOUT_S = 2.0
"""Limit of each wait for the server: to connect, and for the next bytes."""
MAX_WAITS = 10
"""Limit of the time of a whole response, in multiples of that of a wait."""
MAX_BODY_BYTES = 8 << 20

_TARGET = re.compile(r"/[!-~]*")
_FIELD = re.compile(r"[!-9;-~]+: [\t -~\xa0-\xff]*")

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
            if self._connection.sock is not None and self._incoming.is_ready:
                self.close()
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
        """Header fields of every request. Raises ValueError when they cannot be sent."""
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
