"""The spans that vLLM sends with --otlp-traces-endpoint, one for each request that finished. Simulated."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from loadgen.clock import Anchor
from loadgen.telemetry.otlp_export import set_attribute, trace_service
from loadgen.units import s_from_ns

KIND_SERVER = 2


class Finished(NamedTuple):
    """A request whose last token has been told. Instants are monotonic."""

    response_id: str
    """With the client's X-Request-Id in it, as vLLM writes it."""
    arrival_ns: int
    started_ns: int
    first_ns: int
    last_ns: int
    input_tokens: int
    output_tokens: int


def engine_id(request_id: str, chat: bool) -> str:
    """vLLM's own id for a request that its client called `request_id`; an id of the engine's making stays."""
    if request_id.startswith(("chatcmpl-", "cmpl-")):
        return request_id
    return f"chatcmpl-{request_id}" if chat else f"cmpl-{request_id}-0"


def export(model: str, batch: Sequence[Finished], at: Anchor) -> bytes:
    """An ExportTraceServiceRequest, times on the wall clock."""
    request = trace_service().ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    set_attribute(resource.resource, "service.name", "loadgen-simulator")
    scope = resource.scope_spans.add()
    offset_ns = at.wall_ns - at.monotonic_ns
    for one in batch:
        span = scope.spans.add()
        digest = blake2b(f"{one.response_id} {one.arrival_ns}".encode(), digest_size=24).digest()
        span.trace_id, span.span_id = digest[:16], digest[16:]
        span.name, span.kind = "llm_request", KIND_SERVER
        span.start_time_unix_nano, span.end_time_unix_nano = one.arrival_ns + offset_ns, one.last_ns + offset_ns
        for key, value in _facts(model, one).items():
            set_attribute(span, key, value)
    return bytes(request.SerializeToString())


def _facts(model: str, one: Finished) -> dict[str, str | int | float]:
    return {
        "gen_ai.response.model": model,
        "gen_ai.request.id": one.response_id,
        "gen_ai.usage.prompt_tokens": one.input_tokens,
        "gen_ai.usage.completion_tokens": one.output_tokens,
        "gen_ai.latency.time_in_queue": s_from_ns(one.started_ns - one.arrival_ns),
        "gen_ai.latency.time_to_first_token": s_from_ns(one.first_ns - one.arrival_ns),
        "gen_ai.latency.time_in_model_prefill": s_from_ns(one.first_ns - one.started_ns),
        "gen_ai.latency.time_in_model_decode": s_from_ns(one.last_ns - one.first_ns),
        "gen_ai.latency.e2e": s_from_ns(one.last_ns - one.arrival_ns),
    }
