"""Probe the server once, before a run: its model, the fields it accepts, and how it counts tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.client.find_dialect import SHORTEST_ANSWER, MissingError, both, failed, find_dialect, probe_once
from loadgen.client.find_model import find_model, joined_names
from loadgen.client.openai_api import payload
from loadgen.client.patience import Say, say_on_stderr
from loadgen.client.server_info import ServerInfo
from loadgen.client.token_counts import LengthSource, vocabularies
from loadgen.errors import LoadgenError
from loadgen.workload.prompts import PromptKind, Vocabulary

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.record import Endpoint

_log = logging.getLogger(__name__)


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
    others: Iterable[Endpoint] = (),
    model: str | None = None,
    tokenizer: Path | None = None,
    extra_body: dict[str, Any] | None = None,
    check: Callable[[ServerInfo], None] = lambda _: None,
    say: Say = say_on_stderr,
    wait: Say = say_on_stderr,
    announce: Callable[[str], None] = lambda _: None,
) -> ServerProbe:
    """Find the API and its model, then the fields it accepts, then its token counts for prompts of each kind.

    `endpoint` takes the made-up prompts; the fields are those that the `others` accept too.

    The client is moved to where the API is. `check` may raise before any tokens are counted, which takes longest.
    `say` gets a line about whatever is not as the user asked; `wait` one about what takes long; `announce` the name of
    each step before it. Raises LoadgenError.
    """
    extra = extra_body or {}
    announce("asking which model it serves")
    given = client.url
    server = await find_model(client, model, wait)
    if client.url != given:
        say(f"the API is at {client.url.clean}, not at {given.clean}")
    announce("waiting for the first answer")
    server = await _with_dialect(client, endpoint, server, extra, say, wait)
    for other in others:
        accepted = await find_dialect(client, other, server, extra, wait)
        server = replace(server, dialect=both(server.dialect, accepted))
    if server.listed:
        say(f"{server.base_url} serves {server.model!r}, though it lists {joined_names(server.listed)}")
    server = replace(server, addresses=client.addresses, proxy=client.proxy.clean if client.proxy else None)
    check(server)

    async def input_tokens(prompt: str) -> int | None:
        body = payload(endpoint, server.model, prompt, SHORTEST_ANSWER.get(endpoint, 1), server.dialect, extra)
        record = await probe_once(client, endpoint, body, wait)
        if record.error:
            raise failed(client, endpoint, server, record)
        return record.input_tokens

    announce("asking how it counts tokens")
    lengths_from, vocabulary_of = await vocabularies(client, server.model, kinds, tokenizer, input_tokens)
    _log.info("prompt lengths are from %(lengths_from)s", {"lengths_from": lengths_from})
    return ServerProbe(server=server, lengths_from=lengths_from, vocabularies=vocabulary_of)


async def _with_dialect(
    client: Client, endpoint: Endpoint, server: ServerInfo, extra: dict[str, Any], say: Say, wait: Say
) -> ServerInfo:
    """Return `server` with its dialect; where it has no list of models, its API may also be below /v1."""
    here, *below = client.url.guesses()
    try:
        return replace(server, dialect=await find_dialect(client, endpoint, server, extra, wait))
    except MissingError as err:
        for url in below:
            await client.move(url)
            try:
                dialect = await find_dialect(client, endpoint, server, extra, wait)
            except LoadgenError:
                await client.move(here)
                raise err from None
            say(f"the API is at {url.clean}, not at {here.clean}")
            return replace(server, base_url=url.clean, dialect=dialect)
        raise
