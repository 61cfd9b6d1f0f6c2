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
    assert stream.finished_ns == 6, "the arrival of [DONE], not of the body's end"


def test_later_usage_and_finish_reason_replace_earlier_ones_but_their_absence_does_not() -> None:
    other = USAGE.replace(b":3", b":4")
    stream = fed(FINISH, USAGE, other, event("a"), FINISH.replace(b"stop", b"length"), DONE)
    assert (stream.usage, stream.finish_reason) == (Usage(prompt_tokens=7, completion_tokens=4), "length")


def sse(json: str) -> bytes:
    return f"data: {json}\n\n".encode()


def choice(json: str) -> bytes:
    return sse(f'{{"choices":[{json}]}}')


def finish(reason: str, content: str = "{}") -> bytes:
    return choice(f'{{"delta":{content},"finish_reason":{reason}}}')


def usage(tokens: int, prompt: int = 7) -> bytes:
    return sse(f'{{"choices":[],"usage":{{"prompt_tokens":{prompt},"completion_tokens":{tokens}}}}}')


A, EMPTY, ROLE = event("a"), event(""), choice('{"delta":{"role":"assistant","content":""}}')

ENDS: list[tuple[str, list[bytes], str | None, str]] = [
    # (what the server sends, its pieces, kind of error or None, words of the detail or the finish reason)
    ("finish reason and [DONE]", [A, FINISH, DONE], None, "stop"),
    ("finish reason alone", [A, FINISH], None, "stop"),
    ("no line end at the end", [A, FINISH[:-2]], None, "stop"),
    ("usage and [DONE]", [A, usage(1), DONE], None, ""),
    ("usage after [DONE]", [A, DONE, usage(1)], None, ""),
    ("[DONE] twice", [A, FINISH, DONE, DONE], None, "stop"),
    ("data after [DONE]", [A, FINISH, DONE, A, finish('"abort"'), b"data: {oo\n\n"[:-2]], None, "stop"),
    ("[DONE] in an array's blanks", [A, FINISH, b"data:  [DONE] \r\n\r\n"], None, "stop"),
    ("[DONE] alone", [DONE], "server", "without a token: finish_reason None"),
    ("[DONE] after a role", [ROLE, DONE], "server", "without a token"),
    ("[DONE] after content", [A, DONE], "truncated", "[DONE] after 1 chunks with no finish reason"),
    ("[DONE] after content that usage counted before", [usage(1), A, DONE], "truncated", "no usage after them"),
    ("[DONE] after a usage of zeros", [A, usage(0, 0), DONE], "truncated", "[DONE] after 1"),
    ("[DONE] after usage in each chunk",
     [A[:-3] + b',"usage":{"completion_tokens":1}}\n\n', DONE], "truncated", "[DONE]"),
    ("the body ends", [A, A], "truncated", "after 2 chunks with no finish reason or [DONE]"),
    ("the body ends after usage", [A, usage(1)], "truncated", "after 1 chunks"),
    ("no token, filtered",
     [ROLE, finish('"content_filter"'), usage(0), DONE], "server", "finish_reason content_filter"),
    ("no token, stop", [ROLE, FINISH, DONE], "server", "without a token: finish_reason stop"),
    ("no token, an unknown reason", [ROLE, finish('"zenith"'), DONE], "server", "finish_reason zenith"),
    ("tokens that only usage knows", [ROLE, finish('"length"'), usage(9), DONE], None, "length"),
    *((f"finish reason {reason}", [A, finish(f'"{reason}"'), usage(1), DONE], None, reason) for reason in (
        "stop", "length", "tool_calls", "function_call", "content_filter", "repetition", "eos_token", "stop_sequence",
        "end_turn", "zenith")),
    *((f"finish reason {reason}", [A, finish(f'"{reason}"'), usage(1), DONE], "server", f"finish_reason {reason}")
      for reason in ("abort", "error", "cancelled", "canceled", "timeout", "timed_out", "parse_error", "ABORTED",
                     "internal_error", "failed", "insufficient_system_resource", "deadline")),
    ("a failure, then stop", [A, finish('"abort"'), FINISH, DONE], "server", "finish_reason abort"),
    ("stop, then a failure", [A, FINISH, finish('"error"'), DONE], "server", "finish_reason error"),
    ("finish reason as an object", [A, finish('{"type":"length","length":1}'), DONE], None, "length"),
    ("a failure as an object", [A, finish('{"type":"abort","message":"x"}'), DONE], "server", "finish_reason abort"),
    ("an object of no type", [A, finish("{}"), DONE], None, "unknown"),
    ("finish reason null in quotes", [A, finish('"null"'), DONE], "truncated", "[DONE]"),
    ("finish reason empty", [A, finish('""'), DONE], "truncated", "[DONE]"),
    ("an error inside a choice", [A, choice('{"delta":{"content":""},"finish_reason":"error","error":{"code":429,'
     '"message":"no room"}}'), DONE], "server", "429 no room"),
    ("an error inside the second choice",
     [choice('{"text":"a"},{"text":"","error":"no room"}'), DONE], "server", "no room"),
    ("an error beside choices", [sse('{"error":{"message":"no room"},"choices":[{"text":"a"}]}')], "server", "no room"),
    ("no error beside choices", [sse('{"error":{},"choices":[{"text":"a"}]}'), FINISH, DONE], None, "stop"),
    ("a failure of the second choice",
     [choice('{"text":"a","finish_reason":"stop"},{"text":"b","finish_reason":"error"}'),
     DONE], "server", "finish_reason error"),
    ("event: error, data", [A, b'event: error\ndata: {"message":"no room"}\n\n', DONE], "server", "no room"),
    ("event: error, data first", [A, b"data: no room\nevent: error\n\n", DONE], "server", "no room"),
    ("event: error, a comment", [A, b"event: error\n: no room\n\n", DONE], "server", "no room"),
    ("a comment, event: error", [A, b": no room\nevent: error\n\n", DONE], "server", "no room"),
    ("event: error and nothing", [A, b"event: error\n\n", DONE], "server", "without a text"),
    ("event: error at the end", [A, b"event: error\r\n: no room"], "server", "no room"),
    ("event: error, then content", [A, b"event: error\ndata: no room\n\n" + A, FINISH, DONE], "server", "no room"),
    ("event: error in pieces", [A, b"event: error\n", b'data: {"error":"no room"}\n\n', DONE], "server", "no room"),
    ("event: response.error", [A, b"event: response.error\ndata: {}\n\n", DONE], "server", "{}"),
    ("an error: field", [A, b'error: {"code":500,"message":"no room"}\n\n'], "server", "no room"),
    ("comments and other events", [A, b": ping\n\nevent: ping\ndata: null\n\n", FINISH, DONE], None, "stop"),
    ("FastAPI's detail", [A, sse('{"detail":"no room"}'), DONE], "server", "no room"),
    ("a message that is no error", [A, sse('{"message":"queued"}'), FINISH, DONE], None, "stop"),
    ("a message with a code", [A, sse('{"code":500,"message":"no room"}'), DONE], "server", "no room"),
    ("parts of content", [choice('{"delta":{"content":[{"type":"text","text":"a"}]}}'), FINISH, DONE], None, "stop"),
    ("half a surrogate pair", [event("\\ud83d"), event("\\ude00"), FINISH, DONE], None, "stop"),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "kind", "words"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_an_answer_is_complete_only_with_a_token_and_a_reason_or_a_count_and_done(
    pieces: list[bytes], kind: str | None, words: str
) -> None:
    if kind is None:
        stream = fed(*pieces)
        stream.end(99)
        assert (stream.finish_reason or "") == words
        return
    stream = StreamState()
    stream.head(head())
    with pytest.raises(RequestError) as failed:
        for i, piece in enumerate(pieces, 1):
            stream.feed(piece, i)
        stream.end(99)
    assert failed.value.kind == kind
    assert words in str(failed.value)


TIMES: list[tuple[str, list[bytes], list[int], int | None]] = [
    # (what the server sends, its pieces at 1, 2, 3, ..., the times of the chunks that are tokens, of the last token)
    ("no usage", [EMPTY, A, EMPTY, FINISH], [2], 2),
    ("text explains all", [ROLE, A, A, EMPTY, FINISH, usage(2)], [2, 3], 3),
    ("the end token is the finish chunk", [ROLE, A, A, FINISH, usage(3)], [2, 3, 4], 4),
    ("a textless second half",
     [ROLE, A, A, EMPTY, EMPTY, finish('"length"', '{"content":""}'), usage(5)], [2, 3, 4, 5, 6], 6),
    ("textless, and a finish chunk that is none", [ROLE, A, EMPTY, EMPTY, FINISH, usage(3)], [2, 3, 4], 4),
    ("a textless head", [ROLE, EMPTY, EMPTY, A, A, FINISH, usage(4)], [2, 3, 4, 5], 5),
    ("a textless head and the end token", [ROLE, EMPTY, A, FINISH, usage(3)], [2, 3, 4], 4),
    ("an opening chunk without a role", [EMPTY, A, A, FINISH, usage(2)], [2, 3], 3),
    ("the same, several tokens a chunk", [EMPTY, A, A, FINISH, usage(8)], [2, 3], 4),
    ("textless in the middle", [ROLE, A, EMPTY, A, FINISH, usage(3)], [2, 3, 4], 4),
    ("a role in each chunk",
     [choice('{"delta":{"role":"a","content":"x"}}'), ROLE, ROLE, FINISH, usage(3)], [1, 2, 3], 3),
    ("tokens held back until the end", [ROLE, A, A, FINISH, usage(9)], [2, 3], 4),
    ("several tokens a chunk, finish beside text",
     [ROLE, A, A, finish('"stop"', '{"content":"x"}'), usage(9)], [2, 3, 4], 4),
    ("textless after the finish", [ROLE, A, FINISH, EMPTY, usage(2)], [2, 3], 3),
    ("all is hidden", [ROLE, FINISH, usage(9)], [], 2),
    ("one token, and it ends", [ROLE, FINISH, usage(1)], [2], 2),
    ("zeros beside content", [A, usage(0, 0), A, FINISH], [1, 3], 3),
    ("zeros after a count", [A, EMPTY, FINISH, usage(2), usage(0, 0)], [1, 2], 2),
    ("fewer tokens than chunks", [A, A, A, FINISH, usage(2)], [1, 2, 3], 3),
    ("nothing", [], [], None),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "times", "last"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES])
