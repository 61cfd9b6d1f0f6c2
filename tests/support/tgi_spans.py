"""Spans as TGI's router writes them: one of the request, two of each token, and those of the steps."""

from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.telemetry.otlp_export import set_attribute
from loadgen.telemetry.traceparent import SpanIds, span_ids
from loadgen.units import NS_PER_S

INTERNAL = 1


def rust(seconds: float) -> str:
    """The debug text of a Rust Duration."""
    return f"{seconds:.9f}s" if seconds >= 1 else f"{seconds * 1e3:.6f}ms"


def add_span(request: Any, name: str, ids: SpanIds, parent: bytes, start_ns: int, end_ns: int) -> Any:
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.name, span.kind = name, INTERNAL
    span.trace_id, span.span_id = ids
    span.parent_span_id = parent
    span.start_time_unix_nano, span.end_time_unix_nano = start_ns, end_ns
    for key, value in {"code.filepath": "router/src/server.rs", "code.lineno": 1150, "busy_ns": 1}.items():
        set_attribute(span, key, value)
    return span


def tgi_request(
    client: SpanIds,
    start_ns: int,
    *,
    queue_s: float = 0.0,
    prefill_s: float = 0.2,
    token_s: float = 0.01,
    tokens: int = 80,
) -> tuple[bytes, bytes]:
    """The spans of the tokens and steps of a request, and after them its own."""
    own = SpanIds(client.trace_id, span_ids(f"tgi {client}").span_id)
    first_ns = start_ns + round((queue_s + prefill_s) * NS_PER_S)
    parts = ExportTraceServiceRequest()
    for k in range(tokens):
        token_ns = first_ns + round(k * token_s * NS_PER_S)
        infer = SpanIds(client.trace_id, span_ids(f"{own} {k}").span_id)
        batch = span_ids(f"batch of {own} {k}")
        below = SpanIds(client.trace_id, infer.span_id[::-1])
        token = add_span(parts, "send_generation", below, infer.span_id, token_ns, token_ns + 1000)
        set_attribute(token, "generation", "Generation { request_id: 12, tokens: Some(Tokens { ids: [1234] }) }")
        add_span(parts, "infer", infer, own.span_id, token_ns - 1000, token_ns + 2000)
        add_span(parts, "batch", batch, b"", token_ns - 2000, token_ns + 3000)
    inference_s = prefill_s + (tokens - 1) * token_s
    request = ExportTraceServiceRequest()
    end_ns = start_ns + round((queue_s + inference_s) * NS_PER_S) + 300_000
    span = add_span(request, "chat_completions", own, client.span_id, start_ns, end_ns)
    times = {"total_time": queue_s + inference_s, "validation_time": 0.0, "queue_time": queue_s,
             "inference_time": inference_s, "time_per_token": inference_s / tokens}  # fmt: skip
    for key, seconds in times.items():
        set_attribute(span, key, rust(seconds))
    return bytes(parts.SerializeToString()), bytes(request.SerializeToString())
