"""The spans that vLLM sends with --otlp-traces-endpoint, one for each finished request. Simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from loadgen.telemetry.otlp_export import set_attribute, trace_service
from loadgen.telemetry.traceparent import SpanIds, span_ids
from loadgen.units import s_from_ns

if TYPE_CHECKING:
    from loadgen.clock import Anchor
    from loadgen.record import Endpoint

_KIND_SERVER = 2
SIMULATOR = {"service.name": "loadgen-simulator"}


class Finished(NamedTuple):
    """A request whose last token was sent. Instants are monotonic."""

    response_id: str
    """Response id that contains the client's X-Request-Id, as vLLM writes it."""
    arrival_ns: int
    started_ns: int
    first_token_ns: int
    last_token_ns: int
    input_tokens: int
    output_tokens: int
    parent: SpanIds | None = None
    """The client's span, named by its `traceparent`."""


ID_PREFIXES: dict[Endpoint, str] = {
    "chat": "chatcmpl", "completions": "cmpl", "responses": "resp", "embeddings": "embd", "rerank": "rerank",
}  # fmt: skip


def engine_id(request_id: str, endpoint: Endpoint) -> str:
    """Return vLLM's own id for a request with the client's id `request_id`; an id that the engine made stays."""
    if request_id.startswith(tuple(f"{prefix}-" for prefix in ID_PREFIXES.values())):
        return request_id
    prefix = ID_PREFIXES[endpoint]
    return f"{prefix}-{request_id}-0" if endpoint in ("completions", "embeddings") else f"{prefix}-{request_id}"


def export_finished(
    model: str, batch: Sequence[Finished], anchor: Anchor, engine: Mapping[str, str] = SIMULATOR
) -> bytes:
    """Encode an ExportTraceServiceRequest, with times on the wall clock. engine: attributes of its resource."""
    export = trace_service().ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    for name, text in engine.items():
        set_attribute(resource.resource, name, text)
    scope = resource.scope_spans.add()
    offset_ns = anchor.offset_ns
    for request in batch:
        span = scope.spans.add()
        span.trace_id, span.span_id = span_ids(f"{request.response_id} {request.arrival_ns}")
        if request.parent:
            span.trace_id, span.parent_span_id = request.parent
        span.name, span.kind = "llm_request", _KIND_SERVER
        span.start_time_unix_nano = request.arrival_ns + offset_ns
        span.end_time_unix_nano = request.last_token_ns + offset_ns
        attributes: dict[str, str | int | float] = {
            "gen_ai.response.model": model,
            "gen_ai.request.id": request.response_id,
            "gen_ai.usage.prompt_tokens": request.input_tokens,
            "gen_ai.usage.completion_tokens": request.output_tokens,
            "gen_ai.latency.time_in_queue": s_from_ns(request.started_ns - request.arrival_ns),
            "gen_ai.latency.time_to_first_token": s_from_ns(request.first_token_ns - request.arrival_ns),
            "gen_ai.latency.time_in_model_prefill": s_from_ns(request.first_token_ns - request.started_ns),
            "gen_ai.latency.time_in_model_decode": s_from_ns(request.last_token_ns - request.first_token_ns),
            "gen_ai.latency.e2e": s_from_ns(request.last_token_ns - request.arrival_ns),
        }
        for key, value in attributes.items():
            set_attribute(span, key, value)
    return bytes(export.SerializeToString())
