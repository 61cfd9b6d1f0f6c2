"""The first row of a file tells its format, or that it may be of two."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.worded_formats import READERS, WordedFormat, worded_format
from support.foreign_files import ANSWER, FILES, MESSAGE

PATH = Path("data.jsonl")


@pytest.mark.parametrize("format", FILES)
def test_every_format_is_detected_by_its_first_row(format: str) -> None:
    assert worded_format(PATH, json.dumps(FILES[format][0])) == format


def test_every_format_has_a_file_and_a_reader() -> None:
    assert set(FILES) == set(READERS) == {"jsonl", *get_args(WordedFormat)}


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"timestamp": 0, "input_length": 3, "output_length": 4}, None),
        ({"chat_id": 1, "timestamp": 0}, None),
        ({}, None),
        ([], None),
        ({"messages": [MESSAGE]}, "jsonl"),
        ({"messages": [MESSAGE], "idd": 1}, "jsonl"),  # whose reader names the field
        ({"messages": [MESSAGE, ANSWER], "answer": "x"}, "jsonl"),
        ({"messages": [MESSAGE, ANSWER], "timestamp": 1}, "jsonl"),
        ({"messages": [MESSAGE, ANSWER], "id": "x", "source": "y"}, "conversations"),
        ({"messages": [MESSAGE, ANSWER], "max_completion_tokens": 5}, "aiperf-raw-payload"),
        ({"prompt": "x", "echo": True}, "aiperf-raw-payload"),
        ({"prompt": "x", "text": "y"}, "jsonl"),
        ({"body": {"messages": []}}, "jsonl"),
        ({"image": "data:,"}, "aiperf-single-turn"),
        ({"messages": [MESSAGE], "delay": 5}, "aiperf-mooncake"),
        ({"name": "chat", "attributes": {}, "start_time": "2026-01-01T00:00:00Z"}, "otel"),
        ({"standard_logging_object": {}}, "litellm"),
        ({"conversations": [], "data": 1}, "conversations"),
    ],
)
def test_the_fields_of_the_first_row_decide(row: Any, format: str | None) -> None:
    assert worded_format(PATH, json.dumps(row)) == format


@pytest.mark.parametrize("extra", [{}, {"tools": []}, {"model": "m", "temperature": 1}])
def test_messages_that_end_with_an_answer_are_of_two_formats_which_the_error_names(extra: dict[str, Any]) -> None:
    with pytest.raises(LoadgenError, match=r"data\.jsonl:1: .*--format conversations .*--format jsonl "):
        worded_format(PATH, json.dumps({"messages": [MESSAGE, ANSWER]} | extra))


def test_fields_that_no_format_has_are_named_with_the_option_that_takes_them() -> None:
    with pytest.raises(
        LoadgenError, match=r"data\.jsonl:1: no format has the fields question, n; .* --column prompt=FIELD"
    ):
        worded_format(PATH, '{"question": "?", "n": 5}')


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[" * 10**5, '{"a": ' * 10**5, '{"messages": 5}', '{"messages": [[]]}']
)
def test_a_hostile_first_row_is_of_no_format_or_left_to_its_reader(text: str) -> None:
    assert worded_format(PATH, text) in (None, "jsonl")