def test_a_chunk_without_text_is_a_token_where_usage_counts_it(
    pieces: list[bytes], times: list[int], last: int | None
) -> None:
    assert fed(*pieces).token_times() == (times, last)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"error":{"message":"no room"}}', "server", "no room"),
        (b'{"detail":"no room"}', "server", "no room"),
        (b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}', "protocol", "got application/json"),
        (b"<html>", "protocol", "got application/json"),
        (b"[" * 9000, "protocol", "got application/json"),
    ],
)
def test_json_with_a_good_status_is_an_error_in_the_servers_words_or_no_stream(
    body: bytes, kind: str, words: str
) -> None:
    stream = StreamState()
    stream.head(head(200, "application/json"))
    with pytest.raises(RequestError, match=words) as failed:
        stream.feed(body, 1)
        stream.end(2)
    assert (failed.value.kind, stream.chunk_ns) == (kind, None)


@pytest.mark.parametrize("content_type", ["", "text/plain", "text/html"])
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


# -- kinds of chunks --------------------------------------------------------------------------------------------------


def thought(text: str = "hm") -> bytes:
    return event(text).replace(b'"content"', b'"reasoning"')


CALL = choice('{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}')
TEXTLESS = choice('{"delta":{}}')

RUNS = [
    ("text alone", [A, A, FINISH], [("answer", 2)]),
    ("thoughts, an answer", [ROLE, thought(), thought(), A, FINISH], [("reasoning", 2), ("answer", 1)]),
    ("thoughts between calls", [thought(), CALL, CALL, thought(), A, FINISH],
     [("reasoning", 1), ("tools", 2), ("reasoning", 1), ("answer", 1)]),
    ("a token without text belongs to the text before it", [thought(), TEXTLESS, A, FINISH, usage(3)],
     [("reasoning", 2), ("answer", 1)]),
    ("a token without text before any other", [TEXTLESS, thought(), A, FINISH, usage(3)],
     [("reasoning", 2), ("answer", 1)]),
    ("chunks without text that usage does not count", [thought(), TEXTLESS, A, FINISH, usage(2)],
     [("reasoning", 1), ("answer", 1)]),
    ("several of them in one read", [thought() + thought() + A + A, TEXTLESS, FINISH, usage(5)],
     [("reasoning", 2), ("answer", 3)]),
    ("a token with the finish reason", [thought(), A, FINISH, usage(3)], [("reasoning", 1), ("answer", 2)]),
    ("tokens that only usage knows", [ROLE, FINISH, usage(9)], []),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "runs"), [row[1:] for row in RUNS], ids=[row[0] for row in RUNS])
