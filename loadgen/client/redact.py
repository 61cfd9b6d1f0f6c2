"""Keep secrets out of what is printed, recorded or written down."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from loadgen.errors import LoadgenError
from loadgen.http_get import public_url


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the secrets of this client: servers quote keys and header values in their errors."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    return text


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
