"""A collector over real sockets: what it may answer, and what its user may configure."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from loadgen.errors import LoadgenError
from loadgen.telemetry.otlp_collector import (
    MAX_ANSWER_BYTES,
    MAX_PAUSE_S,
    Answer,
    Collector,
    Endpoint,
    Signal,
    endpoint,
    endpoints,
    parse_headers,
)
from support.otlp_receiver import OtlpReceiver, Reply
from support.served_in_thread import serving

MESSAGE = ExportMetricsServiceRequest().SerializeToString()
HEADERS, METRICS_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"
PARTIAL = ExportMetricsServiceResponse(
    partial_success=ExportMetricsPartialSuccess(rejected_data_points=3, error_message="out of order")
).SerializeToString()


@pytest.mark.parametrize(
    ("url", "signal", "expected"),
    [
        ("http://localhost:4318", "metrics", "http://localhost:4318/v1/metrics"),
        ("http://localhost:4318/", "traces", "http://localhost:4318/v1/traces"),
        ("http://localhost:4318/v1/traces", "traces", "http://localhost:4318/v1/traces"),
        ("https://[::1]:9090/api/v1/otlp/v1/metrics", "metrics", "https://[::1]:9090/api/v1/otlp/v1/metrics"),
        ("https://otlp.example/in?key=1#here", "metrics", "https://otlp.example/in?key=1"),
    ],
)
def test_only_a_url_without_a_path_gets_that_of_the_signal(url: str, signal: Signal, expected: str) -> None:
    assert endpoint(url, signal, {}) == Endpoint(expected)


@pytest.mark.parametrize(
    "url", ["", "localhost:4318", "grpc://localhost:4317", "http://", "http://h:0", "http://h:99999", "http://h\n/",
            "http://[::1", "http://user:secret@h:4318", "http://user@h"]
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(LoadgenError, match=r"^--otlp-traces-endpoint: ") as refused:
        endpoint(url, "traces", {})
    assert "secret" not in str(refused.value)


def test_a_signal_without_a_url_has_no_endpoint() -> None:
    assert endpoints({"metrics": None, "traces": "http://h:1/x"}, {}) == {"traces": Endpoint("http://h:1/x")}


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("", {}),
        ("api-key=a%20b", {"api-key": "a b"}),
        ("Authorization=Bearer%20t0k=, x-scope = 1 ,", {"Authorization": "Bearer t0k=", "x-scope": "1"}),
    ],
)
def test_headers_are_those_of_opentelemetrys_variable(text: str, headers: dict[str, str]) -> None:
    assert parse_headers(HEADERS, text) == headers
    assert endpoint("http://h", "metrics", {HEADERS: text}).headers == headers
    assert endpoint("http://h", "metrics", {HEADERS: "a=b", METRICS_HEADERS: text}).headers == headers
    assert endpoint("http://h", "traces", {HEADERS: text, METRICS_HEADERS: "a=b"}).headers == headers


@pytest.mark.parametrize(
    "text", ["s3cret", "=s3cret", "a b=s3cret", "a=s3cret%0d%0ax: y", "a=s3cret\x00", "a=s3cr%C3%A9t", "Host=s3cret",
             "content-length=1", ",".join(f"a{n}=s3cret" for n in range(33))]
)  # fmt: skip
def test_headers_that_cannot_be_sent_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(LoadgenError, match=HEADERS) as refused:
        parse_headers(HEADERS, text)
    assert "s3cr" not in str(refused.value)


def test_an_endpoint_shows_no_headers() -> None:
    assert "s3cret" not in repr(endpoint("http://h", "metrics", {HEADERS: "a=s3cret"}))


def ask(url: str, headers: dict[str, str] | None = None, timeout_s: float = 10.0) -> Answer:
    async def send() -> Answer:
        collector = Collector(Endpoint(url, headers or {}), ExportMetricsServiceResponse, timeout_s)
        try:
            return await collector.send(MESSAGE)
        finally:
            await collector.close()

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply(), Answer()),
        (Reply(202), Answer()),
        (Reply(body=ExportMetricsServiceResponse().SerializeToString()), Answer()),
        (Reply(body=PARTIAL), Answer(rejected=3)),
        (Reply(body=b"{}", kind="application/json"), Answer()),
        (Reply(body=b"<html>hello</html>", kind="text/html"), Answer("its answer is not OTLP")),
        (Reply(body=b"\x0a\xff\xff\xff\xff\x0f"), Answer("its answer is not OTLP")),
        (Reply(body=bytes(MAX_ANSWER_BYTES + 1)), Answer("its answer is too long")),
        (Reply(400), Answer("it answered 400")),
        (Reply(401, b"s3cret"), Answer("it answered 401")),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), Answer("it answered 302")),
        (Reply(500), Answer("it answered 500")),
        (Reply(503), Answer("it answered 503", retry=True)),
        (Reply(429, headers={"Retry-After": "7"}), Answer("it answered 429", retry=True, pause_s=7.0)),
        (Reply(429, headers={"Retry-After": "999999999"}), Answer("it answered 429", True, MAX_PAUSE_S)),
        (Reply(502, headers={"Retry-After": "-1"}), Answer("it answered 502", retry=True)),
        (Reply(504, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), Answer("it answered 504", retry=True)),
    ],
    ids=lambda value: f"{value.status}-{len(value.body)}" if isinstance(value, Reply) else "",
)
def test_an_answer_is_a_success_a_loss_or_an_invitation_to_try_again(reply: Reply, answer: Answer) -> None:
    with OtlpReceiver(reply=lambda n: reply) as receiver, serving(receiver):
        assert ask(receiver.url + "/v1/metrics") == answer
    assert len(receiver.received) == 1


def test_headers_arrive_beside_those_of_otlp() -> None:
    with OtlpReceiver() as receiver, serving(receiver):
        ask(receiver.url + "/v1/metrics", {"Authorization": "Bearer t0k"})
    headers = receiver.received[0].headers
    assert (headers["authorization"], headers["content-type"]) == ("Bearer t0k", "application/x-protobuf")


def raw(answer: Callable[[socket.socket], None]) -> Answer:
    """Return what is made of bytes that a server sends, whatever it was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def run() -> Answer:
            collector = Collector(
                Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/metrics"), ExportMetricsServiceResponse, 0.3
            )
            sending = asyncio.create_task(collector.send(MESSAGE))
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                answer(connection)
                result = await sending
            await collector.close()
            return result

        return asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"", "no answer in time"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part", "no answer in time"),
        (b"\x00\xff rubbish\r\n\r\n", "it cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", "it cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "it cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "it cannot be reached"),
    ],
    ids=["silence", "half", "rubbish", "long header", "length", "chunks"],
)
def test_a_collector_that_is_slow_or_speaks_rubbish_is_a_failure_within_the_time(sent: bytes, problem: str) -> None:
    answer = raw(lambda connection: connection.sendall(sent))
    assert answer.problem is not None and answer.problem.startswith(problem) and answer.retry


def test_a_collector_that_is_away_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}/v1/metrics") == Answer("it cannot be reached (Connection refused)", retry=True)
    assert ask("http://collector.invalid/") == Answer("it cannot be reached (its host is not known)", retry=True)
