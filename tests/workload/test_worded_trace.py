"""A trace of words: each kind of line is a request, and each fault is named with file, line and field."""

import json
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.trace import Trace
from loadgen.workload.worded_trace import LENGTHS, is_worded, read_worded, worded_fields
from loadgen.workload.words import ROUTING, SAMPLING, WORDS, WordsFile, WordsReader

USER = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"messages": USER}


def read(folder: Path, *lines: str | dict[str, Any], limit: int | None = None) -> Trace:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    with (folder / "bodies.jsonl").open("wb") as file:
        return read_worded(Path("t.jsonl"), worded_fields(Path("t.jsonl"), enumerate(texts, 1)), WordsFile(file), limit)


def stored(folder: Path, trace: Trace) -> list[dict[str, Any]]:
    reader = WordsReader(folder / "bodies.jsonl")
    fields = [reader.fields(request.words) for request in trace.requests if request.words]
    return [{name: json.loads(bytes(raw)) for name, raw in words.items()} for words in fields]


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}]}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("words", "endpoint"),
    [
        (CHAT, "chat"),
        ({"messages": IMAGE}, "chat"),
        (
            CHAT | {"tools": TOOLS, "response_format": {"type": "json_object"}, "temperature": 0, "logprobs": True},
            "chat",
        ),
        (CHAT | {"answer": "hello", "max_tokens": 9, "headers": {"x-a": "b"}}, "chat"),
        (CHAT | {"answer": {"role": "assistant", "content": "hello"}}, "chat"),
        ({"prompt": "once"}, "completions"),
        ({"prompt": [1, 2, 3]}, "completions"),
        ({"body": {"messages": USER, "anything": {"goes": 1}}}, "chat"),
        ({"body": {"prompt": "once", "n": 2}, "headers": {"x-a": "b"}}, "completions"),
    ],
)
def test_a_line_has_the_endpoint_of_its_words_which_are_stored_whole(
    tmp_path: Path, words: dict[str, Any], endpoint: str
) -> None:
    trace = read(tmp_path, words | {"workload": "w", "session_id": "s"})
    (request,) = trace.requests
    assert request.words is not None and (request.words.endpoint, request.words.line) == (endpoint, 1)
    assert (request.workload, request.session_id, request.arrival_s, trace.timed) == ("w", "s", 0.0, False)
    assert (request.input_tokens, request.output_tokens, request.model) == (None, None, None)
    assert stored(tmp_path, trace) == [words]


def test_lengths_times_and_models_of_lines_are_those_of_their_requests(tmp_path: Path) -> None:
    lengths = {"input_length": 7, "output_length": 5}
    trace = read(tmp_path, CHAT | lengths | {"timestamp": 250, "model": "m"}, CHAT | {"timestamp": 1000.5})
    first, second = trace.requests
    assert (first.arrival_s, first.input_tokens, first.output_tokens, first.model) == (0.25, 7, 5, "m")
    assert (second.arrival_s, trace.timed) == (1.0005, True)


@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_a_field_of_the_api_stands_beside_messages_and_inside_a_body(tmp_path: Path, name: str) -> None:
    assert stored(tmp_path, read(tmp_path, CHAT | {name: [1]})) == [CHAT | {name: [1]}]
    with pytest.raises(LoadgenError, match=rf"^t.jsonl:1: {name}: it belongs into the body$"):
        read(tmp_path, {"body": CHAT, name: [1]})


ANY = "expected one of messages, prompt, body"
FAULTS: list[tuple[str | dict[str, Any], str]] = [
    ("[1]", "not a JSON object: [1]"),
    ("{\"prompt\": \"a", "not a JSON object: {\"prompt\": \"a"),
    ("\0", "not a JSON object: \ufffd"),
    ("[" * 5000, "not a JSON object: " + "[" * 57 + "..."),
    ({"input_length": 5}, ANY),
    (CHAT | {"prompt": "a"}, f"{ANY}, got messages and prompt"),
    (CHAT | {"body": {}}, f"{ANY}, got messages and body"),
    ({"messages": []}, "messages: expected at least one, each with a role"),
    ({"messages": None}, "messages: expected at least one, each with a role"),
    ({"messages": "hi"}, "messages: expected a list of objects"),
    ({"messages": ["hi"]}, "messages: expected a list of objects"),
    ({"messages": [{"content": "hi"}]}, "messages: expected at least one, each with a role"),
    ({"prompt": ""}, "prompt: it is empty"),
    ({"prompt": []}, "prompt: it is empty"),
    ({"prompt": None}, "prompt: expected a text, or a list of token ids"),
    ({"prompt": ["a"]}, "prompt: expected a text, or a list of token ids"),
    ({"body": "{}"}, "body: expected a request body: a JSON object"),
    (CHAT | {"timestamp": -1}, "timestamp -1.0: expected milliseconds from the start"),
    (CHAT | {"timestamp": "now"}, "timestamp: expected milliseconds from the start"),
    ('{"prompt": "a", "timestamp": 1e999}', "timestamp"),
    (CHAT | {"output_length": 0}, "output_length 0: expected an integer of at least 1"),
    (CHAT | {"input_length": 1.5}, "input_length: expected an integer of at least 1"),
    (CHAT | {"max_tokens": 2**31}, "max_tokens 2147483648: expected an integer of at least 1, and below 2**31"),
    ({"body": {"messages": "hi"}, "session_id": "s"}, "messages: expected a list of objects"),
    ({"body": {"a": 1}, "url": "/v1/chat/completions", "session_id": "s"}, "messages: expected at least one"),
    ({"body": CHAT, "max_tokens": 5}, "max_tokens: it belongs into the body"),
    (CHAT | {"workload": "a\tb"}, "workload 'a\\tb': expected a name"),
    (CHAT | {"workload": 5}, "workload: expected a name"),
    (CHAT | {"session_id": 5}, "session_id: expected a text"),
    (CHAT | {"model": ["m"]}, "model: expected a name"),
    (CHAT | {"model": "\x1b[2J"}, "model '\ufffd[2J': expected a name of printable characters"),
    (CHAT | {"answer": 5}, "answer: expected a text, or a message of the assistant"),
    (CHAT | {"headers": {"a b": "c"}}, "headers: 'a b' is not a header that can be sent"),
    (CHAT | {"headers": {"a": "secret\r\nx: y"}}, "headers: 'a' is not a header that can be sent"),
    (CHAT | {"headers": {"Host": "h"}}, "headers: Host is set by the client itself"),
    (CHAT | {"headers": {"a": 5}}, "headers: expected an object of texts"),
    (CHAT | {"timestmp": 5}, "field 'timestmp' is not known; did you mean timestamp?"),
    (CHAT | {"zzz": 5}, "field 'zzz' is not known; put fields of the API's own into a body"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "fault"), FAULTS, ids=[str(fault)[:40] for _, fault in FAULTS])
