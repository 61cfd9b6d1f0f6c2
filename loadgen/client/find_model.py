"""Find the API below the URL that the user gave, the model to request there, and the engine that runs it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.client.connection_pool import FetchedPage
from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import error_of_body
from loadgen.client.patience import FIRST_PAUSE_S, PATIENCE_S, PATIENCE_WITHOUT_ANSWER_S, Say, patiently, say_on_stderr
from loadgen.client.server_info import ServerInfo
from loadgen.client.server_url import parse_server_url
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.client.client import Client

_log = logging.getLogger(__name__)

MODELS_TIMEOUT_S = 10.0
ENGINE_TIMEOUT_S = 2.0
MAX_REDIRECTS = 5
MAX_LISTED = 20
"""Models that a message names."""

CERTIFICATE_REMEDIES = {
    9: "check this machine's clock",
    10: "the server needs a new one; check this machine's clock, too",
    62: "use a host name that it is made out to",
    64: "use a host name that it is made out to",
}
"""Advice about a certificate, by the code of X509_verify_cert_error_string(3)."""

ENGINES = {
    **{name: name for name in ("vllm", "sglang", "llamacpp", "lmdeploy", "tensorrt_llm", "transformers")},
    "loadgen-simulator": "loadgen-simulator",
    "library": "ollama",
}
"""Engine by the owner of its models, where that tells: most name themselves, and Ollama its library."""
VERSION_PAGES = {
    "vllm": ("/version", "version"),
    "sglang": ("/get_server_info", "version"),
    "llamacpp": ("/props", "build_info"),
    "ollama": ("/api/version", "version"),
    "loadgen-simulator": ("/version", "version"),
}
"""Page of an engine that has its version, and the key there."""
MAX_VERSION_CHARS = 100


class Listing(NamedTuple):
    """Answer of GET /models: the entries, or the reason why there are none."""

    status: int
    entries: list[dict[str, Any]] | None
    reason: str = ""


async def find_model(client: Client, model: str | None, wait: Say = say_on_stderr) -> ServerInfo:
    """Return the server's entry for `model`, or for its only model. The client is moved to where the API is.

    A list is no authority on a model that was named: gateways list patterns, and servers take short names. Raises
    LoadgenError.
    """
    listing = await _find_list(client, wait, required=model is None)
    entries = listing.entries or []
    names = [str(entry["id"]) for entry in entries]
    if model is None:
        if not names:
            raise _unlisted(client, listing)
        if len(names) > 1:
            raise LoadgenError(
                f"the server at {client.url.clean} has {len(names)} models ({joined_names(names)}); "
                "choose one with --model"
            )
        model = names[0]
    served = model if model in names else f"{model}:latest"  # Ollama's names
    entry = next((entry for entry in entries if entry["id"] == served), None)
    server = await _described(client, model, entry or {}, tuple(names) if entry is None else ())
    found = {"url": server.base_url, "model": model, "engine": server.engine, "max_model_len": server.max_model_len}
    _log.info("%(url)s serves %(model)s; engine: %(engine)s; longest context: %(max_model_len)s tokens", found)
    return server


def joined_names(names: list[str] | tuple[str, ...]) -> str:
    """Return the names as a message lists them."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def refused_key(client: Client, status: int, words: str) -> LoadgenError:
    """Return the error for a server that does not let this client in."""
    quoted = f"{status}: {words}" if words else str(status)
    if client.has_key:
        return LoadgenError(
            f"the server at {client.url.clean} refuses this API key ({quoted}): set OPENAI_API_KEY or --api-key to "
            "another one"
        )
    return LoadgenError(
        f"the server at {client.url.clean} wants an API key ({quoted}): set OPENAI_API_KEY or --api-key"
    )


def one_line(client: Client, text: str) -> str:
    """Return a server's words as a message quotes them: one short line without secrets."""
    return " ".join(client.redact(text).split())[:200]


def _unlisted(client: Client, listing: Listing) -> LoadgenError:
    if listing.status in (401, 403):
        return refused_key(client, listing.status, listing.reason)
    return LoadgenError(
        f"cannot tell which model {client.url.clean} serves (GET /models: {listing.status}, {listing.reason}); "
        "name it with --model"
    )


async def _find_list(client: Client, wait: Say, *, required: bool) -> Listing:
    """Return the list of models, from where the user's URL says or below /v1 there. Raises LoadgenError."""
    guesses = client.url.guesses()
    listings = []
    for url in guesses:
        if url != client.url:
            await client.move(url)
        listing = await _list(client, wait, required=required)
        if listing.entries is not None:
            return listing
        listings.append(listing)
    if client.url != guesses[0]:
        await client.move(guesses[0])
    return listings[0]


async def _list(client: Client, wait: Say, *, required: bool) -> Listing:
    """GET /models, at another place of the same host where it redirects. Raises LoadgenError."""
    for _ in range(MAX_REDIRECTS):
        page = await _page(client, wait, required=required)
        if page.location is None:
            break
        target = parse_server_url(page.location)
        if target.host != client.url.host or not target.path.endswith("/models"):
            raise LoadgenError(
                f"{client.url.clean} redirects to {target.clean}, which is not followed: give --base-url the URL of "
                "the API there"
            )
        await client.move(client.url.moved_to(target.clean.removesuffix("/models")))
    try:
        content = msgspec.json.decode(page.body) if page.status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = None
    match content:
        case {"data": [*entries]} if all(isinstance(entry, dict) and "id" in entry for entry in entries):
            return Listing(200, entries, "no model in its list")
        case {"data": None}:
            return Listing(200, None, "no model in its list")
    if page.status == 200:
        return Listing(200, None, "its answer is no list of models")
    return Listing(page.status, None, one_line(client, error_of_body(page.body)))


