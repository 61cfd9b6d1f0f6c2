"""Reports requests to a sidecar: one OTLP span each, sent from a thread, never on the timing path."""

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Generic, Self, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from loadgen.clock import Anchor, anchor
from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.http_get import REQUEST_ERRORS, HttpClient
from loadgen.record import RequestRecord
from loadgen.telemetry.traceparent import span_ids
from loadgen.units import NS_PER_S

TOKEN_VARIABLE = "LOADGEN_SIDECAR_TOKEN"
MAX_QUEUED = 20_000
MAX_RESOURCE = 64
"""Attributes of a resource that a user can set."""
BATCH = 512
PAUSE_S = 0.5
"""Spans are collected this long; a sidecar waits several seconds for them anyway."""
SEND_TIMEOUT_S = 5.0
KIND_CLIENT, STATUS_ERROR = 3, 2

Item = TypeVar("Item")


TAG = "loadgen.tag."
"""Attributes of tags begin with this."""


def export_records(
    run_id: str,
    model: str,
    sessions: Mapping[int, str],
    records: Sequence[RequestRecord],
    clocks: Anchor,
    tags: Mapping[int, Mapping[str, str]] | None = None,
) -> bytes:
    """Encode records as an ExportTraceServiceRequest, on the wall clock. Records that were never sent have no span.

    sessions: the session of each request that is a turn of one, by its index. tags: of each request that has some.
    """
    trace = trace_service()
    request = trace.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    set_attribute(resource.resource, "service.name", "loadgen")
    scope = resource.scope_spans.add()
    for record in records:
        if record.sent_ns is not None and record.finished_ns is not None:
            span = scope.spans.add()
            _fill(span, run_id, model, sessions.get(record.index), record, clocks.offset_ns)
            for name, value in ((tags or {}).get(record.index) or {}).items():
                set_attribute(span, TAG + name, value)
    return bytes(request.SerializeToString())


def _fill(span: Any, run_id: str, model: str, session: str | None, record: RequestRecord, offset_ns: int) -> None:
    assert record.sent_ns is not None and record.finished_ns is not None
    request_id = f"{run_id}-{record.index}"
    span.trace_id, span.span_id = span_ids(request_id)
    span.name, span.kind = "chat", KIND_CLIENT
    span.start_time_unix_nano = record.sent_ns + offset_ns
    span.end_time_unix_nano = max(record.last_token_ns or record.finished_ns, record.sent_ns) + offset_ns
    attributes: dict[str, str | int | float | None] = {
        "gen_ai.request.id": request_id,
        "gen_ai.request.model": model,
        "gen_ai.conversation.id": None if session is None else f"{run_id}/{session}",
        "loadgen.workload": record.workload,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.latency.time_to_first_token": None if record.ttft_ns is None else record.ttft_ns / NS_PER_S,
    }
    for key, value in attributes.items():
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


def resource_attributes(own: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the attributes of a process as a resource: its own, and over them those of OpenTelemetry's variables.

    OTEL_RESOURCE_ATTRIBUTES is `key=value,...`, percent-encoded; OTEL_SERVICE_NAME has precedence.
    """
    pairs = (pair.partition("=") for pair in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    users = {key.strip(): unquote(value.strip()) for key, equals, value in pairs if key.strip() and equals}
    name = environment.get("OTEL_SERVICE_NAME")
    return {**own, **dict(islice(users.items(), MAX_RESOURCE)), **({"service.name": name} if name else {})}


def trace_service() -> Any:
    with importing("sending spans", "sidecar"):
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    return trace_service_pb2


def check_endpoint(url: str) -> SplitResult:
    """Return the parts of a sidecar's URL. LoadgenError when it is not one, or opentelemetry-proto is missing."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LoadgenError(f"{url!r} is not the URL of a sidecar; an example is http://localhost:9478")
    trace_service()
    return parts


class BatchSender(Generic[Item]):
    """Sends items in batches, from a thread; `add` never waits. Leaving the context sends the remaining ones, briefly.

    url: the sidecar's, with or without /v1/traces. A bearer token comes from $LOADGEN_SIDECAR_TOKEN.
    encode: a batch and the current anchor -> an ExportTraceServiceRequest.
    """

    def __init__(self, url: str, encode: Callable[[Sequence[Item], Anchor], bytes]) -> None:
        parts = check_endpoint(url)
        self._path = parts.path.rstrip("/").removesuffix("/v1/traces") + "/v1/traces"
        headers = {"Content-Type": "application/x-protobuf"}
        if token := os.environ.get(TOKEN_VARIABLE):
            headers["Authorization"] = f"Bearer {token}"
        self._client = HttpClient(parts, headers=headers, timeout_s=SEND_TIMEOUT_S)
        self._encode = encode
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._stopping = threading.Event()
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
        """Send the remaining items. Blocks, for a moment."""
        self._stopping.set()
        self._thread.join(2 * SEND_TIMEOUT_S)

    def add(self, item: Item) -> None:
        if self._queue.qsize() >= MAX_QUEUED:
            self.lost += 1
        else:
            self._queue.put(item)

    def report(self) -> dict[str, Any]:
        """Return the counts for run.json."""
        return {"sent": self.sent, "lost": self.lost, "last_error": self.last_error}

    def _run(self) -> None:
        while not self._stopping.wait(PAUSE_S):
            self._drain()
        self._drain()
        self._client.close()

    def _drain(self) -> None:
        """POST batches until the queue is empty.

        One that a sidecar refuses or does not get is lost and counted: the run goes on without it.
        """
        while not self._queue.empty():
            batch = [self._queue.get() for _ in range(min(self._queue.qsize(), BATCH))]
            try:
                response = self._client.request("POST", self._path, self._encode(batch, anchor()))
                problem = None if response.status == 200 else f"it answered {response.status}"
            except REQUEST_ERRORS as err:
                problem = str(err) or type(err).__name__
            if problem is None:
                self.sent += len(batch)
            else:
                self.lost += len(batch)
                self.last_error = problem


class SpanSender(BatchSender[RequestRecord]):
    """Sends the spans of a client's own requests."""

    def __init__(
        self,
        url: str,
        run_id: str,
        model: str,
        sessions: Mapping[int, str] | None = None,
        tags: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        """sessions, tags: as for `export_records`."""
        super().__init__(url, partial(export_records, run_id, model, sessions or {}, tags=tags))
