"""A small request ends in time, of limited size, and without its credentials in any message."""

import http.client
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from threading import Thread
from time import sleep
from urllib.parse import urlsplit

import pytest

from loadgen.errors import MeterError
from loadgen.http_get import BodyTooLargeError, HttpClient, PageClient, base_path, http_get, public_url


@contextmanager
def serving(*responses: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each request with the next response, over one connection until an empty response closes it."""
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def play() -> None:
        remaining = list(responses)
        while remaining:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with connection:
                while remaining and (request := connection.recv(65536)):
                    requests.append(request)
                    if not (response := remaining.pop(0)):
                        break
                    connection.sendall(response)

    thread = Thread(target=play)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        thread.join(10)
        listener.close()


@contextmanager
def closing_after(response: bytes, connections: int = 1) -> Iterator[str]:
    """Answer one request over each connection, and close it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def play() -> None:
            for _ in range(connections):
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(response)

        thread = Thread(target=play)
        thread.start()
        yield "http://{}:{}".format(*listener.getsockname())
        thread.join(10)


def page(body: bytes, status: bytes = b"200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_page_has_status_fields_and_body() -> None:
    with serving(page(b"hello", b"404 Not Found", b"X-Simulated: true\r\n")) as (url, requests):
        response = http_get(url + "/a/b?since=7", headers={"Authorization": "Bearer t"})
    assert (response.status, response.body, response.headers.get("x-simulated")) == (404, b"hello", "true")
    assert response.sent_ns <= response.received_ns
    assert requests[0].startswith(b"GET /a/b?since=7 HTTP/1.1\r\n")
    assert b"Authorization: Bearer t\r\n" in requests[0]


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (HEAD + b"content-LENGTH:  4 \r\n\r\nfour", 200, b"four"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\nA ;x=y\r\n0123456789\r\n0\r\nT: x\r\n\r\n", 200,
         b"four0123456789"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + page(b"four"), 200, b"four"),
        (b"HTTP/1.1 204\r\n\r\n", 204, b""),
        (b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 2\r\n\r\nno", 302, b"no"),
        (b"HTTP/1.1 500 \r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", 500, b""),
        (b"HTTP/1.1 200 OK\nContent-Length: 4\n\nfour", 200, b"four"),
    ],
)  # fmt: skip
def test_a_body_ends_where_its_head_says_and_the_connection_is_kept(response: bytes, status: int, body: bytes) -> None:
    with serving(response, page(b"next")) as (url, requests):
        client = HttpClient(urlsplit(url))
        first = client.request("GET", "/")
        assert (first.status, first.body, client.request("GET", "/").body) == (status, body, b"next")
        client.close()
    assert len(requests) == 2


@pytest.mark.parametrize(
    "response",
    [HEAD + b"\r\nfour", b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nfour",
     HEAD + b"Connection: close\r\nContent-Length: 4\r\n\r\nfour"],
)  # fmt: skip
def test_a_body_may_end_with_its_connection_and_the_next_request_opens_another(response: bytes) -> None:
    with closing_after(response, connections=2) as url:
        client = HttpClient(urlsplit(url))
        assert [client.request("GET", "/").body, client.request("GET", "/").body] == [b"four", b"four"]
        client.close()


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
@pytest.mark.parametrize("extra", [b"\r\n", page(b"stale"), page(b"", b"408 Request Timeout")])
def test_what_a_server_sends_after_a_response_answers_no_later_request(extra: bytes, pause_s: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def play() -> None:
            for body in (b"first", b"second"):
                connection, _ = listener.accept()
                connection.settimeout(10)
                with connection:
                    connection.recv(65536)
                    parts = [page(body), extra] if pause_s else [page(body) + extra]
                    for part in parts:
                        connection.sendall(part)
                        sleep(pause_s)
                    with suppress(ConnectionResetError):
                        connection.recv(65536)

        thread = Thread(target=play, daemon=True)
        thread.start()
        client = HttpClient(urlsplit("http://{}:{}".format(*listener.getsockname())))
        assert client.request("GET", "/").body == b"first"
        sleep(2 * pause_s)
        assert client.request("GET", "/").body == b"second"
        client.close()
        thread.join(10)


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK",
        HEAD + b"Content-Length: 4\r\n",
        HEAD + b"Content-Length: -4\r\n\r\nfour",
        HEAD + b"Content-Length: 5\r\n\r\nfour",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfour\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-4\r\nfour\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nfour\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n",
        HEAD + b"X: " + b"y" * (1 << 17) + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 200,
    ],
)
def test_what_breaks_off_or_is_no_response_is_an_error(response: bytes) -> None:
    with closing_after(response) as url, pytest.raises(http.client.HTTPException):
        http_get(url + "/")


def test_a_connection_is_kept_and_a_body_may_be_posted() -> None:
    with serving(page(b"1"), page(b"2")) as (url, requests):
        client = HttpClient(urlsplit(url))
        assert client.request("GET", "/x").body == b"1"
        assert client.request("POST", "/y", b"data").body == b"2"
        client.close()
    assert requests[1].startswith(b"POST /y HTTP/1.1\r\n")
    assert requests[1].endswith(b"\r\n\r\ndata")


