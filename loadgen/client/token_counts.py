"""Count tokens as the server's tokenizer does: with a tokenizer file, on the server, or estimated from one probe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loadgen.client.http1 import HTTPError
from loadgen.client.tokenizer_file import TokenizerFile
from loadgen.workload.prompts import (
    Draws,
    PromptKind,
    Vocabulary,
    estimate_vocabulary,
    measure_vocabulary,
    probe_text,
    texts_to_count,
)

if TYPE_CHECKING:
    from loadgen.client.client import Client

LengthSource = Literal["/tokenize", "tokenizer file", "probe"]

InputTokens = Callable[[str], Awaitable[int | None]]
"""Sends a prompt for one output token, and returns its length as the server reports it, or None."""

TOKENIZE_TIMEOUT_S = 10.0
PROBE_TOKENS = 200
PROBE_KEY = "probe"
"""Seeds the draws of the probe's prompt. No request has it: its prompt would be in the server's cache."""
CONCURRENT_COUNTS = 8
TOKENS_PER_CHAR = 0.25
"""Rule of thumb for English text, used when the server reports no usage."""


async def vocabularies(
    client: Client,
    model: str,
    kinds: Iterable[PromptKind],
    tokenizer: Path | None,
    input_tokens: InputTokens,
) -> tuple[LengthSource, dict[PromptKind, Vocabulary]]:
    """Return a vocabulary for each kind, and the source of its counts: --tokenizer, the server's /tokenize, or else
    a probe. Raises LoadgenError."""
    source: LengthSource = "probe"
    vocabulary_of: dict[PromptKind, Vocabulary] = {}
    for kind in sorted(kinds):
        texts = texts_to_count(kind)
        counts: dict[str, int] | None
        if tokenizer is not None:
            source, counts = "tokenizer file", TokenizerFile(tokenizer).count_all(texts)
        elif counts := await count_on_server(client, model, texts):
            source = "/tokenize"
        if counts:
            # The chat template's overhead is what the server counts beyond a prompt of known length.
            bare = measure_vocabulary(kind, counts, overhead=0)
            total = await input_tokens(bare.prompt(PROBE_TOKENS, Draws(PROBE_KEY)))
            known = total is not None and total > PROBE_TOKENS // 2  # less is no count of a prompt of PROBE_TOKENS
            vocabulary_of[kind] = replace(bare, overhead=total - PROBE_TOKENS) if total and known else bare
        else:
            vocabulary_of[kind] = await _estimate(kind, input_tokens)
    return source, vocabulary_of


async def _estimate(kind: PromptKind, input_tokens: InputTokens) -> Vocabulary:
    """Probe twice: a prompt of one word gives the overhead, a long text the tokens per character. A server that counts
    the same for both does not count."""
    text = probe_text(kind)
    word_tokens, text_tokens = await input_tokens("the"), await input_tokens(text)
    if word_tokens is None or text_tokens is None or text_tokens <= word_tokens:
        return estimate_vocabulary(kind, tokens_per_char=TOKENS_PER_CHAR, overhead=0)
    tokens_per_char = (text_tokens - word_tokens) / (len(text) - len("the"))
    return estimate_vocabulary(kind, tokens_per_char=tokens_per_char, overhead=word_tokens - 1)


async def count_on_server(client: Client, model: str, texts: list[str]) -> dict[str, int] | None:
    """Count tokens with the server's /tokenize (vLLM's, llama.cpp's or TGI's shape); None unless it counts all of
    them."""
    gate = asyncio.Semaphore(CONCURRENT_COUNTS)

    async def answer(text: str) -> Any:
        body = {"model": model, "prompt": text, "content": text, "inputs": text, "add_special_tokens": False}
        async with gate:
            url = client.url.root.page("/tokenize")
            page = await client.fetch(url, msgspec.json.encode(body), timeout_s=TOKENIZE_TIMEOUT_S)
        return msgspec.json.decode(page.body) if page.status == 200 else None

    try:
        if not tokens_in(first := await answer(texts[0])):
            return None
        # TGI's answer is a bare list, and always has the special tokens in it
        special = tokens_in(await answer("")) if isinstance(first, list) else 0
        counts = [tokens_in(each) for each in await asyncio.gather(*(answer(text) for text in texts))]
    except (HTTPError, OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if special is None or not all(count and count > special for count in counts):
        return None
    return {text: count - special for text, count in zip(texts, counts, strict=True) if count}


def tokens_in(answer: Any) -> int | None:
    """Return the number of tokens that an answer of /tokenize tells; None if it is not one."""
    match answer:
        case {"count": int(tokens)}:
            return tokens
        case {"tokens": [*ids]} | [*ids]:
            return len(ids)
    return None
