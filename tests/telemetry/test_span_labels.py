"""Labels read from spans: the places they are read from, and values and attributes that cannot be shown."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.errors import LoadgenError
from loadgen.telemetry.otlp_parse import SpanLabels, parse_spans
from loadgen.telemetry.span_labels import (
    BAGGAGE,
    MAX_BAGGAGE,
    MAX_LABELS,
    MAX_VALUE,
    agreed_labels,
    parse_labels,
)
from support.otlp_attributes import set_attribute

HEADER = "http.request.header.x-tenant"
TENANT = {"tenant": HEADER}


def labels(source: dict[str, str], span: dict[str, Any], resource: dict[str, Any] | None = None) -> dict[str, str]:
    """The labels of the one request in an export with these attributes."""
    request = ExportTraceServiceRequest()
    sender = request.resource_spans.add()
    for key, value in (resource or {}).items():
        set_attribute(sender.resource, key, value)
    sent = sender.scope_spans.add().spans.add()
    sent.name, sent.start_time_unix_nano, sent.end_time_unix_nano = "llm_request", 10, 20
    for key, value in span.items():
        set_attribute(sent, key, value)
    (parsed,) = parse_spans(request.SerializeToString(), source).spans
    return parsed.labels


@pytest.mark.parametrize(
    ("span", "resource", "expected"),
    [
        ({HEADER: "acme"}, {}, "acme"),
        ({HEADER: ["acme"]}, {}, "acme"),
        ({HEADER: [" acme ", "acme"]}, {}, "acme"),
        ({HEADER: 42}, {}, "42"),
        ({HEADER: True}, {}, "true"),
        ({BAGGAGE: f"a=b, {HEADER}=ac%20me;ttl=1 ,c"}, {}, "ac me"),
        ({BAGGAGE: ["x=y", f"{HEADER}=acme"]}, {}, "acme"),
        ({}, {HEADER: "acme"}, "acme"),
        ({HEADER: "span", BAGGAGE: f"{HEADER}=baggage"}, {HEADER: "resource"}, "span"),
        ({HEADER: " ", BAGGAGE: f"{HEADER}=baggage"}, {HEADER: "resource"}, "baggage"),
        ({}, {}, None),
        ({HEADER: ""}, {}, None),
        ({HEADER: []}, {}, None),
        ({HEADER: 0.5}, {}, None),
        ({BAGGAGE: f"{HEADER}=%20"}, {}, None),
        ({BAGGAGE: f"{HEADER}=a," + "b" * MAX_BAGGAGE}, {}, None),
    ],
)
def test_the_first_place_with_a_value_counts(
    span: dict[str, Any], resource: dict[str, Any], expected: str | None
) -> None:
    assert labels(TENANT, span, resource) == ({} if expected is None else {"tenant": expected})


@pytest.mark.parametrize(
    "value",
    ["a\nb", "a\x00", "a\u202eb", "x" * (MAX_VALUE + 1), ["acme", "evil"]],
    ids=["newline", "nul", "bidi", "long", "two"],
)
def test_a_value_that_could_be_taken_for_another_is_other(value: Any) -> None:
    assert labels(TENANT, {HEADER: value}) == {"tenant": "other"}


def test_baggage_with_two_values_of_a_key_is_other() -> None:
    assert labels(TENANT, {BAGGAGE: f"{HEADER}=acme,{HEADER}=evil"}) == {"tenant": "other"}


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_a_short_printable_value_or_none(value: str, baggage: str) -> None:
    for shown in labels(TENANT, {HEADER: value, BAGGAGE: baggage}).values():
        assert 0 < len(shown) <= MAX_VALUE
        assert shown.isprintable()


def test_spans_that_differ_on_a_label_have_other() -> None:
    assert agreed_labels([{"tenant": "a", "user": "u"}, {}, {"tenant": "a", "user": "v"}]) == {
        "tenant": "a",
        "user": "other",
    }


def test_labels_are_names_and_attributes() -> None:
    assert parse_labels(["tenant=http.request.header.x-tenant", " team = team.id "]) == (
        {"tenant": HEADER, "team": "team.id"},
        {},
    )


def test_labels_may_state_their_values() -> None:
    texts = ["tenant=http.request.header.x-tenant:a, b:1,b:1", "team=team.id"]
    assert parse_labels(texts) == ({"tenant": HEADER, "team": "team.id"}, {"tenant": {"a", "b:1"}})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["tenant"], "expected the name of an attribute after ="),
        (["=a"], "expected a name of letters"),
        (["__name=a"], "expected a name of letters"),
        (["te-nant=a"], "expected a name of letters"),
        (["model=a"], "already; choose another"),
        (["le=a"], "already; choose another"),
        (["day=a"], "already; choose another"),
        (["a=b\n"], None),
        (["a=b\x1b"], "expected the name of an attribute"),
        (["a=x", "a=y"], "a is the name of two labels"),
        (["a=x:"], "expected values after the :"),
        (["a=x:y,,z"], "expected values after the :"),
        (["a=x:y\x1b"], "expected values after the :"),
        (["a=x:" + "y" * 65], "expected values after the :"),
        (["a=x:" + ",".join(map(str, range(1001)))], "1,001 values, of which at most 1,000 can be stated"),
        (["a=:y"], "expected the name of an attribute after ="),
        ([f"a{k}=x" for k in range(MAX_LABELS + 1)], "at most 8 labels"),
        (["r=gen_ai.request.id"], "gen_ai.request.id is an id"),
        (["r=gen_ai.conversation.id"], "is an id"),
        (["r=session.id"], "is an id"),
        (["r=http.request.header.x-request-id"], "is an id"),
        (["r=http.request.header.X-Correlation-ID"], "is an id"),
        (["r=http.request.header.traceparent"], "is an id"),
        (["k=http.request.header.authorization"], "is a secret or a text"),
        (["k=http.request.header.x-api-key"], "is a secret or a text"),
        (["k=http.request.header.baggage"], "is a secret or a text"),
        (["k=gen_ai.input.messages"], "is a secret or a text"),
        (["k=gen_ai.prompt.0.content"], "is a secret or a text"),
    ],
)
def test_ids_secrets_and_names_of_other_labels_are_refused(texts: list[str], message: str | None) -> None:
    if message is None:
        assert parse_labels(texts) == ({"a": "b"}, {})
        return
    with pytest.raises(LoadgenError, match=re.escape(message)):
        parse_labels(texts)


@pytest.mark.parametrize(("trace_id", "dropped"), [(b"t" * 16, 0), (b"", 1), (b"\0" * 16, 1), (b"t" * 5, 1)])
def test_a_span_that_is_no_request_has_labels_for_its_trace(trace_id: bytes, dropped: int) -> None:
    request = ExportTraceServiceRequest()
    sent = request.resource_spans.add().scope_spans.add().spans.add()
    sent.name, sent.trace_id, sent.start_time_unix_nano, sent.end_time_unix_nano = "POST", trace_id, 10, 20
    set_attribute(sent, HEADER, ["acme"])
    parsed = parse_spans(request.SerializeToString(), TENANT)
    assert (parsed.spans, parsed.dropped["not_a_request"]) == ([], dropped)
    assert parsed.span_labels == ([] if dropped else [SpanLabels(trace_id, 10, 20, {"tenant": "acme"})])
    assert parse_spans(request.SerializeToString()).dropped["not_a_request"] == 1
