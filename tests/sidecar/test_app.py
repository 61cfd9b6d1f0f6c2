"""A live sidecar over real sockets beside a simulated server."""

import asyncio
import functools
import gc
import gzip
import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import aiohttp
import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from loadgen.clock import anchor
from loadgen.energy import fleet_meter
from loadgen.energy.named_engine import NamedEngine
from loadgen.energy.remote import open_remote
from loadgen.energy.series import EnergySample
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.sidecar import app as edges
from loadgen.sidecar import grpc_server, ledger, server, watched_engine
from loadgen.sidecar.app import FEED_PORTION, MAX_OTLP_BYTES, OPENMETRICS, Sidecar, authorized
from loadgen.sidecar.exporter import reference
from loadgen.sidecar.grpc_server import GRPC_METHOD
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.server import running_sidecar
from loadgen.sidecar.watermark import AllowedLateness
from loadgen.simulator.app import ServerOptions, running_simulator
from loadgen.telemetry import otlp_export
from loadgen.telemetry.otlp_export import SpanSender
from loadgen.telemetry.traceparent import traceparent
from loadgen.units import NS_PER_S
from support.fake_api import FakeServer, serving
from telemetry.test_otlp_parse import VLLM, trace

PROTOBUF = {"Content-Type": "application/x-protobuf"}
QUICK = AllowedLateness(min_s=0.2, blind_s=0.4)
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short periods, and no tick but a test's: however long the machine stands still, no commit overtakes a span."""
    monkeypatch.setattr(edges, "TICK_S", 3600.0)
    monkeypatch.setattr(watched_engine, "ENGINE_PERIOD_S", 0.05)
    monkeypatch.setattr(watched_engine, "ENGINE_AWAY_S", 0.25)
    monkeypatch.setattr(ledger, "MIN_COMMIT_NS", NS_PER_S // 5)
    monkeypatch.setattr(otlp_export, "PAUSE_S", 0.02)


def live(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, with its fixtures."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@asynccontextmanager
async def sidecar(**options: object) -> AsyncIterator[tuple[Sidecar, str, int | None, aiohttp.ClientSession]]:
    async with running_simulator(ServerOptions(port=0)) as (_, engine):
        given = SidecarOptions(port=0, engine_url=engine, lateness=QUICK, **options)  # type: ignore[arg-type]
        async with running_sidecar(given) as (one, url, grpc_port), aiohttp.ClientSession() as session:
            yield one, url, grpc_port, session


async def samples(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Value by metric and labels; model and workload left out."""
    async with session.get(url + "/metrics") as response:
        assert response.status == 200
        families = text_string_to_metric_families(await response.text())
    rows = (sample for family in families for sample in family.samples)
    labels = ("account", "outcome", "reason", "le")
    return {
        "".join([row.name, *(f",{row.labels[name]}" for name in labels if name in row.labels)]): row.value
        for row in rows
    }


def assert_adds_up(page: dict[str, float]) -> None:
    parts = [value for name, value in page.items() if name.startswith("loadgen_attributed_energy_joules_total")]
    parts += [page["loadgen_idle_energy_joules_total"], page["loadgen_unattributed_energy_joules_total"]]
    assert sum(parts) == pytest.approx(page["loadgen_gpu_energy_joules_total"], abs=1e-6)


async def until(one: Sidecar, check: Callable[[], bool]) -> None:
    """Tick until the check holds."""
    for _ in range(1500):
        one.tick()
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the check did not hold within 30 s")


def completed(one: Sidecar, requests: int) -> Callable[[], bool]:
    return lambda: sum(account.completed for account in one.page.ledger.accounts.values()) == requests


async def ask(session: aiohttp.ClientSession, engine: str, output: int, headers: dict[str, str] | None = None) -> int:
    body = {"model": "llama-3.1-8b", "prompt": "Say it", "max_tokens": output, "ignore_eos": True}
    async with session.post(engine + "/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
        return len(await response.read())


def record(index: int, start_ns: int, end_ns: int, output: int) -> RequestRecord:
    return RequestRecord(
        index=index, workload="chat", scheduled_ns=start_ns, sent_ns=start_ns, first_token_ns=start_ns + 10**7,
        last_token_ns=end_ns, finished_ns=end_ns, input_tokens=4, output_tokens=output,
    )  # fmt: skip


@live
async def test_every_scrape_adds_up_while_requests_come_and_go() -> None:
    async with sidecar() as (one, url, _, session):
        scrapes = []
        with SpanSender(url, "run", "llama-3.1-8b") as sender:
            for index in range(4):
                start_ns = time.monotonic_ns()
                await ask(session, one.options.engine_url or "", 25)
                sender.add(record(index, start_ns, time.monotonic_ns(), 25))
                await until(one, lambda sent=index + 1: sender.sent == sent)  # type: ignore[misc]
                scrapes.append(await samples(session, url))
            await asyncio.to_thread(sender.__exit__)
            assert (sender.sent, sender.lost) == (4, 0)
        await until(one, completed(one, 4))
        scrapes.append(last := await samples(session, url))
        for page in scrapes:
            assert_adds_up(page)
        assert last["loadgen_output_tokens_total"] == 100
        assert last["loadgen_requests_total,completed"] == 4
        assert last["loadgen_request_energy_joules_sum"] > 0
        assert last["loadgen_request_energy_joules_count"] == 4


@live
async def test_an_engine_that_sends_spans_needs_no_client_that_does() -> None:
    async with sidecar() as (one, url, _, session):
        told = ServerOptions(port=0, otlp_traces_endpoint=url + "/v1/traces")
        async with running_simulator(told) as (engine, address):
            await ask(session, address, 30)
        assert engine.player.spans is not None
        assert (engine.player.spans.sent, engine.player.spans.lost) == (1, 0)
        await until(one, completed(one, 1))


@live
async def test_a_clients_and_an_engines_span_of_one_trace_are_one_request() -> None:
    async with sidecar() as (one, url, _, session):
        traced = ServerOptions(port=0, otlp_traces_endpoint=url + "/v1/traces")
        async with running_simulator(traced) as (_, address):
            start_ns = time.monotonic_ns()
            await ask(session, address, 30, {"traceparent": traceparent("run-0")})  # no request id
            sent = record(0, start_ns, time.monotonic_ns(), 30)
        with SpanSender(url, "run", "llama-3.1-8b") as sender:
            sender.add(sent)
            await asyncio.to_thread(sender.__exit__)
        await until(one, completed(one, 1))
        assert one.page.ledger.merged == 1
        (account,) = (account for account in one.page.ledger.accounts.values() if account.completed)
        assert (account.output_tokens, account.input_tokens) == (30, 4)


@live
async def test_a_request_is_labelled_by_the_span_of_the_http_server_that_it_came_through() -> None:
    header = "http.request.header.x-tenant"
    async with sidecar(labels={"tenant": header}) as (one, url, _, session):
        start_ns, end_ns = time.time_ns() - NS_PER_S, time.time_ns()
        for name, attributes in (("llm_request", VLLM), ("POST /v1/completions", {header: "acme"})):
            body = trace(name, attributes, start_ns, end_ns)
            async with session.post(url + "/v1/traces", data=body, headers=PROTOBUF) as response:
                assert response.status == 200
        await until(one, completed(one, 1))
        async with session.get(url + "/metrics") as response:
            text = await response.text()
        (row,) = (line for line in text.splitlines() if line.startswith("loadgen_requests_total{") and "1.0" in line)
        assert 'outcome="completed",tenant="acme"' in row


@live
async def test_openmetrics_carries_request_ids_as_exemplars_only() -> None:
    async with sidecar() as (one, url, _, session):
        body = trace("llm_request", VLLM, time.time_ns() - NS_PER_S, time.time_ns())
        async with session.post(url + "/v1/traces", data=body, headers=PROTOBUF) as response:
            assert (response.status, await response.read()) == (200, b"")
        await until(one, lambda: bool(one.page.ledger.accounts) and one.page.ledger.open_requests == 0)
        async with session.get(url + "/metrics", headers={"Accept": OPENMETRICS}) as response:
            page = await response.text()
        assert response.headers["Content-Type"] == OPENMETRICS
        assert page.endswith("# EOF\n")
        assert '# {request_id="chatcmpl-run-7"}' in page
        async with session.get(url + "/metrics") as response:
            assert "chatcmpl" not in await response.text()


@live
async def test_grpc_takes_the_same_spans() -> None:
    async with sidecar(grpc_port=0, token="open sesame") as (one, _, port, _session):
        body = trace("llm_request", VLLM, time.time_ns() - NS_PER_S, time.time_ns())

        def send(body: bytes, token: str) -> object:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary(GRPC_METHOD)
                return call(body, timeout=10, metadata=[("authorization", f"Bearer {token}")])

        assert await asyncio.to_thread(send, body, "open sesame") == b""
        await until(one, lambda: one.page.ledger.open_requests == 1 or bool(one.page.ledger.accounts))
        for bad, token, code in ((b"\xff", "open sesame", "INVALID_ARGUMENT"), (body, "x", "UNAUTHENTICATED")):
            with pytest.raises(grpc.RpcError) as refused:
                await asyncio.to_thread(send, bad, token)
            assert refused.value.code().name == code


@live
async def test_calls_that_never_send_their_spans_do_not_hold_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "CONNECTION_MS", 100)
    monkeypatch.setattr(grpc_server, "GRACE_MS", 100)
    async with sidecar(grpc_port=0) as (_, _url, port, _session):
        ended = threading.Event()

        def never() -> Iterator[bytes]:
            ended.wait()
            yield from ()

        def send() -> bytes:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                answer: bytes = channel.unary_unary(GRPC_METHOD)(b"", timeout=10)
                return answer

        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        held = [channel.stream_unary(GRPC_METHOD).future(never()) for _ in range(grpc_server.MAX_CALLS)]
        try:
            for _ in range(500):
                if all(call.done() for call in held):
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError("the calls of one client are all that there are")
            assert "UNAVAILABLE" in {call.code().name for call in held}, "the server ended them"
            assert await asyncio.to_thread(send) == b""
        finally:
            ended.set()
            channel.close()


@live
async def test_bodies_that_cannot_be_read_are_refused_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with sidecar() as (one, url, _, session):
        bomb = gzip.compress(bytes(MAX_OTLP_BYTES + 1))
        cases = [
            (b"\xff\xff", PROTOBUF, 400),
            (bytes(MAX_OTLP_BYTES + 1), PROTOBUF, 413),
            (bomb, PROTOBUF | {"Content-Encoding": "gzip"}, 413),
            (b"{}", {"Content-Type": "application/json"}, 415),
            (b"no gzip", PROTOBUF | {"Content-Encoding": "gzip"}, 400),
        ]
        for body, headers, status in cases:
            async with session.post(url + "/v1/traces", data=io.BytesIO(body), headers=headers) as response:
                assert response.status == status
                reply = await response.text()
                assert (status == 415) == ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in reply), "what to set"
        await until(one, lambda: one.page.ledger.dropped["oversized"] == 2)
        assert one.page.ledger.dropped["malformed"] == 2
    assert "Traceback" not in caplog.text


@dataclass(frozen=True)
class Peer:
    """A client that speaks HTTP by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def sends(cls, url: str, begin: bytes) -> Self:
        peer = cls(*await asyncio.open_connection(*url.removeprefix("http://").split(":")))
        peer.writer.write(begin)
        return peer


def trickled(url: str, begin: bytes) -> bytes:
    """Send these bytes, and one more now and then until the server ends the connection; return what it sent.

    A stream of asyncio would lose an answer that a reset follows, as one does where a byte comes after the answer.
    """
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=0.02) as peer, suppress(ConnectionResetError):
        peer.sendall(begin)
        for _ in range(3_000):
            with suppress(ConnectionError):
                peer.send(b"a")
            with suppress(TimeoutError):
                if not (part := peer.recv(1 << 16)):
                    return answer
                answer += part
        pytest.fail("the server ends no connection")
    return answer


POST = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100000\r\n\r\n"
BOUNDS_HEADS = tuple(map(int, aiohttp.__version__.split(".")[:3])) >= (3, 14, 4)


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        pytest.param(b"GET /metrics HTTP/1.1\r\nX-", b"", id="a first head", marks=pytest.mark.skipif(
            not BOUNDS_HEADS, reason="aiohttp has bounded a connection's first head since 3.14.4")),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX-", b"200", id="a second head"),
        pytest.param(POST, b"408", id="a body"),
    ],
)  # fmt: skip
@live
async def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(
    begin: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edges, "BODY_S", 0.2)
    monkeypatch.setattr(server, "IDLE_S", 0.2)
    async with sidecar() as (one, url, *_):
        answer = await asyncio.to_thread(trickled, url, begin)
        assert answer.partition(b"\r\n")[0].split(b" ")[1:2] == ([status] if status else [])
        await until(one, lambda: one.page.ledger.dropped["malformed"] == (status == b"408"))


