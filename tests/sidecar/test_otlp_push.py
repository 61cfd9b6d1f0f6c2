"""Pushing to a collector: what is sent, what is counted, and what a collector that is away costs."""

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

import pytest
from msgspec.structs import replace as changed
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen.errors import LoadgenError
from loadgen.sidecar import otlp_push
from loadgen.sidecar.exporter import PushCounts
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.otlp_push import Push, WaitingSpans, metrics_push, resource
from loadgen.sidecar.server import running_sidecar
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.telemetry import otlp_export
from loadgen.telemetry.otlp_collector import MAX_PAUSE_S, Answer, Collector
from loadgen.telemetry.otlp_parse import parse_spans
from loadgen.telemetry.traceparent import span_ids, traceparent
from sidecar.test_app import ask, live, quick, samples, sidecar, until
from sidecar.test_energy_spans import ENGINE, SETTLED, TRACE
from sidecar.test_exporter import page
from support.otlp_receiver import OtlpReceiver, Reply, attributes, spans
from support.served_in_thread import serving

__all__ = ["quick"]
AWAY = Answer("it cannot be reached", retry=True)
REFUSED = Answer("it answered 400")


class ScriptedCollector:
    """Answers as it is told, and then takes everything."""

    public_url = "http://collector:4318/v1/metrics"

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.sent = list(answers), list[bytes]()
        self.closed = False

    async def send(self, message: bytes) -> Answer:
        self.sent.append(message)
        return self.answers.pop(0) if self.answers else Answer()

    async def close(self) -> None:
        self.closed = True


def push_of_spans(*answers: Answer) -> tuple[WaitingSpans, Push, ScriptedCollector, PushCounts]:
    collector, counts = ScriptedCollector(*answers), PushCounts()
    waiting = WaitingSpans({}, counts)
    return waiting, Push("traces", cast("Collector", collector), counts, 2.0, waiting.send_all), collector, counts


def push_of_pages(*answers: Answer) -> tuple[Push, ScriptedCollector, PushCounts]:
    collector, counts = ScriptedCollector(*answers), PushCounts()
    return metrics_push(cast("Collector", collector), {}, counts, 10.0, lambda: [page()]), collector, counts


def add(waiting: WaitingSpans, number: int) -> None:
    for k in range(number):
        waiting.add(SETTLED, TRACE, k.to_bytes(8, "big"))


def parents(collector: ScriptedCollector) -> list[int]:
    messages = [ExportTraceServiceRequest.FromString(sent) for sent in collector.sent]
    return [
        int.from_bytes(span.parent_span_id)
        for message in messages for span in message.resource_spans[0].scope_spans[0].spans
    ]  # fmt: skip


def pushed(push: Push, times: int = 1) -> list[float]:
    """Push some times; return the pauses after each."""
    pauses = []
    for _ in range(times):
        asyncio.run(push.push())
        pauses.append(push.pause_s)
    return pauses


def test_what_a_collector_refuses_for_now_is_sent_again_and_counted_once() -> None:
    waiting, push, collector, counts = push_of_spans(AWAY, AWAY)
    add(waiting, 3)
    pushed(push, 4)
    assert parents(collector) == 3 * [0, 1, 2]
    assert counts.spans == {"sent": 3, "rejected": 0, "dropped": 0}
    assert counts.exports == {("traces", "sent"): 1, ("traces", "rejected"): 0, ("traces", "failed"): 2}


def test_what_a_collector_refuses_for_good_is_dropped() -> None:
    waiting, push, collector, counts = push_of_spans(REFUSED)
    add(waiting, 3)
    pushed(push, 2)
    assert len(collector.sent) == 1 and counts.spans == {"sent": 0, "rejected": 0, "dropped": 3}


