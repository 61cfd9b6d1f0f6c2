"""The decoder's law: how the bytes are cut must not change what they say, nor when an event is known."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.sse import MAX_EVENT_BYTES, SSEDecoder, SSEError

STREAMS = {
    "lf": (b"data: a\n\ndata: b\n\ndata: [DONE]\n\n", [b"a", b"b", b"[DONE]"]),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "lone cr": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "mixed ends": (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
    "no space after the colon": (b"data:{}\n\ndata:  two\n\n", [b"{}", b" two"]),
    "comments": (b": ping\n\n: keepalive 1/1\ndata: a\n\n:\n\n", [b"a"]),
    "several data lines are one event": (b"data: a\ndata: b\ndata\n\n", [b"a\nb\n"]),
    "other fields": (b"event: message\nid: 7\nretry: 10\ndata: a\n\nevent: x\n\n", [b"a"]),
    "a field that only starts like data": (b"database: a\n\ndata: b\n\n", [b"b"]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "a byte order mark that does not open the stream": (b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n", [b"a", b"c"]),
    "utf-8 and NEL stay inside a line": ("data: é\x85\u2028x\n\n".encode(), ["é\x85\u2028x".encode()]),
    "no blank line at the end": (b"data: a\n\ndata: [DONE]", [b"a", b"[DONE]"]),
    "crlf inside a two-line event": (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
    "nothing": (b"", []),
}


def decode(pieces: list[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.flush()


@pytest.mark.parametrize("name", STREAMS)
def test_split_at_every_byte(name: str) -> None:
    stream, events = STREAMS[name]
    assert decode([stream]) == events
    assert decode([stream[i : i + 1] for i in range(len(stream))]) == events
    for cut in range(len(stream) + 1):
        assert decode([stream[:cut], stream[cut:]]) == events
        assert decode([stream[:cut], b"", b"", stream[cut:]]) == events


@given(
    st.lists(st.sampled_from([b"data: x", b"data:", b"\n", b"\r", b"\r\n", b": c", b"\xef\xbb\xbf", b"y"])), st.data()
)
def test_any_cuts_of_any_bytes_give_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    edges = [0, *cuts, len(stream)]
    assert decode([stream[a:b] for a, b in pairwise(edges)]) == decode([stream])


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b"\n\n", b"data: y\n\n", b"\xef\xbb\xbf", b"y"])))
def test_what_is_a_lone_event_is_the_same_event_by_feeding(chunks: list[bytes]) -> None:
    fed, shortcut = SSEDecoder(), SSEDecoder()
    for chunk in chunks:
        lone = shortcut.lone(chunk)
        events = fed.feed(chunk)
        assert events == (shortcut.feed(chunk) if lone is None else [lone])
        assert lone is None or (fed.idle and shortcut.idle)


@pytest.mark.parametrize(
    ("before", "idle", "lone"),
    [
        (b"", False, True),  # a byte order mark may come, and a lone event has none
        (b"\xef\xbb", False, False),
        (b"data: a\n\n", True, True),
        (b": ping\n", True, True),
        (b"data: a\n", False, False),
        (b"data: a\n\ndat", False, False),
        (b"data: a\n\r", False, False),  # a LF may come that belongs to the CR
    ],
)
def test_only_between_events_is_the_decoder_idle_or_a_lone_event_taken(before: bytes, idle: bool, lone: bool) -> None:
    decoder = SSEDecoder()
    decoder.feed(before)
    assert decoder.idle is idle
    assert decoder.lone(b"data: b\n\n") == (b"b" if lone else None)


@pytest.mark.parametrize(
    "chunk",
    [b"data: a\n\r", b"data: a\n\n\n", b"data: a\nx\n", b"data: a\n", b"data:a\n\n", b": data: a\n\n", b"\n\n", b""],
)
def test_any_other_shape_is_no_lone_event(chunk: bytes) -> None:
    assert SSEDecoder().lone(chunk) is None


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\r"])
def test_an_event_is_known_the_moment_its_blank_line_is(end: bytes) -> None:
    assert SSEDecoder().feed(b"data: a" + end) == [b"a"]


def test_an_endless_line_is_refused() -> None:
    decoder = SSEDecoder()
    with pytest.raises(SSEError, match="more than"):
        for _ in range(MAX_EVENT_BYTES // (1 << 20) + 2):
            decoder.feed(b"x" * (1 << 20))


def test_an_endless_event_is_refused() -> None:
    decoder = SSEDecoder()
    with pytest.raises(SSEError, match="more than"):
        for _ in range(MAX_EVENT_BYTES // (1 << 20) + 2):
            decoder.feed(b"data: " + b"x" * (1 << 20) + b"\n")


def test_the_size_limit_is_exact_and_counts_each_event_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value counts one byte more than it has, for its line end, and an incomplete line counts as it is."""
    monkeypatch.setattr("loadgen.client.sse.MAX_EVENT_BYTES", 12)
    decoder = SSEDecoder()
    for _ in range(3):
        assert decoder.feed(b"data: 12345\ndata: 67890\n") == []
        assert decoder.feed(b"\n") == [b"12345\n67890"]
    assert decoder.feed(b"data: 12345\ndata: ") == []
    assert decoder.feed(b"") == []
    with pytest.raises(SSEError, match="more than 12 bytes"):
        decoder.feed(b"7")