def test_a_fault_is_named_with_its_file_line_and_field_and_never_with_a_secret(
    tmp_path: Path, line: str | dict[str, Any], fault: str
) -> None:
    with pytest.raises(LoadgenError) as caught:
        read(tmp_path, CHAT, line)
    text = str(caught.value)
    assert text.startswith(f"t.jsonl:2: {fault}"), text
    assert "secret" not in text and text.isprintable()


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "t.jsonl has no requests in it"),
        ([CHAT, CHAT | {"timestamp": 1}], "t.jsonl:2: timestamp: the first line has none"),
        ([CHAT | {"timestamp": 1}, CHAT], "t.jsonl:2: timestamp: the first line has one"),
        ([CHAT | {"timestamp": 2000}, CHAT | {"timestamp": 1}], "t.jsonl:2: arrival at 0.001 s comes after one at 2 s"),
    ],
)
def test_lines_have_times_all_or_none_and_in_order(tmp_path: Path, lines: list[dict[str, Any]], fault: str) -> None:
    with pytest.raises(LoadgenError) as caught:
        read(tmp_path, *lines)
    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize("prompt", [rb'"\ud83d half"', rb'"\u0000"', b'"\xf0\x9f\x98\x80 \\u0041"'])
def test_a_prompt_keeps_its_bytes_even_half_a_character(tmp_path: Path, prompt: bytes) -> None:
    trace = read(tmp_path, b'{"prompt": %b}'.replace(b"%b", prompt).decode())
    assert trace.requests[0].words is not None
    assert bytes(WordsReader(tmp_path / "bodies.jsonl").fields(trace.requests[0].words)["prompt"]) == prompt


def test_no_row_is_read_beyond_the_limit(tmp_path: Path) -> None:
    rows = zip(range(1, 1001), repeat({"prompt": msgspec.Raw(b'"a"')}))
    with (tmp_path / "bodies.jsonl").open("wb") as file:
        trace = read_worded(Path("t.jsonl"), rows, WordsFile(file), 3)
    assert [request.words and request.words.line for request in trace.requests] == [1, 2, 3]
    assert next(rows)[0] == 4


def test_a_line_with_words_is_told_from_one_of_lengths() -> None:
    assert all(is_worded(json.dumps({name: 1})) for name in WORDS)
    assert not any(is_worded(text) for text in ('{"timestamp": 1}', "[1]", "", "{", "[" * 5000))


def test_no_name_of_a_field_has_two_meanings() -> None:
    kinds = [LENGTHS, ROUTING, SAMPLING, WORDS.keys(), {"answer"}]
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))


def test_a_line_that_continues_has_only_new_messages_of_its_session(tmp_path: Path) -> None:
    trace = read(tmp_path, CHAT | {"session_id": "s"}, CHAT | {"session_id": "s", "continues": True})
    assert [request.words and request.words.continues for request in trace.requests] == [False, True]
    assert stored(tmp_path, trace) == [CHAT, CHAT], "the words are those alone that are sent"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (CHAT | {"continues": True}, "continues: expected messages, and the session_id of the lines before"),
        ({"prompt": "a", "session_id": "s", "continues": True}, "continues: expected messages"),
        ({"body": CHAT, "session_id": "s", "continues": True}, "continues: expected messages"),
        (CHAT | {"session_id": "s", "continues": "yes"}, "continues: expected true or false"),
    ],
)
def test_a_line_cannot_continue_without_messages_and_a_session(
    tmp_path: Path, line: dict[str, Any], fault: str
) -> None:
    with pytest.raises(LoadgenError, match=f"^t.jsonl:1: {fault}"):
        read(tmp_path, line)