async def _page(client: Client, wait: Say, *, required: bool) -> FetchedPage:
    """GET /models, again while the server is not ready. Without need of it a status is taken as it is."""

    async def attempt() -> FetchedPage | Exception:
        try:
            return await client.fetch(client.url.page("/models"), timeout_s=MODELS_TIMEOUT_S)
        except (OSError, HTTPError) as err:
            return err

    def unready(outcome: FetchedPage | Exception) -> tuple[float, str]:
        if isinstance(outcome, FetchedPage):
            return PATIENCE_S.get(outcome.status, 0) if required else 0, f"GET /models: {outcome.status}"
        if isinstance(outcome, TimeoutError):
            return FIRST_PAUSE_S, f"GET /models: nothing for {MODELS_TIMEOUT_S:g} s"
        if isinstance(outcome, (ConnectionResetError, BrokenPipeError, HTTPError)):
            return PATIENCE_WITHOUT_ANSWER_S, f"GET /models: {one_line(client, str(outcome))}"
        return 0, ""

    outcome = await patiently(attempt, unready, wait, client.url.clean)
    status = outcome.status if isinstance(outcome, FetchedPage) else one_line(client, repr(outcome))
    _log.info("GET %(url)s/models: %(status)s", {"url": client.url.clean, "status": status})
    if isinstance(outcome, Exception):
        raise unreachable(client, outcome) from outcome
    return outcome


def unreachable(client: Client, err: Exception) -> LoadgenError:
    """Describe a server that gave no HTTP response: what is wrong, and what to do about it."""
    url = client.url.clean
    if isinstance(err, ssl.SSLCertVerificationError):
        remedy = CERTIFICATE_REMEDIES.get(err.verify_code, "set SSL_CERT_FILE to a file with the certificates to trust")
        return LoadgenError(f"the certificate of {url} is not trusted ({err.verify_message.rstrip('.')}): {remedy}")
    if isinstance(err, ssl.SSLError):
        return LoadgenError(
            f"{url} does not speak TLS ({getattr(err, 'reason', None) or err}): is it an http:// server?"
        )
    if client.proxy and isinstance(err, OSError) and not isinstance(err, TimeoutError):
        return LoadgenError(
            f"the proxy {client.proxy.clean} of ${client.proxy.variable} cannot be reached ({_reason(err)}): "
            f"unset {client.proxy.variable}, or add {client.url.host} to no_proxy"
        )
    through = f" (through the proxy {client.proxy.clean} of ${client.proxy.variable})" if client.proxy else ""
    if isinstance(err, TimeoutError):
        return LoadgenError(f"the server at {url} does not answer: nothing for {MODELS_TIMEOUT_S:.0f} s{through}")
    if isinstance(err, OSError):
        return LoadgenError(
            f"no server at {url} ({_reason(err)}): start one, or add --serve sim, or give its URL with --base-url"
        )
    return LoadgenError(
        f"what answers at {url} is not an OpenAI-compatible server: {one_line(client, str(err))}{through}"
    )


def _reason(err: OSError) -> str:
    """Return "Connection refused" rather than asyncio's description of its own call."""
    if isinstance(err, socket.gaierror):
        return err.strerror or str(err)
    return os.strerror(err.errno) if err.errno and err.errno > 0 else str(err)


async def _described(client: Client, model: str, entry: dict[str, Any], listed: tuple[str, ...]) -> ServerInfo:
    """Return what the list and the engine's own pages tell about the model."""
    owner = entry.get("owned_by")
    length: int | None = None
    match entry:  # vLLM's name for the longest context, or llama.cpp's (of one slot)
        case {"max_model_len": int(tokens)} | {"meta": {"n_ctx": int(tokens)}}:
            length = tokens
    server = ServerInfo(client.url.clean, model, owner if isinstance(owner, str) else None, length, listed=listed)
    if engine := ENGINES.get(str(owner)):
        return replace(server, engine=engine, engine_version=await _version(client, engine))
    info, version = await asyncio.gather(_json(client, "/info"), _json(client, "/api/version"))
    match info:
        case {"model_id": str(), "max_total_tokens": int(total)}:
            inputs = info.get("max_input_tokens")
            input_limit = inputs if isinstance(inputs, int) else None
            server = replace(server, engine="tgi", max_model_len=total, max_input_tokens=input_limit)
            return replace(server, engine_version=_short_text(info.get("version")))
    match version:
        case {"version": str(text)}:
            return replace(server, engine="ollama", engine_version=_short_text(text))
    return replace(server, engine=None) if owner == model else server  # TGI's owner, whose /info is out of reach


async def _version(client: Client, engine: str) -> str | None:
    """Return the version that an engine reports on a page of its own."""
    if engine not in VERSION_PAGES:
        return None
    path, key = VERSION_PAGES[engine]
    page = await _json(client, path)
    return _short_text(page.get(key)) if isinstance(page, dict) else None


def _short_text(value: Any) -> str | None:
    return value[:MAX_VERSION_CHARS] if isinstance(value, str) and value else None


async def _json(client: Client, path: str) -> Any:
    """Return the JSON of one of the engine's own pages; None when there is no such page."""
    try:
        page = await client.fetch(client.url.root.page(path), timeout_s=ENGINE_TIMEOUT_S)
        return msgspec.json.decode(page.body) if page.status == 200 else None
    except (OSError, HTTPError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
