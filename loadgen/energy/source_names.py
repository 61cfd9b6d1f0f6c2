"""The sources that a value of --energy names. Pure."""

import re
from urllib.parse import urlsplit

from loadgen.errors import LoadgenError
from loadgen.http_get import public_url

_COMMA = re.compile(r",(?![^{]*\})")
"""A comma between sources, not one between the labels of a metric."""


def sources_of(choice: str) -> list[str]:
    """Return the sources that a value of --energy names."""
    return [source.strip() for source in _COMMA.split(choice)]


def public_source(source: str) -> str:
    """Return the name of a source without the password and the query that a URL may have. Raises LoadgenError."""
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
        url = public_url(parts._replace(path=parts.path.rstrip("/")))
    except ValueError as err:  # its text may have the password
        raise LoadgenError("--energy: the host or port of a URL is malformed") from err
    return url + (f"#{parts.fragment}" if parts.fragment else "")
