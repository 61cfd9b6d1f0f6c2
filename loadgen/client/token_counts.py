"""How many tokens a text has on the server's tokenizer: asked, counted here, or estimated from one probe."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.client.client import Client
from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import PATHS, Endpoint, payload
from loadgen.client.server_probe import ASK_TIMEOUT_S, ServerInfo
from loadgen.errors import LoadgenError
from loadgen.workload.prompts import (
    Draws,
    PromptKind,
    Vocabulary,
    estimate_vocabulary,
    measure_vocabulary,
    probe_text,
    texts_to_count,
)

LengthSource = Literal["/tokenize", "tokenizer file", "probe"]

PROBE_TOKENS = 200
PROBE_KEY = "probe"
"""That of no request: its prompt would be cached."""
CONCURRENT_COUNTS = 8


async def vocabularies(
    client: Client,
    server: ServerInfo,
    endpoint: Endpoint,
    kinds: set[PromptKind],
    tokenizer: Path | None,
    extra: dict[str, Any],
) -> tuple[LengthSource, dict[PromptKind, Vocabulary]]:
    """A vocabulary per kind, and where its counts come from: --tokenizer, the server's /tokenize, else one probe."""
    source: LengthSource = "probe"
    found: dict[PromptKind, Vocabulary] = {}
    for kind in sorted(kinds):
        texts = texts_to_count(kind)
        counts: dict[str, int] | None
        if tokenizer is not None:
            source, counts = "tokenizer file", count_with_file(tokenizer, texts)
        elif counts := await count_on_server(client, server, texts):
            source = "/tokenize"
        probe = _Probe(client, server, endpoint, extra)
        found[kind] = await (_measured(kind, counts, probe) if counts else _estimated(kind, probe))
    return source, found


class _Probe:
    """Sends one prompt for one output token, to learn how long the server says the prompt is."""

    def __init__(self, client: Client, server: ServerInfo, endpoint: Endpoint, extra: dict[str, Any]) -> None:
        self.client, self.server, self.endpoint, self.extra = client, server, endpoint, extra

    async def input_tokens(self, prompt: str) -> int | None:
        body = payload(self.endpoint, self.server.model, prompt, 1, self.server.dialect, self.extra)
        record = await self.client.post(PATHS[self.endpoint], body, workload="probe")
        if record.error:
            raise LoadgenError(f"the server failed a one-token request ({record.error}): {record.detail}")
        return record.input_tokens


async def _measured(kind: PromptKind, counts: Mapping[str, int], probe: _Probe) -> Vocabulary:
    """The template's overhead is what the server counts beyond a prompt whose own length is known."""
    bare = measure_vocabulary(kind, counts, overhead=0)
    counted = await probe.input_tokens(bare.prompt(PROBE_TOKENS, Draws(PROBE_KEY)))
    return bare if counted is None else replace(bare, overhead=counted - PROBE_TOKENS)


async def _estimated(kind: PromptKind, probe: _Probe) -> Vocabulary:
    """Two probes: one word gives the overhead, a long text the tokens per character."""
    text = probe_text(kind)
    word, long = await probe.input_tokens("the"), await probe.input_tokens(text)
    if word is None or long is None:  # no usage at all: four characters a token is the rule of thumb
        return estimate_vocabulary(kind, tokens_per_char=0.25, overhead=0)
    return estimate_vocabulary(kind, tokens_per_char=(long - word) / (len(text) - len("the")), overhead=word - 1)


def count_with_file(path: Path, texts: list[str]) -> dict[str, int]:
    """Token counts by a Hugging Face tokenizer.json, without special tokens."""
    try:
        from tokenizers import Tokenizer
    except ImportError as err:
        raise LoadgenError("--tokenizer needs the tokenizers package: pip install 'loadgen[tokenizer]'") from err
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise LoadgenError(f"--tokenizer {path}: no tokenizer.json there")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as err:  # the library raises bare Exception for every malformed file
        raise LoadgenError(f"--tokenizer {file}: not a tokenizer: {err}") from err
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return {text: len(encoding.ids) for text, encoding in zip(texts, encodings, strict=True)}


async def count_on_server(client: Client, server: ServerInfo, texts: list[str]) -> dict[str, int] | None:
    """Token counts by the server's /tokenize (vLLM's and llama.cpp's shapes); None when it has none."""
    gate = asyncio.Semaphore(CONCURRENT_COUNTS)

    async def count(text: str) -> int | None:
        body = msgspec.json.encode(
            {"model": server.model, "prompt": text, "content": text, "add_special_tokens": False}
        )
        async with gate:
            page = await client.fetch(server.root_url + "/tokenize", body, timeout_s=ASK_TIMEOUT_S)
        match msgspec.json.decode(page.body) if page.status == 200 else None:
            case {"count": int(number)}:
                return number
            case {"tokens": list(tokens)}:
                return len(tokens)
        return None

    try:
        first = await count(texts[0])
        if not first:
            return None
        counted = await asyncio.gather(*(count(text) for text in texts))
    except (HTTPError, OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return (
        {text: number for text, number in zip(texts, counted, strict=True) if number is not None}
        if all(counted)
        else None
    )
