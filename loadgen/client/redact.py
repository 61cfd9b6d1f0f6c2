"""Keep secrets out of what is printed, recorded or written down."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from loadgen.energy.source_names import public_source, sources_of
from loadgen.errors import LoadgenError
from loadgen.http_get import public_url

_T = TypeVar("_T")
_REDACTED = "[redacted]"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the secrets of this client: servers quote keys and header values in their errors."""
    for secret in secrets:
        text = text.replace(secret, _REDACTED)
    return text


MIN_SECRET_CHARS = 8
"""Shorter values are not taken out of messages: they may be words of them."""
_SECRET_VARIABLE = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?)$")


def secrets_of(values: Iterable[str]) -> list[str]:
    """Return the values of headers that are secrets, also without a scheme such as Bearer, the longest first."""
    return _longest_first({part for value in values for part in (value, value.partition(" ")[2])})


def secrets_in(variables: Mapping[str, str]) -> list[str]:
    """Return the values of environment variables that are secrets by their names, the longest first."""
    return _longest_first({value for name, value in variables.items() if _SECRET_VARIABLE.search(name)})


def _longest_first(values: set[str]) -> list[str]:
    return sorted((value for value in values if len(value) >= MIN_SECRET_CHARS), key=len, reverse=True)


QUOTE_CHARS = 16
"""Shortest run of a text that is taken for a quotation: fewer characters in a row say little, and agree by chance."""
MAX_SEARCHED_BYTES = 1 << 18
"""Largest body that is searched for quotations: a search through more would hold up the requests in flight."""
_HIDDEN = "[words of the request]"


def without_quotes(text: str, body: bytes) -> str:
    """Return `text` without what it quotes of a request's words: servers repeat prompts in their errors.

    The model's name is no secret. All of the text is left out where the body is too large to search, or no JSON.
    """
    try:
        fields = json.loads(body) if len(body) <= MAX_SEARCHED_BYTES else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return "the server's words are left out, because they may quote the request"
    fields.pop("model", None)
    words = "\x7f".join(_strings(fields))  # which JSON does not escape, so that most texts are searched once
    searched = "\0".join({words, *(json.dumps(words, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))})
    kept: list[str] = []
    start = end = 0
    for i in range(len(text) - QUOTE_CHARS + 1):
        if text[i : i + QUOTE_CHARS] in searched:
            if i >= end:
                kept += text[start:i], _HIDDEN
            start = end = i + QUOTE_CHARS
    return "".join(kept) + text[start:]


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def redact_command(words: Sequence[str]) -> list[str]:
    """Return the words of a command line as they may be written down: --api-key and the values of headers are
    redacted, and a URL has no user, password and query."""
    kept: list[str] = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = name or option
        if name and not equals:
            kept.append(word)
            continue
        kept.append(f"{name}{equals}{_redacted_value(option, value)}")
        option = ""
    return kept


_SECRET_OPTION = re.compile(r"(api[-_]?key|password|secret|hf[-_]token)$", re.IGNORECASE)
"""Names of engine options whose values are secrets."""


def redact_value(name: str, value: _T) -> _T | str:
    """Return the value of an engine option as it may be written down."""
    return _REDACTED if _SECRET_OPTION.search(name) else value


def redact_setting(name: str, value: object) -> str:
    """Return an engine option as it may be written down: name=value, without the value of a secret."""
    return f"{name}={redact_value(name, value)}"


def _redacted_value(option: str, value: str) -> str:
    if option == "--api-key":
        return _REDACTED
    if option == "--header":
        name = re.split("[:=]", value, maxsplit=1)[0]
        return f"{name}:{_REDACTED}"
    if "://" not in value:
        return value
    try:
        return clean_url(value)
    except LoadgenError:  # another scheme, or a URL inside of a JSON object
        return _REDACTED if "@" in value or "?" in value else value


def clean_url(url: str) -> str:
    """Return a server's URL as it may be written down: without user, password, query and trailing slashes.

    Raises LoadgenError when it is not an http(s) URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError as err:  # brackets without an address in them
        raise LoadgenError(f"{url.rpartition('@')[2].partition('?')[0]!r} is not a server's URL: {err}") from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = url.rpartition("@")[2].partition("?")[0]
        raise LoadgenError(f"{shown!r} is not a server's URL; one looks like http://localhost:8000/v1")
    try:
        return public_url(parts._replace(path=parts.path.rstrip("/")))
    except ValueError as err:
        raise LoadgenError(f"{parts.hostname}: {err}") from err


def clean_sources(energy: str) -> str:
    """Return the value of --energy without the passwords of its URLs. Raises LoadgenError."""
    return ",".join(map(public_source, sources_of(energy)))
