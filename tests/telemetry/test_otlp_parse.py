"""Spans as vLLM, TGI and loadgen send them, and bytes that nobody should."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.clock import Anchor
from loadgen.record import Endpoint, RequestRecord
from loadgen.simulator.spans import Finished, engine_id, export_finished
from loadgen.telemetry.otlp_export import export_records
from loadgen.telemetry.otlp_parse import (
    MAX_DURATION_NS,
    MAX_SPAN_TOKENS,
    MAX_TEXT,
    MalformedError,
    RequestSpan,
    join_key,
    parse_spans,
    rust_seconds,
)
from loadgen.telemetry.traceparent import SpanIds, span_ids
from loadgen.units import NS_PER_MS, NS_PER_S
from support.otlp_attributes import set_attribute
from support.tgi_spans import rust, tgi_request

START_NS = 1_790_000_000 * NS_PER_S


def trace(
    name: str, attributes: dict[str, Any], start_ns: int = START_NS, end_ns: int = START_NS + 2 * NS_PER_S
) -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.name, span.kind = name, 2
    span.trace_id, span.span_id = b"t" * 16, b"s" * 8
    span.start_time_unix_nano, span.end_time_unix_nano = start_ns, end_ns
    for key, value in attributes.items():
        set_attribute(span, key, value)
    return bytes(request.SerializeToString())


def one(body: bytes) -> RequestSpan:
    (span,) = parse_spans(body).spans
    return span


VLLM = {
    "gen_ai.request.id": "chatcmpl-run-7",
    "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 20,
    "gen_ai.latency.time_to_first_token": 0.5,
    "gen_ai.latency.time_in_model_prefill": 0.2,
    "gen_ai.latency.e2e": 2.0,
    "gen_ai.request.temperature": 0.8,
}


def test_vllm_tells_phases_and_the_clients_request_id() -> None:
    span = one(trace("llm_request", VLLM))
    assert (span.key, span.input_tokens, span.output_tokens) == ("run-7", 100, 20)
    assert span.prefill_ns - span.start_ns == 300 * NS_PER_MS
    assert span.first_token_ns == START_NS + 500 * NS_PER_MS
    assert (span.model, span.workload, span.client, span.ok) == (None, None, False, True)


def test_tgi_tells_durations_as_text_and_tokens_by_division() -> None:
    times = {
        "total_time": "2.0s",
        "validation_time": "1.5ms",
        "queue_time": "98.5ms",
        "inference_time": "1.9s",
        "time_per_token": "19ms",
    }
    span = one(trace("generate_stream", times))
    assert (span.output_tokens, span.input_tokens) == (100, None)
    assert span.prefill_ns == START_NS + 100 * NS_PER_MS
    assert span.first_token_ns is None, "the mean time per token says nothing of the first"


def test_tgis_spans_of_tokens_and_steps_are_no_requests_and_tell_the_first_token_of_each_trace() -> None:
    traces = [span_ids(f"run-{k}") for k in range(2)]
    spoken = [tgi_request(ids, START_NS + k, queue_s=1.5, prefill_s=0.7, tokens=3) for k, ids in enumerate(traces)]
    for k, (parts, request) in enumerate(spoken):
        parsed = parse_spans(parts)
        assert (parsed.spans, parsed.dropped) == ([], {"not_a_request": 9})
        assert parsed.first_tokens == {traces[k].trace_id: START_NS + k + 2200 * NS_PER_MS}
        span = one(request)
        assert (span.parent_id, span.trace_id, span.output_tokens) == (traces[k].span_id, traces[k].trace_id, 3)
        assert span.prefill_ns == START_NS + k + 1500 * NS_PER_MS
    together = parse_spans(b"".join(part for parts in reversed(spoken) for part in parts))
    assert (len(together.spans), len(together.first_tokens), together.dropped.total()) == (2, 2, 18)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 80, 3000])
def test_tgis_tokens_are_exact(tokens: int) -> None:
    inference_s = 0.2 + 0.01 * (tokens - 1)
    times = {"inference_time": rust(inference_s), "time_per_token": rust(inference_s / tokens)}
    assert one(trace("generate", times)).output_tokens == tokens


def test_a_request_of_another_kind_is_not_dropped_for_its_name() -> None:
    assert one(trace("prefill", VLLM)).output_tokens == 20


SGLANG = {
    "rid": "5f1a", "module": "sglang::request", "gen_ai.request.id": "5f1a", "gen_ai.usage.prompt_tokens": 100,
    "gen_ai.usage.completion_tokens": 20, "gen_ai.usage.cached_tokens": 64, "gen_ai.response.model": "m",
    "gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_model_prefill": 0.49,
    "gen_ai.latency.time_in_queue": 0.3,
}  # fmt: skip
TENSORRT_LLM = {
    "gen_ai.request.id": "7", "gen_ai.usage.prompt_tokens": 100, "gen_ai.usage.completion_tokens": 20,
    "gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_queue": 0.3,
    "gen_ai.latency.kv_cache_transfer_time": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "attributes", "cached"), [("Req 5f1a", SGLANG, 64), ("llm_request", TENSORRT_LLM, None)]
)
def test_a_prefill_begins_after_the_queue_also_where_the_engine_counts_the_queue_as_prefill(
    name: str, attributes: dict[str, Any], cached: int | None
) -> None:
    span = one(trace(name, attributes))
    assert (span.input_tokens, span.output_tokens, span.cached_tokens) == (100, 20, cached)
    assert (span.prefill_ns - START_NS, (span.first_token_ns or 0) - START_NS) == (300 * NS_PER_MS, 500 * NS_PER_MS)


@pytest.mark.parametrize("name", ["Req 5f1a", "scheduler [TP 0]", "decode_loop", "request_process", "Overall Loading"])
def test_other_spans_of_engines_are_no_requests(name: str) -> None:
    attributes = {"tp_rank": 0, "pid": 7, "thread_label": "scheduler", "code.function.name": "load_model"}
    assert parse_spans(trace(name, attributes)) == ([], {"not_a_request": 1}, {}, [])


@pytest.mark.parametrize(
    ("trace_id", "span_id", "parent_id"),
    [
        (bytes(16), bytes(8), bytes(8)),
        (b"", b"", b""),
        (b"t" * 15, b"s" * 7, b"p" * 9),
        (b"t" * 1_000_000, b"s" * 1_000_000, b"p" * 1_000_000),
    ],
)
def test_ids_that_are_none_join_nothing(trace_id: bytes, span_id: bytes, parent_id: bytes) -> None:
    request = ExportTraceServiceRequest.FromString(trace("llm_request", {"gen_ai.usage.completion_tokens": 3}))
    ours = request.resource_spans[0].scope_spans[0].spans[0]
    ours.trace_id, ours.span_id, ours.parent_span_id = trace_id, span_id, parent_id
    other = request.resource_spans[0].scope_spans[0].spans.add()
    other.CopyFrom(ours)
    other.end_time_unix_nano += 1
    first, second = parse_spans(request.SerializeToString()).spans
    assert (first.trace_id, first.span_id, first.parent_id) == (b"", b"", b"")
    assert first.key != second.key and len(first.key) < MAX_TEXT


def test_a_token_in_no_trace_is_nobodys_first() -> None:
    parts, _ = tgi_request(SpanIds(bytes(16), b"s" * 8), START_NS, tokens=2)
    assert parse_spans(parts).first_tokens == {}


def test_loadgens_own_spans_come_back_as_they_were() -> None:
    record = RequestRecord(
        index=7, workload="code", scheduled_ns=0, sent_ns=1000, first_token_ns=501_000, last_token_ns=900_000,
        finished_ns=910_000, chunk_ns=[501_000, 900_000], input_tokens=11, output_tokens=5, cached_tokens=3,
    )  # fmt: skip
    failed = RequestRecord(index=8, workload="code", scheduled_ns=0, sent_ns=5, finished_ns=9, error="connect")
    not_sent = RequestRecord(index=9, workload="code", scheduled_ns=0, error="not_sent")
    at = Anchor(wall_ns=START_NS, monotonic_ns=0)
    sent = export_records("run", "m", {7: "s"}, [record, failed, not_sent], at, {7: {"tenant": "a"}})
    assert [span.labels for span in parse_spans(sent, {"tenant": "loadgen.tag.tenant"}).spans] == [{"tenant": "a"}, {}]
    told, other = parse_spans(sent).spans
    assert (told.key, told.workload, told.model, told.client) == ("run-7", "code", "m", True)
    ids = span_ids("run-7")
    assert told.moved(lambda t_ns: t_ns - START_NS) == RequestSpan(
        key="run-7", request_id="run-7", client=True, start_ns=1000, prefill_ns=1000, first_token_ns=501_000,
        end_ns=900_000, input_tokens=11, output_tokens=5, cached_tokens=3, model="m", workload="code", session="run/s",
        ok=True, trace_id=ids.trace_id, span_id=ids.span_id,
    )  # fmt: skip
    assert (other.ok, other.input_tokens, other.output_tokens, other.first_token_ns) == (False, None, None, None)
    assert other.session is None


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("vllm.init", {"pid": 3}, "not_a_request"),
        ("chat", {"http.method": "POST"}, "not_a_request"),
        ("llm_request", {**VLLM, "gen_ai.usage.prompt_tokens": -1}, "malformed"),
        ("llm_request", {**VLLM, "gen_ai.usage.prompt_tokens": 10**15}, "malformed"),
        ("llm_request", {**VLLM, "gen_ai.latency.time_to_first_token": float("nan")}, "malformed"),
    ],
)
def test_spans_that_are_none_are_counted_by_reason(name: str, attributes: dict[str, Any], reason: str) -> None:
    assert parse_spans(trace(name, attributes)) == ([], {reason: 1}, {}, [])


@pytest.mark.parametrize(("start_ns", "end_ns"), [(0, 5), (10, 5), (1, 10**17)])
def test_times_that_contradict_themselves_are_malformed(start_ns: int, end_ns: int) -> None:
    assert parse_spans(trace("llm_request", VLLM, start_ns, end_ns)).dropped == {"malformed": 1}


@pytest.mark.parametrize("name", ["gen_ai.conversation.id", "session.id"])
def test_a_session_is_named_by_either_attribute(name: str) -> None:
    assert one(trace("llm_request", VLLM | {name: "talk-1"})).session == "talk-1"


RESOURCES: list[tuple[int, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    (2, {"service.instance.id": "a", "service.name": "vllm"}, {}, ("a", "vllm")),
    (2, {"service.name": "vllm"}, {"server.address": "h", "server.port": 8000}, ("vllm", "h:8000")),
    (2, {"service.instance.id": 7, "service.name": ""}, {"server.address": "::1", "server.port": 80}, ("[::1]:80",)),
    (2, {}, {"server.address": "h"}, ("h",)),
    (2, {}, {"server.address": 5, "server.port": 80}, ()),
    (2, {"service.name": "x" * 500}, {}, ("x" * MAX_TEXT,)),
    (3, {"service.instance.id": "a client"}, {"server.address": "h", "server.port": 8000}, ("h:8000",)),
]


@pytest.mark.parametrize(("kind", "resource", "attributes", "names"), RESOURCES)
def test_an_engine_is_named_by_its_resource_and_by_its_address_and_a_client_names_no_engine_by_its_own(
    kind: int, resource: dict[str, Any], attributes: dict[str, Any], names: tuple[str, ...]
) -> None:
    request = ExportTraceServiceRequest.FromString(trace("llm_request", VLLM | attributes))
    request.resource_spans[0].scope_spans[0].spans[0].kind = kind
    for key, value in resource.items():
        set_attribute(request.resource_spans[0].resource, key, value)
    assert one(bytes(request.SerializeToString())).engine_names == names


def test_long_text_is_cut() -> None:
    assert one(trace("llm_request", VLLM | {"loadgen.workload": "w" * 10_000})).workload == "w" * MAX_TEXT
    long = one(trace("llm_request", VLLM | {"gen_ai.request.id": f"cmpl-{'i' * 10_000}-0"}))
    assert (len(long.key), len(long.request_id or "")) == (MAX_TEXT, MAX_TEXT)
    addresses = f"___prefill_addr_{'p' * 100}___decode_addr_{'d' * 100}_run-7"
    assert one(trace("llm_request", VLLM | {"gen_ai.request.id": f"cmpl-{addresses}-0"})).key == "run-7"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_trace_or_malformed(body: bytes) -> None:
    with suppress(MalformedError):
        parse_spans(body)


@pytest.mark.parametrize(
    ("engines", "clients"),
    [
        ("chatcmpl-a-7", "a-7"),
        ("resp-a-7", "a-7"),
        ("resp_a-7", "a-7"),
        ("embd-a-7-0", "a-7"),
        ("respond-7", "respond-7"),
        ("0_chatcmpl-a-7", "a-7"),
        ("1_cmpl-a-7-0", "a-7"),
        ("0_a", "0_a"),
        ("chatcmpl-___prefill_addr_10.0.0.1:21001___decode_addr_10.0.0.2:22001_a-7", "a-7"),
        ("cmpl-___prefill_addr_h:1___decode_addr_h:2_0123abcd-0", "0123abcd"),
        ("0_cmpl-___prefill_addr_h:1___decode_addr_h:2_0123abcd-0", "0123abcd"),
        ("___prefill_addr_h:1___decode_addr_h:2", "___prefill_addr_h:1___decode_addr_h:2"),
        ("cmpl-a-7-0", "a-7"),
        ("a-7", "a-7"),
        ("cmpl-x", "cmpl-x"),
    ],
)
def test_the_clients_id_is_found_in_the_engines(engines: str, clients: str) -> None:
    assert join_key(engines) == clients


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.25s", 1.25), ("345.6ms", 0.3456), ("12µs", 12e-6), ("7ns", 7e-9), ("", None), ("1h", None)],
)
def test_rust_durations(text: str, seconds: float | None) -> None:
    assert rust_seconds(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("request_id", "endpoint", "engines"),
    [
        ("run-7", "chat", "chatcmpl-run-7"),
        ("run-7", "completions", "cmpl-run-7-0"),
        ("chatcmpl-simulated-0-1", "chat", "chatcmpl-simulated-0-1"),
    ],
)
def test_the_simulated_engines_spans_are_read_as_vllms(request_id: str, endpoint: Endpoint, engines: str) -> None:
    assert engine_id(request_id, endpoint) == engines
    client = span_ids("run-7")
    seen = Finished(engines, 1000, 2000, 502_000, 900_000, 11, 5, client)
    span = one(export_finished("m", [seen], Anchor(wall_ns=START_NS, monotonic_ns=0)))
    assert span.moved(lambda t_ns: t_ns - START_NS) == RequestSpan(
        key=join_key(engines), request_id=engines, client=False, start_ns=1000, prefill_ns=2000,
        first_token_ns=502_000, end_ns=900_000, input_tokens=11, output_tokens=5, cached_tokens=None, model="m",
        workload=None, ok=True, trace_id=client.trace_id, span_id=span.span_id, parent_id=client.span_id,
        engine_names=("loadgen-simulator",),
    )  # fmt: skip
    assert span.span_id != client.span_id


DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("attribute", "value", "valid"),
    [
        ("gen_ai.usage.prompt_tokens", 0, True),
        ("gen_ai.usage.prompt_tokens", -1, False),
        ("gen_ai.usage.prompt_tokens", MAX_SPAN_TOKENS, True),
        ("gen_ai.usage.prompt_tokens", MAX_SPAN_TOKENS + 1, False),
        ("gen_ai.usage.completion_tokens", float("inf"), False),
        ("gen_ai.latency.time_to_first_token", 0.0, True),
        ("gen_ai.latency.time_to_first_token", -0.1, False),
        ("gen_ai.latency.time_to_first_token", DAY_S, True),
        ("gen_ai.latency.time_to_first_token", DAY_S + 1, False),
        ("gen_ai.latency.time_in_model_prefill", float("inf"), False),
    ],
)
def test_numbers_are_taken_up_to_their_limits(attribute: str, value: float, valid: bool) -> None:
    parsed = parse_spans(trace("llm_request", VLLM | {attribute: value}))
    assert (len(parsed.spans), parsed.dropped["malformed"]) == ((1, 0) if valid else (0, 1))


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "valid"),
    [(1, 1, True), (0, 1, False), (2, 1, False), (1, 1 + MAX_DURATION_NS, True), (1, 2 + MAX_DURATION_NS, False)],
)
def test_a_span_lasts_from_nothing_to_a_day(start_ns: int, end_ns: int, valid: bool) -> None:
    assert len(parse_spans(trace("llm_request", VLLM, start_ns, end_ns)).spans) == valid


@pytest.mark.parametrize(
    ("attributes", "prefill_s", "first_token_s"),
    [
        ({"gen_ai.latency.time_to_first_token": 0.5}, 0.0, 0.5),
        ({"gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_model_prefill": 0.2}, 0.3, 0.5),
        ({"gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_model_prefill": 0.7}, 0.0, 0.5),
        ({"gen_ai.latency.time_to_first_token": 9.0}, 0.0, 2.0),
        ({"gen_ai.latency.time_in_model_prefill": 0.2}, 0.0, None),
        ({"gen_ai.latency.time_in_queue": 0.2}, 0.2, None),
        ({"gen_ai.latency.time_in_queue": 9.0}, 2.0, None),
        ({"gen_ai.latency.time_to_first_token": 0.5, "gen_ai.latency.time_in_queue": 0.7}, 0.5, 0.5),
    ],
)
def test_phases_stay_inside_their_span(
    attributes: dict[str, Any], prefill_s: float, first_token_s: float | None
) -> None:
    span = one(trace("llm_request", attributes))
    assert span.prefill_ns - START_NS == round(prefill_s * NS_PER_S)
    assert span.first_token_ns == (None if first_token_s is None else START_NS + round(first_token_s * NS_PER_S))


@pytest.mark.parametrize(
    ("attributes", "tokens"),
    [
        ({"gen_ai.usage.output_tokens": 3, "gen_ai.usage.completion_tokens": 4}, 3),
        ({"gen_ai.usage.completion_tokens": 4}, 4),
        ({"gen_ai.usage.completion_tokens": 4.0}, 4),
        ({"gen_ai.usage.completion_tokens": True}, None),
        ({"gen_ai.usage.completion_tokens": "4"}, None),
    ],
)
def test_the_current_names_go_before_older_ones_and_only_numbers_count(
    attributes: dict[str, Any], tokens: int | None
) -> None:
    assert one(trace("llm_request", attributes)).output_tokens == tokens


def test_a_span_without_a_request_id_is_known_by_its_trace() -> None:
    span = one(trace("llm_request", {}))
    assert (span.key, span.request_id) == ((b"t" * 16 + b"s" * 8).hex(), None)


def test_a_clock_that_stepped_does_not_reverse_the_phases_of_a_span() -> None:
    span = one(trace("llm_request", VLLM))
    stepped = span.moved(lambda t_ns: t_ns if t_ns == span.start_ns else t_ns - 3600 * NS_PER_S)
    assert (stepped.prefill_ns, stepped.first_token_ns, stepped.end_ns) == (span.start_ns,) * 3


def test_a_clock_that_stepped_before_the_end_leaves_the_end_at_the_first_token() -> None:
    span = one(trace("llm_request", VLLM))
    stepped = span.moved(lambda t_ns: 0 if t_ns == span.end_ns else t_ns)
    assert stepped.end_ns == stepped.first_token_ns == START_NS + 500 * NS_PER_MS


def test_a_moved_span_keeps_the_distances_of_its_phases() -> None:
    moved = one(trace("llm_request", VLLM)).moved(lambda t_ns: t_ns - START_NS)
    assert (moved.start_ns, moved.prefill_ns, moved.end_ns) == (0, 300 * NS_PER_MS, 2 * NS_PER_S)
    assert moved.first_token_ns == 500 * NS_PER_MS


def test_a_span_without_a_first_token_is_moved_without_one() -> None:
    moved = one(trace("llm_request", {})).moved(lambda t_ns: t_ns - START_NS)
    assert (moved.prefill_ns, moved.first_token_ns, moved.end_ns) == (0, None, 2 * NS_PER_S)
