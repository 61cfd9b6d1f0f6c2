"""A server whose timing is known: it stamps when each request arrived and when each token was written.

    python -m loadgen.run.timing_server

A client's error is measured against these stamps, never against a plan: they have to be honest, and the server need not
be punctual. It is one thread without an event loop, knows as much of the API as a load generator asks for, and makes no
text worth reading. Requests say their own timing: the first token is due `ttft_ms` after arrival, one more every
`itl_ms`; without `itl_ms` all go together, in one write.
"""

import heapq
import re
import selectors
import signal
import socket
import sys
import time
from array import array
from itertools import count

import msgspec

from loadgen.client.kernel_timestamps import enable_timestamps, kernel_wall_ns
from loadgen.clock import anchor, monotonic_ns
from loadgen.units import NS_PER_MS, NS_PER_S

READ_BYTES = 256 << 10

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([!-~]+)", re.IGNORECASE)

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Body(msgspec.Struct, frozen=True):
    """What is read of a request's body."""

    max_tokens: int = 16
    ttft_ms: float = 0.0
    itl_ms: float = 0.0


class Written(msgspec.Struct, frozen=True):
    """One answered request, on CLOCK_MONOTONIC. Token i was due at due_ns + i itl_ns."""

    request_id: str
    arrived_ns: int
    due_ns: int
    itl_ns: int
    written_ns: list[int]
    """Read right before each token was handed to the kernel."""


def event(data: bytes) -> bytes:
    """One server-sent event in an HTTP chunk of its own."""
    line = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


class Stream:
    """One answer on its way."""

    __slots__ = ("arrived_ns", "connection", "due_ns", "end", "first", "itl_ns", "left", "request_id", "start_ns",
                 "token", "written_ns")  # fmt: skip

    def __init__(self, connection: "Connection", request_id: str, chat: bool, body: Body, prompt_tokens: int) -> None:
        self.connection = connection
        self.request_id = request_id
        self.arrived_ns = connection.arrived_ns
        self.start_ns = self.due_ns = self.arrived_ns + round(body.ttft_ms * NS_PER_MS)
        self.itl_ns = round(body.itl_ms * NS_PER_MS)
        self.left = max(1, body.max_tokens)
        self.written_ns: array[int] = array("q")
        about = b'{"id":"%b","object":"%b","created":1,"model":"truth","choices":' % (
            request_id.encode(),
            b"chat.completion.chunk" if chat else b"text_completion",
        )
        text = b'"delta":{"content":" word"}' if chat else b'"text":" word"'
        choice = about + b'[{"index":0,%b,"logprobs":null,"finish_reason":%b}]}'
        self.token = event(choice % (text, b"null"))
        role = event(about + b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}')
        usage = b'{"prompt_tokens":%d,"completion_tokens":%d}}' % (prompt_tokens, self.left)
        self.first = STREAM_HEAD + (role if chat else b"")
        last = event(choice % (text, b'"length"'))
        self.end = last + event(about + b'[],"usage":' + usage) + event(b"[DONE]") + b"0\r\n\r\n"

    def write(self) -> bool:
        """What is due now: one token, or all of them. Gives whether more are to come."""
        now_ns = monotonic_ns()
        n = 1 if self.itl_ns else self.left
        self.left -= n
        self.written_ns.extend((now_ns,) * n)
        head, self.first = self.first, b""
        if self.left:
            self.due_ns += self.itl_ns
            return self.connection.send(head + self.token)
        self.connection.send(head + self.token * (n - 1) + self.end)
        return False

    @property
    def written(self) -> Written:
        return Written(self.request_id, self.arrived_ns, self.start_ns, self.itl_ns, self.written_ns.tolist())


