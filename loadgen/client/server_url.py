"""Parts of a server's URL as connections and requests need them, and the places where its API may be."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from loadgen.client.redact import clean_url
from loadgen.errors import LoadgenError
from loadgen.http_get import basic

ENDPOINTS = ("/chat/completions", "/completions", "/models")
"""Paths below an API's own: a URL copied from documentation often ends with one."""
_VERSION = re.compile(r"/v[0-9][0-9a-z]*(/|$)")


class ServerURL(NamedTuple):
    """URL of an API, such as http://localhost:8000/v1, with its query: gateways keep a version or a key in it."""

    scheme: str
    host: str
    """Name in ASCII (IDNA), or address without brackets."""
    port: int | None
    path: str
    """Percent-encoded, without a slash at its end."""
    query: str
    """Percent-encoded. It is part of every request, and of no message or file."""
    login: str | None
    """USER:PASSWORD, percent-encoded."""

    @property
    def netloc(self) -> str:
        """Host and port, as in a Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host

    @property
    def clean(self) -> str:
        """The URL as it may be printed: without login and query."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def text(self) -> str:
        """The whole URL, secrets included."""
        login = f"{self.login}@" if self.login is not None else ""
        return f"{self.scheme}://{login}{self.netloc}{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def basic(self) -> str | None:
        """Value of the Authorization field for the login; None without one."""
        if self.login is None:
            return None
        user, _, password = self.login.partition(":")
        return basic(unquote(user), unquote(password))

    def target(self, path: str) -> str:
        """Return the target of a request for `path` of the API."""
        return self.path + path + (f"?{self.query}" if self.query else "")

    def page(self, path: str) -> str:
        """Return the URL of `path` of the API, without login."""
        return f"{self.scheme}://{self.netloc}{self.target(path)}"

    def moved_to(self, url: str) -> ServerURL:
        """Return `url` with the login and the query of this one. Raises LoadgenError."""
        return parse_server_url(url)._replace(query=self.query, login=self.login)

    @property
    def root(self) -> ServerURL:
        """The URL without the API's /v1: engines have their own pages there."""
        return self._replace(path=self.path.removesuffix("/v1"))

    def guesses(self) -> list[ServerURL]:
        """Return the places where the API may be: here, without an endpoint's path at the end, and then below /v1."""
        path = self.path
        for endpoint in ENDPOINTS:
            path = path.removesuffix(endpoint)
        here = self._replace(path=path.rstrip("/"))
        return [here] if _VERSION.search(here.path) else [here, here._replace(path=here.path + "/v1")]


def parse_server_url(url: str) -> ServerURL:
    """Parse a server's URL. Raises LoadgenError."""
    clean_url(url)
    parts = urlsplit(url)
    try:
        host = (parts.hostname or "").encode("idna").decode()
    except UnicodeError as err:
        raise LoadgenError(f"{parts.hostname!r} is not the name of a host") from err
    login = parts.netloc.rpartition("@")[0] if "@" in parts.netloc else None
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return ServerURL(parts.scheme, host, parts.port, path, quote(parts.query, safe="/%:@!$&'()*+,;=~?"), login)
