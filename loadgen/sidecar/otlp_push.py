"""Pushes the sidecar's metrics, and the spans of settled requests, to an OTLP collector.

A collector that is away, slow or wrong costs a counted failure: the metrics are cumulative, so that the next push has
what was lost, spans wait in a bounded queue, and pauses grow while it does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from loadgen import __version__
from loadgen.clock import anchor
from loadgen.sidecar.energy_spans import EnergySpan, encode_spans, energy_span
from loadgen.sidecar.otlp_metrics import encode_metrics
from loadgen.telemetry.otlp_collector import MAX_PAUSE_S, Answer, Collector, Endpoint, Signal
from loadgen.telemetry.otlp_export import resource_attributes

if TYPE_CHECKING:
    from loadgen.results.ledger_lines import SettledRequest
    from loadgen.sidecar.app import Sidecar
    from loadgen.sidecar.exporter import PushCounts, SidecarPage

_log = logging.getLogger(__name__)

SPANS_PERIOD_S = 2.0
"""Spans are collected this long: a portion of energy is committed about as often."""
BATCH = 512
MAX_WAITING = 20_000
"""Spans that wait for a collector which is away."""
LAST_S = 2.0
"""Limit of the last push, when the sidecar ends."""


def resource(environment: Mapping[str, str], port: int) -> dict[str, str]:
    """Return the attributes of the sidecar as a resource. OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME replace them.

    Its id is the same after a restart, as Prometheus's `instance` is.
    """
    host = socket.gethostname()
    own = {"service.name": "loadgen-sidecar", "service.version": __version__, "host.name": host,
           "service.instance.id": f"{host}:{port}"}  # fmt: skip
    return resource_attributes(own, environment)


Send: TypeAlias = "Callable[[bytes], Awaitable[Answer]]"
"""Sends one message, and counts how that ended."""


class Push:
    """Sends a signal to a collector from time to time."""

    def __init__(
        self,
        signal: Signal,
        collector: Collector,
        counts: PushCounts,
        period_s: float,
        send_all: Callable[[Send], Awaitable[None]],
    ) -> None:
        """send_all: sends what there is to send."""
        self._signal, self._collector, self._counts, self._period_s = signal, collector, counts, period_s
        self._send_all = send_all
        self._failures = 0
        """Failures in a row."""
        self._wait_s = 0.0
        """Pause that the collector asked for."""
        counts.exports.update({(signal, outcome): 0 for outcome in ("sent", "rejected", "failed")})

    async def push(self) -> None:
        """Send what there is to send."""
        await self._send_all(self._send)

    @property
    def pause_s(self) -> float:
        """Pause before the next push: twice as long after each failure."""
        return max(min(self._period_s * 2.0 ** min(self._failures, 20), MAX_PAUSE_S), self._period_s, self._wait_s)

    async def keep(self) -> None:
        """Push until cancelled."""
        while True:
            await asyncio.sleep(self.pause_s)
            await self.push()

    async def close(self) -> None:
        """Push a last time, if the collector took what was sent before, and disconnect."""
        try:
            if not self._failures:
                await asyncio.wait_for(self.push(), LAST_S)
        except TimeoutError:
            pass
        finally:
            await self._collector.close()

    async def _send(self, message: bytes) -> Answer:
        answer = await self._collector.send(message)
        outcome = "failed" if answer.problem else "rejected" if answer.rejected else "sent"
        self._counts.exports[self._signal, outcome] += 1
        if answer.problem and not self._failures:
            state = {"signal": self._signal, "url": self._collector.public_url, "problem": answer.problem}
            _log.warning(
                "OTLP %(signal)s to %(url)s: %(problem)s; loadgen_otlp_exports_total counts further failures", state
            )
        elif self._failures and not answer.problem:
            _log.warning("OTLP %(signal)s: the collector answers again", {"signal": self._signal})
        self._failures = self._failures + 1 if answer.problem else 0
        self._wait_s = answer.pause_s or 0.0
        return answer


def metrics_push(
    collector: Collector,
    resource: Mapping[str, str],
    counts: PushCounts,
    period_s: float,
    latest: Callable[[], Sequence[SidecarPage]],
) -> Push:
    """Return the push of the newest page. One that is lost is in the next, because its counters are cumulative."""
    start_ns = anchor().wall_ns

    async def send_page(send: Send) -> None:
        await send(await asyncio.to_thread(encode_metrics, latest(), resource, start_ns, anchor().wall_ns))

    return Push("metrics", collector, counts, period_s, send_page)


class WaitingSpans:
    """Holds a span for each settled request, in the request's own trace. The newest of too many are dropped."""

    def __init__(self, resource: Mapping[str, str], counts: PushCounts) -> None:
        self._resource, self._counts = resource, counts
        self._waiting: deque[EnergySpan] = deque()
        counts.spans.update(dict.fromkeys(("sent", "rejected", "dropped"), 0))

    def add(self, request: SettledRequest, trace_id: bytes, parent_id: bytes) -> None:
        """Queue the span of a request; none if its energy or its trace is unknown."""
        if (span := energy_span(request, trace_id, parent_id)) is None:
            return
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(span)
        else:
            self._counts.spans["dropped"] += 1

    async def send_all(self, send: Send) -> None:
        """Send what waits, until a message fails."""
        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            answer = await send(await asyncio.to_thread(encode_spans, batch, self._resource))
            if answer.problem and answer.retry:
                return
            for _ in batch:
                self._waiting.popleft()
            if answer.problem:
                self._counts.spans["dropped"] += len(batch)
                return
            rejected = min(answer.rejected, len(batch))
            self._counts.spans["rejected"] += rejected
            self._counts.spans["sent"] += len(batch) - rejected


def make_pushes(
    sidecar: Sidecar, endpoints: Mapping[Signal, Endpoint], environment: Mapping[str, str], port: int
) -> list[Push]:
    """Return the pushes to these endpoints, in a running event loop, and let settled requests reach them."""
    attributes, counts, pushes = resource(environment, port), sidecar.pushes, list[Push]()
    if metrics := endpoints.get("metrics"):
        collector = Collector(metrics, ExportMetricsServiceResponse)
        period_s = sidecar.options.otlp_interval_s
        pushes.append(metrics_push(collector, attributes, counts, period_s, lambda: sidecar.pages))
    if traces := endpoints.get("traces"):
        collector, spans = Collector(traces, ExportTraceServiceResponse), WaitingSpans(attributes, counts)
        sidecar.settlement.on_settled = spans.add
        pushes.append(Push("traces", collector, counts, SPANS_PERIOD_S, spans.send_all))
    return pushes