def test_spans_that_a_collector_takes_in_part_are_counted_apart() -> None:
    waiting, push, _, counts = push_of_spans(Answer(rejected=2), Answer(rejected=10**9))
    add(waiting, 3)
    pushed(push)
    add(waiting, 3)
    pushed(push)
    assert counts.spans == {"sent": 1, "rejected": 5, "dropped": 0}
    assert counts.exports["traces", "rejected"] == 2


def test_spans_are_sent_in_batches_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_push, "BATCH", 4)
    waiting, push, collector, counts = push_of_spans()
    add(waiting, 10)
    pushed(push)
    assert parents(collector) == list(range(10)) and len(collector.sent) == 3
    assert counts.spans["sent"] == 10


def test_no_more_spans_wait_than_fit_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_push, "MAX_WAITING", 5)
    waiting, push, collector, counts = push_of_spans(*20 * [AWAY])
    for _ in range(20):
        add(waiting, 3)
        pushed(push)
    pushed(push)
    assert counts.spans == {"sent": 5, "rejected": 0, "dropped": 55}
    assert parents(collector)[-5:] == [0, 1, 2, 0, 1]


def test_a_request_without_known_energy_or_trace_has_no_span() -> None:
    waiting, push, collector, counts = push_of_spans()
    waiting.add(changed(SETTLED, whole=False), TRACE, ENGINE)
    waiting.add(SETTLED, b"", b"")
    pushed(push)
    assert collector.sent == [] and counts.spans["dropped"] == 0


@pytest.mark.parametrize(
    ("answers", "pauses"),
    [
        ([], [10, 10]),
        ([AWAY, AWAY, REFUSED], [20, 40, 80, 10]),
        (12 * [AWAY], [20, 40, 80, 160, *8 * [MAX_PAUSE_S], 10]),
        ([AWAY._replace(pause_s=77.0), AWAY._replace(pause_s=1.0)], [77, 40, 10]),
    ],
)
def test_pauses_grow_while_a_collector_does_not_answer(answers: list[Answer], pauses: Sequence[float]) -> None:
    push, _, counts = push_of_pages(*answers)
    assert pushed(push, len(pauses)) == list(pauses)
    assert counts.exports["metrics", "failed"] == len(answers)


def test_a_page_that_was_lost_is_in_the_next_because_all_count_from_the_same_start() -> None:
    push, collector, _ = push_of_pages(AWAY)
    pushed(push, 2)
    starts = {
        point.start_time_unix_nano
        for sent in collector.sent
        for metric in ExportMetricsServiceRequest.FromString(sent).resource_metrics[0].scope_metrics[0].metrics
        for point in metric.sum.data_points
    }
    assert len(collector.sent) == 2 and len(starts) == 1


def test_a_failure_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    push, _, _ = push_of_pages(AWAY, AWAY, AWAY)
    with caplog.at_level(logging.INFO):
        pushed(push, 5)
    assert [record.getMessage() for record in caplog.records] == [
        "OTLP metrics to http://collector:4318/v1/metrics: it cannot be reached; loadgen_otlp_exports_total counts "
        "further failures",
        "OTLP metrics: the collector answers again",
    ]


@pytest.mark.parametrize(("answers", "messages"), [([], 2), ([AWAY], 1)])
def test_the_last_push_is_left_out_where_the_one_before_failed(answers: list[Answer], messages: int) -> None:
    push, collector, _ = push_of_pages(*answers)
    pushed(push)
    asyncio.run(push.close())
    assert len(collector.sent) == messages and collector.closed


def test_the_end_does_not_wait_for_a_collector_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_push, "LAST_S", 0.01)
    push, collector, _ = push_of_pages()

    async def forever(message: bytes) -> Answer:
        await asyncio.sleep(3600)
        return Answer()

    monkeypatch.setattr(collector, "send", forever)
    asyncio.run(push.close())
    assert collector.closed


