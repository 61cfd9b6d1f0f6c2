"""What can be counted is all of a prompt, or nothing is."""

from typing import Any

import pytest

from loadgen.client.countable import answer_text, countable
from loadgen.record import Endpoint

HELLO = [{"role": "user", "content": "hello"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
ITEMS = [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}]


@pytest.mark.parametrize(
    ("endpoint", "body", "counted"),
    [
        ("chat", {"messages": HELLO, "stream": True, "tools": []}, {"messages": HELLO, "tools": []}),
        ("chat", {"messages": [*HELLO, CALL]}, {"messages": [*HELLO, CALL]}),
        ("chat", {"messages": PARTS, "reasoning_effort": "low"}, {"messages": PARTS, "reasoning_effort": "low"}),
        ("chat", {"messages": IMAGE}, None),
        ("chat", {"messages": [*HELLO, "no object"]}, None),
        ("chat", {"messages": "hello"}, None),
        ("chat", {}, None),
        ("completions", {"prompt": "once"}, "once"),
        ("completions", {"prompt": [5, 6, 7]}, 3),
        ("completions", {"prompt": ["once", "twice"]}, None),
        ("completions", {"prompt": []}, None),
        ("embeddings", {"input": "once"}, "once"),
        ("embeddings", {"input": ["once"]}, "once"),
        ("embeddings", {"input": ["once", "twice"]}, None),
        ("embeddings", {"input": [5, 6]}, 2),
        ("rerank", {"query": "q", "documents": ["d"]}, None),
        ("responses", {"input": "hello"}, {"messages": HELLO}),
        ("responses", {"input": HELLO}, {"messages": HELLO}),
        ("responses", {"input": ITEMS}, {"messages": [{"role": "user", "content": "ab"}]}),
        (
            "responses",
            {"input": "hello", "instructions": "Be brief."},
            {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
        ),
        ("responses", {"input": "hello", "tools": []}, None),
        ("responses", {"input": [*HELLO, {"type": "function_call", "name": "now"}]}, None),
        ("responses", {"input": IMAGE}, None),
        ("responses", {"input": []}, None),
    ],
)
def test_it_is_a_chat_a_text_or_a_number(endpoint: Endpoint, body: dict[str, Any], counted: Any) -> None:
    assert countable(endpoint, body) == counted


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Hi.", "Hi."),
        ({"role": "assistant", "content": "Hi."}, "Hi."),
        ({"content": "Hi.", "reasoning_content": "Hm. "}, "Hm. Hi."),
        ({"content": "Hi.", "tool_calls": []}, "Hi."),
        ({"content": "Hi.", "tool_calls": [{}]}, None),
        ({"content": None, "tool_calls": [{}]}, None),
        (None, None),
    ],
)
def test_a_recorded_answer_is_its_text_unless_it_is_more(answer: Any, text: str | None) -> None:
    assert answer_text(answer) == text
