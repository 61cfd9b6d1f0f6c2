"""Encodes a page of the sidecar as OTLP metrics, from the declarations that the Prometheus page is made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from loadgen import __version__
from loadgen.sidecar.exporter import METRICS, Declared, SidecarPage, label_names, metric_rows
from loadgen.sidecar.otel_names import attribute_name, otel_name
from loadgen.telemetry.histogram import Histogram
from loadgen.telemetry.otlp_export import set_attribute

if TYPE_CHECKING:
    from loadgen.sidecar.exporter import MetricRow


def encode_metrics(
    pages: Sequence[SidecarPage], resource: Mapping[str, str], start_unix_ns: int, now_unix_ns: int
) -> bytes:
    """Encode the pages of all engines as an ExportMetricsServiceRequest.

    start_unix_ns: instant from which the counters and histograms count. A metric without rows is left out.
    """
    request = ExportMetricsServiceRequest()
    holder = request.resource_metrics.add()
    set_texts(holder.resource, resource.items())
    scope = holder.scope_metrics.add()
    scope.scope.name, scope.scope.version = "loadgen.sidecar", __version__
    now_unix_ns = max(now_unix_ns, start_unix_ns)
    for declared in METRICS:
        labels = label_names(declared, pages)
        own = len(labels) - (len(pages[0].ledger.labels) if declared.by_labels else 0)
        names = (*map(attribute_name, labels[:own]), *labels[own:])
        if rows := list(metric_rows(declared, pages)):
            metric = scope.metrics.add()
            metric.name, metric.unit = otel_name(declared.name)
            metric.description = declared.help
            for row, point in zip(rows, _points(metric, declared, rows), strict=True):
                set_texts(point, zip(names, row.labels, strict=True))
                point.time_unix_nano = now_unix_ns
                if declared.kind != "gauge":
                    point.start_time_unix_nano = start_unix_ns
    return bytes(request.SerializeToString())


def _points(metric: Any, declared: Declared, rows: Iterable[MetricRow]) -> list[Any]:
    """Add the values of the rows to an OTLP metric, and return its points."""
    match declared.kind:
        case "gauge":
            data = metric.gauge
        case "counter":
            data = metric.sum
            data.is_monotonic, data.aggregation_temporality = True, AGGREGATION_TEMPORALITY_CUMULATIVE
        case "histogram":
            data = metric.histogram
            data.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
    points = []
    for _, value in rows:
        point = data.data_points.add()
        if isinstance(value, Histogram):
            point.count, point.sum = sum(value.counts), value.sum
            point.explicit_bounds.extend(value.bounds)
            point.bucket_counts.extend(value.counts)
        else:
            point.as_double = value
        points.append(point)
    return points


def set_texts(holder: Any, texts: Iterable[tuple[str, str | None]]) -> None:
    """Set attributes; an empty text is none, as an empty label is to Prometheus."""
    for key, text in texts:
        if text:
            set_attribute(holder, key, text.encode(errors="replace").decode())
