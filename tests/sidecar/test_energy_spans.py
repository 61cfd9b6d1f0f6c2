"""Spans that show a request's joules in its own trace."""

from typing import Any

import pytest
from msgspec.structs import replace as changed
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.results.ledger_lines import SettledRequest
from loadgen.sidecar.energy_spans import EnergySpan, encode_spans, energy_span
from loadgen.telemetry.otlp_parse import parse_spans
from support.otlp_receiver import attributes

TRACE, ENGINE = bytes(range(1, 17)), bytes(range(1, 9))
SETTLED = SettledRequest(
    id="run-7", model="m", workload="chat", engine="gpu-host:8000", labels={"tenant": "a"}, ok=True,
    begin_unix_ns=1_000, first_token_unix_ns=1_500, end_unix_ns=3_000, settled_unix_ns=9_000, input_tokens=100,
    output_tokens=50, cached_tokens=None, prefill_mj=400, decode_mj=1_600, se_mj=30, whole=True,
)  # fmt: skip


def encoded(*spans: EnergySpan) -> list[Any]:
    message = ExportTraceServiceRequest.FromString(encode_spans(spans, {"service.name": "loadgen-sidecar"}))
    (resource,) = message.resource_spans
    assert attributes(resource.resource) == {"service.name": "loadgen-sidecar"}
    (scope,) = resource.scope_spans
    return list(scope.spans)


def test_a_span_is_a_child_of_the_engines_with_joules_model_and_labels_and_no_more() -> None:
    (span,) = encoded(EnergySpan(SETTLED, TRACE, ENGINE))
    assert (span.name, span.trace_id, span.parent_span_id) == ("loadgen.energy", TRACE, ENGINE)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 3_000)
    assert attributes(span) == {
        "loadgen.energy.joules": 2.0, "loadgen.energy.prefill_joules": 0.4, "loadgen.energy.decode_joules": 1.6,
        "loadgen.energy.se_joules": 0.03, "loadgen.model": "m", "loadgen.workload": "chat", "tenant": "a",
        "loadgen.engine": "gpu-host:8000",
    }  # fmt: skip
    assert b"run-7" not in span.SerializeToString() and b"gen_ai" not in span.SerializeToString()


def test_the_engine_of_the_prefill_is_an_attribute_where_another_one_decoded() -> None:
    (span,) = encoded(EnergySpan(changed(SETTLED, engine="d0", prefill_engine="p0"), TRACE, ENGINE))
    shown = attributes(span)
    assert (shown["loadgen.engine"], shown["loadgen.prefill_engine"]) == ("d0", "p0")


def test_an_unknown_error_is_no_attribute_and_not_zero() -> None:
    (span,) = encoded(EnergySpan(changed(SETTLED, se_mj=None, labels={}), TRACE, ENGINE))
    assert "loadgen.energy.se_joules" not in attributes(span)


def test_a_span_that_is_sent_again_is_the_same_and_those_of_other_requests_differ() -> None:
    span = EnergySpan(SETTLED, TRACE, ENGINE)
    spans = encoded(span, span, span._replace(parent_id=bytes(8 * [7])), span._replace(trace_id=bytes(16 * [7])))
    ids = [made.span_id for made in spans]
    assert ids[0] == ids[1] and len(set(ids)) == 3 and {len(made) for made in ids} == {8} and ENGINE not in ids


@pytest.mark.parametrize(
    ("request_", "trace_id", "parent_id", "sent"),
    [
        (SETTLED, TRACE, ENGINE, True),
        (SETTLED, b"", ENGINE, False),
        (SETTLED, TRACE, b"", False),
        (changed(SETTLED, whole=False), TRACE, ENGINE, False),
        (changed(SETTLED, ok=False), TRACE, ENGINE, True),
    ],
)
def test_there_is_a_span_where_the_energy_and_the_trace_are_known(
    request_: SettledRequest, trace_id: bytes, parent_id: bytes, sent: bool
) -> None:
    assert (energy_span(request_, trace_id, parent_id) is not None) == sent


def test_a_collector_that_sends_the_span_back_makes_no_request_of_it() -> None:
    parsed = parse_spans(encode_spans([EnergySpan(SETTLED, TRACE, ENGINE)], {}), {"tenant": "tenant"})
    assert (parsed.spans, parsed.span_labels, parsed.dropped) == ([], [], {"not_a_request": 1})
