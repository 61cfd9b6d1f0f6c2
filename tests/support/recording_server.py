"""An OpenAI-compatible server that keeps the bytes of every request, and answers with three tokens or refuses."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Thread
from typing import NamedTuple

from support.fake_api import BurstServer

_OF_A_RUN = re.compile(r"[0-9a-f]{12}-(\d+)")

EVENTS = [
    *({"choices": [{"delta": {"content": word}, "text": word}]} for word in (" a", " b", " c")),
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}},
]
ANSWER = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in EVENTS) + b"data: [DONE]\n\n"


class Received(NamedTuple):
    """A request of a run, none of a probe."""

    path: str
    headers: dict[str, str]
    """Values by name in small letters."""
    body: bytes


@dataclass
class RecordingServer:
    """`received` holds the requests by their index; `refuses` returns why a body is refused."""

    refuses: Callable[[bytes], str | None] = lambda body: None
    received: dict[int, Received] = field(default_factory=dict)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a port of its own; gives the URL of the API."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one write for head and body
            recorder = self

            def reply(self, status: int, kind: str, page: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

            def do_GET(self) -> None:
                found = self.path.endswith("/models")
                self.reply(200 if found else 404, "application/json", b'{"data": [{"id": "m"}]}' if found else b"{}")

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                if match := _OF_A_RUN.fullmatch(headers.get("x-request-id", "")):
                    self.recorder.received[int(match[1])] = Received(self.path, headers, body)
                if refused := self.recorder.refuses(body):
                    return self.reply(400, "application/json", json.dumps({"error": {"message": refused}}).encode())
                return self.reply(200, "text/event-stream", ANSWER)

            def log_message(self, *_: object) -> None:
                pass

        with BurstServer(("127.0.0.1", 0), Handler) as server:
            Thread(target=server.serve_forever, args=(0.01,)).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/v1"
            finally:
                server.shutdown()
