"""The timing servers: their stamps are right for any client, however the bytes come. Both have one contract."""

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from benchmarks.instrument import timing_server
from loadgen.client.client import Client
from loadgen.record import PATHS, Endpoint, RequestRecord
from loadgen.run.selftest import written
from loadgen.servers.launcher import answering
from loadgen.units import NS_PER_MS

PYTHON_SERVER = (sys.executable, "-m", "loadgen.run.timing_server")
CLOCKS_NS = NS_PER_MS
"""The kernel stamps packets on the wall clock, which is slewed against the monotonic one while the server runs."""


@pytest.fixture(scope="module")
def truth() -> Iterator[str]:
    with answering(PYTHON_SERVER, "truth", 30) as url:
        yield url


def body(tokens: int, **options: object) -> bytes:
    return json.dumps({"messages": [], "max_tokens": tokens, "stream": True} | options).encode()


def send(url: str, endpoint: Endpoint, name: str, *bodies: bytes) -> list[RequestRecord]:
    async def main() -> list[RequestRecord]:
        async with Client(url, timeout_s=20) as client:
            sends = [
                client.post(PATHS[endpoint], one, index=i, workload="chat", scheduled_ns=0, request_id=f"{name}-{i}")
                for i, one in enumerate(bodies)
            ]
            return list(await asyncio.gather(*sends))

    return asyncio.run(main())


@pytest.fixture(scope="module")
def python_server() -> Iterator[str]:
    with answering(PYTHON_SERVER, "truth", 30) as url:
        yield url


@pytest.mark.parametrize("endpoint", ["embeddings", "rerank"])
def test_an_answer_that_comes_whole_is_stamped_between_its_writing_and_its_reading(
    python_server: str, endpoint: Endpoint
) -> None:
    (record,) = send(python_server, endpoint, endpoint, body(9, ttft_ms=30.0, itl_ms=4.0))
    true = written(python_server)[f"{endpoint}-0"]
    assert record.came_whole and record.input_tokens and record.finished_ns, record.detail
    assert len(true.written_ns) == 1 and true.written_ns[0] >= true.due_ns
    assert record.finished_ns >= true.written_ns[0] - CLOCKS_NS
    assert (record.ttft_ns, record.output_tokens, list(record.chunk_ns)) == (None, None, [])


def test_tokens_of_a_response_are_stamped_as_those_of_a_chat(python_server: str) -> None:
    asked = [body(n, max_output_tokens=n, ttft_ms=10.0, itl_ms=3.0) for n in (1, 6, 20)]
    records = send(python_server, "responses", "responses", *asked)
    log = written(python_server)
    for record, tokens in zip(records, (1, 6, 20), strict=True):
        true = log[f"responses-{record.index}"]
        counts = (record.error, record.output_tokens, len(record.chunk_ns), record.finish_reason)
        assert counts == (None, tokens, tokens, "length")
        for read_ns, written_ns in zip(record.chunk_ns, true.written_ns, strict=True):
            assert read_ns >= written_ns - CLOCKS_NS


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_every_token_is_stamped_after_it_was_due_and_before_it_was_read(truth: str, endpoint: Endpoint) -> None:
    asked = [(7, 30.0, 4.0), (1, 0.0, 5.0), (20, 10.0, 2.0)]
    bodies = [body(n, ttft_ms=ttft_ms, itl_ms=itl_ms) for n, ttft_ms, itl_ms in asked]
    records = send(truth, endpoint, endpoint, *bodies)
    log = written(truth)
    for record, (tokens, ttft_ms, itl_ms) in zip(records, asked, strict=True):
        true = log[f"{endpoint}-{record.index}"]
        assert (record.error, record.output_tokens, record.token_source) == (None, tokens, "usage")
        assert record.sent_ns is not None
        assert record.sent_ns - CLOCKS_NS <= true.arrived_ns <= true.written_ns[0] + CLOCKS_NS
        assert true.due_ns - true.arrived_ns == round(ttft_ms * NS_PER_MS)
        due = [true.due_ns + i * round(itl_ms * NS_PER_MS) for i in range(tokens)]
        assert all(a <= b <= c for a, b, c in zip(due, true.written_ns, record.chunk_ns, strict=True))


