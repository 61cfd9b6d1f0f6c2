"""Tell a sidecar about requests: one OTLP span each, sent from a thread, never on the timing path."""

import http.client
import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Generic, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from loadgen.clock import Anchor, anchor
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_S

TOKEN_VARIABLE = "LOADGEN_SIDECAR_TOKEN"
QUEUE_SPANS = 20_000
BATCH = 512
PAUSE_S = 0.5
"""Spans are gathered this long; a sidecar waits several seconds for them anyway."""
TIMEOUT_S = 5.0
KIND_CLIENT, STATUS_ERROR = 3, 2

T = TypeVar("T")


def export(run_id: str, model: str, records: Sequence[RequestRecord], at: Anchor) -> bytes:
    """Records -> an ExportTraceServiceRequest, times on the wall clock. Records that were never sent have no span."""
    trace = trace_service()
    request = trace.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    set_attribute(resource.resource, "service.name", "loadgen")
    scope = resource.scope_spans.add()
    for record in records:
        if record.sent_ns is not None and record.finished_ns is not None:
            _fill(scope.spans.add(), run_id, model, record, at.wall_ns - at.monotonic_ns)
    return bytes(request.SerializeToString())


def _fill(span: Any, run_id: str, model: str, record: RequestRecord, offset_ns: int) -> None:
    assert record.sent_ns is not None and record.finished_ns is not None
    request_id = f"{run_id}-{record.index}"
    digest = blake2b(request_id.encode(), digest_size=24).digest()
    span.trace_id, span.span_id = digest[:16], digest[16:]
    span.name, span.kind = "chat", KIND_CLIENT
    span.start_time_unix_nano = record.sent_ns + offset_ns
    span.end_time_unix_nano = max(record.last_token_ns or record.finished_ns, record.sent_ns) + offset_ns
    facts: dict[str, str | int | float | None] = {
        "gen_ai.request.id": request_id,
        "gen_ai.request.model": model,
        "loadgen.workload": record.workload,
        "gen_ai.usage.input_tokens": record.input_tokens or 0,
        "gen_ai.usage.output_tokens": record.output_tokens or 0,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.latency.time_to_first_token": None if record.ttft_ns is None else record.ttft_ns / NS_PER_S,
    }
    for key, value in facts.items():
        if value is not None:
            set_attribute(span, key, value)
    if not record.ok:
        span.status.code = STATUS_ERROR
        set_attribute(span, "error.type", record.error or "unknown")


def set_attribute(holder: Any, key: str, value: str | int | float) -> None:
    pair = holder.attributes.add()
    pair.key = key
    match value:
        case str():
            pair.value.string_value = value
        case int():
            pair.value.int_value = value
        case float():
            pair.value.double_value = value


def trace_service() -> Any:
    try:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    except ImportError as err:
        raise LoadgenError("sending spans needs opentelemetry-proto: pip install 'loadgen[sidecar]'") from err
    return trace_service_pb2


def check_endpoint(url: str) -> SplitResult:
    """The parts of a sidecar's URL. LoadgenError when it is none, or when the package to tell it is not there."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LoadgenError(f"{url!r} is no URL of a sidecar; one looks like http://localhost:9478")
    trace_service()
    return parts


class BatchSender(Generic[T]):
    """Queue something with `add`: it never waits. A context manager; leaving it sends what is left, for a moment.

    url: the sidecar's, with or without /v1/traces. A bearer token comes from $LOADGEN_SIDECAR_TOKEN.
    encode: a batch and now's anchor -> an ExportTraceServiceRequest.
    """

    def __init__(self, url: str, encode: Callable[[Sequence[T], Anchor], bytes]) -> None:
        parts = check_endpoint(url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connect(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._path = parts.path.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
        self._headers = {"Content-Type": "application/x-protobuf"}
        if token := os.environ.get(TOKEN_VARIABLE):
            self._headers["Authorization"] = f"Bearer {token}"
        self._encode = encode
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self.sent = self.lost = 0
        self.last_error: str | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Sends what is left. Blocks, for a moment."""
        self._ending.set()
        self._thread.join(2 * TIMEOUT_S)

    def add(self, item: T) -> None:
        if self._queue.qsize() >= QUEUE_SPANS:
            self.lost += 1
        else:
            self._queue.put(item)

    def report(self) -> dict[str, Any]:
        """For run.json."""
        return {"sent": self.sent, "lost": self.lost, "last_error": self.last_error}

    def _run(self) -> None:
        while not self._ending.wait(PAUSE_S):
            self._drain()
        self._drain()
        self._connection.close()

    def _drain(self) -> None:
        while not self._queue.empty():
            batch = [self._queue.get() for _ in range(min(self._queue.qsize(), BATCH))]
            self._send(batch)

    def _send(self, batch: list[T]) -> None:
        """A batch that a sidecar refuses or cannot be told is lost: the run goes on without it, and says so."""
        try:
            self._connection.request("POST", self._path, self._encode(batch, anchor()), self._headers)
            answer = self._connection.getresponse()
            answer.read()
            problem = None if answer.status == 200 else f"it answered {answer.status}"
        except (OSError, http.client.HTTPException) as err:
            self._connection.close()
            problem = str(err) or type(err).__name__
        if problem is None:
            self.sent += len(batch)
        else:
            self.lost += len(batch)
            self.last_error = problem


class SpanSender(BatchSender[RequestRecord]):
    """A client's own requests."""

    def __init__(self, url: str, run_id: str, model: str) -> None:
        super().__init__(url, partial(export, run_id, model))
