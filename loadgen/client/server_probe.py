"""What is at the other end: asked once, before a run, so that a run never starts against the wrong thing."""

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from loadgen.client.client import Client
from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import PATHS, Dialect, Endpoint, error_of_body, payload
from loadgen.errors import LoadgenError

ASK_TIMEOUT_S = 10.0
PROBE_PROMPT = "Say one word."

DIALECTS = (Dialect(), Dialect(min_tokens=False), Dialect(False, False), Dialect(False, False, False))
"""From the richest; the first that the server takes is used."""


@dataclass(frozen=True)
class ServerInfo:
    """One model on one server."""

    base_url: str
    model: str
    engine: str | None
    """Who says it owns the model: "vllm", "llamacpp", "loadgen-simulator", ..."""
    max_model_len: int | None = None
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def simulated(self) -> bool:
        return self.engine == "loadgen-simulator"


def clean_url(url: str) -> str:
    """The URL as it may be written down: without a user's name and password. LoadgenError when it is not http(s)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LoadgenError(f"{url!r} is not a server's URL; one looks like http://localhost:8000/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError as err:
        raise LoadgenError(f"{parts.hostname}: {err}") from err
    return urlunsplit((parts.scheme, host + port, parts.path.rstrip("/"), "", ""))


async def find_model(client: Client, model: str | None) -> ServerInfo:
    """The model to ask for: `model`, or the only one the server has."""
    url = clean_url(client.base_url)
    known = await _models(client, url, needed=model is None)
    names = [str(entry["id"]) for entry in known]
    if model is None:
        if len(names) != 1:
            raise LoadgenError(
                f"the server at {url} has {len(names)} models ({', '.join(names)}); choose one with --model"
            )
        model = names[0]
    elif names and model not in names:
        raise LoadgenError(f"the server at {url} has no model {model!r}; it has: {', '.join(names)}")
    entry = next((entry for entry in known if entry["id"] == model), {})
    return ServerInfo(url, model, entry.get("owned_by"), _context(entry))


def _context(entry: dict[str, Any]) -> int | None:
    """Longest prompt and answer together: vLLM's word for it, or llama.cpp's (of one slot)."""
    match entry:
        case {"max_model_len": int(length)} | {"meta": {"n_ctx": int(length)}}:
            return length
    return None


async def _models(client: Client, url: str, *, needed: bool) -> list[dict[str, Any]]:
    """GET /models; an empty list when the server has no such page and `needed` is false."""
    try:
        status, body = await client.fetch(client.base_url + "/models", timeout_s=ASK_TIMEOUT_S)
    except TimeoutError as err:
        raise LoadgenError(f"the server at {url} does not answer: nothing for {ASK_TIMEOUT_S:.0f} s") from err
    except OSError as err:
        raise LoadgenError(
            f"no server at {url} ({_reason(err)}): start one, or add --serve sim, or say where with --base-url"
        ) from err
    except HTTPError as err:
        raise LoadgenError(
            f"what answers at {url} is not an OpenAI-compatible server: {client.redact(str(err))[:200]}"
        ) from err
    if status in (401, 403):
        raise LoadgenError(f"the server at {url} wants another API key ({status}): set OPENAI_API_KEY or --api-key")
    match _json(body) if status == 200 else None:
        case {"data": [*entries]} if all(isinstance(entry, dict) and "id" in entry for entry in entries):
            if entries or not needed:
                return entries
    if not needed:
        return []
    said = client.redact(error_of_body(body)) if status != 200 else "no model in its list"
    raise LoadgenError(f"cannot tell which model {url} serves (GET /models: {status}, {said}); say it with --model")


def _reason(err: OSError) -> str:
    """ "Connection refused", not asyncio's account of its own call."""
    return os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def find_dialect(client: Client, endpoint: Endpoint, model: str, extra: dict[str, Any]) -> Dialect:
    """The richest set of extensions that a one-token request is accepted with."""
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
