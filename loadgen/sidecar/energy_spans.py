"""Encodes settled requests as spans of their own traces: children of the engine's, with the measured joules. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen import __version__
from loadgen.sidecar.otlp_metrics import set_texts
from loadgen.telemetry.otlp_export import set_attribute
from loadgen.telemetry.otlp_parse import ENERGY_SPAN, SPAN_KIND_INTERNAL
from loadgen.telemetry.traceparent import SPAN_BYTES
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.results.ledger_lines import SettledRequest


class EnergySpan(NamedTuple):
    """A settled request, and the span that its energy is shown below: the engine's, or its client's without one."""

    request: SettledRequest
    trace_id: bytes
    parent_id: bytes


def energy_span(request: SettledRequest, trace_id: bytes, parent_id: bytes) -> EnergySpan | None:
    """Return the span of a request; None if its energy is unknown or its trace is."""
    if not request.whole or not trace_id or not parent_id:
        return None
    return EnergySpan(request, trace_id, parent_id)


def encode_spans(spans: Iterable[EnergySpan], resource: Mapping[str, str]) -> bytes:
    """Encode spans as an ExportTraceServiceRequest.

    A span's id follows from its parent's, so that a span that is sent twice is the same one. It has no attribute of
    `gen_ai`, by which viewers would take it for another call of the model, and no id of the request.
    """
    message = ExportTraceServiceRequest()
    holder = message.resource_spans.add()
    set_texts(holder.resource, resource.items())
    scope = holder.scope_spans.add()
    scope.scope.name, scope.scope.version = "loadgen.sidecar", __version__
    for request, trace_id, parent_id in spans:
        span = scope.spans.add(name=ENERGY_SPAN, kind=SPAN_KIND_INTERNAL, trace_id=trace_id, parent_span_id=parent_id)
        span.span_id = blake2b(trace_id + parent_id + ENERGY_SPAN.encode(), digest_size=SPAN_BYTES).digest()
        span.start_time_unix_nano = request.begin_unix_ns
        span.end_time_unix_nano = max(request.end_unix_ns, request.begin_unix_ns)
        set_attribute(span, "loadgen.energy.joules", j_from_mj(request.prefill_mj + request.decode_mj))
        set_attribute(span, "loadgen.energy.prefill_joules", j_from_mj(request.prefill_mj))
        set_attribute(span, "loadgen.energy.decode_joules", j_from_mj(request.decode_mj))
        if request.se_mj is not None:
            set_attribute(span, "loadgen.energy.se_joules", j_from_mj(request.se_mj))
        texts = {
            "loadgen.model": request.model,
            "loadgen.workload": request.workload,
            "loadgen.engine": request.engine,
            "loadgen.prefill_engine": request.prefill_engine,
            **request.labels,
        }
        set_texts(span, texts.items())
    return bytes(message.SerializeToString())
