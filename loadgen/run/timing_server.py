"""A server whose timing is known: it stamps when each request arrived and when each token was written.

    python -m loadgen.run.timing_server --ttft-ms 50 --itl-ms 20 --log timing.log

A client's error is measured against these stamps, never against a plan: they have to be honest, and the server need not
be punctual. It is one thread without an event loop, knows as much of the API as a load generator needs, and makes no
text worth reading. The first token is due TTFT after arrival, one more every ITL; without an ITL all go together, in
one write. A request may state its own timing, as `ttft_ms` and `itl_ms` in its body.

An answer of embeddings or rerank is written whole when its first token would be due.

It needs no compiler. `benchmarks/instrument/timing_server.c` is the same for loads that are too much for Python, with
faults to inject: the same options, the same first line of output, the same log; but of chat and completions alone.
"""

import heapq
import re
import selectors
import signal
import socket
import struct
import sys
import time
from argparse import ArgumentParser
from array import array
from hashlib import sha256
from itertools import count
from pathlib import Path

import msgspec

from loadgen.client.kernel_timestamps import TIMESTAMP_BYTES, enable_timestamps, kernel_wall_ns
from loadgen.clock import anchor, monotonic_ns
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.words import hide_halves

_READ_BYTES = 256 << 10

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([!-~]+)", re.IGNORECASE)

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

_LOG_RECORD = struct.Struct("@Q5qQ6I64s")
"""`struct record` of timing_server.c, which explains it."""
_CHAT, _STREAM, _USAGE, _CLIENT_LEFT = 1 << 26, 1 << 27, 1 << 28, 1 << 29


class _Timing(msgspec.Struct, frozen=True):
    """The part of a request's body that is read."""

    max_tokens: int = 16
    max_output_tokens: int | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    """The server's own if None; so is ttft_ms."""


class Written(msgspec.Struct, frozen=True):
    """One answered request, on CLOCK_MONOTONIC. Token i was due at due_ns + i itl_ns."""

    request_id: str
    arrived_ns: int
    due_ns: int
    itl_ns: int
    written_ns: list[int]
    """The clock, read right before each token was handed to the kernel."""

    def late_ns(self) -> list[int]:
        """Return how late each token was written."""
        return [t_ns - self.due_ns - i * self.itl_ns for i, t_ns in enumerate(self.written_ns)]


def _event(data: bytes) -> bytes:
    """Return a server-sent event in an HTTP chunk of its own."""
    line = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


_STREAMS = (b"/v1/chat/completions", b"/v1/completions", b"/v1/responses")
_WHOLE = (
    b'{"data":[{"index":0,"embedding":[1]}],"results":[{"index":0,"relevance_score":1}],'
    b'"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
)
"""An answer of embeddings, and one of rerank."""


