"""The framing of a small HTTP response, and the limits of what is read of it."""

import http.client
import re
import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from loadgen.http_response import MAX_HEAD_BYTES, Framing, Incoming, framing_of, read_head

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def incoming() -> Iterator[tuple[Incoming, socket.socket]]:
    """What a client has received, and the server's end of its connection."""
    client, server = socket.socketpair()
    with client, server:
        server.settimeout(10)
        received = Incoming(client, 10)
        received.end_s = monotonic() + 30
        yield received, server


@pytest.mark.parametrize(
    ("status", "minor", "fields", "framing"),
    [
        (200, b"1", b"Content-Length: 5\r\n", Framing(200, False, 5, True)),
        (200, b"0", b"Content-Length: 5\r\n", Framing(200, False, 5, False)),
        (200, b"1", b"", Framing(200, False, None, False)),
        (200, b"1", b"Connection: Close\r\nContent-Length: 5\r\n", Framing(200, False, 5, False)),
        (200, b"1", b"X-Content-Length: 9\r\ntransfer-encoding: Chunked\r\n", Framing(200, True, None, True)),
        (204, b"1", b"", Framing(204, False, 0, True)),
        (304, b"1", b"Content-Length: 5\r\n", Framing(304, False, 0, True)),
    ],
)
def test_the_head_decides_where_the_body_ends(status: int, minor: bytes, fields: bytes, framing: Framing) -> None:
    assert framing_of(status, minor, fields) == framing


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_response_is_the_same_in_whatever_pieces_it_arrives(
    incoming: tuple[Incoming, socket.socket], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    received, server = incoming
    monkeypatch.setattr("loadgen.http_response._PART_BYTES", size)
    server.sendall(CHUNKED + b"4;x\r\nfour\r\n1\r\n!\r\n0\r\nT: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    framing, fields = read_head(received)
    assert (b"".join(framing.parts(received)), fields) == (b"four!", b"Transfer-Encoding: chunked\r\n\r\n")
    assert read_head(received)[0].status == 204


def test_trailers_have_a_limit_together(incoming: tuple[Incoming, socket.socket]) -> None:
    received, server = incoming
    server.sendall(CHUNKED + b"0\r\n" + b"X: y\r\n" * (MAX_HEAD_BYTES // 6 + 2))
    framing, _ = read_head(received)
    with pytest.raises(http.client.HTTPException, match="trailers without an end"):
        list(framing.parts(received))


def test_a_wait_ends_with_the_limit_of_all(incoming: tuple[Incoming, socket.socket]) -> None:
    received, server = incoming
    server.sendall(b"HTTP")
    received.end_s = monotonic() + 0.05
    with pytest.raises(TimeoutError):
        received.until(re.compile(rb"\n"))
    limit_s = received._connection.gettimeout()
    assert limit_s is not None and limit_s <= 0.05
