"""Small blocking HTTP requests with limits on time and size."""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError, NoAnswerError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TIMEOUT_S = 2.0
"""Limit of each wait for the server: to connect, and for the next bytes."""
MAX_WAITS = 10
"""A whole response may take as many times as long."""
MAX_BODY_BYTES = 8 << 20
_PART_BYTES = 1 << 16


REQUEST_ERRORS = (OSError, http.client.HTTPException)
"""The exceptions that a request may raise."""


class HttpResponse(NamedTuple):
    """One response, and when its request was sent and its head received."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    sent_ns: int
    received_ns: int


class BodyTooLargeError(http.client.HTTPException):
    """A body that exceeds the client's limit."""


class _TimedStream(io.RawIOBase):
    """The bytes that a socket receives until an instant: a server that sends one now and then does not hold the
    caller."""

    def __init__(self, connection: socket.socket, wait_s: float, end_s: float) -> None:
        """wait_s: limit of each wait. end_s: limit of all, by `monotonic`."""
        self._connection, self._wait_s, self._end_s = connection, wait_s, end_s
        self._stream = connection.makefile("rb", buffering=0)  # a socket that is closed meanwhile stays open for it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        if (left_s := self._end_s - monotonic()) <= 0:
            raise TimeoutError
        self._connection.settimeout(min(self._wait_s, left_s))
        return self._stream.readinto(buffer)

    def makefile(self, _: str) -> io.BufferedReader:
        """Return the stream as http.client asks a socket for it."""
        return io.BufferedReader(self)

    def close(self) -> None:
        self._stream.close()
        super().close()


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
        self._connection.response_class = self._timed_response  # type: ignore[assignment]

    def _timed_response(self, connection: socket.socket, **options: Any) -> http.client.HTTPResponse:
        end_s = monotonic() + MAX_WAITS * self._timeout_s
        stream = _TimedStream(connection, self._timeout_s, end_s)
        return http.client.HTTPResponse(stream, **options)  # type: ignore[arg-type]

    def request(self, method: str, path: str, body: bytes | None = None) -> HttpResponse:
        """Send a request and read its response. Raises REQUEST_ERRORS, BodyTooLargeError among them; the connection is
        then closed, and the next request opens another."""
        try:
            if self._connection.sock is None:
                self._connection.connect()
            self._connection.sock.settimeout(self._timeout_s)
            sent_ns = self._clock()
            self._connection.request(method, path, body, self._headers)
            response = self._connection.getresponse()
            received_ns = self._clock()
            content = self._body(response)
        except REQUEST_ERRORS:
            self._connection.close()
            raise
        except ValueError:
            self._connection.close()
            raise http.client.InvalidURL("a host, path or header that cannot be sent") from None  # its text has them
        return HttpResponse(response.status, response.headers, content, sent_ns, received_ns)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        """Read a body within the limit of its size."""
        body = bytearray()
        while part := response.read1(_PART_BYTES):
            body += part
            if len(body) > self._max_body_bytes:
                raise BodyTooLargeError(f"more than {self._max_body_bytes >> 20} MiB")
        response.close()  # else a connection is not kept whose last body has a length
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
        return client.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
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
