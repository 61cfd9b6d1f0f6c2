"""A call's span becomes its request, whichever convention its messages follow."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from support.foreign_files import ANSWER, MESSAGE, any_value, genai_parts, otlp, rows_of, saved_lines

SENT = {"gen_ai.input.messages": genai_parts(MESSAGE)}


def read(tmp_path: Path, *values: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    left_out: Counter[str] = Counter()
    return rows_of(saved_lines(tmp_path / "spans.jsonl", list(values)), "otel", left_out), left_out


def event(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "attributes": [{"key": k, "value": any_value(v)} for k, v in attributes.items()]}


def row_of(tmp_path: Path, attributes: dict[str, Any], **span: Any) -> dict[str, Any]:
    (row,), left_out = read(tmp_path, otlp(attributes, **span))
    assert not left_out
    return row


def test_a_span_keeps_its_messages_parameters_model_session_answer_and_usage(tmp_path: Path) -> None:
    attributes = SENT | {
        "gen_ai.operation.name": "chat",
        "gen_ai.output.messages": genai_parts(ANSWER),
        "gen_ai.request.model": "gpt-4",
        "gen_ai.request.max_tokens": 200,
        "gen_ai.request.temperature": 0.2,
        "gen_ai.request.stop_sequences": ["a"],
        "gen_ai.conversation.id": "conv",
        "gen_ai.usage.input_tokens": 52,
        "gen_ai.usage.output_tokens": 47,
    }
    assert row_of(tmp_path, attributes) == {
        "timestamp": 0.0,
        "messages": [MESSAGE],
        "model": "gpt-4",
        "max_tokens": 200,
        "temperature": 0.2,
        "stop": ["a"],
        "session_id": "conv",
        "answer": "hello",
        "input_length": 52,
        "output_length": 47,
    }


PARTS = [
    {"role": "user", "parts": [{"type": "text", "content": "a"}, {"type": "text", "content": "b"}]},
    {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"},
                                    {"type": "tool_call", "id": "1", "name": "f", "arguments": {"x": "é"}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": {"y": 2}}]},
    {"role": "user", "parts": [{"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AA"},
                               {"type": "uri", "modality": "video", "uri": "https://x"}]},
]  # fmt: skip
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": None, "reasoning_content": "hm",
     "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":"é"}'}}]},
    {"role": "tool", "tool_call_id": "1", "content": '{"y":2}'},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                                 {"type": "video_url", "video_url": {"url": "https://x"}}]},
]  # fmt: skip


@pytest.mark.parametrize("given", [json.dumps(PARTS), PARTS], ids=["text", "structured"])
def test_parts_become_the_contents_tool_calls_and_tool_messages_of_the_api(tmp_path: Path, given: Any) -> None:
    assert row_of(tmp_path, {"gen_ai.input.messages": given})["messages"] == CHAT


def test_an_answer_that_calls_tools_is_its_message(tmp_path: Path) -> None:
    row = row_of(tmp_path, SENT | {"gen_ai.output.messages": json.dumps([PARTS[1]])})
    assert row["answer"] == CHAT[1]


@pytest.mark.parametrize("container", ["attributes", "event"])
def test_messages_may_lie_in_an_event_and_system_instructions_precede_them(tmp_path: Path, container: str) -> None:
    words = SENT | {"gen_ai.system_instructions": json.dumps([{"type": "text", "content": "be kind"}])}
    operation = event("gen_ai.client.inference.operation.details", words)
    row = row_of(tmp_path, words) if container == "attributes" else row_of(tmp_path, {}, events=[operation])
    assert row["messages"] == [{"role": "system", "content": "be kind"}, MESSAGE]


def test_indexed_attributes_are_messages_in_order_of_their_index(tmp_path: Path) -> None:
    prompts = {f"gen_ai.prompt.{i}.role": "user" for i in range(12)} | {
        f"gen_ai.prompt.{i}.content": str(i) for i in range(12)
    }
    called = {
        "gen_ai.prompt.12.role": "assistant",
        "gen_ai.prompt.12.tool_calls.0.id": "1",
        "gen_ai.prompt.12.tool_calls.0.name": "f",
        "gen_ai.prompt.12.tool_calls.0.arguments": "{}",
        "gen_ai.prompt.13.role": "tool",
        "gen_ai.prompt.13.content": "r",
        "gen_ai.prompt.13.tool_call_id": "1",
        "gen_ai.prompt.14.role": "user",
        "gen_ai.prompt.14.content": '[{"type": "text", "text": "x"}]',
        "gen_ai.completion.0.content": "done",
        "llm.request.functions.0.name": "f",
        "llm.request.functions.0.parameters": '{"type": "object"}',
        "gen_ai.usage.prompt_tokens": "7",
    }
    row = row_of(tmp_path, prompts | called)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert [message["content"] for message in row["messages"][:12]] == [str(i) for i in range(12)]
    assert row["messages"][12:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    assert row["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert (row["answer"], row["input_length"]) == ("done", 7)


@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        ({"message": '{"content": "done"}'}, "done"),
        ({"content": "done"}, "done"),
        ({"gen_ai.event.content": '{"message": {"content": "done"}}'}, "done"),
        ({"message": '{"tool_calls": []}'}, None),
    ],
)
def test_events_are_messages_and_a_choice_is_the_answer(
    tmp_path: Path, choice: dict[str, Any], answer: str | None
) -> None:
    events = [
        event("gen_ai.system.message", {"content": "be kind"}),
        event("gen_ai.user.message", {"gen_ai.event.content": json.dumps({"content": "a"})}),
        event("gen_ai.tool.message", {"content": "[1]", "id": "1"}),
        event("gen_ai.choice", choice),
    ]
    row = row_of(tmp_path, {"gen_ai.tool.definitions": '[{"type": "function", "name": "f"}]'}, events=events)
    assert row["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "tool", "content": "[1]", "tool_call_id": "1"},
    ]
    assert row["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert row.get("answer") == answer


def test_a_text_completion_is_a_prompt(tmp_path: Path) -> None:
    row = row_of(tmp_path, {"llm.request.type": "completion", "gen_ai.prompt.0.content": "once"})
    assert (row["prompt"], "messages" in row) == ("once", False)


def test_spans_of_an_sdk_one_a_line_are_read_and_ordered_by_their_start(tmp_path: Path) -> None:
    starts = ("2026-01-01T00:00:01.500000Z", "2026-01-01T00:00:00.000000Z", 1767225600_250_000_000)
    rows, _ = read(tmp_path, *({"name": "chat", "attributes": SENT, "start_time": start} for start in starts))
    assert [row["timestamp"] for row in rows] == [0.0, 250.0, 1500.0]


def test_a_document_may_be_indented_and_hold_many_spans(tmp_path: Path) -> None:
    document = otlp(SENT, 10**18 + 5_000_000)
    document["resourceSpans"] += otlp(SENT, 10**18)["resourceSpans"]
    (path := tmp_path / "traces.json").write_text(json.dumps(document, indent=2))
    assert [row["timestamp"] for row in rows_of(path, "otel")] == [0.0, 5.0]


@pytest.mark.parametrize(
    ("attributes", "span", "reason"),
    [
        ({"gen_ai.operation.name": "execute_tool"}, {}, "spans of 'execute_tool'"),
        ({"gen_ai.operation.name": "invoke_agent"} | SENT, {}, "spans of 'invoke_agent'"),
        ({"http.method": "GET"}, {}, "spans without messages"),
        (SENT, {"status": {"code": 2}}, "calls that failed"),
        (SENT, {"status": {"code": "STATUS_CODE_ERROR"}}, "calls that failed"),
        ({"gen_ai.input.messages": genai_parts(MESSAGE)[:-5]}, {}, "calls with messages that are not whole"),
        ({"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "file", "file_id": "x"}]}]'}, {},
         "calls with a part of type 'file'"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_trace_is_counted(
    tmp_path: Path, attributes: dict[str, Any], span: dict[str, Any], reason: str
) -> None:
    rows, left_out = read(tmp_path, otlp(SENT), otlp(attributes, **span))
    assert (len(rows), left_out) == (1, {reason: 1})


@pytest.mark.parametrize(
    "document",
    [
        otlp(SENT, startTimeUnixNano="soon"),
        otlp(SENT, startTimeUnixNano="9" * 30),
        otlp(SENT, startTimeUnixNano="9" * 9999),
        otlp(SENT, startTimeUnixNano=None),
        otlp({}, attributes=5),
        otlp({}, attributes=[5]),
        otlp({}, attributes=[{"value": {}}]),
        otlp({"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text"}]}]'}),
        otlp({"gen_ai.input.messages": "[5]"}),
        otlp({"gen_ai.input.messages": '{"role": "user"}'}),
        otlp(SENT | {"gen_ai.output.messages": "{}", "gen_ai.usage.input_tokens": "many"}),
        otlp(SENT, events=5),
        {"resourceSpans": {}},
        [],
    ],
)
def test_a_wrong_span_is_an_error_with_its_place(tmp_path: Path, document: Any) -> None:
    with pytest.raises(LoadgenError, match=r"spans\.jsonl:2: "):
        read(tmp_path, otlp(SENT), document)
