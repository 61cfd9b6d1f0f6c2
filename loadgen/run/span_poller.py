"""Records the engine's spans of a run, from the sidecar that receives them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError
from loadgen.http_get import PageClient
from loadgen.telemetry.engine_span import SpanPage
from loadgen.telemetry.otlp_export import TOKEN_VARIABLE

if TYPE_CHECKING:
    from loadgen.telemetry.engine_span import EngineSpan

_log = logging.getLogger(__name__)

PERIOD_S = 2.0
LATE_S = 6.0
"""An engine's exporter sends its spans every 5 s (OpenTelemetry's OTEL_BSP_SCHEDULE_DELAY): so long after the last
request they are waited for, if the engine sends any."""


class SpanPoller:
    """A thread that asks a sidecar for the spans that the engine sent since it was started.

    A receiver of OTLP that is no sidecar has no such page; it is then not asked again.
    """

    def __init__(self, url: str, on_spans: Callable[[Sequence[EngineSpan]], None]) -> None:
        self._client = PageClient(
            url.rstrip("/").removesuffix("/v1/traces"), os.environ.get(TOKEN_VARIABLE), monotonic_ns
        )
        self._on_spans = on_spans
        self._after: int | None = None
        self._count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-spans", daemon=True)

    def start(self) -> None:
        """Leave out what the sidecar received before. Blocks for one request."""
        page = self._page("/spans")
        if page is not None:
            self._after = page.next
            self._thread.start()

    def cancel(self) -> None:
        """End the thread, without waiting for it."""
        self._stop.set()

    def stop(self) -> None:
        """Take the last spans, and end. Blocks, for LATE_S if the engine sent any."""
        if self._after is None:
            return
        self._take()
        if self._count:
            self._stop.wait(LATE_S)
        self.cancel()
        self._thread.join(timeout=2 * PERIOD_S)
        self._take()
        self._client.close()
        _log.info("%(spans)d spans of the engine", {"spans": self._count})

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._take()

    def _take(self) -> None:
        """Pass on the new spans; where the sidecar is away, the next read has them."""
        while (page := self._page(f"/spans?after={self._after}")) is not None and page.spans:
            self._after = page.next
            self._count += len(page.spans)
            self._on_spans(page.spans)

    def _page(self, path: str) -> SpanPage | None:
        try:
            response = self._client.get(path)
            return msgspec.json.decode(response.body, type=SpanPage) if response.status == 200 else None
        except (MeterError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            _log.info("no spans of the engine: %(reason)s", {"reason": err})
            return None
