"""Reads from the fields of a response which engines served it, where a gateway or an engine says so. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loadgen.energy.engine_names import EngineNames
from loadgen.energy.named_engine import parse_engines
from loadgen.errors import LoadgenError

MAX_VALUE = 1024
"""Bytes of a header's value that are read."""


class ServedBy:
    """Finds engines in the response headers of these names. A value is an engine's name, its URL, or host:port; several
    are apart by commas. Whatever else a server sends there is not kept, and of a value no more than MAX_VALUE read."""

    def __init__(self, headers: Sequence[str], engines: Sequence[str]) -> None:
        """engines: as --engine names them. Raises LoadgenError unless they go together."""
        if headers and not engines:
            raise LoadgenError("--engine-header names engines by a header: say which there are with --engine")
        names = "|".join(re.escape(header) for header in headers)
        self._field = re.compile(rf"\n(?:{names}):([^\r]*)".encode(), re.IGNORECASE) if headers else None
        named = parse_engines(engines, sharing=True)
        self._engines, self._names = [engine.name for engine in named], EngineNames(named)

    def engines(self, fields: bytes) -> list[str] | None:
        """Return the names of the engines that these header fields name, each once: none if they name others only.
        Return None without such a field."""
        values = self._field.findall(fields) if self._field else []
        if not values:
            return None
        texts = (value[:MAX_VALUE].decode("latin-1") for value in values)
        numbers = (self._names.find([name.strip()]) for text in texts for name in text.split(","))
        return list(dict.fromkeys(self._engines[number] for number in numbers if number is not None))