def _json_response(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _stream_parts(about: bytes, chat: bool, prompt_tokens: int, tokens: int) -> tuple[bytes, bytes, bytes]:
    """Return what opens a stream of chat or completions, each of its tokens, and the last one with all after it."""
    text = b'"delta":{"content":" word"}' if chat else b'"text":" word"'
    choice = about + b'[{"index":0,%b,"logprobs":null,"finish_reason":%b}]}'
    role = _event(about + b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
    usage = b'{"prompt_tokens":%d,"completion_tokens":%d}}' % (prompt_tokens, tokens)
    end = _event(choice % (text, b'"length"')) + _event(about + b'[],"usage":' + usage) + _event(b"[DONE]")
    return _STREAM_HEAD + (role if chat else b""), _event(choice % (text, b"null")), end + b"0\r\n\r\n"


def _response_parts(prompt_tokens: int, tokens: int) -> tuple[bytes, bytes, bytes]:
    """Return the same of a stream of the Responses API, which has no [DONE]."""
    token = _event(b'{"type":"response.output_text.delta","delta":" word"}')
    usage = b'{"input_tokens":%d,"output_tokens":%d}' % (prompt_tokens, tokens)
    why = b'"incomplete_details":{"reason":"max_output_tokens"}'
    end = _event(b'{"type":"response.incomplete","response":{"usage":%b,%b}}' % (usage, why))
    opening = _event(b'{"type":"response.created","response":{"status":"in_progress"}}')
    return _STREAM_HEAD + opening, token, token + end + b"0\r\n\r\n"


class _Stream:
    """One response in flight."""

    __slots__ = ("arrived_ns", "chat", "connection", "due_ns", "end", "first", "itl_ns", "read_ns", "remaining",
                 "request_id", "sha256", "start_ns", "token", "written_ns")  # fmt: skip

    def __init__(self, connection: "_Connection", request_id: str, path: bytes, timing: _Timing, body: bytes) -> None:
        server = connection.server
        ttft_ms = server.ttft_ms if timing.ttft_ms is None else timing.ttft_ms
        itl_ms = server.itl_ms if timing.itl_ms is None else timing.itl_ms
        self.connection = connection
        self.request_id, self.chat = request_id, path == b"/v1/chat/completions"
        self.sha256 = sha256(body).digest() if server.sha256 else b""
        self.arrived_ns, self.read_ns = connection.arrived_ns, connection.read_ns
        self.start_ns = self.due_ns = self.arrived_ns + round(ttft_ms * NS_PER_MS)
        self.itl_ns = round(itl_ms * NS_PER_MS)
        limit = timing.max_tokens if timing.max_output_tokens is None else timing.max_output_tokens
        self.remaining = max(1, limit) if path in _STREAMS else 1
        self.written_ns: array[int] = array("q")
        prompt_tokens = max(1, len(body) // 4)
        if path == b"/v1/responses":
            self.first, self.token, self.end = _response_parts(prompt_tokens, self.remaining)
        elif path in _STREAMS:
            about = b'{"id":"%b","object":"%b","created":1,"model":"%b","choices":' % (
                request_id.encode(),
                b"chat.completion.chunk" if self.chat else b"text_completion",
                server.model.encode(),
            )
            self.first, self.token, self.end = _stream_parts(about, self.chat, prompt_tokens, self.remaining)
        else:
            self.first = self.token = b""
            self.end = _json_response(b"200 OK", _WHOLE % (prompt_tokens, prompt_tokens))

    def write(self) -> bool:
        """Write the token that is due, or all of them. Return True if more are to come."""
        now_ns = monotonic_ns()
        n = 1 if self.itl_ns else self.remaining
        self.remaining -= n
        self.written_ns.extend((now_ns,) * n)
        head, self.first = self.first, b""
        if self.remaining:
            self.due_ns += self.itl_ns
            return self.connection.send(head + self.token)
        self.connection.send(head + self.token * (n - 1) + self.end)
        return False

    @property
    def written(self) -> Written:
        return Written(self.request_id, self.arrived_ns, self.start_ns, self.itl_ns, self.written_ns.tolist())


class _Connection:
    """One client's socket. Bytes that the kernel has no room for wait in `unsent`."""

    def __init__(self, server: "TimingServer", sock: socket.socket, number: int) -> None:
        self.server, self.sock, self.number = server, sock, number
        self.received, self.unsent = bytearray(), bytearray()
        self.arrived_ns = self.read_ns = 0
        self.open = True

    def ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            data, self.unsent = bytes(self.unsent), bytearray()
            if self.send(data) and not self.unsent:
                self.server.selector.modify(self.sock, selectors.EVENT_READ, self.ready)
        if not (self.open and events & selectors.EVENT_READ):
            return
        try:
            data, ancillary, _, _ = self.sock.recvmsg(_READ_BYTES, TIMESTAMP_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.read_ns = monotonic_ns()
        wall_ns = kernel_wall_ns(ancillary)
        self.arrived_ns = self.read_ns if wall_ns is None else wall_ns - self.server.wall_minus_monotonic_ns
        self.received += data
        while self.open and (head_end := self.received.find(b"\r\n\r\n") + 4) > 3:
            header = _LENGTH.search(self.received, 0, head_end)
            length = int(header[1]) if header else 0
            if len(self.received) < head_end + length:
                return
            head = bytes(self.received[:head_end])
            body = bytes(self.received[head_end : head_end + length])
            del self.received[: head_end + length]
            self._respond(head, body)

    def send(self, data: bytes) -> bool:
        """Send `data`, now or once there is room. Return False if the client has disconnected."""
        if not self.open:
            return False
        if self.unsent:
            self.unsent += data
            return True
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return False
        if sent < len(data):
            self.unsent += data[sent:]
            self.server.selector.modify(self.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self.ready)
        return True

    def close(self) -> None:
        self.open = False
        self.server.selector.unregister(self.sock)
        self.sock.close()

    def _respond(self, head: bytes, body: bytes) -> None:
        match head.split(b" ", 2)[:2]:
            case [b"POST", path] if path in (*_STREAMS, b"/v1/embeddings", b"/v1/rerank"):
                readable = hide_halves(body) if b"\\u" in body else body
                try:
                    timing = msgspec.json.decode(readable, type=_Timing)
                except msgspec.DecodeError as err:
                    self._send_json(b"400 Bad Request", msgspec.json.encode({"error": {"message": str(err)}}))
                    return
                header = _REQUEST_ID.search(head)
                self.server.start(_Stream(self, header[1].decode() if header else "", path, timing, body))
            case [b"GET", b"/v1/models"]:
                model = {"id": self.server.model, "owned_by": "loadgen-truth"}
                self._send_json(b"200 OK", msgspec.json.encode({"object": "list", "data": [model]}))
            case [b"GET", b"/health"]:
                self._send_json(b"200 OK", b"{}")
            case [b"GET", b"/written"]:
                self._send_json(b"200 OK", self.server.written())
            case _:
                self._send_json(b"404 Not Found", b'{"error":{"message":"no such page"}}')

    def _send_json(self, status: bytes, body: bytes) -> None:
        self.send(_json_response(status, body))


class TimingServer:
    """Serves on one thread: in each turn it reads what came in, then writes what is due."""

    def __init__(
        self, port: int = 0, ttft_ms: float = 0.0, itl_ms: float = 0.0, model: str = "truth", *, sha256: bool = False
    ) -> None:
        self.ttft_ms, self.itl_ms, self.model, self.sha256 = ttft_ms, itl_ms, model, sha256
        self.selector = selectors.DefaultSelector()
        self.socket = socket.create_server(("127.0.0.1", port), backlog=4096)
        enable_timestamps(self.socket)
        self.socket.setblocking(False)
        self.selector.register(self.socket, selectors.EVENT_READ, self._accept)
        self.wall_minus_monotonic_ns = anchor().offset_ns
        self._due: list[tuple[int, int, _Stream]] = []
        self._order, self._connections = count(), count()
        self._streams: list[_Stream] = []

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def serve(self) -> None:
        """Serve for ever. What falls due while tokens are written waits until the sockets had their turn.

        A selector rounds its wait up to milliseconds, so the last one before a token is due is slept here.
        """
        due, order = self._due, self._order
        while True:
            wait_s: float | None = None
            if due:
                remaining_ns = due[0][0] - monotonic_ns()
                wait_s = max(0, remaining_ns // NS_PER_MS / 1000)
                if 0 < remaining_ns <= NS_PER_MS:
                    time.sleep(remaining_ns / NS_PER_S)
                    wait_s = 0.0
            for key, events in self.selector.select(wait_s):
                key.data(events)
            now_ns = monotonic_ns()
            while due and due[0][0] <= now_ns:
                stream = due[0][2]
                if stream.write():
                    heapq.heapreplace(due, (stream.due_ns, next(order), stream))
                else:
                    heapq.heappop(due)

    def start(self, stream: _Stream) -> None:
        self._streams.append(stream)
        heapq.heappush(self._due, (stream.due_ns, next(self._order), stream))

    def written(self) -> bytes:
        """Return `Written` of every stream so far, a line of JSON each."""
        return b"".join(msgspec.json.encode(stream.written) + b"\n" for stream in self._streams)

    def write_log(self, path: Path) -> None:
        """Write the log of timing_server.c: a record per stream, every token's time in `path`.writes, and the SHA-256
        of every body in `path`.sha256 if the option is set."""
        first_write = 0
        with path.open("wb") as records, Path(f"{path}.writes").open("wb") as writes:
            for number, stream in enumerate(self._streams):
                written, events = stream.written, len(stream.written_ns)
                kind = _STREAM | _USAGE | (_CHAT if stream.chat else 0) | (_CLIENT_LEFT if stream.remaining else 0)
                times = (
                    written.arrived_ns,
                    stream.read_ns,
                    written.due_ns if written.itl_ns else 0,
                    max(written.late_ns(), default=0) if written.itl_ns else 0,
                    written.written_ns[-1] if events else 0,
                )
                counts = (events, events, events + stream.remaining, kind, 200, stream.connection.number)
                records.write(_LOG_RECORD.pack(number, *times, first_write, *counts, written.request_id.encode()[:63]))
                stream.written_ns.tofile(writes)
                first_write += events
        if self.sha256:
            Path(f"{path}.sha256").write_bytes(b"".join(stream.sha256 for stream in self._streams))

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock, _address = self.socket.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, sock, next(self._connections))
            self.selector.register(sock, selectors.EVENT_READ, connection.ready)


def main() -> None:
    """Print the base URL, then serve until SIGTERM or SIGINT."""
    import gc

    parser = ArgumentParser(prog="python -m loadgen.run.timing_server", description="A server of known timing.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="first token after arrival")
    parser.add_argument("--itl-ms", type=float, default=0.0, help="between tokens; 0 writes them all at once")
    parser.add_argument("--model", default="truth")
    parser.add_argument("--log", type=Path, metavar="FILE", help="written at the end; see timing_server.c")
    parser.add_argument("--hash-bodies", action="store_true", help="also log the SHA-256 of every body, in FILE.sha256")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server = TimingServer(options.port, options.ttft_ms, options.itl_ms, options.model, sha256=options.hash_bodies)
    print(f"timing server: http://127.0.0.1:{server.port}/v1", flush=True)
    gc.freeze()
    gc.disable()
    try:
        server.serve()
    finally:
        if options.log:
            server.write_log(options.log)


if __name__ == "__main__":
    main()
