"""W3C trace context: what a client sends, its span says, and an engine reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.telemetry.traceparent import SpanIds, parse_traceparent, span_ids, traceparent


@given(st.text(max_size=60))
def test_an_engine_reads_the_ids_of_the_clients_span(request_id: str) -> None:
    header = traceparent(request_id)
    assert header.isascii() and header.endswith("-01"), "sampled: engines record the spans of such requests only"
    assert parse_traceparent(header) == span_ids(request_id)


def test_each_request_has_a_trace_of_its_own() -> None:
    assert len({span_ids(f"run-{index}").trace_id for index in range(1000)}) == 1000


T, S = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (f"00-{T}-{S}-00", True),
        (f"00-{T.upper()}-{S}-01", False),
        (f"01-{T}-{S}-01", False),
        (f"00-{'0' * 32}-{S}-01", False),
        (f"00-{T}-{'0' * 16}-01", False),
        (f"00-{T}-{S}", False),
        (f"00-{T}0-{S}-01", False),
        (f"00-{T}-{S}-01\n", False),
        ("", False),
        ("0" * 100_000, False),
    ],
)
def test_a_header_that_is_no_traceparent_names_nobody(header: str, valid: bool) -> None:
    assert parse_traceparent(header) == (SpanIds(bytes.fromhex(T), bytes.fromhex(S)) if valid else None)