def test_without_a_gap_all_tokens_are_one_write(truth: str) -> None:
    (record,) = send(truth, "chat", "bulk", body(500))
    stamps = written(truth)["bulk-0"].written_ns
    assert (record.error, len(record.chunk_ns), len(stamps), len(set(stamps))) == (None, 500, 500, 1)


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)  # type: ignore[arg-type]


def http(method: str, path: str, data: bytes = b"", name: str = "raw") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nx-request-id: {name}\r\nCONTENT-LENGTH: {len(data)}\r\n\r\n"
    return head.encode() + data


def read_until(sock: socket.socket, end: bytes, times: int = 1) -> bytes:
    received = bytearray()
    while times > 0:
        searched = max(0, len(received) - len(end) + 1)
        data = sock.recv(1 << 20)
        assert data, received
        received += data
        times -= received.count(end, searched)
    return bytes(received)


def test_requests_in_pieces_and_requests_in_a_row(truth: str) -> None:
    with connect(truth) as sock:
        request = http("POST", "/v1/chat/completions", body(2))
        for cut, rest in pairwise([0, 9, len(request) - 3, len(request)]):
            sock.sendall(request[cut:rest])
        assert b"[DONE]" in read_until(sock, b"0\r\n\r\n")
        sock.sendall(http("POST", "/v1/completions", body(3)) * 2)
        assert read_until(sock, b"0\r\n\r\n", 2).count(b" word") == 6


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (http("GET", "/v1/models"), b"200 OK"),
        (http("GET", "/metrics"), b"404 Not Found"),
        (http("POST", "/v1/chat/completions", b"{"), b"400 Bad Request"),
        (http("POST", "/v1/chat/completions", b'{"max_tokens":"x"}'), b"400 Bad Request"),
    ],
)
def test_what_it_answers_to_other_requests(truth: str, request_: bytes, status: bytes) -> None:
    with connect(truth) as sock:
        sock.sendall(request_)
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 " + status)


def test_a_client_that_leaves_or_does_not_read_does_not_delay_the_others(truth: str) -> None:
    with connect(truth) as deaf:
        deaf.sendall(http("POST", "/v1/chat/completions", body(40_000), "deaf"))
        with connect(truth) as gone:
            gone.sendall(http("POST", "/v1/chat/completions", body(50, itl_ms=1.0), "gone"))
            read_until(gone, b" word")
        (record,) = send(truth, "chat", "other", body(5, itl_ms=1.0))
        assert record.error is None
        assert read_until(deaf, b"[DONE]").count(b" word") == 40_000
    assert len(written(truth)["gone"].written_ns) <= 50


# -- the contract of both servers -------------------------------------------------------------------------------------

TTFT_MS, ITL_MS, TOKENS, REQUESTS = 4, 1, 8, 20
CHAT, STREAM, USAGE, CLIENT_LEFT = 1 << 26, 1 << 27, 1 << 28, 1 << 29


