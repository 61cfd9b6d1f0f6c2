"""The engine's spans as a sidecar serves them: numbered as they were received, bounded in number."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from loadgen.attribution.foreign_spans import engine_spans
from loadgen.telemetry.engine_span import EngineSpan, SpanPage

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan

MAX_SPANS = 20_000
PORTION = 2_000
"""Spans in one answer."""


class SpanFeed:
    """Keeps the engine's newest spans, without names of who sent a request."""

    def __init__(self) -> None:
        self._spans: deque[EngineSpan] = deque(maxlen=MAX_SPANS)
        self._received = 0
        """Number of the newest span."""

    def add(self, spans: Sequence[RequestSpan], engine: str | None = None) -> None:
        """Add those of an engine. engine: its name, where several are watched and it is known."""
        received = engine_spans(spans)
        if engine is not None:
            received = [msgspec.structs.replace(span, engine=engine) for span in received]
        self._spans.extend(received)
        self._received += len(received)

    def page(self, after: int | None) -> SpanPage:
        """Return the spans after a number, the oldest first; after None there is none yet."""
        before_all = self._received - len(self._spans)
        first = self._received if after is None else min(max(after, before_all), self._received)
        spans = list(islice(self._spans, first - before_all, first - before_all + PORTION))
        return SpanPage(first + len(spans), spans)

    async def serve(self, request: web.Request) -> web.Response:
        """Serve the page after ?after=NUMBER; without a number, the one after the newest span."""
        after = request.query.get("after")
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 20):
            raise web.HTTPBadRequest(text="after must be the number of a span\n")
        page = self.page(None if after is None else int(after))
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")
