"""The blocking client against real sockets: the same records as the other client, whatever the server does."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from loadgen.client.blocking_client import BlockingClient
from loadgen.record import RequestRecord
from loadgen.telemetry.traceparent import traceparent

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


def chunks(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


WHOLE = HEAD + chunks(*EVENTS) + b"0\r\n\r\n"


@contextmanager
def server(*answers: bytes, keep: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """Answers each request with the next of `answers`; closes the connection after each unless told to keep it."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def play() -> None:
        left = list(answers)
        while left:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with connection:
                while left and (request := connection.recv(65536)):
                    asked.append(request)
                    connection.sendall(left.pop(0))
                    if not keep:
                        break

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", asked
    finally:
        thread.join(10)
        listener.close()


def send(client: BlockingClient, on_cancelled: Callable[[RequestRecord], None] = lambda record: None) -> RequestRecord:
    return client.send("/chat/completions", b"{}", index=3, workload="chat", scheduled_ns=5, request_id="run-3",
                       on_cancelled=on_cancelled)  # fmt: skip


def client(url: str, timeout_s: float = 10.0) -> BlockingClient:
    return BlockingClient(url, api_key="sk-secret-key", timeout_s=timeout_s)


def once(url: str, timeout_s: float = 10.0) -> RequestRecord:
    with closing(client(url, timeout_s)) as one:
        return send(one)


def test_a_stream_becomes_a_record() -> None:
    with server(WHOLE) as (url, asked):
        record = once(url)
    assert record.ok and record.finish_reason == "stop"
    assert (record.index, record.workload, record.scheduled_ns) == (3, "chat", 5)
    assert (record.input_tokens, record.output_tokens, record.token_source) == (7, 2, "usage")
    assert len(record.chunk_ns) == 2, "a role-only chunk is no token"
    assert record.sent_ns and record.first_token_ns and record.finished_ns
    assert record.sent_ns < record.first_token_ns <= record.finished_ns
    head = asked[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"\r\ntraceparent: {traceparent('run-3')}\r\n".encode() in head
    assert b"X-Request-Id: run-3" in head and b"Authorization: Bearer sk-secret-key" in head


def test_a_connection_is_used_again_and_a_dead_one_replaced() -> None:
    with server(WHOLE, WHOLE, keep=True) as (url, asked), closing(client(url)) as one:
        assert send(one).ok and send(one).ok
    # Closes after each answer, while announcing keep-alive.
    with server(WHOLE, WHOLE) as (url, asked), closing(client(url)) as one:
        assert send(one).ok and send(one).ok
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (HEAD + chunks(*EVENTS[:2]), "truncated", "the server ended the connection"),
        (HEAD + chunks(*EVENTS[:2]) + b"0\r\n\r\n", "truncated", "after 1 chunks with no finish reason"),
        (HEAD + chunks(b"data: {oops\n\n"), "protocol", "not of the API"),
        (HEAD + chunks(b'data: {"error":{"message":"out of memory"}}\n\n'), "server", "out of memory"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "http", "503 Busy: busy"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "protocol", "no redirect"),
        (b"hello\r\n\r\n", "protocol", "not an HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "protocol", "text/html"),
        (b"", "connect", "the server ended the connection"),
    ],
)
def test_what_goes_wrong_is_data(answer: bytes, error: str, words: str) -> None:
    with server(answer) as (url, _):
        record = once(url)
    assert record.error == error and record.detail and words in record.detail


@pytest.mark.parametrize("rest", [b"", chunks(*EVENTS[1:2]), b"5\r\nda", b"zz\r\n"])
def test_done_ends_a_request_though_the_body_stays_open(rest: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    left: list[bytes] = []

    def play() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            connection.recv(65536)
            connection.sendall(WHOLE[:-5] + rest)
            left.append(connection.recv(1))

    thread = threading.Thread(target=play)
    thread.start()
    record = once(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    thread.join(10)
    listener.close()
    assert record.ok and len(record.chunk_ns) == 2, record.detail
    assert left == [b""], "what the connection still holds would be taken for the next answer"


def test_a_key_that_a_server_quotes_is_not_repeated() -> None:
    body = b"bad key sk-secret-key"
    with server(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)) as (url, _):
        record = once(url)
    assert record.detail == "401 No: bad key [redacted]"


def test_a_refused_connection_and_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        silent = once(url, timeout_s=0.2)
    assert (silent.error, silent.detail) == ("timeout", "no end after 0.2 s")
    refused = once(url)
    assert refused.error == "connect" and refused.sent_ns is None


def test_who_is_killed_while_it_waits_says_what_it_had_and_hangs_up() -> None:
    class KilledError(BaseException):
        """As gevent's GreenletExit is one."""

    def kill(*_: object) -> None:
        raise KilledError

    listener = socket.create_server(("127.0.0.1", 0))
    hung_up = threading.Event()

    def play() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(HEAD + chunks(*EVENTS[:2]))
            time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            if connection.recv(1) == b"":
                hung_up.set()

    halves: list[RequestRecord] = []
    before = signal.signal(signal.SIGUSR1, kill)
    thread = threading.Thread(target=play)
    thread.start()
    try:
        with pytest.raises(KilledError), closing(client(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")) as one:
            send(one, halves.append)
    finally:
        thread.join(10)
        signal.signal(signal.SIGUSR1, before)
        listener.close()
    assert [(half.error, half.output_tokens) for half in halves] == [("cancelled", 1)]
    assert hung_up.is_set(), "a server stops generating when its client is gone"


@pytest.mark.parametrize(
    ("change", "api_key", "target", "login"),
    [
        (lambda url: url, "sk-1", b"/v1/x", b"Bearer sk-1"),
        (lambda url: url + "/?api-version=1", None, b"/v1/x?api-version=1", None),
        (lambda url: url.replace("//", "//me:p%40w@"), "sk-1", b"/v1/x", b"Basic bWU6cEB3"),
    ],
    ids=["a key", "a query", "a login"],
)
def test_query_and_login_of_the_url_go_where_the_other_client_sends_them(
    change: Callable[[str], str], api_key: str | None, target: bytes, login: bytes | None
) -> None:
    with (
        server(WHOLE) as (url, asked),
        closing(BlockingClient(change(url), api_key=api_key, timeout_s=5)) as client,
    ):
        record = client.send(
            "/x", b"{}", index=0, workload="chat", scheduled_ns=0, request_id="r-0", on_cancelled=lambda record: None
        )
    assert record.error is None
    lines = asked[0].split(b"\r\n")
    assert lines[0] == b"POST " + target + b" HTTP/1.1"
    logins = [line.partition(b": ")[2] for line in lines if line.startswith(b"Authorization")]
    assert logins == ([login] if login else [])
