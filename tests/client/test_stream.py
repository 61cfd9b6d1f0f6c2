"""A stream's state follows from its bytes; a template is learnt where it is of use, and used only between events."""

from array import array

import pytest

from loadgen.client.http1 import Head
from loadgen.client.openai_api import ProtocolError, Usage
from loadgen.client.stream import MAX_ERROR_BODY_BYTES, RequestError, StreamState


def head(status: int = 200, content_type: str = "text/event-stream") -> Head:
    return Head(status, "Reason", content_type, None, True, True)


def event(text: str, extra: str = "") -> bytes:
    return f'data: {{{extra}"choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'.encode()


FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def fed(*pieces: bytes) -> StreamState:
    """Return the state after pieces that arrive at 1, 2, 3, ..."""
    stream = StreamState()
    stream.head(head())
    for i, piece in enumerate(pieces, 1):
        stream.feed(piece, i)
    return stream


def instants(stream: StreamState) -> list[int]:
    assert stream.chunk_ns is not None
    return stream.chunk_ns.tolist()


def test_each_event_with_content_has_the_instant_of_its_last_byte() -> None:
    stream = fed(event("a"), event("b")[:20], event("b")[20:] + event("c"), USAGE, FINISH, DONE)
    assert instants(stream) == [1, 3, 3]
    assert stream.usage == Usage(prompt_tokens=7, completion_tokens=3)
    assert stream.finish_reason == "stop"
    stream.end(9)
    assert stream.finished_ns == 9


def test_later_usage_and_finish_reason_replace_earlier_ones_but_their_absence_does_not() -> None:
    other = USAGE.replace(b":3", b":4")
    stream = fed(FINISH, USAGE, other, event("a"), FINISH.replace(b"stop", b"length"), DONE)
    assert (stream.usage, stream.finish_reason) == (Usage(prompt_tokens=7, completion_tokens=4), "length")


@pytest.mark.parametrize(("end", "is_whole"), [((FINISH,), True), ((DONE,), True), ((), False), ((USAGE,), False),
                                               ((FINISH[:-2],), True), ((DONE[:-1],), True)])  # fmt: skip
def test_a_stream_is_whole_with_a_finish_reason_or_done(end: tuple[bytes, ...], is_whole: bool) -> None:
    stream = fed(event("a"), event("b"), *end)
    if is_whole:
        stream.end(5)
    else:
        with pytest.raises(RequestError, match=r"after 2 chunks with no finish reason or \[DONE\]") as failed:
            stream.end(5)
        assert failed.value.kind == "truncated"
    assert stream.finished_ns == 5


@pytest.mark.parametrize("content_type", ["", "application/json", "text/html"])
def test_a_good_status_needs_an_event_stream(content_type: str) -> None:
    stream = StreamState()
    with pytest.raises(RequestError, match=content_type or "no content type") as failed:
        stream.head(head(200, content_type))
    assert (failed.value.kind, stream.status, stream.chunk_ns) == ("protocol", 200, None)


@pytest.mark.parametrize(("status", "is_error"), [(399, False), (400, True), (599, True)])
def test_from_400_on_the_body_is_an_error_message(status: int, is_error: bool) -> None:
    stream = StreamState()
    stream.head(head(status))
    if not is_error:
        assert stream.chunk_ns == array("q")
        return
    stream.feed(b'{"error":', 1)
    stream.feed(b'"busy"}', 2)
    with pytest.raises(RequestError, match=f"^{status} Reason: busy$") as failed:
        stream.end(3)
    assert (failed.value.kind, stream.chunk_ns) == ("http", None)


def test_an_error_message_is_read_up_to_its_limit() -> None:
    stream = StreamState()
    stream.head(head(500))
    stream.feed(b"x" * (MAX_ERROR_BODY_BYTES - 1), 1)
    with pytest.raises(RequestError, match=r"^500 Reason: x{200}$"):
        stream.feed(b"x", 2)


def test_an_error_event_ends_the_stream_and_keeps_what_came_before() -> None:
    stream = fed(event("a"))
    with pytest.raises(RequestError, match="oom") as failed:
        stream.feed(event("b") + b'data: {"error":"oom"}\n\n' + event("c"), 2)
    assert (failed.value.kind, instants(stream)) == ("server", [1, 2])


def test_an_event_that_is_no_json_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        fed(b"data: {\n\n")


def test_the_second_lone_token_gives_the_template() -> None:
    assert fed(event("a")).template is None
    template = fed(event("a"), event("b")).template
    assert template is not None
    assert template.prefix + b"b" + template.suffix == event("b") + b"\r\n"


@pytest.mark.parametrize("other", [USAGE, FINISH, event(""), b": ping\n\n"])
def test_what_is_no_token_gives_no_template(other: bytes) -> None:
    assert fed(event("a"), other, other).template is None


def test_tokens_that_arrive_together_give_no_template_and_a_token_in_pieces_does() -> None:
    together = event("a") + event("b")
    assert fed(together, together, together).template is None
    halves = event("a")[:9], event("a")[9:]
    assert fed(event("a"), *halves).template is None, "what was fed is not a whole event"


def test_in_the_middle_of_an_event_there_is_no_template_and_after_it_the_same_again() -> None:
    stream = fed(event("a"), event("b"))
    template = stream.template
    assert template is not None
    stream.feed(event("c")[:9], 3)
    assert stream.template is None
    stream.feed(event("c")[9:], 4)
    assert stream.template is template


def test_tokens_that_the_template_takes_are_the_streams() -> None:
    stream = fed(event("a"), event("b"))
    assert stream.template is not None
    stream.template.extend(array("q", [7, 8]).tobytes())
    stream.feed(event("c"), 9)
    assert instants(stream) == [1, 2, 7, 8, 9]


def test_a_stream_whose_events_all_differ_is_learnt_from_five_times_and_then_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lessons: list[bytes] = []
    monkeypatch.setattr("loadgen.client.stream.learn_template", lambda token, _: lessons.append(token))
    pieces = [event("a", f'"n":{i},') for i in range(20)]
    fed(*pieces)
    assert lessons == pieces[1:6]


def test_every_four_hits_are_worth_another_lesson() -> None:
    stream = fed(*(event("a", f'"n":{i},') for i in range(7)))
    fifth = stream.template
    assert fifth is not None and b'"n":5,' in fifth.prefix, "no lesson at the seventh"
    fifth.hits = 3
    stream.feed(event("a", '"n":7,'), 8)
    assert stream.template is fifth
    fifth.hits = 4
    stream.feed(event("a", '"n":8,'), 9)
    sixth = stream.template
    assert sixth is not None and b'"n":8,' in sixth.prefix
    stream.feed(event("a", '"n":9,'), 10)
    assert stream.template is sixth, "the hits of earlier templates are counted once"
