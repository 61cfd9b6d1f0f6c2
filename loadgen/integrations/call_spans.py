"""Reports the calls of a gateway to a sidecar, as spans with its teams, users and keys: labels of its joules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loadgen.telemetry.otlp_export import KIND_CLIENT, TAG, set_attribute, trace_service
from loadgen.telemetry.traceparent import SAMPLED, parse_traceparent, span_ids
from loadgen.units import s_from_ns

if TYPE_CHECKING:
    from loadgen.clock import Anchor
    from loadgen.integrations.call_energy import GatewayCall

GATEWAY = "litellm"
"""Name of the workload of its calls."""


class Place(NamedTuple):
    """The place of a call's span in a trace: the engine's span is below it, and the two are one request."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty if the trace begins here."""

    @property
    def header(self) -> str:
        """The traceparent for the engine, which asks it to record its span."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{SAMPLED}"


def place_of(request_id: str, traceparent: str) -> Place:
    """Return the place of a request's span: in the trace that its client began, if it began one."""
    own, client = span_ids(request_id), parse_traceparent(traceparent)
    return Place(client.trace_id, own.span_id, client.span_id) if client else Place(*own, b"")


class PlacedCall(NamedTuple):
    call: GatewayCall
    place: Place


def export_calls(batch: Sequence[PlacedCall], _: Anchor) -> bytes:
    """Encode an ExportTraceServiceRequest.

    The span of a call that failed has only its tags: a sidecar takes them for the engine's span below it, and takes a
    call that no engine served for no request.
    """
    export = trace_service().ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    set_attribute(resource.resource, "service.name", GATEWAY)
    scope = resource.scope_spans.add()
    for call, place in batch:
        span = scope.spans.add()
        span.trace_id, span.span_id, span.parent_span_id = place
        span.name, span.kind = "chat", KIND_CLIENT
        span.start_time_unix_nano, span.end_time_unix_nano = call.begin_unix_ns, call.end_unix_ns
        for name, value in ((_usage(call) if call.ok else {}) | call_tags(call)).items():
            if value is not None and value != "":
                set_attribute(span, name, value)
    return bytes(export.SerializeToString())


def _usage(call: GatewayCall) -> dict[str, str | int | float | None]:
    first_ns = call.first_token_unix_ns
    return {
        "gen_ai.request.id": call.request_id,
        "loadgen.workload": GATEWAY,
        "gen_ai.usage.input_tokens": call.input_tokens,
        "gen_ai.usage.output_tokens": call.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
        "gen_ai.latency.time_to_first_token": None if first_ns is None else s_from_ns(first_ns - call.begin_unix_ns),
    }


def call_tags(call: GatewayCall) -> dict[str, str | int | float | None]:
    """Return the attributes that `sidecar --label` can name."""
    return {
        TAG + "team": call.team_alias or call.team,
        TAG + "user": call.user,
        TAG + "key": call.api_key_alias,
        TAG + "end_user": call.end_user,
        TAG + "requested_model": call.requested_model,
    }
