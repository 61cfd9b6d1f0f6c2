"""A run as OTLP: a span for each request, and histograms by the semantic conventions for generative AI.

The spans are those that `--otlp` sends during a run. The metrics are `gen_ai.client.*`, as this client measured them,
and `loadgen.request.energy` and `loadgen.request.host_energy`, in joules.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.http_get import REQUEST_ERRORS, HttpClient
from loadgen.results.request_table import request_table
from loadgen.telemetry.otlp_export import BATCH, export_records, set_attribute
from loadgen.workload.tags import tags_of

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult

_DURATIONS_S = tuple(0.01 * 2**k for k in range(14))
_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4.0**k for k in range(14))
_JOULES = tuple(2.0**k for k in range(16))
_CUMULATIVE = 2
OPERATIONS = {"completions": "text_completion", "embeddings": "embeddings", "rerank": "rerank"}
"""`gen_ai.operation.name` of an endpoint that does not chat; the conventions have no word for `rerank`."""
TIMEOUT_S = 10.0


class _Metric(NamedTuple):
    """A histogram of one column of the table of requests."""

    name: str
    unit: str
    column: str
    bounds: tuple[float, ...]
    attributes: dict[str, str]


_METRICS = (
    _Metric("gen_ai.client.operation.duration", "s", "e2e_s", _DURATIONS_S, {}),
    _Metric("gen_ai.client.operation.time_to_first_chunk", "s", "ttft_s", _FIRST_S, {}),
    _Metric("gen_ai.client.operation.time_per_output_chunk", "s", "tpot_s", _PER_TOKEN_S, {}),
    _Metric("gen_ai.client.token.usage", "{token}", "input_tokens", _TOKENS, {"gen_ai.token.type": "input"}),
    _Metric("gen_ai.client.token.usage", "{token}", "output_tokens", _TOKENS, {"gen_ai.token.type": "output"}),
    _Metric("loadgen.request.energy", "J", "joules", _JOULES, {}),
    _Metric("loadgen.request.host_energy", "J", "host_joules", _JOULES, {}),
)


def otlp_messages(result: RunResult) -> Iterator[tuple[str, Any]]:
    """Yield ("traces" or "metrics", message) of each request to a collector."""
    with importing("--as otlp", "sidecar"):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    info, models = result.info, request_table(result)["model"]
    sessions = {request.index: request.session_id for request in result.schedule if request.session_id is not None}
    tags = {request.index: own for request in result.schedule if (own := tags_of(request))}
    for model in sorted({name or "" for name in models}):
        records = [record for record, name in zip(result.records, models, strict=True) if (name or "") == model]
        for start in range(0, len(records), BATCH):
            part = export_records(
                info.run_id, model or "unknown", sessions, records[start : start + BATCH], info.anchor, tags
            )
            yield "traces", ExportTraceServiceRequest.FromString(part)
    yield "metrics", _metrics(result)


def _metrics(result: RunResult) -> Any:
    """Return the histograms of each model, and of each engine where several are named."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    info, table = result.info, request_table(result)
    owners = [(name or "", engine or "") for name, engine in zip(table["model"], table["engine"], strict=True)]
    offset_ns = info.anchor.offset_ns
    start_ns = info.start_ns or info.anchor.monotonic_ns
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    set_attribute(resource.resource, "service.name", "loadgen")
    scope = resource.scope_metrics.add()
    scope.scope.name, scope.scope.version = "loadgen", info.loadgen_version
    by_name: dict[str, Any] = {}
    operation = OPERATIONS.get(str(info.config.get("endpoint")), "chat")
    for metric, (model, engine) in product(_METRICS, sorted(set(owners))):
        pairs = zip(table[metric.column], owners, strict=True)
        values = [value for value, owner in pairs if value is not None and owner == (model, engine)]
        if not values:
            continue
        if metric.name not in by_name:
            by_name[metric.name] = made = scope.metrics.add()
            made.name, made.unit = metric.name, metric.unit
            made.histogram.aggregation_temporality = _CUMULATIVE
        point = by_name[metric.name].histogram.data_points.add()
        point.start_time_unix_nano, point.time_unix_nano = start_ns + offset_ns, (info.end_ns or start_ns) + offset_ns
        _fill(point, values, metric.bounds)
        labels = {"gen_ai.operation.name": operation, "gen_ai.request.model": model or "unknown"}
        if engine:
            labels["loadgen.engine"] = engine
        for key, text in {**labels, **metric.attributes}.items():
            set_attribute(point, key, text)
    return request


def _fill(point: Any, values: Sequence[float], bounds: tuple[float, ...]) -> None:
    """Count the values in buckets whose upper bounds are inclusive."""
    places = np.searchsorted(bounds, values, "left")
    point.count, point.sum, point.min, point.max = len(values), float(sum(values)), min(values), max(values)
    point.explicit_bounds.extend(bounds)
    point.bucket_counts.extend(np.bincount(places, minlength=len(bounds) + 1).tolist())


def otlp_lines(result: RunResult) -> Iterator[bytes]:
    """Yield OTLP JSON, a line for each message, as the collector's file exporter writes it."""
    with importing("--as otlp", "sidecar"):
        from google.protobuf.json_format import MessageToDict
    for _, message in otlp_messages(result):
        plain = MessageToDict(message, use_integers_for_enums=True)
        for resource in plain.get("resourceSpans", ()):
            for span in resource["scopeSpans"][0].get("spans", ()):  # OTLP's JSON has ids in hex, protobuf's in base64
                span |= {name: b64decode(span[name]).hex() for name in ("traceId", "spanId")}
        yield json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def send_otlp(result: RunResult, url: str) -> int:
    """Send all messages to an OTLP/HTTP receiver; return how many it took. LoadgenError when it refuses one."""
    parts = urlsplit(url)
    base = parts.path.rstrip("/")
    client = HttpClient(parts, headers={"Content-Type": "application/x-protobuf"}, timeout_s=TIMEOUT_S)
    count = 0
    try:
        for kind, message in otlp_messages(result):
            response = client.request("POST", f"{base}/v1/{kind}", message.SerializeToString())
            if response.status != 200:
                raise LoadgenError(f"{parts.hostname}:{parts.port or ''}{base}/v1/{kind} answered {response.status}")
            count += 1
    except REQUEST_ERRORS as err:
        raise LoadgenError(
            f"{parts.hostname}:{parts.port or ''}: {err or type(err).__name__}: is an OTLP receiver there?"
        ) from err
    finally:
        client.close()
    return count
