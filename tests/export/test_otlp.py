"""A run as OTLP: its spans and histograms, as JSON lines and as sent to a collector."""

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.errors import LoadgenError
from loadgen.export.otlp import otlp_lines, send_otlp
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.telemetry.otlp_export import TAG
from loadgen.telemetry.traceparent import span_ids
from support import sample_runs


@pytest.fixture(scope="module")
def made() -> RunResult:
    return analyse_run(sample_runs.run(num_requests=700, failing=0.1))


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent; answers 503 below /broken."""

    took: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        self.took.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(503 if self.path.startswith("/broken") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    handler = type("Handler", (Collector,), {"took": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.took  # type: ignore[attr-defined]
        server.shutdown()


def test_each_request_that_was_sent_has_a_span_with_ids_in_hexadecimal(made: RunResult) -> None:
    lines = [json.loads(line) for line in otlp_lines(made)]
    spans = [
        span
        for line in lines
        for of in line.get("resourceSpans", [])
        for scope in of["scopeSpans"]
        for span in scope["spans"]
    ]
    assert len(spans) == sum(record.sent_ns is not None for record in made.records)
    trace_id, span_id = span_ids(f"{made.info.run_id}-0")
    assert (spans[0]["traceId"], spans[0]["spanId"]) == (trace_id.hex(), span_id.hex())
    assert spans[0]["kind"] == 3 and int(spans[0]["startTimeUnixNano"]) > 10**18


def test_the_histograms_count_the_completed_requests_and_their_joules(made: RunResult) -> None:
    assert made.summary is not None
    [*_, last] = [json.loads(line) for line in otlp_lines(made)]
    [of] = last["resourceMetrics"]
    metrics = {metric["name"]: metric["histogram"]["dataPoints"] for metric in of["scopeMetrics"][0]["metrics"]}
    [duration] = metrics["gen_ai.client.operation.duration"]
    assert int(duration["count"]) == made.summary.requests.completed == sum(map(int, duration["bucketCounts"]))
    assert len(duration["bucketCounts"]) == len(duration["explicitBounds"]) + 1
    assert metrics["loadgen.request.energy"][0]["sum"] == pytest.approx(made.summary.energy.attributed_joules)
    assert len(metrics["gen_ai.client.token.usage"]) == 2


def test_tags_are_attributes_and_the_host_has_a_histogram(made: RunResult) -> None:
    assert made.attribution is not None
    schedule = [msgspec.structs.replace(item, tags={"tenant": "a"}) for item in made.schedule]
    requests = [msgspec.structs.replace(share, host_joules=2.0) for share in made.attribution.requests]
    attribution = msgspec.structs.replace(made.attribution, requests=requests)
    first, *_, last = [
        json.loads(line) for line in otlp_lines(replace(made, schedule=schedule, attribution=attribution))
    ]
    span = first["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert {"key": f"{TAG}tenant", "value": {"stringValue": "a"}} in span["attributes"]
    metrics = {metric["name"]: metric for metric in last["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    [point] = metrics["loadgen.request.host_energy"]["histogram"]["dataPoints"]
    assert point["sum"] == 2.0 * int(point["count"])


def test_each_model_has_its_own_points_and_spans() -> None:
    made = sample_runs.run(num_requests=20, failing=0)
    schedule = [msgspec.structs.replace(item, model="b" if item.index < 5 else "a") for item in made.schedule]
    *spans, last = [json.loads(line) for line in otlp_lines(analyse_run(replace(made, schedule=schedule)))]
    assert [len(line["resourceSpans"][0]["scopeSpans"][0]["spans"]) for line in spans] == [15, 5]
    metrics = last["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    [duration] = [metric for metric in metrics if metric["name"] == "gen_ai.client.operation.duration"]
    assert [int(point["count"]) for point in duration["histogram"]["dataPoints"]] == [15, 5]


def test_each_of_several_engines_has_its_own_points_and_requests_of_no_known_engine_have_no_attribute(
    made: RunResult,
) -> None:
    assert made.attribution is not None
    requests = [
        msgspec.structs.replace(share, engine=("a", "b", None)[share.index % 3]) for share in made.attribution.requests
    ]
    split = replace(made, attribution=msgspec.structs.replace(made.attribution, requests=requests))
    counts, joules = [], []
    for run in (made, split):
        [*_, last] = [json.loads(line) for line in otlp_lines(run)]
        metrics = {metric["name"]: metric for metric in last["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
        points = [
            ({pair["key"]: pair["value"]["stringValue"] for pair in point["attributes"]}, point)
            for point in metrics["loadgen.request.energy"]["histogram"]["dataPoints"]
        ]
        counts.append({labels.get("loadgen.engine"): int(point["count"]) for labels, point in points})
        joules.append(sum(point["sum"] for _, point in points))
    assert list(counts[0]) == [None] and set(counts[1]) == {"a", "b", None}
    assert sum(counts[0].values()) == sum(counts[1].values()) and joules[0] == pytest.approx(joules[1])
    assert counts[1]["a"] == sum(share.engine == "a" and share.joules is not None for share in requests)


def test_a_collector_gets_protobuf(made: RunResult, collector: tuple[str, list[tuple[str, bytes]]]) -> None:
    url, took = collector
    assert send_otlp(made, url) == len(took) == 3
    assert [path for path, _ in took] == ["/v1/traces", "/v1/traces", "/v1/metrics"]
    spans = ExportTraceServiceRequest.FromString(took[0][1]).resource_spans[0].scope_spans[0].spans
    assert len(spans) == 512
    assert ExportMetricsServiceRequest.FromString(took[-1][1]).resource_metrics


def test_a_collector_that_refuses_or_is_not_there_is_one_line(
    made: RunResult, collector: tuple[str, list[tuple[str, bytes]]]
) -> None:
    url, _ = collector
    with pytest.raises(LoadgenError, match="/broken/v1/traces answered 503"):
        send_otlp(made, f"{url}/broken")
    with pytest.raises(LoadgenError, match="is an OTLP receiver there"):
        send_otlp(made, "http://127.0.0.1:9")


def test_without_energy_there_is_no_histogram_of_joules() -> None:
    [*_, last] = list(otlp_lines(analyse_run(sample_runs.without_energy())))
    assert b"gen_ai.client.operation.duration" in last and b"loadgen.request.energy" not in last
