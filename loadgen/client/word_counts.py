"""Counts the tokens of requests that have words of their own, before the first of them is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec

from loadgen.client.countable import Countable, answer_text, countable
from loadgen.client.http1 import HTTPError
from loadgen.client.token_counts import CONCURRENT_COUNTS, TOKENIZE_TIMEOUT_S, tokens_in

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.client.patience import Say
    from loadgen.client.request_body import Message
    from loadgen.client.tokenizer_file import TokenizerFile
    from loadgen.record import Endpoint
    from loadgen.workload.schedule import Schedule, ScheduledRequest
    from loadgen.workload.words import WordsReader

Count = Literal["auto", "none", "all"]
"""The prompts that are counted. auto: those of unknown length, if they are no more than MAX_COUNTED; all: every one,
also where the trace states a length, which may be by another tokenizer."""

MAX_COUNTED = 10_000
MAX_COUNTED_BYTES = 4 << 20
"""Longest words that are counted: the ids of more tokens are a page that the client does not fetch."""
_TRIES = 3
"""Chats, or texts, after which a server that counted none of them is asked no more."""


class Counter(Protocol):
    """Counts tokens; None where it cannot."""

    source: str | None
    """Origin of the counts, as run.json states it; None before there is one."""

    async def text(self, text: str, model: str, special: bool) -> int | None:
        """Count a text; `special` adds the tokens that open a prompt."""

    async def chat(self, chat: Mapping[str, Any], model: str) -> int | None:
        """Count a chat with its template, up to where the answer begins."""


class ServerCounter:
    """Counts with the server's own tokenizer: vLLM's /tokenize, llama.cpp's with its /apply-template,
    TGI's with its /chat_tokenize."""

    def __init__(self, client: Client) -> None:
        self.source: str | None = None
        self._client = client
        self._chat_ways: list[Callable[[dict[str, Any]], Any]] = [self._tokenized, self._templated, self._tgi]
        self._failed = {"text": 0, "chat": 0}
        self._worked: set[str] = set()

    async def text(self, text: str, model: str, special: bool) -> int | None:
        if self._gave_up("text"):
            return None
        asked: dict[str, Any] = {"model": model, "prompt": text, "content": text, "inputs": text}
        asked |= {"add_special_tokens": special, "add_special": special, "parse_special": special}
        tokens = tokens_in(answer := await self._post("/tokenize", asked))
        if tokens and isinstance(answer, list) and not special:  # TGI's always has the special tokens in it
            tokens -= tokens_in(await self._post("/tokenize", {"inputs": ""})) or 0
        return self._noted("text", "/tokenize", tokens)

    async def chat(self, chat: Mapping[str, Any], model: str) -> int | None:
        if self._gave_up("chat"):
            return None
        body = {"model": model} | dict(chat)
        for way in list(self._chat_ways):
            if tokens := await way(body):
                self._chat_ways = [way]
                return self._noted("chat", "/tokenize", tokens)
        return self._noted("chat", "", None)

    def _gave_up(self, kind: str) -> bool:
        return self._failed[kind] >= _TRIES and kind not in self._worked

    def _noted(self, kind: str, source: str, tokens: int | None) -> int | None:
        if not tokens:
            self._failed[kind] += 1
            return None
        self._worked.add(kind)
        self.source = self.source or source
        return tokens

    async def _tokenized(self, body: dict[str, Any]) -> int | None:
        return tokens_in(await self._post("/tokenize", body))

    async def _templated(self, body: dict[str, Any]) -> int | None:
        match await self._post("/apply-template", body):
            case {"prompt": str(prompt)}:
                return await self.text(prompt, body["model"], special=True)
        return None

    async def _tgi(self, body: dict[str, Any]) -> int | None:
        match await self._post("/chat_tokenize", body):
            case {"tokenize_response": [*tokens]}:
                return len(tokens)
        return None

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        url = self._client.url.root.page(path)
        try:
            page = await self._client.fetch(url, msgspec.json.encode(body), timeout_s=TOKENIZE_TIMEOUT_S)
            return msgspec.json.decode(page.body) if page.status == 200 else None
        except (HTTPError, OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


class FileCounter:
    """Counts with a tokenizer's files on this machine."""

    def __init__(self, file: TokenizerFile) -> None:
        self._file = file
        self.source: str | None = None

    async def text(self, text: str, model: str, special: bool) -> int | None:
        self.source = self.source or "tokenizer file"
        return self._file.count_text(text, special)

    async def chat(self, chat: Mapping[str, Any], model: str) -> int | None:
        self.source = "tokenizer file" if self._file.has_template else "tokenizer file, texts without a chat template"
        return self._file.count_chat(chat)


class _Lengths(NamedTuple):
    """Tokens of a prompt, and of the recorded answer."""

    prompt: int | None
    answer: int | None


Key = tuple[str, str | None, "Endpoint | None"]
"""Words, model and endpoint: requests that have all alike are counted once."""


async def count_words(
    schedule: Schedule,
    words: WordsReader,
    make_message: Callable[[ScheduledRequest], Message],
    counters: Sequence[Counter],
    count: Count,
    say: Say,
    progress: Callable[[int, int], None],
) -> tuple[Schedule, str | None]:
    """Return the schedule with the tokens of prompts and of recorded answers, and the origin of these counts.

    The first of the counters that can counts. What none counts stays None until `usage` tells, as do the
    prompts of live turns, which are not known yet. progress: called with the prompts that are counted, of all.
    """
    requests = {_key(request): request for request in schedule.requests if _is_wanted(request, count)}
    if count == "auto" and len(requests) > MAX_COUNTED:
        say(f"the {len(requests):,} prompts, being more than {MAX_COUNTED:,}, are not counted; --count all counts them")
        requests = {}
    if not requests:
        return schedule, None
    lengths: dict[Key, _Lengths] = {}
    waiting = iter(requests.items())

    async def work() -> None:
        for key, request in waiting:
            body = _decoded(make_message(request).body)
            assert request.words is not None
            answer = _decoded(words.fields(request.words).get("answer", b"null"))
            what = countable(request.words.endpoint or "chat", body or {})
            model = (body or {}).get("model") or ""
            lengths[key] = _Lengths(
                await _counted(counters, what, model, special=True),
                await _counted(counters, answer_text(answer) or None, model, special=False),
            )
            progress(len(lengths), len(requests))
            await asyncio.sleep(0)  # a file counts without a pause

    progress(0, len(requests))
    await asyncio.gather(*(work() for _ in range(CONCURRENT_COUNTS)))
    counted = tuple(
        _with_lengths(request, lengths.get(_key(request)), count) if _is_wanted(request, count) else request
        for request in schedule.requests
    )
    sources = dict.fromkeys(counter.source for counter in counters if counter.source)
    return replace(schedule, requests=counted), " and ".join(sources) or None


def _is_wanted(request: ScheduledRequest, count: Count) -> bool:
    """Return whether some length of the request is to be counted. A turn with live history has no known prompt."""
    if count == "none" or request.words is None or request.words.size > MAX_COUNTED_BYTES:
        return False
    is_prompt_wanted = request.live is not True and (count == "all" or request.input_tokens is None)
    return is_prompt_wanted or (request.natural and (count == "all" or request.output_tokens is None))


def _key(request: ScheduledRequest) -> Key:
    assert request.words is not None
    return request.words.sha256, request.model, request.words.endpoint


def _with_lengths(request: ScheduledRequest, lengths: _Lengths | None, count: Count) -> ScheduledRequest:
    if lengths is None:
        return request
    inputs, outputs = request.input_tokens, request.output_tokens
    if lengths.prompt and request.live is not True and (inputs is None or count == "all"):
        inputs = lengths.prompt
    if lengths.answer and request.natural and (outputs is None or count == "all"):
        outputs = lengths.answer
    return msgspec.structs.replace(request, input_tokens=inputs, output_tokens=outputs)


def _decoded(data: bytes | msgspec.Raw) -> Any:
    """Return JSON's value; None for half a surrogate pair, which no tokenizer takes as it is sent."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


async def _counted(counters: Sequence[Counter], what: Countable | None, model: str, special: bool) -> int | None:
    if what is None or isinstance(what, int):
        return what
    for counter in counters:
        if isinstance(what, str):
            tokens = await counter.text(what, model, special)
        else:
            tokens = await counter.chat(what, model)
        if tokens:
            return tokens
    return None
