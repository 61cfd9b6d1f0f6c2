"""How the bytes are cut never changes what a response says; and what is known to be a token is what JSON says it is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.http1 import Head, HTTPError, Response, Unusual, parse_head
from loadgen.client.openai_api import ProtocolError
from loadgen.client.sse import SSEError
from loadgen.client.stream import RequestError, StreamState
from support.scripted_server import DONE, END, GOOD, HEAD, ROLE, USAGE, chunk, token

REASONING = chunk(b'data: {"choices":[{"delta":{"content":"","reasoning_content":"hm"}}]}\n\n')
TEXT = chunk(b'data: {"id":"0123456789","choices":[{"text": " the","finish_reason":null}],"usage":null}\r\n\r\n')
MANY = b"".join(token(word) for word in ("a", " the", "\\n", "é", "漢", "🚀", '\\"', "\\u00e9", "", " x" * 300))
RESPONSES: dict[str, bytes] = {
    "a good stream": b"".join(step for step in GOOD if isinstance(step, bytes)),
    "many shapes of text": HEAD + ROLE + MANY + token("end", '"stop"') + USAGE + DONE + END,
    "many alike at once": HEAD
    + ROLE
    + token("a") * 40
    + token("b" * 300) * 3
    + token("")
    + token("c") * 30
    + DONE
    + END,
    "reasoning, then text": HEAD + REASONING * 3 + token("a") * 3 + DONE + END,
    "completions in CRLF": HEAD + TEXT * 5 + DONE + END,
    "several events in one chunk": HEAD
    + token("a") * 2
    + chunk(b'data: {"choices":[{"text":"x"}]}\n\n' * 3)
    + DONE
    + END,
    "an event over two chunks": HEAD + token("a") * 2 + chunk(b'data: {"choices":') + chunk(b"[]}\n\n") + DONE + END,
    "extensions and trailers": HEAD + b'e;name="v"\r\ndata: [DONE]\n\n\r\n0;x\r\nA: b\r\nC: d\r\n\r\n',
    "an interim response first": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + token("a") + DONE + END,
    "known length": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 14\r\n\r\ndata: [DONE]\n\n",
    "half a JSON event": HEAD + token("a") * 3 + chunk(b'data: {"choices":[{"del\n\n') + DONE + END,
    "an error event": HEAD + token("a") * 3 + chunk(b'data: {"error":{"message":"oom"}}\n\n') + END,
    "invalid UTF-8": HEAD + token("a") * 2 + token("b").replace(b'"b"', b'"\xff"') + DONE + END,
    "a chunk that is too long": HEAD + token("a") * 2 + b"1f\r\ndata: {}\n\n" + b"x" * 40,
    "a chunk size in words": HEAD + token("a") + b"zz\r\nhello\r\n",
    "a server error": b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\nbusy",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


def heard(pieces: list[bytes]) -> tuple[object, ...]:
    """Everything that a record is made of, times apart."""
    answer = StreamState()
    response = Response(answer)
    error = None
    try:
        for i, piece in enumerate(pieces):
            response.feed(piece, i)
        if response.complete:
            answer.end(len(pieces))
    except (HTTPError, RequestError, ProtocolError, SSEError) as err:
        error = type(err)
    chunks = None if answer.chunk_ns is None else len(answer.chunk_ns)
    return error, response.complete, answer.status, chunks, answer.usage, answer.finish_reason


@pytest.mark.parametrize("name", RESPONSES)
def test_split_at_every_byte(name: str) -> None:
    data = RESPONSES[name]
    whole = heard([data])
    assert whole[0] is not None or whole[1], "it ends, one way or the other"
    assert heard([data[i : i + 1] for i in range(len(data))]) == whole
    for cut in range(1, len(data)):
        assert heard([data[:cut], data[cut:]]) == whole


@pytest.mark.parametrize("name", RESPONSES)
def test_known_shapes_say_what_decoding_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = heard([RESPONSES[name]])
    monkeypatch.setattr("loadgen.client.stream.learn_template", lambda *_: None)
    assert heard([RESPONSES[name]]) == found


PIECES = [ROLE, token("a"), token("b"), token("ü"), TEXT, REASONING, USAGE, DONE, END, token(""), token("c", '"stop"'),
          chunk(b": ping\n\n"), b"\r\n", b"5\r\n", b"data:", b"\xff", b'"', token('a","finish_reason":"s')]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_any_mixture_cut_anywhere_is_heard_alike(parts: list[bytes], data: st.DataObject) -> None:
    stream = HEAD + b"".join(parts)
    edges = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=6))})
    cut = heard([stream[a:b] for a, b in pairwise(edges)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadgen.client.stream.learn_template", lambda *_: None)
        slow = heard([stream])
    assert cut == slow == heard([stream])


@pytest.mark.parametrize(
    ("fields", "keep_alive", "length"),
    [
        (b"", True, None),
        (b"Connection: close\r\n", False, None),
        (b"Content-Length: 5\r\ncontent-length: 5\r\n", True, 5),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", False, None),
    ],
)
def test_heads(fields: bytes, keep_alive: bool, length: int | None) -> None:
    head = parse_head(b"HTTP/1.1 200 Fine\r\n" + fields + b"Content-Type: Text/Event-Stream; charset=utf-8\r\n\r\n")
    assert head == Head(200, "Fine", "text/event-stream", length, b"chunked" in fields, keep_alive)


@pytest.mark.parametrize("raw", [b"HTTP/1.1 2x0 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
                                 b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
                                 b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                                 b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"])  # fmt: skip
def test_bad_heads(raw: bytes) -> None:
    with pytest.raises(HTTPError):
        parse_head(raw)


@pytest.mark.parametrize("line", [b"307 Go", b"407 Proxy", b"101 Up", b"200 OK\r\nContent-Encoding: gzip",
                                  b"200 OK\r\nTransfer-Encoding: gzip, chunked"])  # fmt: skip
def test_what_needs_a_complete_client(line: bytes) -> None:
    with pytest.raises(Unusual):
        parse_head(b"HTTP/1.1 " + line + b"\r\n\r\n")


@pytest.mark.parametrize("endless", [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, HEAD + b"0" * 5000,
                                     HEAD + b"0\r\n" + b"a: b\r\n" * 1000])  # fmt: skip
def test_what_never_ends_is_refused(endless: bytes) -> None:
    assert heard([endless])[0] is HTTPError
