"""A chat's fields become those of the Responses API, and nothing of them is lost."""

from typing import Any

import pytest

from loadgen.client.responses_input import responses_fields

CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone":"UTC"}'}}
IMAGE = "data:image/png;base64,AA"

MESSAGES: list[tuple[list[dict[str, Any]], list[Any]]] = [
    ([{"role": "system", "content": "Be brief."}], [{"role": "system", "content": "Be brief."}]),
    (
        [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}],
        [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}]}],
    ),
    (
        [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]}],
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}]}],
        [{"role": "user", "content": [{"type": "input_image", "image_url": IMAGE, "detail": "low"}]}],
    ),
    (
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}, {"type": "of tomorrow"}]}],
        [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}, {"type": "of tomorrow"}]}],
    ),
    (
        [{"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}],
        [
            {"role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "c1", "name": "now", "arguments": '{"zone":"UTC"}'},
        ],
    ),
    (
        [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"type": "function_call", "call_id": "c1", "name": "now", "arguments": '{"zone":"UTC"}'}],
    ),
    ([{"role": "assistant", "tool_calls": ["c1", {"function": "now"}]}], ["c1", {"function": "now"}]),
    ([{"role": "assistant", "tool_calls": 5}], [5]),
    (
        [{"role": "tool", "tool_call_id": "c1", "content": "noon"}],
        [{"type": "function_call_output", "call_id": "c1", "output": "noon"}],
    ),
    (
        [{"type": "function_call_output", "call_id": "c1", "output": "noon"}, {"role": "user", "content": "And now?"}],
        [{"type": "function_call_output", "call_id": "c1", "output": "noon"}, {"role": "user", "content": "And now?"}],
    ),
]


@pytest.mark.parametrize(("messages", "items"), MESSAGES)
def test_messages_become_items(messages: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
    assert responses_fields({"messages": messages}) == {"input": items}


@pytest.mark.parametrize(
    ("chat", "responses"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "now", "parameters": {}}}]},
            {"tools": [{"type": "function", "name": "now", "parameters": {}}]},
        ),
        ({"tools": [{"type": "web_search"}]}, {"tools": [{"type": "web_search"}]}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "now"}}},
            {"tool_choice": {"type": "function", "name": "now"}},
        ),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}},
        ),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        ({"temperature": 0, "seed": 3}, {"temperature": 0, "seed": 3}),
    ],
)
def test_fields_that_differ_are_renamed_and_others_stay(chat: dict[str, Any], responses: dict[str, Any]) -> None:
    assert responses_fields(chat) == responses
