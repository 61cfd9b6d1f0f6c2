"""The words of an answer, put together from the bytes of its stream.

They are read some time after they arrived: a chunk's timestamp and the reading of other streams do not wait for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from loadgen.client.sse import SSEDecoder, SSEError

MAX_ANSWER_BYTES = 64 << 20
"""Bytes of a stream that are kept of one answer: those of 200,000 tokens, where a chunk has 300."""
_PIECE_BYTES = 64 << 10
"""Bytes that are read at once: less than a millisecond's work."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of answers.jsonl: one choice of the answer to a request. Absent is what it does not have."""

    index: int
    """Number of the request in the schedule."""
    choice: int = 0
    """Number of the choice, where a request asked for several."""
    text: str | None = None
    """Text of the answer."""
    reasoning: str | None = None
    """Text of the reasoning, where the server sends it."""
    refusal: str | None = None
    """Text of a refusal."""
    tool_calls: list[dict[str, Any]] | None = None
    """Calls of tools, as the API states them."""
    logprobs: dict[str, Any] | None = None
    """Log-probabilities of the tokens, as the server gave them: the lists of all chunks joined."""
    cut: bool = False
    """True if the stream was longer than MAX_ANSWER_BYTES: the rest is not here."""

    @property
    def message(self) -> dict[str, Any]:
        """The message of the assistant that stands for the answer in the next turn's history: its text, or else its
        refusal, and its calls of tools. Reasoning is not part of a history."""
        text = self.text or self.refusal
        message: dict[str, Any] = {"role": "assistant", "content": text if text or self.tool_calls else ""}
        return message | ({"tool_calls": self.tool_calls} if self.tool_calls else {})


class _Choice:
    """The words of one choice so far."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, Any] = {}

    def answer(self, index: int, number: int, cut: bool) -> Answer:
        calls = [self.calls[key] for key in sorted(self.calls)]
        texts = {name: _whole("".join(pieces)) for name, pieces in self.texts.items() if pieces}
        return Answer(
            index=index,
            choice=number,
            **texts,
            tool_calls=_whole_values(calls) or None,
            logprobs=self.logprobs or None,
            cut=cut,
        )


class AnswerReader:
    """Takes the bytes of a stream's body as they come, and gives the answer at its end."""

    def __init__(self) -> None:
        self._decoder = SSEDecoder()
        self._pieces: list[bytes] = []
        self._waiting = self._size = 0
        self._choices: dict[int, _Choice] = {}

    def feed(self, data: bytes) -> None:
        """Keep the next bytes, and read them when they are many."""
        if self._size < MAX_ANSWER_BYTES:
            self._size += len(data)
            self._waiting += len(data)
            self._pieces.append(data)
            if self._waiting >= _PIECE_BYTES:
                self._read()

    def keeper(self, prefix: bytes, suffix: bytes) -> Callable[[bytes], None] | None:
        """Return a function that takes HTTP chunks of tokens, each with its text between `prefix` and `suffix`; None if
        such an event has more words than this text."""
        reader = AnswerReader()
        reader.feed(prefix + b"x" + suffix)
        for answer in reader.answers(0):
            for name in ("text", "reasoning", "refusal"):
                if answer == msgspec.structs.replace(Answer(index=0, choice=answer.choice), **{name: "x"}):
                    return partial(self._take_tokens, answer.choice, name, prefix, suffix)
        return None

    def _take_tokens(self, choice: int, name: str, prefix: bytes, suffix: bytes, chunks: bytes) -> None:
        """Take whole chunks of tokens: a size, CRLF, `prefix`, the inside of a JSON string, `suffix`."""
        if self._size >= MAX_ANSWER_BYTES or not chunks:
            return
        self._read()  # it came before
        self._size += len(chunks)
        lead = len(prefix) + 1
        texts = [piece[piece.index(b"\n") + lead :] for piece in chunks.split(suffix)[:-1]]
        text = json.loads(b'"%b"' % b"".join(texts))
        self._choices.setdefault(choice, _Choice()).texts[name].append(text)

    def answers(self, index: int) -> list[Answer]:
        """Return each choice of the answer to request `index`, as far as it came; nothing where no word did."""
        self._read()
        for event in self._decoder.flush():
            self._take(event)
        cut = self._size >= MAX_ANSWER_BYTES
        return [self._choices[number].answer(index, number, cut) for number in sorted(self._choices)]

    def _read(self) -> None:
        if not self._pieces:
            return
        try:
            events = self._decoder.feed(b"".join(self._pieces))
        except SSEError:  # the stream fails of it too
            events = []
        self._pieces, self._waiting = [], 0
        for event in events:
            self._take(event)

    def _take(self, event: bytes) -> None:
        """Take the words of an event; whatever is not of the API has none."""
        try:
            body = json.loads(event.decode(errors="replace"))
        except (ValueError, RecursionError):
            return
        if not isinstance(body, dict):
            return
        if _HALF.search(event):
            body = body | {"choices": [_with_whole_logprobs(choice) for choice in _objects(body.get("choices"))]}
        for choice in _objects(body.get("choices")):
            number = choice.get("index")
            self._take_choice(number if isinstance(number, int) else 0, choice)
        if isinstance(kind := body.get("type"), str) and kind.startswith("response."):
            self._take_event(kind.removeprefix("response."), body)

    def _take_choice(self, number: int, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        thoughts = next((delta[name] for name in _THOUGHTS if delta.get(name)), None)
        words = [*_texts(delta.get("content") or choice.get("text")), *_texts(thoughts, "reasoning")]
        words += _texts(delta.get("refusal"), "refusal")
        calls = _objects(delta.get("tool_calls"))
        if isinstance(call := delta.get("function_call"), dict):
            calls = [*calls, {"index": 0, "function": call}]
        logprobs = choice.get("logprobs")
        if not (words or calls or isinstance(logprobs, dict)):
            return
        kept = self._choices.setdefault(number, _Choice())
        for name, text in words:
            kept.texts[name].append(text)
        for call in calls:
            _add_call(kept.calls, call)
        for name, value in logprobs.items() if isinstance(logprobs, dict) else ():
            if value and isinstance(value, list):
                kept.logprobs.setdefault(name, []).extend(value)

    def _take_event(self, kind: str, body: dict[str, Any]) -> None:
        """Take the words of an event of the responses API."""
        place, delta, item = body.get("output_index"), body.get("delta"), body.get("item")
        place = place if isinstance(place, int) else 0
        if kind == "output_item.added" and isinstance(item, dict) and item.get("type") == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"index": place, "id": item.get("call_id"), "function": function}
            _add_call(self._choices.setdefault(0, _Choice()).calls, call)
        elif isinstance(delta, str) and kind == "function_call_arguments.delta":
            call = {"index": place, "function": {"arguments": delta}}
            _add_call(self._choices.setdefault(0, _Choice()).calls, call)
        elif isinstance(delta, str) and (name := _RESPONSE_TEXTS.get(kind)):
            self._choices.setdefault(0, _Choice()).texts[name].append(delta)