class Connection:
    """One client's socket. What the kernel has no room for waits in `unsent`."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.received, self.unsent = bytearray(), bytearray()
        self.arrived_ns = 0
        self.open = True

    def ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            data, self.unsent = bytes(self.unsent), bytearray()
            if self.send(data) and not self.unsent:
                self.server.selector.modify(self.sock, selectors.EVENT_READ, self.ready)
        if self.open and events & selectors.EVENT_READ:
            self._read()

    def send(self, data: bytes) -> bool:
        """Whether there still is somebody to send to."""
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

    def _read(self) -> None:
        try:
            data, stamps, _, _ = self.sock.recvmsg(READ_BYTES, 64)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return self.close()
        wall_ns = kernel_wall_ns(stamps)
        self.arrived_ns = monotonic_ns() if wall_ns is None else wall_ns - self.server.wall_minus_monotonic_ns
        self.received += data
        while self.open and (head_end := self.received.find(b"\r\n\r\n") + 4) > 3:
            found = _LENGTH.search(self.received, 0, head_end)
            length = int(found[1]) if found else 0
            if len(self.received) < head_end + length:
                return None
            head = bytes(self.received[:head_end])
            body = bytes(self.received[head_end : head_end + length])
            del self.received[: head_end + length]
            self._answer(head, body)
        return None

    def _answer(self, head: bytes, body: bytes) -> None:
        match head.split(b" ", 2)[:2]:
            case [b"POST", b"/v1/chat/completions" | b"/v1/completions" as path]:
                self._stream(head, body, path == b"/v1/chat/completions")
            case [b"GET", b"/v1/models"]:
                self._whole(b"200 OK", b'{"object":"list","data":[{"id":"truth","owned_by":"loadgen-truth"}]}')
            case [b"GET", b"/written"]:
                self._whole(b"200 OK", self.server.log())
            case _:
                self._whole(b"404 Not Found", b'{"error":{"message":"no such page"}}')

    def _stream(self, head: bytes, body: bytes, chat: bool) -> None:
        try:
            asked = msgspec.json.decode(body, type=Body)
        except msgspec.DecodeError as err:
            return self._whole(b"400 Bad Request", msgspec.json.encode({"error": {"message": str(err)}}))
        found = _REQUEST_ID.search(head)
        stream = Stream(self, found[1].decode() if found else "", chat, asked, prompt_tokens=max(1, len(body) // 4))
        return self.server.take(stream)

    def _whole(self, status: bytes, body: bytes) -> None:
        self.send(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )


class Server:
    """Everything on one thread: what came in is read, then what is due is written."""

    def __init__(self, port: int = 0) -> None:
        self.selector = selectors.DefaultSelector()
        self.socket = socket.create_server(("127.0.0.1", port), backlog=4096)
        enable_timestamps(self.socket)
        self.socket.setblocking(False)
        self.selector.register(self.socket, selectors.EVENT_READ, self._accept)
        at = anchor()
        self.wall_minus_monotonic_ns = at.wall_ns - at.monotonic_ns
        self._due: list[tuple[int, int, Stream]] = []
        self._order = count()
        self._streams: list[Stream] = []

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def serve(self) -> None:
        while True:
            for key, events in self.selector.select(self._wait()):
                key.data(events)
            self._write()

    def take(self, stream: Stream) -> None:
        self._streams.append(stream)
        heapq.heappush(self._due, (stream.due_ns, next(self._order), stream))

    def log(self) -> bytes:
        """`Written` of every stream so far, a line each."""
        return b"".join(msgspec.json.encode(stream.written) + b"\n" for stream in self._streams)

    def _wait(self) -> float | None:
        """Seconds to wait for sockets. A selector rounds up to milliseconds, so the last one is slept."""
        if not self._due:
            return None
        left_ns = self._due[0][0] - monotonic_ns()
        if left_ns > NS_PER_MS:
            return left_ns // NS_PER_MS / 1000
        if left_ns > 0:
            time.sleep(left_ns / NS_PER_S)
        return 0

    def _write(self) -> None:
        """What is due by now; what falls due meanwhile has to wait for the sockets' turn."""
        now_ns, due, order = monotonic_ns(), self._due, self._order
        while due and due[0][0] <= now_ns:
            stream = due[0][2]
            if stream.write():
                heapq.heapreplace(due, (stream.due_ns, next(order), stream))
            else:
                heapq.heappop(due)

    def _accept(self, _: int) -> None:
        while True:
            try:
                sock, _address = self.socket.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, sock)
            self.selector.register(sock, selectors.EVENT_READ, connection.ready)


def main() -> None:
    """Says where it serves, and does until SIGTERM or SIGINT."""
    import gc

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server = Server()
    print(f"timing-true server: http://127.0.0.1:{server.port}/v1", flush=True)
    gc.freeze()
    gc.disable()
    server.serve()


if __name__ == "__main__":
    main()
