"""Times of requests as the engine saw them, under OpenTelemetry's conventions for model servers. Pure.

A request that only its client reported is in none of them: its times hold the network too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.telemetry.histogram import Histogram
from loadgen.units import s_from_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.telemetry.otlp_parse import RequestSpan

DURATION_BOUNDS_S = tuple(0.01 * 2**k for k in range(14))
FIRST_TOKEN_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Bounds of buckets that the conventions recommend."""


@dataclass
class ServerTimes:
    """Histograms of the requests of an account that the engine reported."""

    completed: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    """Duration of those that the engine completed, queue included."""
    failed: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    """Duration of those that ended in an error."""
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))
    per_token: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_BOUNDS_S))
    """Time after the first token over the number of tokens after it."""

    def observe(self, request: RequestSpan, parts: Sequence[RequestSpan]) -> None:
        """Count a closed request. parts: the spans that it was joined from."""
        engines = [part for part in parts if not part.client]
        if not engines:
            return
        duration_s = s_from_ns(request.end_ns - request.start_ns)
        if not all(engine.ok for engine in engines):
            self.failed.observe(duration_s)
            return
        self.completed.observe(duration_s)
        first_ns = min((part.first_token_ns for part in engines if part.first_token_ns is not None), default=None)
        if first_ns is None:
            return
        first_s = s_from_ns(first_ns - request.start_ns)
        self.first_token.observe(first_s)
        if len(engines) == 1 and request.output_tokens is not None and request.output_tokens > 1:
            self.per_token.observe((duration_s - first_s) / (request.output_tokens - 1))

    def copy(self) -> ServerTimes:
        return ServerTimes(self.completed.copy(), self.failed.copy(), self.first_token.copy(), self.per_token.copy())
