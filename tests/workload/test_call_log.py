"""A gateway's log is asked again: its requests, their times and parameters, its answers and usage."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from support.foreign_files import CALL, MESSAGE, rows_of, saved_lines


def read(tmp_path: Path, *values: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    left_out: Counter[str] = Counter()
    return rows_of(saved_lines(tmp_path / "log.jsonl", list(values)), "litellm", left_out), left_out


def test_a_call_keeps_its_messages_parameters_model_answer_and_usage(tmp_path: Path) -> None:
    (row,), left_out = read(tmp_path, CALL)
    assert row == {
        "timestamp": 0.0,
        "messages": [MESSAGE],
        "temperature": 0.5,
        "max_tokens": 64,
        "model": "gpt-4o",
        "answer": "hello",
        "input_length": 10,
        "output_length": 20,
    }
    assert not left_out


def test_calls_are_ordered_by_their_start_because_a_log_is_by_their_end(tmp_path: Path) -> None:
    starts = (1700000002.25, 1700000000.0, "2023-11-14 22:13:20.500000", "2023-11-14T23:13:21+01:00")
    rows, _ = read(tmp_path, *(CALL | {"startTime": start} for start in starts))
    assert [row["timestamp"] for row in rows] == [0.0, 500.0, 1000.0, 2250.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": json.dumps([MESSAGE])}, {"messages": [MESSAGE]}),
        ({"messages": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}),
        ({"messages": "[hi"}, {"messages": [{"role": "user", "content": "[hi"}]}),
        ({"call_type": "text_completion", "messages": "hi"}, {"prompt": "hi"}),
        ({"call_type": "atext_completion", "messages": [MESSAGE]}, {"prompt": MESSAGE["content"]}),
    ],
)
def test_messages_may_be_a_list_a_text_of_one_or_a_prompt(
    tmp_path: Path, change: dict[str, Any], words: dict[str, Any]
) -> None:
    (row,), _ = read(tmp_path, CALL | change)
    assert {name: row[name] for name in ("messages", "prompt") if name in row} == words


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ({"choices": [{"text": "t"}]}, "t"),
        ({"choices": [{"message": {"content": "redacted-by-litellm"}}]}, None),
        (json.dumps({"choices": [{"message": {"content": "t"}}]}), "t"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, None),
        ({"choices": [{"message": {"tool_calls": [{}]}}]}, {"role": "assistant", "content": None, "tool_calls": [{}]}),
        ({"choices": []}, None),
        ({}, None),
        ("redacted-by-litellm", None),
        (None, None),
    ],
)
def test_an_answer_is_the_text_of_the_first_choice_or_its_message_with_tool_calls(
    tmp_path: Path, response: Any, answer: Any
) -> None:
    (row,), _ = read(tmp_path, CALL | {"response": response})
    assert row.get("answer") == answer


def test_the_payload_may_lie_in_a_callbacks_event(tmp_path: Path) -> None:
    assert read(tmp_path, {"standard_logging_object": CALL, "kwargs": 1}) == read(tmp_path, CALL)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "failure"}, "calls that failed"),
        ({"call_type": "aembedding"}, "calls of 'aembedding'"),
        ({"messages": None}, "calls whose messages were not logged"),
        ({"messages": "{}"}, "calls whose messages were not logged"),
        ({"messages": "redacted-by-litellm"}, "calls whose messages were not logged"),
        ({"messages": [MESSAGE | {"content": "redacted-by-litellm"}]}, "calls whose messages were not logged"),
        ({"model_parameters": {"extra_headers": {"a": 1}}}, "parameters 'extra_headers'"),
    ],
)
def test_what_has_no_place_in_a_trace_is_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    rows, left_out = read(tmp_path, CALL, CALL | change)
    assert left_out == {reason: 1}
    assert len(rows) == (2 if "model_parameters" in change else 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"startTime": "soon"}, "startTime: 'soon': expected seconds since 1970, or a date and time"),
        ({"startTime": 1e300}, "time: it is out of range"),
        ({"startTime": None}, "startTime: expected seconds since 1970, or a date and time"),
        ({"prompt_tokens": "ten"}, "prompt_tokens: expected `int | null`, got `str`"),
        ({"call_type": "text_completion", "messages": [MESSAGE, MESSAGE]}, "messages: expected the one prompt of a"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(LoadgenError) as raised:
        read(tmp_path, CALL, CALL | change)
    assert f"log.jsonl:2: {fault}" in str(raised.value)
