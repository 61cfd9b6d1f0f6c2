"""Probe the server once, before a run: its model, the extensions it accepts, and how it counts tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import PATHS, Dialect, Endpoint, error_of_body, payload
from loadgen.client.redact import clean_url
from loadgen.client.token_counts import LengthSource, vocabularies
from loadgen.errors import LoadgenError
from loadgen.workload.prompts import PromptKind, Vocabulary

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.workload.schedule import ScheduledRequest

MODELS_TIMEOUT_S = 10.0
PROBE_PROMPT = "Say one word."

DIALECTS = (Dialect(), Dialect(min_tokens=False), Dialect(False, False), Dialect(False, False, False))
"""Sets of extensions, the richest first; the first one that the server accepts is used."""


@dataclass(frozen=True)
class ServerInfo:
    """One model on one server."""

    base_url: str
    model: str
    engine: str | None
    """The owner of the model as the server reports it: "vllm", "llamacpp", "loadgen-simulator", ..."""
    max_model_len: int | None = None
    """Tokens of the longest prompt and output together; None if the server does not report it."""
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def root_url(self) -> str:
        """The URL without the API's /v1."""
        return self.base_url.removesuffix("/v1")

    @property
    def simulated(self) -> bool:
        """True for the simulated server of this package."""
        return self.engine == "loadgen-simulator"

    def check_fits(self, requests: Iterable[ScheduledRequest]) -> None:
        """Raise LoadgenError if a request, prompt and output together, is longer than the model's context."""
        limit = self.max_model_len
        for request in requests:
            if limit is not None and request.input_tokens + request.output_tokens > limit:
                raise LoadgenError(
                    f"request {request.index} needs {request.input_tokens} + {request.output_tokens} tokens, "
                    f"but {self.model} takes {limit}: start the server with a longer context, or choose another trace"
                )


class ServerProbe(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a server that a run needs before it starts."""

    server: ServerInfo
    lengths_from: LengthSource
    vocabularies: dict[PromptKind, Vocabulary]


async def probe(
    client: Client,
    endpoint: Endpoint,
    kinds: Iterable[PromptKind],
    *,
    model: str | None = None,
    tokenizer: Path | None = None,
    extra_body: dict[str, Any] | None = None,
    check: Callable[[ServerInfo], None] = lambda _: None,
) -> ServerProbe:
    """Find the model, then the extensions it accepts, then its token counts for prompts of each kind.

    `check` may raise before any tokens are counted, which takes longest. Raises LoadgenError.
    """
    extra = extra_body or {}
    server = await find_model(client, model)
    server = replace(server, dialect=await find_dialect(client, endpoint, server.model, extra))
    check(server)

    async def input_tokens(prompt: str) -> int | None:
        body = payload(endpoint, server.model, prompt, 1, server.dialect, extra)
        record = await client.post(PATHS[endpoint], body, workload="probe")
        if record.error:
            raise LoadgenError(
                f"the server failed a one-token request to {PATHS[endpoint]} ({record.error}: {record.detail})"
            )
        return record.input_tokens

    lengths_from, vocabulary_of = await vocabularies(
        client, server.root_url, server.model, kinds, tokenizer, input_tokens
    )
    return ServerProbe(server=server, lengths_from=lengths_from, vocabularies=vocabulary_of)


async def find_model(client: Client, model: str | None) -> ServerInfo:
    """Return the server's entry for `model`, or for its only model. Raises LoadgenError."""
    url = clean_url(client.base_url)
    entries = await _models(client, url, required=model is None)
    names = [str(entry["id"]) for entry in entries]
    if model is None:
        if len(names) != 1:
            raise LoadgenError(
                f"the server at {url} has {len(names)} models ({', '.join(names)}); choose one with --model"
            )
        model = names[0]
    elif names and model not in names:
        raise LoadgenError(f"the server at {url} has no model {model!r}; it has: {', '.join(names)}")
    entry = next((entry for entry in entries if entry["id"] == model), {})
    match entry:  # vLLM's name for the longest context, or llama.cpp's (of one slot)
        case {"max_model_len": int(context_tokens)} | {"meta": {"n_ctx": int(context_tokens)}}:
            return ServerInfo(url, model, entry.get("owned_by"), context_tokens)
    return ServerInfo(url, model, entry.get("owned_by"))


async def _models(client: Client, url: str, *, required: bool) -> list[dict[str, Any]]:
    """GET /models; return an empty list when the server has no such page, unless the list is `required`."""
    try:
        status, body = await client.fetch(client.base_url + "/models", timeout_s=MODELS_TIMEOUT_S)
    except TimeoutError as err:
        raise LoadgenError(f"the server at {url} does not answer: nothing for {MODELS_TIMEOUT_S:.0f} s") from err
    except OSError as err:
        # "Connection refused" rather than asyncio's description of its own call
        reason = os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)
        raise LoadgenError(
            f"no server at {url} ({reason}): start one, or add --serve sim, or give its URL with --base-url"
        ) from err
    except HTTPError as err:
        raise LoadgenError(
            f"what answers at {url} is not an OpenAI-compatible server: {client.redact(str(err))[:200]}"
        ) from err
    if status in (401, 403):
        raise LoadgenError(f"the server at {url} wants another API key ({status}): set OPENAI_API_KEY or --api-key")
    try:
        page = msgspec.json.decode(body) if status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        page = None
    match page:
        case {"data": [*entries]} if all(isinstance(entry, dict) and "id" in entry for entry in entries):
            if entries or not required:
                return entries
    if not required:
        return []
    reason = client.redact(error_of_body(body)) if status != 200 else "no model in its list"
    raise LoadgenError(f"cannot tell which model {url} serves (GET /models: {status}, {reason}); name it with --model")


async def find_dialect(client: Client, endpoint: Endpoint, model: str, extra: dict[str, Any]) -> Dialect:
    """Return the richest set of extensions with which the server accepts a one-token request. Raises LoadgenError."""
    refusal = ""
    for dialect in DIALECTS:
        body = payload(endpoint, model, PROBE_PROMPT, 1, dialect, extra)
        record = await client.post(PATHS[endpoint], body, workload="probe")
        if record.error is None:
            return dialect
        refusal = f"{record.error}: {record.detail}"
        if record.status not in (400, 422):
            break
    raise LoadgenError(f"the server failed a one-token request to {PATHS[endpoint]} ({refusal})")