@pytest.mark.parametrize(("size", "allowed"), [(1 << 20, True), ((1 << 20) + 1, False)])
def test_a_body_may_be_as_long_as_the_limit(size: int, allowed: bool) -> None:
    with serving(page(b"x" * size)) as (url, _):
        if allowed:
            assert len(http_get(url + "/", max_body_bytes=1 << 20).body) == size
        else:
            with pytest.raises(BodyTooLargeError, match="more than 1 MiB"):
                http_get(url + "/", max_body_bytes=1 << 20)


def test_after_a_failure_the_next_request_opens_another_connection() -> None:
    with serving(b"SSH-2.0\r\n", b"", page(b"fine")) as (url, _):
        client = HttpClient(urlsplit(url))
        for _ in range(2):
            with pytest.raises((http.client.HTTPException, OSError)):
                client.request("GET", "/")
        assert client.request("GET", "/").body == b"fine"
        client.close()


def test_silence_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError):
        http_get("http://{}:{}/".format(*listener.getsockname()), timeout_s=0.05)


def test_instants_are_those_of_the_clock_given() -> None:
    ticks = count(10)
    with serving(page(b"")) as (url, _):
        client = HttpClient(urlsplit(url), clock=lambda: next(ticks))
        response = client.request("GET", "/")
        client.close()
    assert (response.sent_ns, response.received_ns) == (10, 11)


def test_a_page_is_read_once_more_if_the_server_had_closed_the_connection() -> None:
    with serving(page(b"1"), b"", page(b"2")) as (url, requests):
        client = PageClient(url + "/metrics", None, lambda: 0)
        assert [client.get("/metrics").body, client.get("/metrics").body] == [b"1", b"2"]
        client.close()
    assert len(requests) == 3


def test_a_page_that_is_closed_twice_is_an_error_that_names_the_address_only() -> None:
    with serving(b"", b"") as (url, requests):
        client = PageClient(url.replace("//", "//me:secret@"), None, lambda: 0)
        with pytest.raises(MeterError, match=rf"^{url} cannot be read: RemoteDisconnected$"):
            client.get("/energy?since=0")
        client.close()
    assert len(requests) == 2
    assert b"Authorization: Basic bWU6c2VjcmV0\r\n" in requests[0]


def test_a_token_takes_the_place_of_the_login() -> None:
    with serving(page(b"")) as (url, requests):
        client = PageClient(url.replace("//", "//me:secret@"), "tok", lambda: 0)
        client.get("/energy")
        client.close()
    assert b"Authorization: Bearer tok\r\n" in requests[0]
    assert b"Basic" not in requests[0]


@pytest.mark.parametrize("token", ["caf\u00e9", "a\nb", "a\x7f"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_repeated(token: str) -> None:
    with pytest.raises(MeterError, match="token holds characters") as refused:
        PageClient("http://h", token, lambda: 0)
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "token"),
    [("http://a..b/", "t"), ("http://\udcff/", "t"), ("{}/\u00fc", "t"), ("{}/a b", "t"), ("{}/", "secret\n"),
     ("{}/", "secret\u20ac")],
)  # fmt: skip
def test_what_cannot_be_sent_is_an_error_of_the_request_and_is_not_repeated(url: str, token: str) -> None:
    with serving() as (served, _), pytest.raises(http.client.InvalidURL) as refused:
        http_get(url.format(served), headers={"Authorization": token})
    assert "secret" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "begin",
    [b"HTT", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"],
    ids=["status", "header", "body"],
)
def test_a_response_that_comes_byte_by_byte_ends_in_time(begin: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(begin)
                while True:
                    connection.sendall(b"x")
                    sleep(0.002)

        thread = Thread(target=trickle)
        thread.start()
        with pytest.raises(TimeoutError):
            http_get("http://{}:{}/".format(*listener.getsockname()), timeout_s=0.02)
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("url", "reason"),
    [("ftp://me:secret@h/x", "'ftp://h/x' is no http"), ("http://h:0", "is no http"), ("http:///x", "is no http"),
     ("http://h:99999", "malformed"), ("http://[::1", "malformed")],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str, reason: str) -> None:
    with pytest.raises(MeterError, match=reason) as refused:
        PageClient(url, None, lambda: 0)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "public"),
    [("http://h/x", "http://h/x"), ("https://me:pw@h:1/x?token=t#f", "https://h:1/x"), ("http://[::1]:9", "http://[::1]:9")],
)  # fmt: skip
def test_a_public_url_has_address_and_path_only(url: str, public: str) -> None:
    assert public_url(urlsplit(url)) == public


@pytest.mark.parametrize(
    ("path", "base"),
    [("", ""), ("/", ""), ("/v1", ""), ("/v1/", ""), ("/metrics", ""), ("/energy", ""), ("/a/v1", "/a"),
     ("/a/metrics/", "/a"), ("/v1/metrics", "/v1"), ("/metrics/v1", ""), ("/v10", "/v10")],
)  # fmt: skip
def test_pages_are_below_the_path_that_users_give_for_the_api_or_a_page(path: str, base: str) -> None:
    assert base_path(path) == base
