"""Lengths are counted once for alike words, by whoever can, and stay unknown where nobody does."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.client.client import Client
from loadgen.client.openai_api import Dialect
from loadgen.client.patience import Say
from loadgen.client.request_body import message_maker
from loadgen.client.word_counts import (
    Count,
    Counter,
    ServerCounter,
    _is_wanted,
    _Lengths,
    _with_lengths,
    count_words,
)
from loadgen.workload.routes import routed
from loadgen.workload.schedule import Schedule, ScheduledRequest, build_schedule
from loadgen.workload.sessions import History, settle_history
from loadgen.workload.sources import read_source
from loadgen.workload.words import WordsFile, WordsReader, WordsRef
from support.fake_api import FakeServer, serving

HELLO = {"messages": [{"role": "user", "content": "one two three"}]}
IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}


class WordCounter:
    """Counts a token a word, ten more for a chat and one more for what opens a prompt."""

    source: str | None = "words"

    def __init__(self, *, texts: bool = True, chats: bool = True) -> None:
        self.texts, self.chats = texts, chats
        self.asked: list[str] = []

    async def text(self, text: str, model: str, special: bool) -> int | None:
        self.asked.append(text)
        return len(text.split()) + special if self.texts else None

    async def chat(self, chat: Mapping[str, Any], model: str) -> int | None:
        self.asked.append(f"chat of {model}")
        return 10 + sum(len(str(message["content"]).split()) for message in chat["messages"]) if self.chats else None


def counted(
    folder: Path,
    rows: list[dict[str, Any]],
    *counters: Counter,
    count: Count = "auto",
    say: Say = print,
    history: History = "recorded",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[tuple[int | None, int | None]], str | None]:
    """Return (tokens of the prompt, of the answer) of each row, and the origin of the counts."""
    trace, bodies = folder / "rows.jsonl", folder / "bodies.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with bodies.open("wb") as file:
        source = read_source(trace, WordsFile(file))
    schedule: Schedule = routed(build_schedule(source, seed=0, rps=1, arrival="constant"), "chat")
    first, *later = schedule.requests
    turns = [msgspec.structs.replace(turn, after=turn.index - 1) if turn.session_id else turn for turn in later]
    schedule = dataclasses.replace(schedule, requests=(first, *turns))
    if history == "live":
        schedule, _ = settle_history(schedule, history)
    words = WordsReader(bodies)
    make = message_maker(0, {}, "chat", "m", Dialect(), {}, words=words)
    result, source_ = asyncio.run(count_words(schedule, words, make, counters, count, say, progress))
    return [(request.input_tokens, request.output_tokens) for request in result.requests], source_


ROWS: list[tuple[dict[str, Any], tuple[int | None, int | None]]] = [
    (HELLO, (13, None)),
    (HELLO | {"answer": "four five"}, (13, 2)),
    (HELLO | {"answer": {"role": "assistant", "content": "four"}}, (13, 1)),
    (HELLO | {"answer": "four five", "output_length": 7}, (13, 7)),
    (HELLO | {"answer": ""}, (13, None)),
    (HELLO | {"input_length": 5}, (5, None)),
    (HELLO | {"input_length": 5, "answer": "four"}, (5, 1)),
    ({"prompt": "one two"}, (3, None)),
    ({"prompt": [7, 8, 9]}, (3, None)),
    ({"body": HELLO}, (13, None)),
    ({"body": {"prompt": "one"}}, (2, None)),
    ({"body": {"input": ["one", "two"]}, "url": "/v1/embeddings"}, (None, None)),
    (IMAGE, (None, None)),
]


@pytest.mark.parametrize(("row", "lengths"), ROWS)
def test_what_is_unknown_is_counted_and_what_is_stated_stays(
    row: dict[str, Any], lengths: tuple[int | None, int | None], tmp_path: Path
) -> None:
    assert counted(tmp_path, [row], WordCounter())[0] == [lengths]


def test_all_counts_what_the_trace_states_too_and_none_counts_nothing(tmp_path: Path) -> None:
    row = HELLO | {"input_length": 5}
    assert counted(tmp_path, [row], WordCounter(), count="all") == ([(13, None)], "words")
    assert counted(tmp_path, [row, HELLO], WordCounter(), count="none") == ([(5, None), (None, None)], None)


def test_a_turn_whose_history_is_still_to_come_is_not_counted(tmp_path: Path) -> None:
    turns = [HELLO | {"session_id": "s"}] * 2
    assert counted(tmp_path, turns, WordCounter(), history="live")[0] == [(13, None), (None, None)]
    assert counted(tmp_path, turns, WordCounter())[0] == [(13, None), (13, None)]


def test_words_of_more_than_the_limit_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.client.word_counts.MAX_COUNTED_BYTES", len('{"prompt":"12345"}'))
    assert counted(tmp_path, [{"prompt": "12345"}, {"prompt": "123456"}], WordCounter())[0] == [(2, None), (None, None)]


def test_alike_words_are_counted_once_for_each_model(tmp_path: Path) -> None:
    counter = WordCounter()
    lengths, _ = counted(tmp_path, [HELLO, HELLO, HELLO | {"model": "other"}], counter)
    assert lengths == [(13, None)] * 3
    assert sorted(counter.asked) == ["chat of m", "chat of other"]


def test_the_first_counter_that_can_counts(tmp_path: Path) -> None:
    mute, able = WordCounter(chats=False), WordCounter()
    assert counted(tmp_path, [HELLO, {"prompt": "one"}], mute, able)[0] == [(13, None), (2, None)]
    assert able.asked == ["chat of m"]
    assert counted(tmp_path, [HELLO], mute)[0] == [(None, None)]


def test_more_prompts_than_the_limit_are_counted_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadgen.client.word_counts.MAX_COUNTED", 2)
    said: list[str] = []
    rows = [{"prompt": f"number {i}"} for i in range(3)]
    assert counted(tmp_path, rows, WordCounter(), say=said.append) == ([(None, None)] * 3, None)
    assert len(said) == 1 and "3 prompts" in said[0] and "--count all" in said[0]
    assert counted(tmp_path, rows, WordCounter(), count="all")[0] == [(3, None)] * 3
    assert counted(tmp_path, rows[:2] * 3, WordCounter())[0] == [(3, None)] * 6, "two prompts, each three times"


def test_the_progress_goes_from_nothing_to_all_prompts_one_by_one(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rows = [{"prompt": f"number {i}"} for i in range(40)]
    counted(tmp_path, rows, WordCounter(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 40) for done in range(41)]


# -- servers ----------------------------------------------------------------------------------------------------------


def asked(fake: FakeServer, *what: Any) -> tuple[list[int | None], str | None]:
    """Return the counts of texts and chats by a server, and their origin."""

    async def ask(url: str) -> tuple[list[int | None], str | None]:
        async with Client(url, timeout_s=5) as client:
            counter = ServerCounter(client)
            counts = [
                await (counter.text(each, "m", special=True) if isinstance(each, str) else counter.chat(each, "m"))
                for each in what
            ]
            return counts, counter.source

    with serving(fake) as url:
        return asyncio.run(ask(url))


def vllm(body: dict[str, Any]) -> Any:
    return {"count": len(body["prompt"].split()) if "prompt" in body else 30}


def llamacpp(body: dict[str, Any]) -> Any:
    return {"tokens": list(range(len(body.get("content", "").split())))}


def tgi(body: dict[str, Any]) -> Any:
    return [{"id": 1}] * 2 if "inputs" in body else {"error": "missing field `inputs`"}


@pytest.mark.parametrize(
    ("tokenize", "pages", "chat_tokens"),
    [
        (vllm, {}, 30),
        (llamacpp, {"/apply-template": (200, {"prompt": "<user> one two three <assistant>"})}, 5),
        (tgi, {"/chat_tokenize": (200, {"tokenize_response": [{}] * 9})}, 9),
        (llamacpp, {}, None),
    ],
    ids=["vLLM", "llama.cpp", "TGI", "texts alone"],
)
def test_each_servers_own_tokenizer_is_found(
    tokenize: Callable[[dict[str, Any]], Any], pages: dict[str, Any], chat_tokens: int | None
) -> None:
    fake = FakeServer(tokenize=tokenize, pages=pages)
    counts, source = asked(fake, "one two", HELLO, HELLO)
    assert (counts, source) == ([2, chat_tokens, chat_tokens], "/tokenize")


def test_a_server_without_a_tokenizer_is_asked_a_few_times_only() -> None:
    fake = FakeServer()
    assert asked(fake, *["one"] * 9, *[HELLO] * 9) == ([None] * 18, None)
    assert len(fake.seen) == 3 * 1 + 3 * 3


def test_one_prompt_that_a_tokenizer_refuses_does_not_end_the_counting() -> None:
    fake = FakeServer(tokenize=lambda body: {} if body["prompt"] == "bad" else vllm(body))
    assert asked(fake, "one", *["bad"] * 5, "one two")[0] == [1, *[None] * 5, 2]


def test_the_prompt_of_a_live_turn_is_not_counted_its_recorded_answer_is() -> None:
    request = ScheduledRequest(
        index=1, offset_ns=0, workload="w", input_tokens=None, output_tokens=None, after=0, natural=True, live=True,
        words=WordsRef(line=1, sha256="", offset=0, size=0),
    )  # fmt: skip
    assert _is_wanted(request, "auto") and _is_wanted(request, "all")
    assert not _is_wanted(msgspec.structs.replace(request, natural=False), "all")
    counted_ = _with_lengths(request, _Lengths(9, 4), "all")
    assert (counted_.input_tokens, counted_.output_tokens) == (None, 4)
