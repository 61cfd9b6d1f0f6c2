"""Sends OTLP over HTTP to a collector, as OpenTelemetry's own exporters do: their variables for headers, their codes
for what may be sent again. What a collector answers is bounded in size and in time."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohttp
from google.protobuf.message import DecodeError

from loadgen.errors import LoadgenError
from loadgen.http_get import public_url

Signal = Literal["metrics", "traces"]

TIMEOUT_S = 10.0
"""Limit of a whole request, OpenTelemetry's default."""
MAX_ANSWER_BYTES = 64 << 10
MAX_PAUSE_S = 300.0
"""Longest pause that a collector can ask for."""
RETRYABLE = frozenset((429, 502, 503, 504))
"""Codes after which the same message may be sent again: https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes."""
MAX_HEADERS = 32

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN = frozenset(("content-length", "content-type", "content-encoding", "host", "transfer-encoding", "connection"))
"""Headers that depend on the message."""


@dataclass(frozen=True)
class Endpoint:
    """A collector's URL for a signal, and the headers that it requires, which are secret."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Answer(NamedTuple):
    """Answer of a collector to a message."""

    problem: str | None = None
    """Is None if it took the message; holds nothing that it or a user wrote."""
    retry: bool = False
    """True if the same message may be sent again."""
    pause_s: float | None = None
    """Pause that it asks for."""
    rejected: int = 0
    """Points or spans of the message that it did not take."""


def endpoint(url: str, signal: Signal, environment: Mapping[str, str]) -> Endpoint:
    """Return the endpoint of a signal. Raises LoadgenError.

    A URL without a path gets OTLP's; any other is used as it is. Headers are those of OTEL_EXPORTER_OTLP_HEADERS, or
    of OTEL_EXPORTER_OTLP_METRICS_HEADERS and OTEL_EXPORTER_OTLP_TRACES_HEADERS, which replace it.
    """
    option = f"--otlp-{signal}-endpoint"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        usable = False
    if not usable:
        raise LoadgenError(f"{option}: expected the URL of a collector, such as http://localhost:4318/v1/{signal}")
    if parts.username is not None or parts.password is not None:
        raise LoadgenError(f"{option}: a command line is public: set OTEL_EXPORTER_OTLP_HEADERS for credentials")
    if parts.path in ("", "/"):
        parts = parts._replace(path=f"/v1/{signal}")
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_HEADERS"
    variable = own if own in environment else "OTEL_EXPORTER_OTLP_HEADERS"
    return Endpoint(parts._replace(fragment="").geturl(), parse_headers(variable, environment.get(variable, "")))


def endpoints(urls: Mapping[Signal, str | None], environment: Mapping[str, str]) -> dict[Signal, Endpoint]:
    """Return the endpoint of each signal that has a URL. Raises LoadgenError."""
    return {signal: endpoint(url, signal, environment) for signal, url in urls.items() if url is not None}


def parse_headers(variable: str, text: str) -> dict[str, str]:
    """Parse `name=value,name=value`, percent-encoded as W3C baggage is. A LoadgenError holds no part of the text."""
    headers: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        value = unquote(value)
        if not equals or not _NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise LoadgenError(f"{variable} cannot be read: expected name=value,name=value, percent-encoded")
        if name.lower() in _OWN:
            raise LoadgenError(f"{variable}: {name} depends on the message and cannot be set")
        headers[name] = value
    if len(headers) > MAX_HEADERS:
        raise LoadgenError(f"{variable}: more than {MAX_HEADERS} headers")
    return headers


class Collector:
    """A kept-alive connection to an endpoint. It follows no redirects, which could take the headers elsewhere."""

    def __init__(self, endpoint: Endpoint, response: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        """response: makes the protobuf message that answers the signal."""
        self._url, self._response = endpoint.url, response
        self.public_url = public_url(urlsplit(endpoint.url))
        self._session = aiohttp.ClientSession(
            headers={**endpoint.headers, "Content-Type": "application/x-protobuf", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def send(self, message: bytes) -> Answer:
        """Send a message once. Raises nothing that a collector, or a network, could cause."""
        try:
            async with self._session.post(self._url, data=message, allow_redirects=False) as response:
                if response.status in RETRYABLE:
                    return Answer(f"it answered {response.status}", True, _pause_s(response.headers.get("Retry-After")))
                if not 200 <= response.status < 300:
                    return Answer(f"it answered {response.status}")
                body = bytearray()
                async for chunk in response.content.iter_chunked(MAX_ANSWER_BYTES):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        return Answer("its answer is too long")
                return self._read(response.content_type, bytes(body))
        except TimeoutError:
            return Answer("no answer in time", retry=True)
        except (aiohttp.ClientError, OSError, ValueError) as err:
            return Answer(f"it cannot be reached ({_reason(err)})", retry=True)

    def _read(self, content_type: str, body: bytes) -> Answer:
        """Read the answer to a message that was taken, at least in part."""
        if not body or content_type == "application/json":
            return Answer()
        try:
            partial = self._response().FromString(body).partial_success
        except DecodeError:
            return Answer("its answer is not OTLP")
        rejected = next((int(value) for name, value in partial.ListFields() if name.name.startswith("rejected_")), 0)
        return Answer(rejected=max(rejected, 0))

    async def close(self) -> None:
        await self._session.close()


def _reason(err: Exception) -> str:
    """Return why there was no answer, in words that nobody else chose."""
    cause = getattr(err, "os_error", err)
    if isinstance(cause, socket.gaierror):
        return "its host is not known"
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else type(err).__name__


def _pause_s(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header, within bounds; None for a date, or for none."""
    if retry_after is None or not re.fullmatch(r"[0-9]{1,9}", retry_after):
        return None
    return min(float(retry_after), MAX_PAUSE_S)
