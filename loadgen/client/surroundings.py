"""Logins and proxies that the environment of this process gives for a server."""

from __future__ import annotations

import netrc
import os
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from loadgen.client.redact import clean_url
from loadgen.errors import LoadgenError
from loadgen.http_get import basic

if TYPE_CHECKING:
    from loadgen.client.server_url import ServerURL


class Proxy(NamedTuple):
    """An HTTP proxy between this client and the server."""

    url: str
    """It may hold a login."""
    variable: str
    """Environment variable that names it."""

    @property
    def clean(self) -> str:
        """The URL as it may be printed."""
        return clean_url(self.url)


def proxy_of(scheme: str, host: str) -> Proxy | None:
    """Return the proxy that $http_proxy or $https_proxy names for the host, unless $no_proxy excepts the host.

    Raises LoadgenError for a proxy that this client cannot use.
    """
    url, variable = getproxies().get(scheme), f"{scheme}_proxy"
    if not url or proxy_bypass(host):
        return None
    if "://" not in url:
        url = f"http://{url}"
    if urlsplit(url).scheme != "http":
        raise LoadgenError(
            f"${variable} names a proxy that is not http://: unset it, or add {host} to $no_proxy to go without it"
        )
    return Proxy(url, variable)


def login_of(url: ServerURL, api_key: str | None) -> str | None:
    """Return the value of the Authorization field for `url`, or None. What is more explicit goes before what is less:
    the URL, the API key, the netrc file."""
    return url.basic or (f"Bearer {api_key}" if api_key else None) or netrc_login(url.host)


def netrc_login(host: str) -> str | None:
    """Return the value of the Authorization field that the user's netrc file gives for `host`, or None.

    A file that cannot be read is none: in a container $HOME is often another user's.
    """
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")  # noqa: PTH111 - pathlib raises without a home
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    login, account, password = entry or ("", "", "")
    user = login or account
    return basic(user or "", password or "") if user or password else None