@live
async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "SEND_S", 0.2)
    async with sidecar() as (one, url, _, session):
        one._on_energy([EnergySample(k, "gpu:0", float(k)) for k in range(FEED_PORTION)])
        async with session.get(url + "/energy") as response:
            size = len(await response.read())
        times = (32 << 20) // size
        peer = await Peer.sends(url, b"GET /energy HTTP/1.1\r\nHost: x\r\n\r\n" * times)
        await asyncio.sleep(1.0)
        received = 0
        with suppress(ConnectionResetError):
            while part := await asyncio.wait_for(peer.reader.read(1 << 20), 30):
                received += len(part)
        peer.writer.close()
        assert received < times * size


@live
async def test_a_request_that_is_no_http_is_a_line_of_the_log_that_quotes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with sidecar() as (_, url, *_others):
        for begin in (
            b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer secret" + b"a" * 20_000 + b"\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nsecret\r\n\r\n",
        ):
            peer = await Peer.sends(url, begin)
            assert (await asyncio.wait_for(peer.reader.read(), 60)).split(b" ")[1] == b"400"
            peer.writer.close()
        peer = await Peer.sends(url, POST.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"))
        assert b"100" in await asyncio.wait_for(peer.reader.readline(), 60)
        peer.writer.transport.abort()
        for _ in range(500):
            if len(caplog.records) == 3:
                break
            await asyncio.sleep(0.01)
    lines = [record.getMessage().split(": ") for record in caplog.records]
    assert [error for _, error in lines] == ["LineTooLong", "BadHttpMessage", "ConnectionResetError"]
    assert all(begin.startswith("Error handling request") for begin, _ in lines)
    assert "secret" not in caplog.text and "Traceback" not in caplog.text


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio loses what it accepts while its server closes
@live
async def test_an_engine_and_its_counter_may_start_again() -> None:
    async with AsyncExitStack() as first:
        before, engine = await first.enter_async_context(running_simulator(ServerOptions(port=0)))
        options = SidecarOptions(port=0, engine_url=engine, energy=engine, lateness=QUICK)
        async with running_sidecar(options) as (one, url, _), aiohttp.ClientSession() as session:
            await ask(session, engine, 50)
            await until(
                one, lambda: [s["generation_tokens"] for s in one.engines[0].ledger.engine_samples[-1:]] == [50]
            )
            await until(one, lambda: one._feed[-1].joules > 20)
            await first.aclose()
            gc.collect()  # of such a connection, here and not in a later test
            await until(one, lambda: one.page.engine_up is False)
            assert_adds_up(await samples(session, url))
            async with running_simulator(replace(before.options, port=int(engine.rsplit(":", 1)[1]))):
                await until(one, lambda: one.page.engine_restarts == 1 and one.page.resets == 1)
                await until(one, lambda: one.page.engine_up is True)
                committed_mj = one.page.ledger.domains[0].committed_mj
                await until(one, lambda: one.page.ledger.domains[0].committed_mj > committed_mj)
                assert_adds_up(await samples(session, url))


@live
async def test_spans_find_their_energy_across_a_step_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped_ns = 3600 * NS_PER_S
    async with sidecar() as (one, url, _, session):
        await until(one, lambda: len(one._feed) > 1)
        monkeypatch.setattr(edges, "anchor", lambda: (at := anchor())._replace(wall_ns=at.wall_ns + stepped_ns))
        one.tick()  # sees the step; the request begins after it
        start_ns = time.time_ns() + stepped_ns
        await asyncio.sleep(0.05)
        body = trace("llm_request", VLLM, start_ns, time.time_ns() + stepped_ns)
        async with session.post(url + "/v1/traces", data=body, headers=PROTOBUF) as response:
            assert response.status == 200
        await until(one, completed(one, 1))
        assert sum(one.page.ledger.dropped.values()) == 0


@live
async def test_the_ledger_is_kept_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "TICK_S", 0.01)
    async with sidecar() as (one, *_):
        for _ in range(1500):
            if one.page.ledger.domains[0].committed_mj > 0:
                break
            await asyncio.sleep(0.02)
        assert one.page.ledger.idle_mj == one.page.ledger.domains[0].committed_mj > 0


