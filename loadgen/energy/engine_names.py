"""Finds engines by the names that spans and response headers give them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine

_LOOPBACK = ("127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}


class EngineNames:
    """Finds an engine by what a span or a response header calls it: its name, its URL, or the host and port of that."""

    def __init__(self, engines: Sequence[NamedEngine]) -> None:
        self._by_name = {name: number for number, engine in enumerate(engines) for name in (engine.url, engine.name)}
        addresses = [_address(engine.url) for engine in engines]
        self._by_address = {
            address: number for number, address in enumerate(addresses) if addresses.count(address) == 1
        }
        hosts = [host for host, _ in addresses]
        self._by_host: dict[str | None, int] = {
            host: number for number, host in enumerate(hosts) if host and hosts.count(host) == 1
        }

    def find(self, names: Iterable[str]) -> int | None:
        """Return the number of the engine that the first of these names with an engine names."""
        for name in names:
            if (number := self._by_name.get(name.rstrip("/"))) is not None:
                return number
            host, port = _address(name)
            number = self._by_host.get(host) if port is None else self._by_address.get((host, port))
            if number is not None:
                return number
        return None


def _address(text: str) -> tuple[str | None, int | None]:
    """Return the host and port of a URL or of HOST:PORT. Addresses of the loopback interface are the same host."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None, None
    return "localhost" if host in _LOOPBACK else host, port