@pytest.fixture(scope="module", params=["python", "c"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | Sequence[str]:
    if request.param == "python":
        return PYTHON_SERVER
    if sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("timing_server.c needs Linux and a C compiler")
    return timing_server.build(tmp_path_factory.mktemp("timing_server"))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_log_states_when_requests_came_and_tokens_went(
    server: Path | Sequence[str], tmp_path: Path, endpoint: Endpoint
) -> None:
    options = ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS))
    usage = {"stream_options": {"include_usage": True}}
    with timing_server.started(server, tmp_path / "log", None, *options) as url:
        records = send(f"{url}/v1", endpoint, "r", *[body(TOKENS, **usage)] * REQUESTS)
    log = timing_server.read(tmp_path / "log")
    assert {row["request_id"].decode() for row in log.requests} == {f"r-{i}" for i in range(REQUESTS)}
    assert {record.output_tokens for record in records} == {TOKENS}
    for row in log.requests:
        written_ns, record = log.writes_of(row), records[int(row["request_id"][2:])]
        due_ns = int(row["due_ns"]) + np.arange(TOKENS) * ITL_MS * NS_PER_MS
        assert row["due_ns"] == row["arrived_ns"] + TTFT_MS * NS_PER_MS
        assert row["arrived_ns"] <= row["read_ns"] + CLOCKS_NS
        assert (written_ns >= due_ns).all() and written_ns[-1] <= row["ended_ns"]
        assert row["late_max_ns"] == (written_ns - due_ns).max()
        assert (row["events"], row["tokens"], row["asked"], row["status"]) == (TOKENS, TOKENS, TOKENS, 200)
        assert row["flags"] == STREAM | USAGE | (CHAT if endpoint == "chat" else 0)
        assert (np.array(record.chunk_ns) > written_ns).all()
        assert record.sent_ns is not None and record.sent_ns - CLOCKS_NS < row["arrived_ns"]


def test_the_log_states_which_client_left_early(server: Path | Sequence[str], tmp_path: Path) -> None:
    with timing_server.started(server, tmp_path / "log", None, "--itl-ms", "1") as url:
        with connect(url) as sock:
            sock.sendall(http("POST", "/v1/completions", body(50_000), "left"))
            read_until(sock, b"data: {")
        send(f"{url}/v1", "completions", "stayed", body(100))
    left, stayed = timing_server.read(tmp_path / "log").requests
    assert (left["request_id"], stayed["request_id"]) == (b"left", b"stayed-0")
    assert left["flags"] & CLIENT_LEFT and not stayed["flags"] & CLIENT_LEFT
    assert left["events"] < left["asked"] == 50_000
    assert stayed["connection"] != left["connection"]


def test_the_log_has_the_hash_of_every_body_in_the_order_of_its_records(
    server: Path | Sequence[str], tmp_path: Path
) -> None:
    bodies = [body(1, user="x" * length) for length in (*range(130), 1_000_000)]
    with timing_server.started(server, tmp_path / "log", None, "--itl-ms", "0", "--hash-bodies") as url:
        send(f"{url}/v1", "chat", "first", *bodies)
        send(f"{url}/v1", "completions", "second", *reversed(bodies))
    log = timing_server.read(tmp_path / "log", b"second")
    assert log.bodies is not None
    rows = {int(row["request_id"][7:]): hashed for row, hashed in zip(log.requests, log.bodies, strict=True)}
    assert rows == {i: sha256(sent).hexdigest() for i, sent in enumerate(reversed(bodies))}
    picked = log.only(log.requests["request_id"] == b"second-3")
    assert picked.bodies == [sha256(bodies[-4]).hexdigest()]


def test_nobody_pays_for_hashes_without_the_option(server: Path | Sequence[str], tmp_path: Path) -> None:
    with timing_server.started(server, tmp_path / "log", None) as url:
        send(f"{url}/v1", "chat", "r", body(1))
    assert timing_server.read(tmp_path / "log").bodies is None
    assert not (tmp_path / "log.sha256").exists()


def test_its_pages_and_its_model(server: Path | Sequence[str], tmp_path: Path) -> None:
    with timing_server.started(server, tmp_path / "log", None, "--model", "tiny") as url, connect(url) as sock:
        sock.sendall(http("GET", "/health"))
        assert read_until(sock, b"{}").startswith(b"HTTP/1.1 200 OK")
        sock.sendall(http("GET", "/v1/models"))
        assert b'"id":"tiny"' in read_until(sock, b"]}")
        sock.sendall(http("GET", "/nowhere"))
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 404")
