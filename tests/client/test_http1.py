"""How the bytes are cut never changes what a response says; and what is known to be a token is what JSON says it is."""

import sys
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.http1 import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, Head, HTTPError, Response, Unusual, parse_head
from loadgen.client.openai_api import ProtocolError
from loadgen.client.sse import SSEError
from loadgen.client.stream import RequestError, StreamState
from loadgen.client.token_template import TokenTemplate
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
    expected = Head(200, "Fine", "text/event-stream", length, b"chunked" in fields, keep_alive)
    assert head._replace(fields=b"") == expected


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


class Receiver:
    """Keeps what a response consists of."""

    template: TokenTemplate | None = None

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.pieces: list[tuple[bytes, int]] = []

    def head(self, head: Head) -> None:
        self.heads.append(head)

    def feed(self, data: bytes, arrived_ns: int) -> None:
        self.pieces.append((data, arrived_ns))

    @property
    def body(self) -> bytes:
        return b"".join(data for data, _ in self.pieces)


def parsed(*reads: bytes, eof: bool = False) -> tuple[Receiver, Response]:
    """Parse reads that arrive at 1, 2, 3, ..."""
    receiver = Receiver()
    response = Response(receiver)
    for i, data in enumerate(reads, 1):
        response.feed(data, i)
    if eof:
        response.eof()
    return receiver, response


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FRAMED = [
    # (what it is, bytes, body, complete, keep-alive)
    ("a length", OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True, True),
    ("a length not yet reached", OK + b"Content-Length: 6\r\n\r\nhello", b"hello", False, True),
    ("a length of nothing", OK + b"Content-Length: 0\r\n\r\n", b"", True, True),
    ("more than the length", OK + b"Content-Length: 5\r\n\r\nhello!", b"hello", True, False),
    ("no content by status", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, True),
    ("chunks", CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", True, True),
    ("chunks without an end", CHUNKED + b"5\r\nhello\r\n", b"hello", False, True),
    ("more than the last chunk", CHUNKED + b"0\r\n\r\nx", b"", True, False),
    ("trailers", CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\n\r\n", b"x", True, True),
    ("more than the trailers", CHUNKED + b"0\r\nA: b\r\n\r\nHTTP", b"", True, False),
    ("a size in either case", CHUNKED + b"A\r\n0123456789\r\n0a\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2,
     True, True),
    ("blanks after a size", CHUNKED + b"1 \t\r\nx\r\n0\r\n\r\n", b"x", True, True),
    ("an extension", CHUNKED + b"1 ;a=b\r\nx\r\n000\r\n\r\n", b"x", True, True),
    ("two interim responses", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 x\r\n\r\n" + OK
     + b"Content-Length: 1\r\n\r\nx", b"x", True, True),
    ("neither", OK + b"\r\nhello", b"hello", False, False),
    ("a connection that closes", OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nx", b"x", True, False),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x", True, False),
    ("HTTP/1.0 kept alive", b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx", b"x", True,
     True),
]  # fmt: skip


@pytest.mark.parametrize(("data", "body", "complete", "keep_alive"), [row[1:] for row in FRAMED],
                         ids=[row[0] for row in FRAMED])  # fmt: skip
def test_the_framing_gives_body_end_and_connection(data: bytes, body: bytes, complete: bool, keep_alive: bool) -> None:
    for cut in range(len(data) + 1):
        receiver, response = parsed(*filter(None, (data[:cut], data[cut:])))
        assert (receiver.body, response.complete, response.keep_alive) == (body, complete, keep_alive), cut
        assert len(receiver.heads) == 1


@pytest.mark.parametrize(("data", "proper"), [
    (OK + b"\r\nhello", True), (OK + b"\r\n", True), (OK + b"Content-Length: 6\r\n\r\nhello", False), (CHUNKED, False),
    (CHUNKED + b"0\r\n", False), (CHUNKED + b"0\r\n\r\n", True), (OK, False)])  # fmt: skip
def test_the_end_of_the_connection_ends_only_a_body_without_length(data: bytes, proper: bool) -> None:
    _, response = parsed(data)
    assert response.eof() is proper
    assert response.complete is proper


def test_bytes_of_a_chunk_are_fed_as_they_arrive_each_with_its_instant() -> None:
    receiver, response = parsed(CHUNKED + b"6\r\nab", b"cd", b"ef\r", b"\n1\r\ng\r\n")
    assert receiver.pieces == [(b"ab", 1), (b"cd", 2), (b"ef", 3), (b"g", 4)]
    assert response.last_arrival_ns == 4


def test_whole_chunks_of_a_read_are_fed_one_by_one() -> None:
    receiver, _ = parsed(CHUNKED, b"2\r\nab\r\n1\r\nc\r\n")
    assert receiver.pieces == [(b"ab", 2), (b"c", 2)]


def test_an_instant_never_lies_before_the_one_before_it() -> None:
    receiver = Receiver()
    response = Response(receiver)
    for arrived_ns in (7, 5, 9):
        response.feed(CHUNKED if arrived_ns == 7 else b"1\r\nx\r\n", arrived_ns)
    assert [ns for _, ns in receiver.pieces] == [7, 9]
    assert response.last_arrival_ns == 9


def test_a_response_has_started_with_its_first_byte() -> None:
    response = Response(Receiver())
    assert not response.started
    response.feed(b"H", 1)
    assert response.started and not response.complete


@pytest.mark.parametrize(
    "data",
    [b"5\r\nhello!\n", b"1\r\nab", b"\r\n", b";x\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"1_0\r\n", b" 5\r\nhello\r\n",
     b"1234567890abcdef\r\n"],
)  # fmt: skip
def test_a_chunk_that_is_not_framed_as_it_says_is_refused(data: bytes) -> None:
    with pytest.raises(HTTPError):
        parsed(CHUNKED + data)


@pytest.mark.parametrize(("data", "allowed"), [
    (OK + b"b" * (MAX_HEAD_BYTES - len(OK)), True), (OK + b"b" * (MAX_HEAD_BYTES - len(OK) + 1), False),
    (CHUNKED + b"1;" + b"x" * (MAX_FRAMING_BYTES - 3), True), (CHUNKED + b"1;" + b"x" * (MAX_FRAMING_BYTES - 2), False),
    (CHUNKED + b"0\r\n" + b"x" * (MAX_FRAMING_BYTES - 2), True),
    (CHUNKED + b"0\r\n" + b"x" * (MAX_FRAMING_BYTES - 1), False)],
    ids=["head", "head + 1", "size line", "size line + 1", "trailers", "trailers + 1"])  # fmt: skip
def test_an_element_without_an_end_may_be_as_long_as_its_limit(data: bytes, allowed: bool) -> None:
    if allowed:
        assert not parsed(data)[1].complete
    else:
        with pytest.raises(HTTPError):
            parsed(data)


@pytest.mark.parametrize(("beginning", "allowed"), [
    (b"H", True), (b"HTTP/1", True), (b"HTTP/1.", True), (b"HTTP/1.1 200", True), (b"HTTP/2", False), (b"h", False),
    (b"GET /", False), (b"HTTP/1x", False)])  # fmt: skip
def test_what_does_not_begin_like_a_response_is_refused_at_once(beginning: bytes, allowed: bool) -> None:
    if allowed:
        parsed(beginning)
    else:
        with pytest.raises(HTTPError, match="not an HTTP response"):
            parsed(beginning)


def test_a_head_whose_lines_end_in_lf_is_left_to_a_complete_client() -> None:
    with pytest.raises(Unusual, match="LF"):
        parsed(b"HTTP/1.1 200 OK\nA: b\n\n")


@pytest.mark.parametrize(("status", "usual"), [(200, True), (299, True), (300, False), (399, False), (400, True),
                                               (406, True), (407, False), (408, True), (102, True), (101, False),
                                               (599, True)])  # fmt: skip
def test_redirects_upgrades_and_proxies_need_a_complete_client(status: int, usual: bool) -> None:
    raw = b"HTTP/1.1 %d x\r\n\r\n" % status
    if usual:
        assert parse_head(raw).status == status
    else:
        with pytest.raises(Unusual, match=str(status)):
            parse_head(raw)


@pytest.mark.parametrize(("fields", "expected"), [
    (b"", Head(200, "OK", "", None, False, True)),
    (b"content-type:text/HTML\r\n", Head(200, "OK", "text/html", None, False, True)),
    (b"Content-Type: a/b \t; x=y\r\n", Head(200, "OK", "a/b", None, False, True)),
    (b"Content-Encoding: identity\r\nContent-Length: 12\r\n", Head(200, "OK", "", 12, False, True)),
    (b"Content-Length: 3, 3\r\n", Head(200, "OK", "", 3, False, True)),
    (b"Transfer-Encoding: Chunked\r\n", Head(200, "OK", "", None, True, True)),
    (b"Connection: Keep-Alive, Close\r\n", Head(200, "OK", "", None, False, False)),
    (b"X-Content-Length: 9\r\nA: content-length: 8\r\n", Head(200, "OK", "", None, False, True))])  # fmt: skip
def test_the_fields_that_matter_are_read(fields: bytes, expected: Head) -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
    assert head == expected._replace(fields=b"\r\n" + fields + b"\r\n")


@pytest.mark.parametrize("first", [b"HTTP/1.1 200", b"HTTP/1.1 200 "])
def test_a_reason_may_be_missing(first: bytes) -> None:
    assert parse_head(first + b"\r\n\r\n").reason == ""


@pytest.mark.parametrize("first", [b"HTTP/1.2 200 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1  200 OK",
                                   b"http/1.1 200 OK", b"HTTP/1.1 200 O\0K"])  # fmt: skip
def test_a_status_line_that_is_none_is_refused(first: bytes) -> None:
    with pytest.raises(HTTPError):
        parse_head(first + b"\r\n\r\n")


@pytest.mark.parametrize("length", [b"", b"1 2", b"+1", b"0x1", b"1,2", b"1" * 19, b"1,"])
def test_a_length_that_is_none_is_refused(length: bytes) -> None:
    with pytest.raises(HTTPError, match="content-length"):
        parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n")


@pytest.mark.parametrize(("data", "shown"), [
    (b"zz", "b'zz'"), (b"zz\r\nhello", "b'zz'"), (b"\r", r"b'\r'"), (b";" * 90, "b'" + ";" * 40 + "'"),
    (b";" * 90 + b"\r\n", "b'" + ";" * 40 + "'")])  # fmt: skip
def test_a_line_that_cannot_become_a_size_is_refused_before_its_end_and_is_shown_in_40_bytes(
    data: bytes, shown: str
) -> None:
    for chunks in (b"", b"1\r\nx\r\n"):
        with pytest.raises(HTTPError) as err:
            parsed(CHUNKED, chunks + data)
        assert str(err.value) == f"chunk size {shown}"


LETTERS = b"10\r\n<abcdefghijklmn>\r\n"
"""A chunk that the template of letters knows as a token."""


def letters() -> tuple[Receiver, Response, TokenTemplate]:
    receiver = Receiver()
    receiver.template = template = TokenTemplate(b"<", b">\r\n", array("q"))
    response = Response(receiver)
    response.feed(CHUNKED, 1)
    return receiver, response, template


@pytest.mark.parametrize(
    ("reads", "tokens", "pieces"),
    [
        ([LETTERS], 1, []),
        ([LETTERS * 2, LETTERS], 3, []),
        ([b"1\r\nx\r\n" + LETTERS], 1, [b"x"]),
        ([b"16\r\n", LETTERS, b"\r\n"], 0, [LETTERS]),  # the bytes of a token inside of a chunk
        ([b"10;", LETTERS], 0, [LETTERS[4:-2]]),  # ... at the end of a size line that came in two reads
    ],
)
def test_tokens_are_recognized_only_where_a_chunk_begins(reads: list[bytes], tokens: int, pieces: list[bytes]) -> None:
    receiver, response, template = letters()
    for data in reads:
        response.feed(data, 2)
    assert list(template.instants) == [2] * tokens
    assert [data for data, _ in receiver.pieces] == pieces


def test_the_template_is_offered_only_where_a_chunk_begins() -> None:
    receiver, response, template = letters()
    assert response.template() is template
    offered = []
    for data in (b"10", b"\r\n<abc", b"defghijklmn>", b"\r\n", LETTERS, b"0\r\n"):
        response.feed(data, 2)
        offered.append(response.template() is template)
    assert offered == [False, False, False, True, True, False]
    assert Response(receiver).template() is None, "the head comes first"


def test_the_newest_of_the_tokens_that_were_read_elsewhere_is_the_last_arrival() -> None:
    _, response, template = letters()
    response.add_tokens(template, b"")
    assert response.last_arrival_ns == 1
    response.add_tokens(template, b"".join(ns.to_bytes(8, sys.byteorder) for ns in (5, 6, 7)))
    assert (response.last_arrival_ns, list(template.instants)) == (7, [5, 6, 7])
