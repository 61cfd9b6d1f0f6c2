"""A body is the payload of the request's prompt, and follows from the seed and the request alone."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.client.answer import Answer
from loadgen.client.openai_api import Dialect, payload
from loadgen.client.request_body import LiveHistory, Message, message_maker, with_history
from loadgen.record import Endpoint
from loadgen.workload.prompts import draws_of, estimate_vocabulary
from loadgen.workload.schedule import ScheduledRequest, build_schedule
from loadgen.workload.worded_trace import read_worded
from loadgen.workload.words import WordsFile, WordsReader, decode_fields

WORDS = {"chat": estimate_vocabulary("chat", 0.25, 8), "code": estimate_vocabulary("code", 0.3, 8)}


def asked(index: int, workload: str = "chat", output: int = 7) -> ScheduledRequest:
    return ScheduledRequest(index=index, offset_ns=0, workload=workload, input_tokens=90, output_tokens=output)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("extra", [{}, {"temperature": 0, "messages": "mine", "prompt": "mine", "stop": ['"', "\n"]}])
@pytest.mark.parametrize("request_", [asked(0), asked(1, "code"), asked(2, output=8)], ids=["chat", "code", "longer"])
def test_it_is_the_payload(endpoint: Endpoint, extra: dict[str, Any], request_: ScheduledRequest) -> None:
    made = message_maker(5, WORDS, endpoint, 'a "model"', Dialect(), extra)(request_)  # type: ignore[arg-type]
    prompt = WORDS[request_.workload].prompt(90, draws_of(5, request_.index))
    assert json.loads(made.body) == json.loads(
        payload(endpoint, 'a "model"', prompt, request_.output_tokens, Dialect(), extra)
    )


def test_it_does_not_depend_on_what_was_made_before() -> None:
    first, second = (message_maker(5, WORDS, "chat", "m", Dialect(), {}) for _ in range(2))  # type: ignore[arg-type]
    forward = [first(asked(i)).body for i in range(5)]
    assert forward == [second(asked(i)).body for i in reversed(range(5))][::-1]
    assert len(set(forward)) == 5


def test_made_up_prompts_are_sent_to_the_model_of_their_request_and_end_where_it_says() -> None:
    maker = message_maker(5, WORDS, "chat", "base", Dialect(), {}, max_tokens=99)  # type: ignore[arg-type]
    lora, natural = (msgspec.structs.replace(asked(0), **change) for change in ({"model": "lora"}, {"natural": True}))
    exact, adapted, ending = (json.loads(maker(request).body) for request in (asked(0), lora, natural))
    assert adapted == exact | {"model": "lora"} and exact["model"] == "base"
    assert ending == {key: exact[key] for key in ("model", "stream", "stream_options", "messages")} | {"max_tokens": 99}


# -- words of their own -----------------------------------------------------------------------------------------------


EVERYTHING = Dialect()


def sent(
    folder: Path, row: dict[str, Any], dialect: Dialect = EVERYTHING, max_tokens: int | None = None, **plan: Any
) -> Message:
    """Return the message of one row, after its words were stored and read, on an endpoint of chats."""
    (folder / "bodies.jsonl").unlink(missing_ok=True)
    with (folder / "bodies.jsonl").open("wb") as file:
        trace = read_worded(Path("t"), [(1, row)], WordsFile(file))
    request = build_schedule(trace, seed=0, rps=1, **plan).requests[0]
    extra = {"temperature": 1, "top_k": 3}
    words = WordsReader(folder / "bodies.jsonl")
    return message_maker(0, {}, "chat", "m", dialect, extra, words=words, max_tokens=max_tokens)(request)


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"model": "lora"}, {"model": "lora"}),
        ({"max_tokens": 4}, {"max_tokens": 4}),
        ({"output_length": 6}, {"max_tokens": 6, "min_tokens": 6, "ignore_eos": True}),
        ({"answer": "never sent", "input_length": 5, "workload": "w", "session_id": "s"}, {}),
    ],
)
def test_words_are_sent_with_the_fields_of_the_run_and_their_own_on_top(
    tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    message = sent(tmp_path, CHAT | row)
    assert (message.path, message.headers) == ("/chat/completions", {})
    assert json.loads(message.body) == CHAT | STREAM | {"temperature": 1, "top_k": 3} | expected


@pytest.mark.parametrize(
    ("row", "stop", "limit"),
    [
        ({}, "auto", 50),
        ({"max_tokens": 4}, "auto", 4),
        ({"max_tokens": None}, "auto", 50),
        ({"output_length": 6}, "natural", 50),
        ({"output_length": 6, "max_tokens": 4}, "natural", 4),
    ],
)
def test_a_natural_ending_has_its_own_limit_or_the_runs(
    tmp_path: Path, row: dict[str, Any], stop: Any, limit: int
) -> None:
    body = json.loads(sent(tmp_path, CHAT | row, max_tokens=50, stop=stop).body)
    assert body["max_tokens"] == limit and not {"ignore_eos", "min_tokens"} & body.keys()


def test_a_prompt_goes_to_completions_whatever_the_endpoint_of_the_run(tmp_path: Path) -> None:
    message = sent(tmp_path, {"prompt": [1, 2], "headers": {"X-A": "b"}}, Dialect(include_usage=False))
    assert (message.path, message.headers) == ("/completions", {"X-A": "b"})
    assert json.loads(message.body) == {"prompt": [1, 2], "model": "m", "stream": True, "temperature": 1, "top_k": 3}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{ "messages":[ {"role":"user"} ],\t"n" : 1.0 }', b'{"messages":[ {"role":"user"} ],"n":1.0,%s}'),
        (b'{"stream":false,"messages":[{"role":"user"}]}', None),
        (rb'{"prompt": "\ud83d \u0041", "max_tokens": 2}', rb'{"prompt":"\ud83d \u0041","max_tokens":2,%s}'),
    ],
)
def test_a_body_keeps_the_bytes_of_its_fields(tmp_path: Path, body: bytes, expected: bytes | None) -> None:
    message = sent(tmp_path, {"body": msgspec.Raw(body)}, max_tokens=50)
    own = b'"model":"m","stream":true,"stream_options":{"include_usage":true}'
    if expected is None:
        expected = b'{"stream":true,"messages":[{"role":"user"}],"model":"m","stream_options":{"include_usage":true}}'
    assert message.body == expected.replace(b"%s", own)
    assert message.path == ("/completions" if b"prompt" in body else "/chat/completions")


def test_a_body_whose_fields_fit_already_keeps_every_byte(tmp_path: Path) -> None:
    body = b'{ "model" : "m", "stream": true ,"stream_options":{ "include_usage":true}, "messages":[{"role":"user"}] }'
    assert sent(tmp_path, {"body": msgspec.Raw(body)}).body == body
    without_usage = sent(tmp_path, {"body": msgspec.Raw(body)}, Dialect(include_usage=False)).body
    assert without_usage == body, "its own stream_options stay where the run sets none"
    assert json.loads(sent(tmp_path, {"body": msgspec.Raw(body), "model": "lora"}).body)["model"] == "lora"


# -- a history of live answers ----------------------------------------------------------------------------------------


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def spoken(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | fields


SYSTEM = {"role": "system", "content": "Be brief."}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "4"}
LIVE, BEFORE = spoken("live"), [SYSTEM, user("1")]

TURNS: list[tuple[str, list[dict[str, Any]], bool, list[dict[str, Any]]]] = [
    # (what the turn is, its messages, it continues, the messages that follow those of the turn before)
    ("recorded", [SYSTEM, user("1"), spoken("old"), user("2")], False, [LIVE, user("2")]),
    ("two new messages", [user("1"), spoken("old"), user("2"), user("3")], False, [LIVE, user("2"), user("3")]),
    ("a long history", [user("1"), spoken("a"), user("2"), spoken("b"), user("3")], False, [LIVE, user("3")]),
    ("new messages alone", [user("2")], True, [LIVE, user("2")]),
    ("new messages, one of the assistant", [spoken("I"), user("2")], True, [LIVE, spoken("I"), user("2")]),
    ("results of recorded calls", [user("1"), spoken("", tool_calls=[{"id": "c"}]), RESULT], False,
     [spoken("", tool_calls=[{"id": "c"}]), RESULT]),
    ("results of its own calls", [RESULT], True, [LIVE, RESULT]),
    ("no answer recorded", [SYSTEM, user("2")], False, [LIVE, user("2")]),
    ("the beginning of its answer", [user("1"), spoken("old"), user("2"), spoken("Sure")], False,
     [LIVE, user("2"), spoken("Sure")]),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "continues", "after"), [row[1:] for row in TURNS], ids=[row[0] for row in TURNS])
@pytest.mark.parametrize("is_body", [False, True], ids=["messages", "a body"])
def test_a_live_turn_is_what_was_sent_the_live_answer_and_its_new_messages(
    messages: list[dict[str, Any]], continues: bool, after: list[dict[str, Any]], is_body: bool
) -> None:
    words: dict[str, Any] = {"messages": messages, "temperature": 0}
    fields = decode_fields(json.dumps({"body": words} if is_body else words).encode())
    history = LiveHistory(json.dumps({"model": "m", "messages": BEFORE}).encode(), Answer(index=0, text="live"))
    turn = json.loads(msgspec.json.encode(with_history(fields, history, continues)))
    assert (turn["body"] if is_body else turn) == {"messages": BEFORE + after, "temperature": 0}


def test_a_live_turn_of_responses_follows_the_items_that_were_sent() -> None:
    history = LiveHistory(json.dumps({"model": "m", "input": BEFORE}).encode(), Answer(index=0, text="live"))
    turn = with_history(decode_fields(json.dumps({"messages": [user("2")]}).encode()), history, True)
    assert json.loads(msgspec.json.encode(turn)) == {"messages": [*BEFORE, LIVE, user("2")]}


def test_what_was_sent_keeps_its_bytes_in_the_next_turn() -> None:
    raw = rb'{"role":"user",  "content":"\ud83d caf\u00e9 \/"}'
    history = LiveHistory(b'{"messages":[' + raw + b"]}", Answer(index=0, text="a"))
    fields = decode_fields(b'{"messages":[{"role":"assistant","content":"b"},' + raw + b"]}")
    assert bytes(with_history(fields, history, False)["messages"]) == (
        b"[" + raw + b',{"role":"assistant","content":"a"},' + raw + b"]"
    )
