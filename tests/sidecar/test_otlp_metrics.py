"""The OTLP metrics and the Prometheus page are of the same numbers."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from loadgen.sidecar.accounts import Accounts, OpenRequest
from loadgen.sidecar.exporter import METRICS, PushCounts, SidecarPage, metric_family
from loadgen.sidecar.otel_names import attribute_name, otel_name
from loadgen.sidecar.otlp_metrics import encode_metrics
from sidecar.test_accounts import REQUEST
from sidecar.test_exporter import page
from support.otlp_receiver import attributes

START_NS, NOW_NS = 1_700_000_000_000_000_000, 1_700_000_060_000_000_000
RESOURCE = {"service.name": "loadgen-sidecar"}

Row = tuple[str, tuple[tuple[str, str], ...]]


def full_page() -> SidecarPage:
    """Return a page with rows of every metric: labels, sessions, failures, an odd model, and a collector."""
    accounts = Accounts(labels=["tenant"])
    for tenant, model, ok in (("b", "m", True), ("a", "m", False), (None, "\ud800\n", True)):
        entry = OpenRequest(changed(REQUEST, model=model, ok=ok, labels={"tenant": tenant} if tenant else {}))
        accounts.charge(entry, 400, 1600)
        accounts.close(entry)
    accounts.of(REQUEST).end_session(3_500, ok=True)
    shown = page()
    counts = PushCounts()
    counts.exports["metrics", "sent"] = 3
    counts.spans["dropped"] = 2
    ledger = replace(shown.ledger, accounts=accounts.freeze(), labels=("tenant",))
    return replace(shown, ledger=ledger, pushes=counts)


def metrics(*pages: SidecarPage) -> list[Any]:
    message = ExportMetricsServiceRequest.FromString(encode_metrics(pages, RESOURCE, START_NS, NOW_NS))
    (resource,) = message.resource_metrics
    assert attributes(resource.resource) == RESOURCE
    (scope,) = resource.scope_metrics
    return list(scope.metrics)


def otlp_rows(*pages: SidecarPage) -> dict[Row, float]:
    """Return the value of each row of the page as Prometheus has it, made of the OTLP message alone."""
    names = {otel_name(declared.name).name: declared for declared in METRICS}
    rows: dict[Row, float] = {}
    for metric in metrics(*pages):
        declared = names[metric.name]
        labels = {attribute_name(label): label for label in ("engine", *declared.labels)}
        data = getattr(metric, metric.WhichOneof("data"))
        for point in data.data_points:
            pairs = {labels.get(name, name): str(value) for name, value in attributes(point).items()}
            base = declared.name
            if declared.kind != "histogram":
                rows[base, tuple(sorted(pairs.items()))] = point.as_double
                continue
            below = 0
            for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
                below += count
                bucket = pairs | {"le": "+Inf" if bound == float("inf") else str(bound)}
                rows[f"{base}_bucket", tuple(sorted(bucket.items()))] = below
            rows[f"{base}_count", tuple(sorted(pairs.items()))] = point.count
            rows[f"{base}_sum", tuple(sorted(pairs.items()))] = point.sum
    return rows


def prometheus_rows(*pages: SidecarPage) -> dict[Row, float]:
    return {
        (row.name, tuple(sorted((name, value.replace("\ud800", "?")) for name, value in row.labels.items() if value))):
        row.value
        for declared in METRICS for row in metric_family(declared, pages).samples
    }  # fmt: skip


@pytest.mark.parametrize(
    "pages",
    [
        [full_page()], [page()], [page(coverage=None, engine_up=None)],
        [replace(full_page(), engine="a"), replace(full_page(), engine="b", resets=7)],
    ],
    ids=["full", "plain", "bare", "two engines"],
)  # fmt: skip
def test_the_collector_gets_every_row_of_the_page_and_no_other(pages: list[SidecarPage]) -> None:
    assert otlp_rows(*pages) == prometheus_rows(*pages) != {}


def test_the_full_page_has_rows_of_every_metric() -> None:
    assert [metric.name for metric in metrics(full_page())] == [otel_name(declared.name).name for declared in METRICS]


def test_counters_are_monotonic_sums_since_the_start_and_gauges_have_no_start() -> None:
    for metric, declared in zip(metrics(full_page()), METRICS, strict=True):
        assert metric.description == declared.help
        kind = metric.WhichOneof("data")
        assert kind == {"counter": "sum"}.get(declared.kind, declared.kind)
        data = getattr(metric, kind)
        assert {point.time_unix_nano for point in data.data_points} == {NOW_NS}
        assert {point.start_time_unix_nano for point in data.data_points} == {0 if kind == "gauge" else START_NS}
        if kind != "gauge":
            assert data.aggregation_temporality == 2, "cumulative"
        if kind == "sum":
            assert data.is_monotonic


def test_a_clock_that_was_set_back_does_not_end_a_sum_before_its_start() -> None:
    message = ExportMetricsServiceRequest.FromString(encode_metrics([page()], RESOURCE, START_NS, START_NS - 1))
    (point, *_) = message.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert point.time_unix_nano == point.start_time_unix_nano == START_NS


def test_labels_are_attributes_of_the_conventions_where_these_have_the_same() -> None:
    shown = full_page()
    by_name = {metric.name: metric for metric in metrics(shown)}
    points = by_name["loadgen.attributed_energy"].sum.data_points
    assert {"gen_ai.request.model": "m", "loadgen.workload": "chat", "loadgen.account": "decode", "tenant": "b"} in [
        attributes(point) for point in points
    ]
    two = {metric.name: metric for metric in metrics(*(replace(shown, engine=name) for name in "ab"))}
    idle = two["loadgen.idle_energy"].sum.data_points
    assert [attributes(point) for point in idle] == [{"loadgen.engine": "a"}, {"loadgen.engine": "b"}]
    (gpu, cpu) = by_name["loadgen.gpu.energy"].sum.data_points
    assert (attributes(gpu), attributes(cpu)) == ({"hw.name": "0", "hw.id": "GPU-a"}, {"hw.name": "cpu:package-0"})