_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_RESPONSE_TEXTS = {
    "output_text.delta": "text",
    "refusal.delta": "refusal",
    "reasoning_text.delta": "reasoning",
    "reasoning_summary_text.delta": "reasoning",
}
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def _objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing if it is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(content: Any, name: str = "text") -> Iterator[tuple[str, str]]:
    """Yield (field of the answer, text) of content: a text, or parts, some of which may be thoughts."""
    if isinstance(content, str) and content:
        yield name, content
    elif isinstance(content, list):
        for part in content:
            yield from _texts(part, name)
    elif isinstance(content, dict):
        for field in ("thinking", "reasoning"):
            yield from _texts(content.get(field), "reasoning")
        inner = "reasoning" if content.get("type") in ("thinking", "reasoning") else name
        for field in ("text", "content"):
            yield from _texts(content.get(field), inner)
        yield from _texts(content.get("refusal"), "refusal")


def _add_call(calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    """Add a part of a call of a tool to the calls so far: names come once, arguments in pieces."""
    index, function = delta.get("index"), delta.get("function")
    empty = {"type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(index if isinstance(index, int) else 0, empty)
    if isinstance(delta.get("id"), str) and delta["id"]:
        call["id"] = delta["id"]
    for name in ("name", "arguments"):
        if isinstance(function, dict) and isinstance(function.get(name), str):
            call["function"][name] += function[name]


def _whole(text: str) -> str:
    """Return a text with its surrogate pairs joined, which two chunks may have halves of; a lone half is replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _whole_values(value: Any) -> Any:
    """Return the same value with every text whole."""
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, list):
        return [_whole_values(item) for item in value]
    return {_whole(name): _whole_values(item) for name, item in value.items()} if isinstance(value, dict) else value


def _with_whole_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    return choice | {"logprobs": _whole_values(choice.get("logprobs"))}
