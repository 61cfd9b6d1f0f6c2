"""The words of an answer are those of its stream, however it is cut, in whatever dialect."""

import json
from array import array
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client import answer as module
from loadgen.client.answer import Answer, AnswerReader
from loadgen.client.http1 import Head
from loadgen.client.stream import StreamState
from support.scripted_server import chunk


def event(body: dict[str, Any] | str) -> bytes:
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()


def delta(*choices: dict[str, Any]) -> bytes:
    return event({"choices": [{"index": i, "delta": choice} for i, choice in enumerate(choices)]})


def read(*pieces: bytes) -> list[Answer]:
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.answers(7)


CALL = [
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
    {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
]
CALLS = [
    {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "id": "c1"},
    {"type": "function", "function": {"name": "g", "arguments": "{}"}, "id": "c2"},
]
MISTRAL = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]

ANSWERS: list[tuple[str, bytes, dict[str, Any] | None]] = [
    ("chat", delta({"role": "assistant", "content": ""}) + delta({"content": "a"}) + delta({"content": " b"}),
     {"text": "a b"}),
    ("completions", event({"choices": [{"text": "a"}]}) + event({"choices": [{"text": "b"}]}), {"text": "ab"}),
    ("reasoning_content, then text", delta({"reasoning_content": "hm"}) + delta({"content": "a"}),
     {"reasoning": "hm", "text": "a"}),
    ("both names of a thought", delta({"reasoning_content": "hm", "reasoning": "hm"}), {"reasoning": "hm"}),
    ("parts", delta({"content": MISTRAL}), {"reasoning": "hm", "text": "a"}),
    ("a refusal", delta({"refusal": "No"}) + delta({"refusal": "."}), {"refusal": "No."}),
    ("calls of tools", b"".join(map(delta, CALL)), {"tool_calls": CALLS}),
    ("a call of before tools", delta({"function_call": {"name": "f"}}) + delta({"function_call": {"arguments": "{}"}}),
     {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
    ("log-probabilities of a chat", event({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token":
     "a", "logprob": -0.5}], "refusal": None}}]}) * 2,
     {"text": "aa", "logprobs": {"content": [{"token": "a", "logprob": -0.5}] * 2}}),
    ("log-probabilities of completions", event({"choices": [{"text": "a", "logprobs": {"tokens": ["a"],
     "token_logprobs": [-0.5]}}]}) * 2,
     {"text": "aa", "logprobs": {"tokens": ["a"] * 2, "token_logprobs": [-0.5] * 2}}),
    ("a pair of surrogates in two chunks", event('{"choices":[{"text":"x\\ud83d"}]}') + event(
     '{"choices":[{"text":"\\ude00","logprobs":{"tokens":["\\ude00"]}}]}'),
     {"text": "x\N{GRINNING FACE}", "logprobs": {"tokens": ["\ufffd"]}}),
    ("half a pair", event('{"choices":[{"text":"\\ud83d!"}]}'), {"text": "\ufffd!"}),
    ("responses", event({"type": "response.reasoning_summary_text.delta", "delta": "hm"})
     + event({"type": "response.output_text.delta", "delta": "a"}) + event({"type": "response.output_item.added",
     "output_index": 1, "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}})
     + event({"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"})
     + event({"type": "response.completed", "response": {}}),
     {"reasoning": "hm", "text": "a",
      "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "c"}]}),
    ("no line end at the end", delta({"content": "a"})[:-2], {"text": "a"}),
    ("no words", delta({"role": "assistant"}) + event({"choices": [], "usage": {}}) + event("[DONE]"), None),
    ("other shapes", event("[1]") + event("3") + event('{"choices":[3,{"delta":4},{"delta":{"content":5,'
     '"tool_calls":[6,{"function":7,"index":"x"}]}}]}') + event("{"),
     {"tool_calls": [{"type": "function", "function": {"name": "", "arguments": ""}}]}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_an_answer_is_what_the_events_say(body: bytes, words: dict[str, Any] | None) -> None:
    answers = read(body)
    assert answers == ([] if words is None else [Answer(index=7, **words)])
    assert msgspec.json.decode(msgspec.json.encode(answers), type=list[Answer]) == answers


def test_each_choice_has_its_words() -> None:
    assert read(delta({"content": "a"}, {"content": "x"}), delta({"content": "b"}, {"content": "y"})) == [
        Answer(index=7, text="ab"),
        Answer(index=7, choice=1, text="xy"),
    ]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts: list[int]) -> None:
    body = b"".join(row[1] for row in ANSWERS[:8])
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert read(*(body[a:b] for a, b in pairwise(edges))) == read(body)


def test_a_long_answer_is_read_on_the_way_and_cut_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 300_000)
    reader, piece = AnswerReader(), delta({"content": "x" * 50})
    for _ in range(300_000 // len(piece)):
        reader.feed(piece)
        assert reader._waiting < 65_536
    reader.feed(piece)
    reader.feed(piece)
    (cut,) = reader.answers(7)
    assert cut.cut and cut.text == "x" * 50 * (300_000 // len(piece) + 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(index=0, text="a", reasoning="hm"), {"content": "a"}),
        (Answer(index=0, tool_calls=CALLS), {"content": None, "tool_calls": CALLS}),
        (Answer(index=0, refusal="No"), {"content": "No"}),
        (Answer(index=0, reasoning="hm"), {"content": ""}),
    ],
)
def test_its_message_has_text_and_calls_and_no_reasoning(answer: Answer, message: dict[str, Any]) -> None:
    assert answer.message == {"role": "assistant"} | message


def token(text: str, field: str = "content", rest: str = "") -> bytes:
    return f'data: {{"choices":[{{"index":1,"delta":{{"{field}":"{text}"}}{rest}}}]}}\n\n'.encode()


def streamed(*pieces: bytes, keeps: bool = True) -> StreamState:
    stream = StreamState(keeps_answer=keeps)
    stream.head(Head(200, "", "text/event-stream", None, True, True))
    for i, piece in enumerate(pieces, 1):
        stream.feed(piece, i)
    return stream


@pytest.mark.parametrize("keeps", [False, True])
def test_a_stream_keeps_words_where_they_are_needed(keeps: bool) -> None:
    stream = streamed(*[token("a")] * 4, keeps=keeps)
    assert stream.chunk_ns is not None and stream.chunk_ns.tolist() == [1, 2, 3, 4]
    assert stream.answers(0) == ([Answer(index=0, choice=1, text="aaaa")] if keeps else [])
    assert stream.template is not None and (stream.template.keep is not None) is keeps


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("field", "name"), [("content", "text"), ("reasoning", "reasoning"), ("refusal", "refusal")])
def test_words_that_a_template_takes_are_in_their_place(field: str, name: str, compiled: bool) -> None:
    """Of one read, or of several that the compiled reader made."""
    texts = ["a", " b", "\\n", '\\"}]}', "\u00e9\N{GRINNING FACE}"]
    stream = streamed(token("1", field), token("2", field))
    assert stream.template is not None and stream.template.keep is not None
    chunks = b"".join(chunk(token(text, field)) for text in texts)
    if compiled:
        stream.template.extend(array("q", [3] * len(texts)).tobytes())
        stream.template.keep(chunks)
    else:
        assert stream.template.skip(chunks, 0, 3) == len(chunks)
    stream.feed(token("z", field), 4)
    said = "12" + "".join(json.loads(f'"{text}"') for text in texts) + "z"
    assert stream.answers(0) == [msgspec.structs.replace(Answer(index=0, choice=1), **{name: said})]
    assert stream.chunk_ns is not None and stream.chunk_ns.tolist() == [1, 2, 3, 3, 3, 3, 3, 4]


def test_words_of_several_kinds_are_in_their_order() -> None:
    stream = streamed(token("h", "reasoning"), token("m", "reasoning"))
    for text, field in (("1", "reasoning"), ("a", "content"), ("b", "content"), ("c", "content")):
        if stream.template and stream.template.skip(chunk(token(text, field)), 0, 9):
            continue
        stream.feed(token(text, field), 9)
    assert stream.answers(0) == [Answer(index=0, choice=1, text="abc", reasoning="hm1")]


def test_an_event_with_more_words_than_its_text_has_no_template() -> None:
    scored = ',"logprobs":{"content":[]}'
    probable = ',"logprobs":{"content":[{"token":"a","logprob":-1}]}'
    assert streamed(*[token("a", rest=scored)] * 3).template is not None
    stream = streamed(*[token("a", rest=probable)] * 3)
    assert stream.template is None
    (answer,) = stream.answers(0)
    assert answer.logprobs == {"content": [{"token": "a", "logprob": -1}] * 3}
    assert streamed(*[token("a", rest=probable)] * 3, keeps=False).template is not None
