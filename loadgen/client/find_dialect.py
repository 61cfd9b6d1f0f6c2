"""Find the fields that the server accepts, with requests for one token."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace as replaced

from loadgen.client.find_model import joined_names, one_line, refused_key
from loadgen.client.openai_api import Dialect, payload
from loadgen.client.patience import FIRST_PAUSE_S, PATIENCE_S, PATIENCE_WITHOUT_ANSWER_S, Say, patiently, say_on_stderr
from loadgen.errors import LoadgenError
from loadgen.record import PATHS

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.client.server_info import ServerInfo
    from loadgen.record import Endpoint, RequestRecord

_log = logging.getLogger(__name__)

PROBE_PROMPT = "Say one word."
FIRST_ANSWER_S = 60.0
"""Limit of the first attempt, in case that one alone hangs. Later ones have the time of any request."""

EXTENSIONS = {"ignore_eos": "ignore_eos", "min_tokens": "min_tokens", "include_usage": "stream_options"}
"""Field of the body by field of the dialect."""
FALLBACKS = (
    Dialect(),
    Dialect(min_tokens=False),
    Dialect(ignore_eos=False),
    Dialect(False, False),
    Dialect(False, False, False),
    Dialect(max_completion_tokens=True),
    Dialect(False, False, max_completion_tokens=True),
    Dialect(False, False, False, max_completion_tokens=True),
)
"""Sets of fields for a server that does not name the one that it refuses, the richest first."""
SHORTEST_ANSWER: dict[Endpoint, int] = {"responses": 16}
"""Tokens of a probe's answer where one is too few: OpenAI refuses fewer than 16."""
REFUSALS = (400, 422, 500)
"""Statuses of a request with an unknown field: the last is a gateway's whose provider failed."""


class MissingError(LoadgenError):
    """The server has no such path."""


async def find_dialect(
    client: Client, endpoint: Endpoint, server: ServerInfo, extra: dict[str, Any], wait: Say = say_on_stderr
) -> Dialect:
    """Return the richest set of fields with which the server accepts a one-token request. Raises LoadgenError."""
    refused: list[bytes] = []
    allowed = _without_overridden(extra)
    dialect: Dialect | None = allowed
    tokens = SHORTEST_ANSWER.get(endpoint, 1)
    while dialect:
        body = payload(endpoint, server.model, PROBE_PROMPT, tokens, dialect, extra)
        record = await probe_once(client, endpoint, body, wait, waits_out_500=not refused)
        answer = one_line(client, f"{record.error}: {record.detail}") if record.error else "accepted"
        attempt = {"path": PATHS[endpoint], "dialect": asdict(dialect), "answer": answer, "status": record.status}
        _log.info("one-token request to %(path)s with %(dialect)s: %(status)s, %(answer)s", attempt)
        if record.error is None:
            return dialect
        if record.status not in REFUSALS:
            break
        refused.append(body)
        allowed = replace(allowed, **named_in(record.detail or "", dialect))
        candidates = [both(allowed, fallback) for fallback in FALLBACKS]
        bodies = [payload(endpoint, server.model, PROBE_PROMPT, tokens, other, extra) for other in candidates]
        untried = (candidate for candidate, sent in zip(candidates, bodies, strict=True) if sent not in refused)
        dialect = next(untried, None)
    raise failed(client, endpoint, server, record)


def named_in(refusal: str, dialect: Dialect) -> dict[str, bool]:
    """Return the changes to `dialect` that a server's refusal asks for by name.

    A refusal that names all extensions quotes the request, and tells nothing.
    """
    if not dialect.max_completion_tokens and re.search(r"(?s)\bmax_tokens\b.*\bmax_completion_tokens\b", refusal):
        return {"max_completion_tokens": True}
    sent = [name for name in EXTENSIONS if getattr(dialect, name)]
    named = [name for name in sent if re.search(rf"\b({name}|{EXTENSIONS[name]})\b", refusal)]
    return {} if named == sent and len(named) > 1 else dict.fromkeys(named, False)


def _without_overridden(extra: dict[str, Any]) -> Dialect:
    """Return the richest dialect, without the fields that --extra-body turns off or removes."""
    return Dialect(**{name: bool(extra.get(field, True)) for name, field in EXTENSIONS.items()})


def both(dialect: Dialect, fallback: Dialect) -> Dialect:
    """Return the extensions that both have; the newer name of the limit if one of them has it."""
    common = {name: getattr(dialect, name) and getattr(fallback, name) for name in EXTENSIONS}
    return Dialect(**common, max_completion_tokens=dialect.max_completion_tokens or fallback.max_completion_tokens)


async def probe_once(
    client: Client, endpoint: Endpoint, body: bytes, wait: Say, *, waits_out_500: bool = True
) -> RequestRecord:
    """Return the record of a one-token request, which is sent again while the server is not ready."""
    limits_s = iter([FIRST_ANSWER_S])

    async def attempt() -> RequestRecord:
        async with asyncio.timeout(next(limits_s, None)) as timer:
            record = await client.post(PATHS[endpoint], body, workload="probe")
        if timer.expired() and record.error == "cancelled":
            return replaced(record, error="timeout", detail=f"no end after {FIRST_ANSWER_S:g} s")
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # the user's Ctrl-C, which the client turns into a record
        return record

    def unready(record: RequestRecord) -> tuple[float, str]:
        if record.error is None:
            return 0, ""
        reason = one_line(client, f"{record.error}: {record.detail}")
        if record.error == "http":
            is_final = record.status == 500 and (not waits_out_500 or named_in(record.detail or "", Dialect()))
            return 0 if is_final else PATIENCE_S.get(record.status or 0, 0), reason
        return (FIRST_PAUSE_S if record.error == "timeout" else PATIENCE_WITHOUT_ANSWER_S), reason

    return await patiently(attempt, unready, wait, client.url.clean)


def failed(client: Client, endpoint: Endpoint, server: ServerInfo, record: RequestRecord) -> LoadgenError:
    """Return the error for a server that fails a one-token request."""
    words = one_line(client, record.detail or "")
    if record.status in (401, 403):
        return refused_key(client, record.status, words.partition(": ")[2])
    if server.listed and record.status in (400, 404, 422):
        return LoadgenError(
            f"the server at {client.url.clean} has no model {server.model!r}; it has: {joined_names(server.listed)} "
            f"({words})"
        )
    through = f", through the proxy {client.proxy.clean}" if client.proxy else ""
    kind = MissingError if record.status in (404, 405) else LoadgenError
    return kind(f"the server failed a one-token request to {PATHS[endpoint]} ({record.error}: {words}{through})")
