"""An OpenAI-compatible server whose models, refusals and pages a test chooses."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from loadgen.client.client import Client
from loadgen.client.server_probe import ServerProbe, probe

TEMPLATE_TOKENS = 5
CHARS_PER_TOKEN = 4

Answer = tuple[int, Any]
"""Status, and a page: bytes, or what is sent as JSON."""


def refusal(status: int, message: str = "not accepted") -> Answer:
    return status, {"error": {"message": message}}


@dataclass
class FakeServer:
    """Answers like an OpenAI-compatible server; its fields say how. `bodies` holds each completion's request, `seen`
    the line and fields of every request."""

    models: Answer | list[Answer] = field(
        default_factory=lambda: (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 128}]})
    )
    """A list is used up from its beginning, but for its last one."""
    base: str = "/v1"
    pages: dict[str, Answer] = field(default_factory=dict)
    tokenize: Callable[[dict[str, Any]], Any] | None = None
    refuses: Callable[[dict[str, Any]], Answer | None] = lambda body: None
    has_usage: bool = True
    reports: int | None = None
    """The prompt tokens that usage reports whatever the prompt is; None: it counts."""
    location: str | None = None
    """Target of redirects."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def completion(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        if refused := self.refuses(body):
            return refused
        prompt = body["messages"][0]["content"]
        events: list[Any] = [{"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}]
        if self.has_usage:
            counted = TEMPLATE_TOKENS + self.count(prompt) if self.reports is None else self.reports
            usage = {"prompt_tokens": counted, "completion_tokens": 1}
            events.append({"choices": [], "usage": usage})
        return 200, b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)

    def count(self, text: str) -> int:
        if self.tokenize:
            return len(text.split(" "))
        return 1 if text == "the" else len(text) // CHARS_PER_TOKEN

    def get(self, path: str) -> Answer:
        if path == self.base + "/models":
            if isinstance(self.models, list):
                return self.models.pop(0) if len(self.models) > 1 else self.models[0]
            return self.models
        return self.pages.get(path, (404, {"detail": "Not Found"}))

    def post(self, path: str, body: dict[str, Any]) -> Answer:
        if path == self.base + "/chat/completions":
            return self.completion(body)
        if path == "/tokenize" and self.tokenize:
            return 200, self.tokenize(body)
        return self.pages.get(path, (404, {"detail": "Not Found"}))


class BurstServer(ThreadingHTTPServer):
    """Takes as many new connections at once as a late client makes: beyond the usual 5, some would never be heard."""

    request_queue_size = 1024


@contextmanager
def serving(fake: FakeServer) -> Iterator[str]:
    """Serve on a port of its own; gives the URL without a path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write for head and body

        def reply(self, status: int, page: Any, kind: str = "application/json") -> None:
            content = page if isinstance(page, bytes) else json.dumps(page).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if 300 <= status < 400 and fake.location:
                self.send_header("Location", fake.location)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            fake.seen.append((f"GET {self.path}", dict(self.headers)))
            self.reply(*fake.get(urlsplit(self.path).path))

        def do_POST(self) -> None:
            fake.seen.append((f"POST {self.path}", dict(self.headers)))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, page = fake.post(urlsplit(self.path).path, body)
            streams = status == 200 and isinstance(page, bytes)
            self.reply(status, page, "text/event-stream" if streams else "application/json")

        def log_message(self, *_: Any) -> None:
            pass

    with BurstServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def probed(
    fake: FakeServer,
    at: str = "/v1",
    *,
    headers: dict[str, str] | None = None,
    api_key: str | None = None,
    **options: Any,
) -> ServerProbe:
    """Return the probe of `fake` by a client that was given the path `at`."""

    async def main(url: str) -> ServerProbe:
        async with Client(url, headers=headers, api_key=api_key, timeout_s=10) as client:
            return await probe(client, "chat", {"chat"}, **options)

    with serving(fake) as url:
        return asyncio.run(main(url + at))