def test_each_chunk_that_is_a_token_has_a_kind(pieces: list[bytes], runs: list[tuple[str, int]]) -> None:
    stream = fed(*pieces, DONE)
    stream.end(99)
    times, _ = stream.token_times()
    assert stream.kinds(times) == runs
    assert sum(count for _, count in runs) == len(times)


def test_a_template_is_of_one_kind_and_goes_where_another_begins() -> None:
    stream = fed(thought(), thought())
    assert stream.template and b'"reasoning"' in stream.template.prefix
    stream.feed(A, 3)
    assert stream.template and b'"content"' in stream.template.prefix, "the first chunk of the answer teaches the next"
    stream.feed(CALL, 4)
    assert stream.template is None, "calls have no text of their own"
    stream.feed(A, 5)
    assert stream.kinds(instants(stream)) == [("reasoning", 2), ("answer", 1), ("tools", 1), ("answer", 1)]


def test_tokens_that_a_template_takes_are_of_its_kind() -> None:
    stream = fed(thought(), thought())
    assert stream.template
    stream.template.extend(array("q", [3, 3, 4]).tobytes())
    stream.feed(A, 5)
    assert stream.template
    stream.template.extend(array("q", [6]).tobytes())
    assert stream.kinds(instants(stream)) == [("reasoning", 5), ("answer", 2)]


