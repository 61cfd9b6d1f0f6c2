"""A data set of conversations becomes the requests that it was made of; a batch file, its bodies."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.conversation_formats import conversation_rows
from support.foreign_files import rows_of, saved_lines


def turns(*spoken: str) -> list[dict[str, str]]:
    """Return ShareGPT's turns, from `human: words`."""
    return [dict(zip(("from", "value"), text.split(": ", 1), strict=True)) for text in spoken]


def read(tmp_path: Path, *values: Any, format: str = "conversations") -> tuple[list[dict[str, Any]], Counter[str]]:
    left_out: Counter[str] = Counter()
    return rows_of(saved_lines(tmp_path / "data.jsonl", list(values)), format, left_out), left_out


def test_each_question_is_a_request_with_the_conversation_before_it_and_its_recorded_answer(tmp_path: Path) -> None:
    spoken = turns("system: be kind", "human: a", "gpt: A", "human: b", "gpt: B", "human: c")
    rows, _ = read(tmp_path, {"id": "x_0", "conversations": spoken})
    assert [[message["content"] for message in row["messages"]] for row in rows] == [
        ["be kind", "a"],
        ["be kind", "a", "A", "b"],
        ["be kind", "a", "A", "b", "B", "c"],
    ]
    assert [message["role"] for message in rows[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert [row.get("answer") for row in rows] == ["A", "B", None]
    assert {row["session_id"] for row in rows} == {"x_0"}


@pytest.mark.parametrize(
    ("spoken", "asked"),
    [
        (("human: a",), [("a", None)]),
        (("gpt: A", "human: b", "gpt: B"), [("A b", "B")]),  # what the model said first stays in the history
        (("human: a", "human: b", "gpt: C"), [("a b", "C")]),
        (("human: a", "gpt: A", "gpt: B"), [("a", "A")]),
        (("human: a", "gpt: "), [("a", None)]),
        (("gpt: A",), []),
        (("system: s",), []),
        (("system: s", "gpt: A"), []),
        ((), []),
    ],
)
def test_requests_are_the_points_at_which_the_model_was_asked(
    tmp_path: Path, spoken: tuple[str, ...], asked: list[tuple[str, str | None]]
) -> None:
    rows, left_out = read(tmp_path, {"id": "x", "conversations": turns(*spoken)})
    assert [(" ".join(m["content"] for m in row["messages"]), row.get("answer")) for row in rows] == asked
    assert left_out == ({} if asked else {"conversations in which nobody asks anything": 1})


def test_a_list_and_lines_are_the_same_rows(tmp_path: Path) -> None:
    data = [{"id": i, "conversations": turns(f"human: {i}", "gpt: A", "human: z")} for i in range(3)]
    (path := tmp_path / "data.json").write_text(json.dumps(data, indent=1))
    assert rows_of(path, "conversations") == read(tmp_path, *data)[0]


def test_a_session_is_one_conversation_even_where_ids_repeat_or_are_missing(tmp_path: Path) -> None:
    spoken = turns("human: a", "gpt: A", "human: b")
    rows, _ = read(tmp_path, {"id": "x", "conversations": spoken}, {"id": "x", "conversations": spoken},
                   {"conversations": spoken}, {"id": 7, "conversations": spoken})  # fmt: skip
    assert [row["session_id"] for row in rows] == ["x", "x", "x#2", "x#2", "3", "3", "7", "7"]


def test_messages_of_a_chat_keep_every_field_but_a_weight_and_tools_stand_beside_them(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "rain"}
    said = {"role": "assistant", "content": "It rains.", "weight": 0}
    rows, _ = read(
        tmp_path, {"messages": [{"role": "user", "content": "?"}, call, result, said], "tools": [{}], "source": "s"}
    )
    assert [row["messages"] for row in rows] == [
        [{"role": "user", "content": "?"}],
        [{"role": "user", "content": "?"}, call, result],
    ]
    assert [row.get("answer") for row in rows] == [call, "It rains."]
    assert all(row["tools"] == [{}] and "source" not in row for row in rows)


def test_the_bytes_of_words_are_kept() -> None:
    value = r'"\u00e9\/\t\ud83d\ude00"'
    lines = [(1, '{"conversations": [{"from": "human", "value": ' + value + "}]}")]
    ((_, fields),) = conversation_rows(Path("data.jsonl"), lines, Counter())
    assert msgspec.json.encode(fields).decode() == '{"messages":[{"role":"user","content":' + value + "}]}"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"conversations": [{"from": "human", "value": 5}]}, "conversations[0].value: expected a text"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]: expected from and value, or role and content"),
        ({"conversations": [{"from": 1, "value": ""}]}, "conversations[0].from: expected a text"),
        ({"conversations": [{"from": "dog", "value": ""}]}, "conversations[0].from: 'dog' is not one of human, user"),
        ({"messages": [{"role": None}]}, "messages[0].role: expected a text"),
        ({"conversations": {}}, "conversations: expected `array | null`, got `object`"),
        ({"id": "x"}, "it has neither conversations nor messages"),
        ([], "expected `object`, got `array`"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_its_field(tmp_path: Path, row: Any, fault: str) -> None:
    with pytest.raises(LoadgenError) as raised:
        read(tmp_path, {"conversations": turns("human: a")}, row)
    assert fault.lower() in str(raised.value).lower()
    assert f"{tmp_path}/data.jsonl:2: " in str(raised.value)


def test_a_batch_file_is_its_bodies_and_its_urls_where_a_body_does_not_tell_them(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "custom": [1.50]}
    rows, _ = read(
        tmp_path,
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "2", "body": {"prompt": "p"}},
        {"custom_id": "3", "url": "/v1/embeddings", "body": {"input": "p"}},
        format="openai-batch",
    )
    assert rows == [{"body": body}, {"body": {"prompt": "p"}}, {"body": {"input": "p"}, "url": "/v1/embeddings"}]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"custom_id": "1"}, "body"),
        ({"custom_id": "1", "body": {}, "bodi": 1}, "bodi"),
        ({"body": {}, "method": "GET"}, "method"),
    ],
)
def test_a_wrong_line_of_a_batch_file_is_named_with_its_field(tmp_path: Path, line: Any, field: str) -> None:
    with pytest.raises(LoadgenError, match=rf"data\.jsonl:1: .*{field}"):
        read(tmp_path, line, format="openai-batch")
