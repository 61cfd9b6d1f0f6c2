"""Reads from the fields of a response which engines served it, where a gateway or an engine says so. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from loadgen.energy.named_engine import parse_engines
from loadgen.errors import LoadgenError


class ServedBy:
    """Finds engines in the response headers of these names. A value is an engine's name, its URL, or host:port; several
    are apart by commas. Whatever else a server sends there is not kept."""

    def __init__(self, headers: Sequence[str], engines: Sequence[str]) -> None:
        """engines: as --engine names them. Raises LoadgenError unless they go together."""
        if headers and not engines:
            raise LoadgenError("--engine-header names engines by a header: say which there are with --engine")
        names = "|".join(re.escape(header) for header in headers)
        self._field = re.compile(rf"\n(?:{names}):([^\r]*)".encode(), re.IGNORECASE) if headers else None
        self._engines: Mapping[str, str] = {
            value: engine.name
            for engine in parse_engines(engines, sharing=True)
            for value in (urlsplit(engine.url).netloc, engine.url, engine.name)
        }

    def engines(self, fields: bytes) -> list[str] | None:
        """Return the names of the engines that these header fields name, each once; None if they name none."""
        if self._field is None:
            return None
        values = (value.strip() for text in self._field.findall(fields) for value in text.decode("latin-1").split(","))
        named = (self._engines.get(value.rstrip("/")) for value in values)
        return list(dict.fromkeys(name for name in named if name is not None)) or None