def test_reasoning_that_was_sent_is_not_hidden_however_many_tokens_a_chunk_holds() -> None:
    counted = sse(
        '{"choices":[],"usage":{"completion_tokens":100,"completion_tokens_details":{"reasoning_tokens":50}}}'
    )
    assert fed(thought(), A, FINISH, counted, DONE).hidden_tokens == 0
    assert fed(A, FINISH, counted, DONE).hidden_tokens == 50


def answered(*pieces: bytes, status: int = 200, content_type: str = "application/json") -> StreamState:
    stream = StreamState(streamed=False)
    stream.head(head(status, content_type))
    for i, piece in enumerate(pieces, 1):
        stream.feed(piece, i)
    stream.end(9)
    return stream


def test_an_answer_that_is_one_object_has_an_end_and_no_token() -> None:
    stream = answered(b'{"data":[{"embedding":[', b"0.5," * 9000, b'1]}],"usage":{"prompt_tokens":7}}')
    assert (stream.finished_ns, stream.chunk_ns, stream.finish_reason) == (9, None, None)
    assert stream.usage == Usage(prompt_tokens=7)
    assert stream.token_times() == ([], None)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "words"),
    [
        (400, "application/json", b'{"error":{"message":"too long"}}', "http", "^400 Reason: too long"),
        (404, "text/plain", b"no such page", "http", "^404 Reason: no such page"),
        (200, "application/json", b'{"error":{"message":"oom"}}', "server", "oom"),
        (200, "text/event-stream", b"", "protocol", "requested one object, got text/event-stream"),
    ],
)
def test_an_object_that_was_not_given_is_a_failure(
    status: int, content_type: str, body: bytes, kind: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as failed:
        answered(body, status=status, content_type=content_type)
    assert failed.value.kind == kind


def test_an_object_is_read_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.client.stream.MAX_ANSWER_BYTES", 1 << 20)
    with pytest.raises(RequestError, match="more than 1 MiB"):
        answered(b"x" * (1 << 20))
    with pytest.raises(ProtocolError):
        answered(b"x" * ((1 << 20) - 1))


def test_a_stream_of_responses_ends_with_its_last_event() -> None:
    def named(kind: str, fields: str) -> bytes:
        return f'event: {kind}\ndata: {{"type":"{kind}",{fields}}}\n\n'.encode()

    stream = fed(
        named("response.created", '"response":{"id":"r"}'),
        named("response.output_text.delta", '"delta":"a","sequence_number":3'),
        named("response.output_text.delta", '"delta":" b","sequence_number":4'),
        named("response.completed", '"response":{"usage":{"input_tokens":7,"output_tokens":2}}'),
    )
    assert stream.is_done and instants(stream) == [2, 3]
    stream.end(9)
    assert (stream.finished_ns, stream.finish_reason, stream.usage) == (4, "stop", Usage(7, 2))
