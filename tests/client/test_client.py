"""Whatever a server does, the client gives one record that says what it was."""

import asyncio
import errno
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from loadgen.client import stream
from loadgen.client.client import Client, Exchange
from loadgen.client.connection_pool import FetchedPage, is_plain
from loadgen.client.find_model import find_model
from loadgen.client.http1 import HTTPError
from loadgen.client.openai_api import StreamEvent
from loadgen.client.server_url import parse_server_url
from loadgen.client.surroundings import Proxy
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.telemetry.traceparent import traceparent
from support.scripted_server import DONE, END, FINISH, GOOD, HEAD, ROLE, USAGE, Step, Wire, chunk, token, wire

T = TypeVar("T")


pytestmark = pytest.mark.usefixtures("transport")
"""Every test of this file runs on every transport."""


def on_uvloop(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def sent(client: Client, index: int = 0) -> RequestRecord:
    return await client.post(
        "/chat/completions", b"{}", index=index, workload="chat", scheduled_ns=1, request_id=f"run-{index}"
    )


def one(
    script: Sequence[Step] | Callable[[int], Sequence[Step]],
    *,
    times: int = 1,
    timeout_s: float | None = 5,
    headers: dict[str, str] | None = None,
    api_key: str | None = None,
) -> tuple[list[RequestRecord], Wire]:
    async def main() -> tuple[list[RequestRecord], Wire]:
        async with (
            wire(script) as server,
            Client(server.url + "/v1", timeout_s=timeout_s, headers=headers, api_key=api_key) as client,
        ):
            return [await sent(client, i) for i in range(times)], server

    return on_uvloop(main())


def test_a_good_stream() -> None:
    (record,), server = one(GOOD)
    assert (record.error, record.status, record.finish_reason) == (None, 200, "length")
    assert (record.input_tokens, record.output_tokens, record.token_source) == (7, 3, "usage")
    assert len(record.chunk_ns) == 3, "the role and usage chunks are no tokens"
    assert record.first_token_ns == record.chunk_ns[0]
    assert record.last_token_ns == record.chunk_ns[-1]
    times = [record.sent_ns, *record.chunk_ns, record.finished_ns]
    assert times == sorted(times, key=lambda t: t or 0)
    assert b"POST /v1/chat/completions" in server.requests[0]
    assert b"x-request-id: run-0" in server.requests[0].lower()
    assert f"\ntraceparent: {traceparent('run-0')}\r\n".encode() in server.requests[0].lower()


def test_a_traceparent_of_the_users_own_goes_before_that_of_the_request() -> None:
    own = f"00-{'a' * 32}-{'b' * 16}-00"
    _, server = one(GOOD, headers={"Traceparent": own})
    head = server.requests[0].lower()
    assert head.count(b"traceparent:") == 1 and own.encode() in head


def test_chunks_are_timed_when_they_arrive_not_when_the_stream_ends() -> None:
    (record,), _ = one((HEAD, token("a"), 0.05, token("b"), 0.05, token("c", '"stop"'), DONE, END))
    gaps = [b - a for a, b in zip(record.chunk_ns, record.chunk_ns[1:], strict=False)]
    assert len(gaps) == 2
    assert min(gaps) > 30_000_000


ODD_BUT_GOOD: dict[str, Sequence[Step]] = {
    "no [DONE] but a finish reason": (HEAD, token("a"), token("b", '"stop"'), END),
    "no finish reason but usage and [DONE]": (HEAD, token("a"), USAGE, DONE, END),
    "closed without chunked encoding": (
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n',
        "close",
    ),
    "usage on the finish chunk, no blank line at the end": (
        HEAD,
        chunk(b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}'),
        END,
    ),
    "crlf, comments and a null event": (
        HEAD,
        chunk(b": ping\r\n\r\ndata: null\r\n\r\n"),
        token("a"),
        FINISH,
        DONE,
        END,
    ),
    "charset in the content type": (
        HEAD.replace(b"event-stream", b"event-stream; charset=utf-8"),
        token("a"),
        FINISH,
        DONE,
        END,
    ),
}


@pytest.mark.parametrize("name", ODD_BUT_GOOD)
def test_odd_but_good(name: str) -> None:
    (record,), _ = one(ODD_BUT_GOOD[name])
    assert record.error is None, record.detail
    assert record.first_token_ns is not None


OPEN_ENDS: dict[str, Sequence[Step]] = {
    "the body stays open": (60.0,),
    "it goes on and on": tuple(step for _ in range(600) for step in (token("x"), 0.02)),
    "another event, cut": (token("x")[:30], 60.0),
    "bytes that are no chunk": (b"zz\r\nhello\r\n", 60.0),
    "an event that is no JSON": (chunk(b"data: {\n\n"), 60.0),
    "the connection ends": ("close",),
    "it is reset": (0.02, "reset"),
}


@pytest.mark.parametrize("together", [True, False], ids=["in one read", "later"])
@pytest.mark.parametrize("name", OPEN_ENDS)
def test_done_ends_a_request_whatever_the_body_does_then(name: str, together: bool, transport: str) -> None:
    """And the connection is not used again: what it still holds would be taken for the next answer."""
    if (name, together, transport) == ("bytes that are no chunk", True, "aiohttp"):
        pytest.skip("aiohttp does not hand on what came before them in a read")
    begun = (HEAD, token("a"), token("b"), token("c", '"length"'), USAGE, DONE)
    rest = OPEN_ENDS[name]
    if together:
        script: Sequence[Step] = (b"".join([*begun, *rest[:1]] if isinstance(rest[0], bytes) else begun), *rest)
    else:
        script = (*begun, 0.01, *rest)
    (first, second), server = one(script, times=2, timeout_s=5)
    for record in (first, second):
        assert (record.error, len(record.chunk_ns), record.output_tokens) == (None, 3, 3), record.detail
        assert (record.finished_ns or 0) - (record.sent_ns or 0) < 200_000_000, "it does not wait for the body"
    assert server.connections == 2


def test_a_body_that_ends_a_little_after_done_leaves_its_connection_to_the_next_request() -> None:
    records, server = one((*GOOD[:-1], 0.02, END), times=3)
    assert [record.error for record in records] == [None] * 3
    assert server.connections == 1
    assert all((record.finished_ns or 0) - record.chunk_ns[-1] < 15_000_000 for record in records)


def test_a_request_that_is_cancelled_after_done_is_complete() -> None:
    async def main() -> RequestRecord:
        async with wire((*GOOD[:-1], 60.0)) as server, Client(server.url, timeout_s=None) as client:
            task = asyncio.create_task(sent(client))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            task.cancel()
            return await task

    assert on_uvloop(main()).error is None


def test_tokens_without_text_are_timed_where_they_are() -> None:
    """Two before the text, two after it, and the one that ends the answer."""
    text = [step for word in "abcd" for step in (token(word), 0.01)]
    empty: Sequence[Step] = (token(""), 0.01)
    usage = USAGE.replace(b":3", b":9")
    (record,), _ = one((HEAD, ROLE, *empty, *empty, *text, *empty, *empty, token("", '"stop"'), usage, DONE, END))
    assert (record.error, record.output_tokens, record.tokens_without_chunk) == (None, 9, 0)
    assert all(b - a > 5_000_000 for a, b in pairwise(record.chunk_ns)), "each has its own instant"
    assert (record.first_token_ns, record.last_token_ns) == (record.chunk_ns[0], record.chunk_ns[-1])


def test_tokens_that_no_chunk_holds_came_before_the_answers_end() -> None:
    usage = USAGE.replace(b":3", b":9")
    (record,), _ = one((HEAD, ROLE, token("a"), token("b"), 0.05, FINISH, usage, DONE, END))
    assert (len(record.chunk_ns), record.tokens_without_chunk) == (2, 7)
    assert (record.last_token_ns or 0) - record.chunk_ns[-1] > 40_000_000
    assert (record.last_token_ns or 0) <= (record.finished_ns or 0)


def test_zeros_beside_content_are_no_count() -> None:
    zeros = USAGE.replace(b":7", b":0").replace(b":3", b":0")
    (record,), _ = one((HEAD, token("a"), zeros, FINISH, DONE, END))
    assert (record.input_tokens, record.output_tokens, record.token_source) == (None, 1, "chunks")


def test_without_usage_we_count_chunks_and_say_so() -> None:
    (record,), _ = one((HEAD, ROLE, token("a"), token("b"), FINISH, DONE, END))
    assert (record.input_tokens, record.output_tokens, record.token_source) == (None, 2, "chunks")


ERROR = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


def http(status: bytes, body: bytes) -> Sequence[Step]:
    return (ERROR % (status, len(body), body),)


FAULTS: list[tuple[str, Sequence[Step], str, str]] = [
    ("500", http(b"500 Internal Server Error", b'{"error":{"message":"boom"}}'), "http", "boom"),
    ("503", http(b"503 Service Unavailable", b"busy"), "http", "busy"),
    ("429", http(b"429 Too Many Requests", b'{"detail":"slow down"}'), "http", "slow down"),
    ("reset before an answer", ("reset",), "connect", "Disconnected"),
    ("closed before an answer", ("close",), "connect", "Disconnected"),
    ("closed in the body", (HEAD, token("a"), "close"), "truncated", ""),
    ("reset in the body", (HEAD, token("a"), "reset"), "truncated", ""),
    ("ends early but cleanly", (HEAD, token("a"), token("b"), END), "truncated", "after 2 chunks"),
    ("ends before anything", (HEAD, END), "truncated", "after 0 chunks"),
    ("half a JSON event", (HEAD, chunk(b'data: {"choices":[{"del\n\n'), DONE, END), "protocol", "not of the API"),
    ("error event", (HEAD, token("a"), chunk(b'data: {"error":{"message":"oom"}}\n\n'), DONE, END), "server", "oom"),
    ("not a stream", http(b"200 OK", b'{"choices":[]}'), "protocol", "application/json"),
    ("an error as JSON", http(b"200 OK", b'{"error":{"message":"no room"}}'), "server", "no room"),
    ("[DONE] alone", (HEAD, DONE, END), "server", "without a token"),
    ("aborted", (HEAD, token("a"), token("", '"abort"'), USAGE, DONE, END), "server", "finish_reason abort"),
    (
        "event: error in pieces",
        (HEAD, token("a"), chunk(b"event: error\n"), 0.01, chunk(b"data: no room\n\n"), DONE, END),
        "server",
        "no room",
    ),
    ("not HTTP", (b"SSH-2.0-OpenSSH_9.2\r\n", "close"), "protocol", ""),
    ("bad chunk length", (HEAD, b"zz\r\nhello\r\n", "close"), "protocol", "chunk size"),
    ("a stream that stalls", (HEAD, token("a"), 60.0), "timeout", "0.2 s"),
    ("silence", (60.0,), "timeout", "0.2 s"),
]


@pytest.mark.parametrize(("name", "script", "kind", "detail"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults_are_records(name: str, script: Sequence[Step], kind: str, detail: str) -> None:
    (record,), _ = one(script, timeout_s=0.2 if kind == "timeout" else 5)
    assert record.error == kind, record.detail
    assert detail in (record.detail or "")
    assert record.finished_ns is not None
    assert record.sent_ns is not None


@pytest.mark.parametrize(("name", "script", "kind", "detail"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults_on_a_kept_connection_are_records(name: str, script: Sequence[Step], kind: str, detail: str) -> None:
    good, bad = one(lambda n: script if n else GOOD, times=2, timeout_s=0.2 if kind == "timeout" else 5)[0]
    assert good.error is None
    assert bad.error == kind, bad.detail
    assert detail in (bad.detail or "")
    assert bad.finished_ns is not None
    assert bad.sent_ns is not None


def test_each_request_has_its_own_time_limit() -> None:
    """They begin one after another, and run out one after another: the first takes nobody with it."""

    async def main() -> list[RequestRecord]:
        slow: Sequence[Step] = (HEAD, token("a"), 60.0)
        async with (
            wire(lambda n: slow if n in (2, 3) else GOOD) as server,
            Client(server.url, timeout_s=0.3) as client,
        ):
            await asyncio.gather(sent(client), sent(client))
            first = asyncio.ensure_future(sent(client))
            await asyncio.sleep(0.15)
            return [*await asyncio.gather(first, sent(client)), await sent(client)]

    first, second, third = on_uvloop(main())
    assert (first.error, second.error, third.error) == ("timeout", "timeout", None)
    assert (first.finished_ns or 0) < (second.finished_ns or 0) - 50_000_000


def test_a_fault_of_our_own_in_one_answer_is_a_record_and_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = stream.parse_event

    def broken(data: bytes) -> StreamEvent:
        return parse(data) if b"poison" not in data else {}["a bug"]

    monkeypatch.setattr("loadgen.client.stream.parse_event", broken)

    async def main() -> list[RequestRecord]:
        bad: Sequence[Step] = (HEAD, token("poison"), 60.0)
        async with wire(lambda n: bad if n == 1 else GOOD) as server, Client(server.url, timeout_s=5) as client:
            return [await sent(client), *await asyncio.gather(sent(client), sent(client), sent(client))]

    errors = sorted(str(record.error) for record in on_uvloop(main()))
    assert errors == ["None", "None", "None", "truncated"]


def test_an_answer_longer_than_a_read_comes_whole_though_nothing_follows_it() -> None:
    """All of it is there before the client reads: nothing new will tell that some was left."""

    async def main() -> RequestRecord:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            async with Client("http://{}:{}".format(*listening.getsockname()), timeout_s=5) as client:
                exchange = asyncio.ensure_future(sent(client))
                far, _ = await asyncio.to_thread(listening.accept)
                with far:
                    await asyncio.to_thread(far.recv, 1000)
                    stream = b"".join([HEAD, token("a" * 150_000), FINISH, DONE, END])
                    threading.Thread(target=far.sendall, args=(stream,)).start()
                    time.sleep(0.1)  # the loop's own thread
                    return await exchange

    record = on_uvloop(main())
    assert (record.error, len(record.chunk_ns)) == (None, 1)


def test_where_one_address_refuses_the_next_is_asked_and_when_all_do_they_are_looked_up_again(transport: str) -> None:
    if transport == "aiohttp":
        pytest.skip("aiohttp has its own")

    async def main() -> tuple[list[RequestRecord], int]:
        async with wire(GOOD) as server, Client(server.url, timeout_s=5) as client:
            await sent(client)
            (good,) = client._pool.addresses
            client._pool.idle.clear()
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                refusing = (socket.AF_INET, nobody.getsockname())
                client._pool.addresses = [refusing, good]
                two = await asyncio.gather(sent(client), sent(client))
                left = len(client._pool.addresses)
                client._pool.addresses = [refusing]
                client._pool.idle.clear()
                return [*two, await sent(client), await sent(client)], left

    records, left = on_uvloop(main())
    assert [record.error for record in records] == [None, None, "connect", None]
    assert "refused" in (records[2].detail or "")
    assert records[2].sent_ns is None
    assert left == 1


def test_a_failed_request_keeps_what_it_saw() -> None:
    (record,), _ = one((HEAD, ROLE, token("a"), token("b"), "close"))
    assert (record.error, len(record.chunk_ns), record.output_tokens, record.token_source) == (
        "truncated",
        2,
        2,
        "chunks",
    )


SIX: Sequence[Step] = (HEAD, ROLE, *(step for word in "abcdef" for step in (token(word), 0.01)))
"""Tokens in reads of their own: from the third or so on they are known by their shape."""


@pytest.mark.parametrize(
    ("end", "error", "chunks"),
    [
        ([token("g", '"length"'), USAGE, DONE, END], None, 7),
        ([token("g")[:30], 0.02, token("g")[30:], token("h"), 0.02, token("i") + FINISH + DONE + END], None, 9),
        ([token("g") * 1000, FINISH, DONE, END], None, 1006),
        ([token("\\u00e9"), 0.01, token(""), 0.01, token("é"), 0.01, FINISH, DONE, END], None, 8),
        ([chunk(b'data: {"choi\n\n')], "protocol", 6),
        ([chunk(b'data: {"error":{"message":"oom"}}\n\n')], "server", 6),
        ([token("g")[:30], 0.02, "close"], "truncated", 6),
        (["close"], "truncated", 6),
        (["reset"], "truncated", 6),
        ([60.0], "timeout", 6),
    ],
)  # fmt: skip
def test_whatever_comes_after_some_tokens_they_and_it_are_in_the_record(
    end: Sequence[Step], error: str | None, chunks: int
) -> None:
    (good, record), _ = one(lambda n: [*SIX, *end] if n else GOOD, times=2, timeout_s=0.5 if error == "timeout" else 5)
    assert good.error is None
    assert (record.error, len(record.chunk_ns)) == (error, chunks)
    times = [record.sent_ns, *record.chunk_ns, record.finished_ns]
    assert times == sorted(times, key=lambda t: t or 0)
    assert all(b - a > 5_000_000 for a, b in pairwise(record.chunk_ns[:6])), "each has its own instant"


def test_nobody_listens() -> None:
    async def main() -> RequestRecord:
        async with Client("http://127.0.0.1:1/v1", timeout_s=5) as client:
            return await sent(client)

    record = on_uvloop(main())
    assert (record.error, record.status) == ("connect", None)


def test_connections_are_reused() -> None:
    records, server = one(GOOD, times=5)
    assert [record.error for record in records] == [None] * 5
    assert server.connections == 1


def test_a_pooled_connection_that_died_is_replaced() -> None:
    """llama.cpp announces keep-alive and closes after every stream."""
    records, server = one((*GOOD, "close"), times=3)
    assert [record.error for record in records] == [None] * 3
    assert len(server.requests) == 3


def test_a_fresh_connection_that_dies_is_not_tried_twice() -> None:
    (record,), server = one(("close",))
    assert record.error == "connect"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("begun", "after_s", "kept", "chunks"),
    [((HEAD, token("a")), 0.1, False, 1), ((HEAD, token("a")), 0.1, True, 1), (SIX, 0.3, False, 6)],
)
def test_cancelled_is_a_record(begun: Sequence[Step], after_s: float, kept: bool, chunks: int) -> None:
    """On a new connection or a kept one, and with the tokens so far."""

    async def main() -> RequestRecord:
        async with (
            wire(lambda n: GOOD if kept and n == 0 else (*begun, 60.0)) as server,
            Client(server.url, timeout_s=None) as client,
        ):
            if kept:
                await sent(client)
            task = asyncio.create_task(sent(client))
            await asyncio.sleep(after_s)
            task.cancel()
            return await task

    record = on_uvloop(main())
    assert (record.error, len(record.chunk_ns)) == ("cancelled", chunks)


def test_a_body_that_no_socket_takes_at_once_arrives_whole() -> None:
    bodies = [bytes([65 + i]) * (12 << 20) for i in range(2)]

    async def main() -> tuple[list[RequestRecord], Wire]:
        async with wire(GOOD) as server, Client(server.url, timeout_s=20) as client:
            return [await client.post("/x", body, workload="long") for body in bodies], server

    records, server = on_uvloop(main())
    assert [record.error for record in records] == [None, None]
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == bodies
    assert server.connections == 1


def test_secrets_are_sent_but_not_kept() -> None:
    said = b'{"error":{"message":"Incorrect API key provided: sk-secret-1; tenant my-tenant-token unknown"}}'
    (record,), server = one(
        http(b"401 Unauthorized", said), api_key="sk-secret-1", headers={"X-Tenant": "my-tenant-token"}
    )
    assert b"Bearer sk-secret-1" in server.requests[0]
    assert record.detail == "401 Unauthorized: Incorrect API key provided: [redacted]; tenant [redacted] unknown"


def test_the_headers_of_one_request_are_secrets_of_its_record() -> None:
    said = b'{"error":{"message":"no such key: sk-of-the-line"}}'

    async def main() -> RequestRecord:
        async with wire(http(b"401 Unauthorized", said)) as server, Client(server.url, timeout_s=5) as client:
            return await client.post("/x", b"{}", workload="w", headers={"Authorization": "Bearer sk-of-the-line"})

    assert on_uvloop(main()).detail == "401 Unauthorized: no such key: [redacted]"


def test_every_split_of_a_stream_gives_the_same_record() -> None:
    body = b"".join(step for step in GOOD if isinstance(step, bytes))

    async def main() -> list[RequestRecord]:
        cuts = range(len(HEAD), len(body), 7)
        async with (
            wire(lambda n: (body[: cuts[n]], 0.0, body[cuts[n] :])) as server,
            Client(server.url, timeout_s=5) as client,
        ):
            return [await sent(client, 0) for _ in cuts]

    for record in on_uvloop(main()):
        assert (record.error, len(record.chunk_ns), record.output_tokens, record.finish_reason) == (
            None,
            3,
            3,
            "length",
        )


def test_a_redirect_is_followed(transport: str) -> None:
    """307 keeps method and body. The plain way to the server gives up at the first one, before it counts."""
    moved = b"HTTP/1.1 307 Moved\r\nLocation: /v1/elsewhere\r\nContent-Length: 0\r\n\r\n"
    gives = [moved, GOOD] if transport == "aiohttp" else [moved, moved, GOOD]
    (record,), server = one(lambda n: (moved,) if gives[n] is moved else GOOD)
    assert (record.error, len(record.chunk_ns)) == (None, 3)
    assert server.requests[-1].startswith(b"POST /v1/elsewhere")
    assert server.requests[-1].endswith(b"{}")


def fetched(
    script: Sequence[Step] | Callable[[int], Sequence[Step]], body: bytes | None = None
) -> tuple[FetchedPage, Wire]:
    async def main() -> tuple[FetchedPage, Wire]:
        async with wire(script) as server, Client(server.url + "/v1", timeout_s=5) as client:
            return await client.fetch(server.url + "/v1/models", body, timeout_s=0.5), server

    return on_uvloop(main())


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(("body", "method"), [(None, b"GET"), (b"[1]", b"POST")])
def test_a_page_is_fetched(body: bytes | None, method: bytes) -> None:
    page, server = fetched((PAGE,), body)
    assert page == (200, b"{}", None)
    assert server.requests[0].startswith(method + b" /v1/models HTTP/1.1\r\n")
    assert server.requests[0].endswith(body or b"\r\n\r\n")


def test_a_page_of_an_error_a_page_in_pieces_and_one_elsewhere() -> None:
    assert fetched(http(b"404 Not Found", b"no"))[0] == (404, b"no", None)
    pieces = PAGE.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]
    assert fetched((pieces, b"1\r\n{", 0.02, b"\r\n1\r\n}\r\n0\r\n\r\n"))[0] == (200, b"{}", None)
    page, server = fetched((b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",))
    assert page == (307, b"", server.url + "/there")


@pytest.mark.parametrize(
    ("script", "error"),
    [(("close",), HTTPError), ((PAGE[:-1], "close"), HTTPError), ((b"SSH-2.0\r\n", "close"), HTTPError),
     ((60.0,), TimeoutError), ((PAGE.replace(b": 2", b": 9000000"), b"x" * 9_000_000), HTTPError)],
    ids=["closed", "cut", "not HTTP", "silent", "endless"],
)  # fmt: skip
def test_a_page_that_cannot_be_fetched_says_why(script: Sequence[Step], error: type[Exception]) -> None:
    with pytest.raises(error):
        fetched(script)


def test_a_page_of_nobody() -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = "http://{}:{}".format(*nobody.getsockname())
            async with Client(url, timeout_s=5) as client:
                await client.fetch(url + "/models", timeout_s=5)

    with pytest.raises(OSError) as failed:
        on_uvloop(main())
    assert failed.value.errno == errno.ECONNREFUSED


def test_a_pooled_connection_that_died_does_not_spoil_a_page() -> None:
    async def main() -> list[FetchedPage]:
        async with (
            wire(lambda n: (PAGE, *(("close",) if n == 0 else ()))) as server,
            Client(server.url, timeout_s=5) as client,
        ):
            pages = [await client.fetch(server.url + "/x", timeout_s=1)]
            return [*pages, await client.fetch(server.url + "/x", timeout_s=1)]

    assert on_uvloop(main()) == [(200, b"{}", None)] * 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_over_tls_a_good_certificate_serves_and_a_bad_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def main() -> RequestRecord:
        async with wire(GOOD, context) as server:
            url = server.url.replace("http://127.0.0.1", "https://localhost")
            async with Client(url, timeout_s=5) as client:
                with pytest.raises(LoadgenError, match="certificate"):
                    await find_model(client, "m")
            monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=cert))
            async with Client(url, timeout_s=5) as client:
                return await sent(client)

    record = on_uvloop(main())
    assert (record.error, len(record.chunk_ns)) == (None, 3)


def test_what_is_not_plain_goes_the_other_way() -> None:
    proxy = Proxy("http://proxy:3128", "http_proxy")
    for url in ("http://localhost:8000/v1", "http://me:secret@h/v1", "http://h/v1?key=x", "http://h/a b", "http://é/v1",
                "http://[::1]:8000"):  # fmt: skip
        assert is_plain(parse_server_url(url), {"X-Tenant": "a b"}, None), url
        assert not is_plain(parse_server_url(url), {}, proxy), url
    assert not is_plain(parse_server_url("https://localhost/v1"), {}, None)
    for headers in ({"Host": "x"}, {"accept-encoding": "gzip"}, {"A": "b\r\nC: d"}, {"A": "é"}, {"a b": "c"}):
        assert not is_plain(parse_server_url("http://localhost/v1"), headers, None), headers


LOGINS = [
    ("http://{}/v1", {}, None, None, None),
    ("http://{}/v1", {}, "sk-1", None, "Bearer sk-1"),
    ("http://{}/v1", {}, None, "me pw", "Basic bWU6cHc="),
    ("http://{}/v1", {}, "sk-1", "me pw", "Bearer sk-1"),
    ("http://you:p%40w@{}/v1", {}, "sk-1", "me pw", "Basic eW91OnBAdw=="),
    ("http://you@{}/v1", {}, None, None, "Basic eW91Og=="),
    ("http://you:p%40w@{}/v1", {"authorization": "Basic abc="}, "sk-1", "me pw", "Basic abc="),
    ("http://{}/v1", {"AUTHORIZATION": "Basic abc="}, "sk-1", "me pw", "Basic abc="),
]


@pytest.mark.parametrize(("url", "headers", "api_key", "netrc", "sent_login"), LOGINS)
def test_the_most_explicit_login_is_sent_and_once(
    url: str, headers: dict[str, str], api_key: str | None, netrc: str | None, sent_login: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if netrc:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login {} password {}\n".format(*netrc.split()))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def main() -> bytes:
        async with wire(GOOD) as server:
            address = server.url.removeprefix("http://")
            async with Client(url.format(address), headers=headers, api_key=api_key, timeout_s=5) as client:
                assert (await sent(client)).error is None
            return server.requests[0]

    lines = on_uvloop(main()).decode().split("\r\n")
    logins = [line.partition(": ")[2] for line in lines if line.lower().startswith("authorization:")]
    assert logins == ([sent_login] if sent_login else [])


def test_a_header_of_the_user_takes_the_place_of_the_clients_own() -> None:
    _, server = one(GOOD, headers={"accept": "text/plain", "X-A": "b"})
    lines = [line.lower() for line in server.requests[0].decode().split("\r\n")]
    assert [line for line in lines if line.startswith("accept:")] == ["accept: text/plain"]
    assert "x-a: b" in lines


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_makes_a_post_a_get_is_an_error(status: int, transport: str) -> None:
    moved = f"HTTP/1.1 {status} Moved\r\nLocation: /v1/elsewhere\r\nContent-Length: 0\r\n\r\n".encode()
    posts = 1 if transport == "aiohttp" else 2
    (record,), server = one(lambda n: (moved,) if n < posts else GOOD)
    assert (record.error, record.detail) == ("http", f"{status}: a redirect that turns POST into GET")
    assert server.requests[-1].startswith(b"GET /v1/elsewhere")


def test_a_redirect_to_another_host_is_an_error_and_takes_no_header_there(transport: str) -> None:
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://other.invalid/v1\r\nContent-Length: 0\r\n\r\n"
    (record,), _ = one((moved,))
    assert (record.error, record.detail) == (
        "http",
        "307: a redirect to another host (other.invalid), which is not followed",
    )


def test_requests_of_no_schedule_have_ids_of_their_own() -> None:
    async def main() -> list[bytes]:
        async with wire(GOOD) as server:
            for _ in range(2):
                async with Client(server.url, timeout_s=5) as client:
                    for workload in ("probe", "probe", "warmup"):
                        await client.post("/x", b"{}", workload=workload)
            return server.requests

    ids = re.findall(rb"(?i)x-request-id: (\S+)", b"".join(on_uvloop(main())))
    assert len(set(ids)) == len(ids) == 6


def test_a_cancellation_is_never_lost() -> None:
    """Cancelled in the very step in which its record is complete, a request ends the task that waits for it."""

    async def main() -> None:
        async with wire(GOOD) as server, Client(server.url, timeout_s=5) as client:
            complete = client._complete

            def complete_and_cancel(exchange: Exchange, error: BaseException | None) -> None:
                complete(exchange, error)
                task.cancel()

            client._complete = complete_and_cancel  # type: ignore[method-assign]
            task = asyncio.create_task(client.post("/x", b"{}", workload="chat"))
            with pytest.raises(asyncio.CancelledError):
                await task

    on_uvloop(main())
