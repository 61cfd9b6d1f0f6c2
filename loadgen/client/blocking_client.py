"""One request over a blocking socket -> one record: `client` for code that blocks instead of awaiting.

Under gevent's patches a blocked call lets other greenlets run, so that all users of a locust worker share one thread.
Nothing here depends on gevent. TLS is supported; proxies, redirects and compressed responses are not.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from loadgen.client.client import Post, record_of
from loadgen.client.connection import GRACE_S, READ_BYTES
from loadgen.client.http1 import Response, Unusual
from loadgen.client.redact import redact
from loadgen.client.server_url import parse_server_url
from loadgen.client.stream import PROTOCOL_ERRORS, RequestError, StreamState
from loadgen.client.surroundings import login_of
from loadgen.clock import monotonic_ns
from loadgen.telemetry.traceparent import TRACEPARENT, traceparent
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import ErrorKind, RequestRecord


class BlockingClient:
    """A pool of kept-alive connections to one server, for many greenlets or threads."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._url = url = parse_server_url(base_url)
        secure = url.scheme == "https"
        self._address = (url.host, url.port or (443 if secure else 80))
        self._tls = ssl.create_default_context() if secure else None
        self._fields = (
            f" HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
        )
        if login := login_of(url, api_key):
            self._fields += f"Authorization: {login}\r\n"
        self._secrets = [secret for secret in (api_key, login, url.query) if secret]
        self._timeout_s = timeout_s
        self._idle: list[socket.socket] = []

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def send(
        self,
        path: str,
        body: bytes,
        *,
        index: int,
        workload: str,
        scheduled_ns: int,
        request_id: str,
        on_cancelled: Callable[[RequestRecord], None],
    ) -> RequestRecord:
        """POST `body` to `path`, read the stream to its end, and return the record, whatever happens.

        A greenlet that is killed meanwhile hands the record so far to `on_cancelled`, and dies.
        """
        post, stream = Post(path, body, index, workload, scheduled_ns, request_id), StreamState()
        error: ErrorKind | None = None
        detail = ""
        try:
            self._post(post, stream)
        except RequestError as err:
            error, detail = err.kind, str(err)
        except TimeoutError:
            error, detail = "timeout", f"no end after {self._timeout_s:g} s"
        except Unusual as err:
            error, detail = "protocol", f"{err}: this client reads plain responses only: no redirect, no compression"
        except PROTOCOL_ERRORS as err:
            error, detail = "protocol", str(err)
        except OSError as err:
            error, detail = "connect" if stream.status is None else "truncated", f"{type(err).__name__}: {err}"
        except BaseException as err:
            if not isinstance(err, Exception) and stream.sent_ns is not None:
                on_cancelled(record_of(post, stream, monotonic_ns(), "cancelled", "aborted while in flight"))
            raise
        finished_ns = stream.finished_ns if error is None and stream.finished_ns else monotonic_ns()
        return record_of(post, stream, finished_ns, error, redact(detail, self._secrets)[:500] or None)

    def _post(self, post: Post, stream: StreamState) -> None:
        """Send the request; once more if a pooled connection proves dead before a byte of the response arrives."""
        head = (
            f"POST {self._url.target(post.path)}{self._fields}X-Request-Id: {post.request_id}\r\n"
            f"{TRACEPARENT}: {traceparent(post.request_id)}\r\nContent-Length: {len(post.body)}\r\n\r\n"
        )
        request = head.encode("latin-1") + post.body
        deadline_ns = monotonic_ns() + round(self._timeout_s * NS_PER_S)
        if self._idle:
            response = Response(stream)
            try:
                return self._exchange(self._idle.pop(), request, response, stream, deadline_ns)
            except TimeoutError:
                raise
            except OSError:
                if response.started:
                    raise
        sock = socket.create_connection(self._address, _remaining_s(deadline_ns))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
        except BaseException:
            sock.close()
            raise
        return self._exchange(sock, request, Response(stream), stream, deadline_ns)

    def _exchange(
        self, sock: socket.socket, request: bytes, response: Response, stream: StreamState, deadline_ns: int
    ) -> None:
        """Send and read over `sock`. Every read is stamped before anything else is done with it."""
        try:
            stream.sent_ns = monotonic_ns()
            sock.settimeout(_remaining_s(deadline_ns))
            sock.sendall(request)
            grace_ns: int | None = None
            while not response.complete:
                try:
                    _read(sock, response, grace_ns or deadline_ns)
                except (OSError, *PROTOCOL_ERRORS):
                    if not stream.is_done:
                        raise
                    break
                if stream.is_done and grace_ns is None:
                    grace_ns = min(deadline_ns, monotonic_ns() + round(GRACE_S * NS_PER_S))
        except BaseException:  # a greenlet that is killed closes its connection, so that the server stops generating
            sock.close()
            raise
        if response.complete and response.keep_alive:
            self._idle.append(sock)
        else:
            sock.close()
        stream.end(response.last_arrival_ns)


def _read(sock: socket.socket, response: Response, deadline_ns: int) -> None:
    """Take what arrives next. TimeoutError: nothing did before the deadline."""
    sock.settimeout(_remaining_s(deadline_ns))
    data = sock.recv(READ_BYTES)
    read_ns = monotonic_ns()
    if data:
        response.feed(data, read_ns)
    elif not response.eof():
        raise ConnectionError("the server ended the connection")


def _remaining_s(deadline_ns: int) -> float:
    """Return the seconds until the deadline; TimeoutError once it has passed."""
    remaining_ns = deadline_ns - monotonic_ns()
    if remaining_ns <= 0:
        raise TimeoutError
    return remaining_ns / NS_PER_S
