"""Bounds the values of labels of a user's choosing: those that are stated are shown, or else the first that come; any
further one is `other`. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from loadgen.telemetry.span_labels import OTHER, agreed_labels
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan, SpanLabels

MAX_TRACES = 20_000
"""Traces whose labels are remembered."""
MAX_SPANS = 16
"""Spans with labels of a trace. One with more is shared by many requests, and says nothing of any."""
CLOCKS_NS = NS_PER_S // 4
"""Clocks of a gateway's and an engine's machine may differ by this much."""


ShownValues = dict[str, set[str] | frozenset[str]]
"""Values that are shown, by label. A set that is frozen gets no further ones: they are stated."""


class LabelSets:
    """The values shown of each label. A value that was shown once is always shown: a counter of it may not end."""

    def __init__(self, names: Iterable[str], max_values: int, shown: ShownValues | None = None) -> None:
        """shown: the values that are shown already, of several sets that show the same ones."""
        self.names = tuple(names)
        self._values: ShownValues = {} if shown is None else shown
        self._max_values = max_values
        self._traces: OrderedDict[bytes, list[SpanLabels]] = OrderedDict()

    def add(self, span: SpanLabels) -> None:
        """Take the labels of a span that is no request, for the requests of its trace."""
        spans = self._traces.setdefault(span.trace_id, [])
        if len(spans) <= MAX_SPANS:
            spans.append(span)
        if len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)

    def of(self, request: RequestSpan) -> dict[str, str]:
        """Return the labels of a request as they are shown: those on which it agrees with the spans of its trace that
        were open when it began."""
        spans = self._traces.get(request.trace_id, [])
        around = [
            span.labels
            for span in spans
            if len(spans) <= MAX_SPANS and span.start_ns - CLOCKS_NS <= request.start_ns <= span.end_ns + CLOCKS_NS
        ]
        return self.bounded(agreed_labels((request.labels, *around)))

    def bounded(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return the labels as they are shown."""
        return {name: self._shown(name, labels[name]) for name in self.names if name in labels}

    def row(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Return a value for each name, empty where there is none: to Prometheus that is no label."""
        return tuple(labels.get(name, "") for name in self.names)

    def _shown(self, name: str, value: str) -> str:
        values = self._values.setdefault(name, set())
        if value not in values and value != OTHER:
            if isinstance(values, frozenset) or len(values) >= self._max_values:
                return OTHER
            values.add(value)
        return value