def test_the_resource_is_named_as_opentelemetrys_variables_say() -> None:
    own = resource({}, 9478)
    assert (own["service.name"], own["service.instance.id"]) == ("loadgen-sidecar", f"{own['host.name']}:9478")
    named = resource(
        {"OTEL_RESOURCE_ATTRIBUTES": "service.name=x, deployment.environment.name=a%20b,,rubbish,=1",
         "OTEL_SERVICE_NAME": "y"}, 1
    )  # fmt: skip
    assert named == {**own, "service.instance.id": f"{own['host.name']}:1", "service.name": "y",
                     "deployment.environment.name": "a b"}  # fmt: skip
    many = resource({"OTEL_RESOURCE_ATTRIBUTES": ",".join(f"a{k}=1" for k in range(1000))}, 1)
    assert len(many) == len(own) + otlp_export.MAX_RESOURCE


# -- beside a live sidecar -----------------------------------------------------------------------------------------


@live
async def test_a_collector_gets_the_page_and_the_joules_of_each_request_in_its_own_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(otlp_push, "SPANS_PERIOD_S", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0k")
    with OtlpReceiver() as receiver, serving(receiver):
        collector = {"otlp_metrics_endpoint": receiver.url, "otlp_traces_endpoint": receiver.url}
        async with sidecar(**collector, otlp_interval_s=0.1) as (one, url, _, session):
            receive, bodies = one.receive, list[bytes]()
            monkeypatch.setattr(one, "receive", lambda body: (bodies.append(body), receive(body)))
            traced = ServerOptions(port=0, otlp_traces_endpoint=url + "/v1/traces")
            async with running_simulator(traced) as (_, address):
                await ask(session, address, 30, {"traceparent": traceparent("run-0"), "X-Request-Id": "run-0"})
            await until(one, lambda: bool(spans(receiver.received)))
            async with session.get(f"{url}/requests/run-0") as response:
                looked_up = await response.json()
    assert {received.headers["authorization"] for received in receiver.received} == {"Bearer t0k"}
    (span,) = spans(receiver.received)
    assert span.trace_id == span_ids("run-0").trace_id
    (engine_span,) = (span for body in bodies for span in parse_spans(body).spans)
    assert span.parent_span_id == engine_span.span_id != span_ids("run-0").span_id
    shown = attributes(span)
    for name in ("joules", "prefill_joules", "decode_joules", "se_joules"):
        assert shown.get(f"loadgen.energy.{name}") == looked_up[name]
    assert looked_up["joules"] > 0
    last = [received for received in receiver.received if received.path == "/v1/metrics"][-1]
    points = {
        metric.name: metric.sum.data_points for metric in last.message.resource_metrics[0].scope_metrics[0].metrics
    }
    parts = ("attributed_energy", "idle_energy", "unattributed_energy")
    total_j = sum(point.as_double for part in parts for point in points[f"loadgen.{part}"])
    assert total_j == pytest.approx(sum(point.as_double for point in points["loadgen.gpu.energy"]), abs=1e-6)
    assert [
        point.as_double for point in points["loadgen.energy.spans"] if attributes(point)["loadgen.outcome"] == "sent"
    ] == [1]


@live
async def test_a_collector_that_is_slow_delays_nothing_and_is_on_the_page() -> None:
    with (
        OtlpReceiver(reply=lambda n: Reply(503 if n == 0 else 200, after_s=0 if n == 0 else 60)) as receiver,
        serving(receiver),
    ):
        options = {"otlp_metrics_endpoint": receiver.url, "otlp_interval_s": 0.1}
        async with sidecar(**options) as (one, url, _, session):
            await until(one, lambda: len(receiver.received) == 2)
            await ask(session, one.options.engine_url or "", 5)
            rows = await samples(session, url)
            assert rows["loadgen_otlp_exports_total,failed"] == 1
            ended = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ended < 30


@live
async def test_an_endpoint_that_cannot_be_used_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(LoadgenError, match="--otlp-metrics-endpoint"):
        async with running_sidecar(SidecarOptions(port=0, otlp_metrics_endpoint="grpc://h:4317")):
            pass
