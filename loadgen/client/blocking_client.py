"""One request over a blocking socket -> one record: `client`, for those who wait instead of awaiting.

Under gevent's patches waiting lets the others run, so that all users of a locust worker share one thread. Nothing here
knows of gevent. TLS is spoken; proxies, redirects and compressed answers are not.
"""

import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from loadgen.client.client import Post, record_of
from loadgen.client.http1 import HTTPError, Response, Unusual
from loadgen.client.openai_api import ProtocolError
from loadgen.client.sse import SSEError
from loadgen.client.stream import RequestError, StreamState
from loadgen.clock import monotonic_ns
from loadgen.record import ErrorKind, RequestRecord
from loadgen.units import NS_PER_S

READ_BYTES = 64 << 10


class BlockingClient:
    """A pool of kept-alive connections to one server, for many greenlets or threads."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(base_url)
        secure = parts.scheme == "https"
        self._address = (parts.hostname or "", parts.port or (443 if secure else 80))
        self._tls = ssl.create_default_context() if secure else None
        self._path = parts.path.rstrip("/")
        self._fields = (
            f" HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
        )
        if api_key:
            self._fields += f"Authorization: Bearer {api_key}\r\n"
        self._secret = api_key
        self._timeout_s = timeout_s
        self._idle: list[socket.socket] = []

    def close(self) -> None:
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
        """POST `body` to `path` and read the stream to its end. Whatever happens is data.

        A greenlet that is killed meanwhile hands what it has to `on_cancelled`, and dies.
        """
        post, answer = Post(path, body, index, workload, scheduled_ns, request_id), StreamState()
        error: ErrorKind | None = None
        detail = ""
        try:
            self._exchange(path, body, request_id, answer)
        except RequestError as err:
            error, detail = err.kind, str(err)
        except TimeoutError:
            error, detail = "timeout", f"no end after {self._timeout_s:g} s"
        except Unusual as err:
            error, detail = "protocol", f"{err}: only a plain answer is read here, no redirect and nothing compressed"
        except (SSEError, ProtocolError, HTTPError) as err:
            error, detail = "protocol", str(err)
        except OSError as err:
            started = answer.status is not None
            error, detail = "truncated" if started else "connect", f"{type(err).__name__}: {err}"
        except BaseException as err:
            if not isinstance(err, Exception) and answer.sent_ns is not None:
                why = "aborted while in flight"
                on_cancelled(record_of(post, answer, monotonic_ns(), "cancelled", why))
            raise
        finished_ns = answer.finished_ns if error is None and answer.finished_ns else monotonic_ns()
        return record_of(post, answer, finished_ns, error, self._redact(detail)[:500] or None)

    def _redact(self, text: str) -> str:
        """Servers like to quote the key they refuse."""
        return text.replace(self._secret, "[redacted]") if self._secret else text

    def _exchange(self, path: str, body: bytes, request_id: str, answer: StreamState) -> None:
        """A second time when a pooled connection turns out to be dead before a byte of answer came."""
        head = f"POST {self._path}{path}{self._fields}X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode("latin-1") + body
        deadline_ns = monotonic_ns() + round(self._timeout_s * NS_PER_S)
        if self._idle:
            response = Response(answer)
            try:
                return self._ask(self._idle.pop(), request, response, answer, deadline_ns)
            except TimeoutError:
                raise
            except OSError:
                if response.started:
                    raise
        return self._ask(self._connect(deadline_ns), request, Response(answer), answer, deadline_ns)

    def _connect(self, deadline_ns: int) -> socket.socket:
        sock = socket.create_connection(self._address, _left_s(deadline_ns))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(sock, server_hostname=self._address[0]) if self._tls else sock
        except BaseException:
            sock.close()
            raise

    def _ask(
        self, sock: socket.socket, request: bytes, response: Response, answer: StreamState, deadline_ns: int
    ) -> None:
        """Every read is stamped before anything else is done with it."""
        try:
            answer.sent_ns = monotonic_ns()
            sock.settimeout(_left_s(deadline_ns))
            sock.sendall(request)
            while not response.complete:
                sock.settimeout(_left_s(deadline_ns))
                data = sock.recv(READ_BYTES)
                read_ns = monotonic_ns()
                if data:
                    response.feed(data, read_ns)
                elif not response.eof():
                    raise ConnectionError("the server ended the connection")
        except BaseException:  # a greenlet that is killed closes its connection, so that the server stops generating
            sock.close()
            raise
        if response.keep_alive:
            self._idle.append(sock)
        else:
            sock.close()
        answer.end(response.last_arrival_ns)


def _left_s(deadline_ns: int) -> float:
    left_ns = deadline_ns - monotonic_ns()
    if left_ns <= 0:
        raise TimeoutError
    return left_ns / NS_PER_S
