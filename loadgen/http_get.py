"""A kept-alive HTTP connection for small GET requests with limits on time and size."""

import base64
import http.client
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from loadgen.errors import MeterError

TIMEOUT_S = 2.0


MAX_BODY_BYTES = 8 << 20


class HttpResponse(NamedTuple):
    status: int
    body: bytes
    sent_ns: int
    received_ns: int


class HttpClient:
    """One kept-alive HTTP connection with bounded time and size. Its messages hold no credentials."""

    def __init__(self, url: str, token: str | None, clock: Callable[[], int]) -> None:
        parts = _address(url)
        self._clock = clock
        self._headers = _credentials(parts, token)
        self.hostname = parts.hostname or ""
        self.path = base_path(parts.path)
        self.at = shown(parts._replace(path=self.path))
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(self.hostname, parts.port, timeout=TIMEOUT_S)

    def get(self, path: str) -> HttpResponse:
        """Raises MeterError. A connection that the server had closed meanwhile is opened once more."""
        try:
            return self._get(path)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._http.close()
        except (OSError, http.client.HTTPException) as err:
            raise self._failed(err) from err
        try:
            return self._get(path)
        except (OSError, http.client.HTTPException) as err:
            raise self._failed(err) from err

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str) -> HttpResponse:
        if self._http.sock is None:
            self._http.connect()
        sent_ns = self._clock()
        self._http.request("GET", self.path + path, headers=self._headers)
        response = self._http.getresponse()
        received_ns = self._clock()
        body = response.read(MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            self._http.close()
            raise MeterError(f"{self.at}{path.split('?')[0]} sent more than {MAX_BODY_BYTES >> 20} MiB")
        return HttpResponse(response.status, body, sent_ns, received_ns)

    def _failed(self, err: Exception) -> MeterError:
        self._http.close()
        reason = "no answer in time" if isinstance(err, TimeoutError) else getattr(err, "strerror", None)
        return MeterError(f"{self.at} cannot be read: {reason or type(err).__name__}")


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as err:
        raise MeterError("the URL has a malformed host or port") from err
    if not usable:
        raise MeterError(f"{shown(parts)!r} is no http:// or https:// address")
    return parts


def shown(parts: SplitResult) -> str:
    """The address as it may be printed: no user, password or query."""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def base_path(path: str) -> str:
    """What /energy and /metrics hang off: the address people have at hand may be the API's, or the page's own."""
    path = path.rstrip("/")
    for tail in ("/v1", "/metrics", "/energy"):
        path = path.removesuffix(tail)
    return path.rstrip("/")


def _credentials(parts: SplitResult, token: str | None) -> dict[str, str]:
    if token is not None:
        if not token.isascii() or not token.isprintable():
            raise MeterError("the energy token holds characters that cannot be sent in a header")
        return {"Authorization": f"Bearer {token}"}
    if parts.username is not None:
        pair = f"{parts.username}:{parts.password or ''}".encode()
        return {"Authorization": "Basic " + base64.b64encode(pair).decode()}
    return {}
