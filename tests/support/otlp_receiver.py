"""A receiver of OTLP over HTTP that decodes and keeps what it gets: python otlp_receiver.py PORT."""

import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MESSAGES = {"/v1/metrics": ExportMetricsServiceRequest, "/v1/traces": ExportTraceServiceRequest}


class Reply(NamedTuple):
    status: int = 200
    body: bytes = b""
    kind: str = "application/x-protobuf"
    headers: dict[str, str] = {}  # noqa: RUF012
    after_s: float = 0.0


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    """Values by name in small letters."""
    message: Any


class OtlpReceiver(ThreadingHTTPServer):
    """`received` holds the messages in the order in which they came; `reply` makes the answer to message n, from 0."""

    daemon_threads = True

    def __init__(self, port: int = 0, reply: Callable[[int], Reply] = lambda n: Reply()) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.received: list[Received] = []
        self.reply = reply

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Stay silent where a client has gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OtlpReceiver

    def do_POST(self) -> None:
        received = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(received["content-length"]))
        self.server.received.append(Received(self.path, received, MESSAGES[self.path].FromString(body)))
        reply = self.server.reply(len(self.server.received) - 1)
        time.sleep(reply.after_s)
        self.send_response(reply.status)
        for name, value in {
            "Content-Type": reply.kind,
            "Content-Length": str(len(reply.body)),
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        pass


def attributes(holder: Any) -> dict[str, str | float]:
    """Return the attributes of a span, a point or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


def spans(received: list[Received]) -> list[Any]:
    """Return the spans of all messages."""
    return [
        span
        for one in received if one.path == "/v1/traces"
        for resource in one.message.resource_spans for scope in resource.scope_spans for span in scope.spans
    ]  # fmt: skip


if __name__ == "__main__":
    OtlpReceiver(int(sys.argv[1])).serve_forever()