@live
async def test_a_scrape_changes_nothing_so_prometheus_may_stay_away() -> None:
    async with sidecar() as (one, _, _, session):
        await ask(session, one.options.engine_url or "", 20)
        await until(one, lambda: one.page.ledger.domains[0].committed_mj > 0)
        page = one.page
        assert edges.text_page(one._registry) == edges.text_page(one._registry)  # nobody else runs in between
        assert one.page is page


@live
async def test_a_flood_is_counted_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "MAX_QUEUED_SPANS", 10)
    async with sidecar() as (one, _, _, _session):
        body = trace("llm_request", VLLM, time.time_ns() - NS_PER_S, time.time_ns())
        for _ in range(25):
            one.receive(body)
        await until(one, lambda: one.page.ledger.dropped["overflow"] == 15)


@live
async def test_the_token_is_asked_of_all_but_the_health_page() -> None:
    async with sidecar(token="open sesame") as (_, url, _, session):
        for path, header, status in (
            ("/metrics", None, 401),
            ("/metrics", "Bearer open sesam", 401),
            ("/energy", "Bearer é", 401),
            ("/metrics", "Bearer open sesame", 200),
            ("/healthz", None, 200),
        ):
            headers = {} if header is None else {"Authorization": header}
            async with session.get(url + path, headers=headers) as response:
                assert response.status == status, (path, header)
        meter = await asyncio.to_thread(open_remote, url, token="open sesame")
        assert meter.domains[0].source == "simulated"
        meter.close()


def test_no_token_asked_means_everyone_is_authorized() -> None:
    assert authorized(None, None)
    assert not authorized("t", None)


@live
async def test_a_remote_meter_reads_the_feed_on_its_own_clock() -> None:
    async with sidecar() as (one, url, _, _session):
        await until(one, lambda: len(one._feed) > 5)
        meter = await asyncio.to_thread(open_remote, url)
        first = await asyncio.to_thread(meter.read)
        await until(one, lambda: len(one._feed) > 12)
        later = await asyncio.to_thread(meter.read)
        times = [sample.t_ns for sample in (*first.samples, *later.samples)]
        assert times == sorted(set(times))
        assert len(later.samples) >= 3
        assert abs(anchor().monotonic_ns - times[-1]) < 5 * NS_PER_S
        meter.close()


@live
async def test_the_feed_says_how_far_a_move_may_lie_from_its_time_and_what_is_unknown() -> None:
    async with sidecar() as (one, url, _, _session):
        await until(one, lambda: len(one._feed) > 1)
        meter = await asyncio.to_thread(open_remote, url)
        await asyncio.to_thread(meter.read)
        newest = one._feed[-1]
        later = [
            EnergySample(newest.t_ns + NS_PER_S, newest.domain, newest.joules, 7_000_000, gap=True),
            EnergySample(newest.t_ns + 2 * NS_PER_S, newest.domain, newest.joules + 5, 3_000_000),
        ]
        one._feed.extend(later)
        reading = await asyncio.to_thread(meter.read)
        told = [sample for sample in reading.samples if sample.t_ns > newest.t_ns + NS_PER_S // 2]
        assert [(sample.slack_ns >= mine.slack_ns, sample.gap) for sample, mine in zip(told, later, strict=False)][
            :2
        ] == [
            (True, True),
            (True, False),
        ]
        assert reading.resets == 1
        meter.close()


@live
async def test_an_engine_that_answers_without_a_page_of_metrics_is_up_and_not_understood() -> None:
    """TensorRT-LLM's /metrics is JSON, and a request for it takes statistics away: it is looked at once."""
    asked: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.Response:
        asked[request.path] += 1
        return web.json_response([{"iter": 1}], status=404 if request.path != "/metrics" else 200)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with running_simulator(ServerOptions(port=0)) as (_, energy), TestServer(app) as server:
        options = SidecarOptions(port=0, engine_url=str(server.make_url("")), energy=energy, lateness=QUICK)
        async with running_sidecar(options) as (one, url, _), aiohttp.ClientSession() as session:
            await until(one, lambda: asked["/v1/models"] >= 3)
            page = await samples(session, url)
            assert (page["loadgen_engine_up"], page["loadgen_engine_metrics_understood"]) == (1.0, 0.0)
            async with session.get(url + "/healthz") as response:
                health = await response.json()
            assert health["engine"] == "answers"
            assert health["engine_metrics"].startswith("no metrics page is understood (/prometheus/metrics: status 404")
            assert asked["/metrics"] == 1
    async with sidecar() as (one, url, _, session):
        await until(one, lambda: one.page.engine_understood is True)
        async with session.get(url + "/healthz") as response:
            assert (await response.json())["engine_metrics"] == "vLLM's, at /metrics"


@live
async def test_a_host_beside_the_gpus_is_counted_by_domain_and_in_no_account() -> None:
    async with running_simulator(ServerOptions(port=0)) as (_, engine):
        options = SidecarOptions(port=0, energy=f"{engine},cpu", lateness=QUICK)
        async with running_sidecar(options) as (one, url, _), aiohttp.ClientSession() as session:
            await until(one, lambda: {"gpu:0", "cpu:all"} <= one.pages[0].watts.keys())
            assert [domain.domain.name for domain in one.pages[0].ledger.domains] == ["gpu:0"]
            page = await samples(session, url)
            assert page["loadgen_host_energy_joules_total"] > 0
            async with session.get(url + "/healthz") as response:
                assert (await response.json())["domains"] == {
                    "gpu:0": "simulated, answers", "cpu:all": "estimate, answers"
                }  # fmt: skip


@live
async def test_health_says_when_the_meter_is_silent_and_the_engine_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_simulator(ServerOptions(port=0)) as (_, engine):
        options = SidecarOptions(port=0, engine_url="http://127.0.0.1:9", energy=engine, lateness=QUICK)
        async with running_sidecar(options) as (one, url, _), aiohttp.ClientSession() as session:
            await until(one, lambda: len(one._feed) > 1)
            async with session.get(url + "/healthz") as response:
                assert (response.status, (await response.json())["engine"]) == (200, "away")
            monkeypatch.setattr(edges, "STALE_S", 0.0)
            async with session.get(url + "/healthz") as response:
                assert response.status == 503
                assert (await response.json())["meter"].startswith("silent")


@live
async def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    trusted = ssl.create_default_context(cafile=cert)
    async with sidecar(tls_cert=cert, tls_key=key, grpc_port=0) as (_, url, _, session):
        assert url.startswith("https://")
        async with session.get(url + "/healthz", ssl=trusted) as response:
            assert response.status == 200


@live
async def test_without_a_source_of_energy_it_says_so_and_ends() -> None:
    with pytest.raises(LoadgenError, match="needs an energy source"):
        async with running_sidecar(SidecarOptions(port=0, energy="none")):
            pass


@live
async def test_an_engine_url_that_is_none_is_said_at_once() -> None:
    async with running_simulator(ServerOptions(port=0)) as (_, engine):
        with pytest.raises(LoadgenError, match=r"--engine-url: .*gpu-host.* is no http"):
            async with running_sidecar(SidecarOptions(port=0, engine_url="gpu-host", energy=engine)):
                pass


@live
async def test_promtool_finds_the_page_clean() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    async with sidecar() as (_, url, _, session), session.get(url + "/metrics") as response:
        page = await response.read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


def test_the_reference_is_in_step_with_the_code() -> None:
    assert DOCS.read_text() == reference(), "run: loadgen sidecar --reference > docs/reference/metrics.md"


@live
async def test_a_sender_without_a_sidecar_loses_spans_but_no_time() -> None:
    with SpanSender("http://127.0.0.1:9", "run", "m") as sender:
        sender.add(record(0, 1, 2, 3))
    assert (sender.sent, sender.lost) == (0, 1)
    assert sender.last_error is not None and "refused" in sender.last_error


class Answers(NamedTuple):
    """What an engine answers in turn, and the state of its page then."""

    model: str | None
    engine_up: bool = True
    engine_restarts: int = 0


@pytest.mark.parametrize(
    ("start", "answers", "names", "pauses_s"),
    [
        (None, [Answers(None), Answers(None), Answers("llama")], ["llama"], [1, 2, 4, 1]),
        (None, [Answers(None, False)] * 6, [], [1, 2, 4, 8, 16, 30, 30]),
        ("llama", [Answers("other"), Answers("other")], [], [1, 1, 1]),
        (
            "llama",
            [Answers("x"), Answers("qwen", engine_restarts=1), Answers("x", engine_restarts=1)],
            ["qwen"],
            [1] * 4,
        ),
        ("llama", [Answers(None, False), Answers("qwen"), Answers("x")], ["qwen"], [1, 2, 1, 1]),
    ],
)
@live
async def test_an_engine_is_asked_for_its_model_until_it_answers_and_after_a_restart(
    start: str | None, answers: list[Answers], names: list[str], pauses_s: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[str] = []
    turn = iter(answers)
    page = SimpleNamespace(engine_up=False, engine_restarts=0)
    engine = SimpleNamespace(url="http://e", name=None, ledger=SimpleNamespace(name_model=named.append))
    one = SimpleNamespace(options=SidecarOptions(engine_url="http://e"), pages=[page], engines=[engine])
    pauses: list[float] = []
    now: list[Answers] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if (answer := next(turn, None)) is None:
            raise asyncio.CancelledError
        now[:] = [answer]
        page.engine_up, page.engine_restarts = answer.engine_up, answer.engine_restarts

    monkeypatch.setattr(server.asyncio, "sleep", sleep)
    monkeypatch.setattr(server, "ask_engine", lambda url, key: (now[0].model, False))
    with pytest.raises(asyncio.CancelledError):
        await server.keep_model(one, 0, start)  # type: ignore[arg-type]
    assert (named, pauses) == (names, pauses_s)


@pytest.mark.parametrize(("key", "header"), [("sk-engine", "Bearer sk-engine"), (None, None)])
def test_an_engine_is_asked_for_its_model_with_its_key(key: str | None, header: str | None) -> None:
    with serving(fake := FakeServer()) as url:
        assert server.ask_engine(url, key) == ("m", False)
    assert [headers.get("Authorization") for _, headers in fake.seen] == [header]
    assert "sk-engine" not in repr(SidecarOptions(engine_key=key))


@pytest.mark.parametrize("named", [False, True])
@live
async def test_an_engine_is_asked_once_at_the_start(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says about its models and about being simulated is in one answer."""
    for room in (fleet_meter, server):
        monkeypatch.setattr(room, "open_meter", lambda *_, **__: (None, ["none here"]))
    with serving(fake := FakeServer()) as url:
        engines = (NamedEngine(name="a", url=url),) if named else ()
        with pytest.raises(LoadgenError, match="none here"):
            await server.open_sidecar(SidecarOptions(engine_url=None if named else url, engines=engines))
    assert [line.split()[1] for line, _ in fake.seen] == ["/v1/models"]


@pytest.mark.parametrize(("energy", "opened"), [("auto", ("http://e", None)), ("http://m", ("http://m", "sesame"))])
def test_a_server_that_calls_itself_simulated_gets_no_token(
    energy: str, opened: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str | None]] = []

    def open_it(choice: str, *, token: str | None, **_: object) -> tuple[None, list[str]]:
        calls.append((choice, token))
        return None, []

    monkeypatch.setattr(server, "open_meter", open_it)
    with pytest.raises(LoadgenError, match="needs an energy source"):
        server.choose_meter(SidecarOptions(engine_url="http://e", energy=energy, energy_token="sesame"), [True])
    assert calls == [opened]


@live
async def test_a_model_that_the_command_line_names_is_not_asked_for() -> None:
    options = SidecarOptions(engine_url="http://e", model="mine")
    engine = SimpleNamespace(url="http://e")
    await server.keep_model(SimpleNamespace(options=options, engines=[engine]), 0, "mine")  # type: ignore[arg-type]


@live
async def test_a_request_is_looked_up_waiting_then_settled_and_unknown_ids_are_refused() -> None:
    async with sidecar() as (one, url, _, session):

        async def look(name: str) -> tuple[int, dict[str, Any]]:
            async with session.get(f"{url}/requests/{name}") as response:
                return response.status, await response.json() if response.content_type == "application/json" else {}

        assert await look("run-0") == (404, {"state": "unknown", "id": "run-0"})
        start_ns = time.monotonic_ns()
        await ask(session, one.options.engine_url or "", 25)
        with SpanSender(url, "run", "llama-3.1-8b") as sender:
            sender.add(record(0, start_ns, time.monotonic_ns(), 25))
            await asyncio.to_thread(sender.__exit__)
        for span in list(one._spans):
            one.engines[0].ledger.add_span(span.moved(one.clock.monotonic_ns), time.monotonic_ns())
        assert await look("chatcmpl-run-0") == (202, {"state": "waiting", "id": "chatcmpl-run-0"})
        await until(one, completed(one, 1))
        status, page = await look("run-0")
        assert (status, page["state"], page["output_tokens"], page["workload"]) == (200, "settled", 25, "chat")
        assert page["joules"] == pytest.approx(page["prefill_joules"] + page["decode_joules"]) and page["joules"] > 0
        assert (await look("x" * 129))[0] == 400
        assert (await look("%0a"))[0] == 400


@live
async def test_an_error_in_the_ledger_ends_the_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page would go on showing old numbers."""

    def unbalanced(*_: object) -> bool:
        raise AssertionError("energy is not conserved")

    monkeypatch.setattr(ledger.Ledger, "commit", unbalanced)
    async with running_simulator(ServerOptions(port=0)) as (_, engine):
        with pytest.raises(AssertionError, match="not conserved"):
            await server.serve_sidecar(SidecarOptions(port=0, engine_url=engine))


@live
async def test_looking_up_needs_the_token_as_other_pages_do() -> None:
    async with sidecar(token="open sesame") as (_, url, _port, session):
        response = await session.get(f"{url}/requests/run-0")
        assert response.status == 401
