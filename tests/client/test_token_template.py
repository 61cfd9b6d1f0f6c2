"""A chunk that a template takes for a token is one by the full decoder, and the rule is the same in Python and in C."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client import token_template
from loadgen.client.openai_api import TOKENS, parse_event
from loadgen.client.sse import SSEDecoder
from loadgen.client.token_template import TokenTemplate, learn_template
from support.scripted_server import chunk, token
from support.token_chunks import CHUNKS, EVENT, PREFIX, SUFFIX, with_text


@pytest.fixture(autouse=True, params=["compiled", "python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the compiled function and with the one in Python."""
    if request.param == "python":
        monkeypatch.setattr(token_template, "skip_tokens", token_template.skip_tokens_in_python)
    elif token_template.skip_tokens is token_template.skip_tokens_in_python:
        pytest.skip("loadgen.client._token_reader is not compiled here")


def template() -> TokenTemplate:
    learnt = learn_template(EVENT, array("q"))
    assert learnt is not None
    return learnt


def skipped(data: bytes, start: int = 0) -> tuple[int, int]:
    """Return where the template stops in `data`, and how many tokens it has counted."""
    learnt = template()
    stop = learnt.skip(data, start, 7)
    assert learnt.instants.tolist() == [7] * learnt.hits
    return stop, learnt.hits


@pytest.mark.parametrize(("data", "is_token"), [row[1:] for row in CHUNKS], ids=[row[0] for row in CHUNKS])
def test_the_rule(data: bytes, is_token: bool) -> None:
    assert skipped(data) == ((len(data), 1) if is_token else (0, 0))


@pytest.mark.parametrize("data", [row[1] for row in CHUNKS if row[2]], ids=[row[0] for row in CHUNKS if row[2]])
def test_every_token_of_the_table_is_one_by_the_full_decoder(data: bytes) -> None:
    (event,) = SSEDecoder().feed(data[data.index(b"\r\n") + 2 : -2])
    assert parse_event(event) == TOKENS["answer"]


@given(st.binary(max_size=8) | st.text(max_size=8).map(str.encode))
def test_a_recognized_chunk_is_a_token_by_the_full_decoder(text: bytes) -> None:
    if skipped(with_text(text))[1]:
        assert parse_event((PREFIX + text + SUFFIX)[6:-4]) == TOKENS["answer"]


def test_the_template_is_what_stands_around_the_text() -> None:
    learnt = template()
    assert (learnt.prefix, learnt.suffix, learnt.hits) == (PREFIX, SUFFIX, 0)


def test_it_stops_at_the_first_chunk_of_another_shape() -> None:
    same, other = chunk(EVENT), chunk(EVENT.replace(b"delta", b"gamma"))
    assert skipped(same * 3 + other + same) == (3 * len(same), 3)
    assert skipped(same * 2 + same[:-1]) == (2 * len(same), 2), "an incomplete chunk is no chunk"
    assert skipped(other) == (0, 0)


def test_it_counts_from_the_position_given() -> None:
    same = chunk(EVENT)
    assert skipped(b"0\r\n" + same * 2, 3) == (3 + 2 * len(same), 2)
    assert skipped(same, len(same)) == (len(same), 0)


def test_a_run_of_tokens_shares_its_instant_and_follows_those_of_before() -> None:
    instants = array("q", [1])
    learnt = learn_template(EVENT, instants)
    assert learnt is not None
    learnt.skip(token("a") + token("b"), 0, 5)
    learnt.extend(array("q", [6, 8]).tobytes())
    assert instants.tolist() == [1, 5, 5, 6, 8]
    assert learnt.hits == 4


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":""}}],"other":{"content":"x"}}\n\n',
        b'data: {"choices":[{"delta":{"role":"x"}}],"note":"\\"content\\":\\"x\\""}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a","tool_calls":[1]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\u00e9"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: pi',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n',
        b"data: [DONE]\n\n",
    ],
    ids=["text in a field that does not count", "text inside a string", "usage", "finish reason", "tool call",
         "escaped text", "no end", "the next line has begun", "two events", "no text field"],
)  # fmt: skip
def test_an_event_whose_text_alone_does_not_decide_is_not_learnt(event: bytes) -> None:
    assert learn_template(event, array("q")) is None


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("colon", [":", " : "])
def test_every_text_field_of_a_delta_is_learnt(field: str, colon: str) -> None:
    event = f'data: {{"choices":[{{"delta":{{"{field}"{colon}"a"}}}}]}}\n\n'.encode()
    assert learn_template(event, array("q")) is not None


def test_a_delta_of_responses_is_learnt_where_its_events_are_alike() -> None:
    event = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
    learnt = learn_template(event, array("q"))
    assert learnt is not None and learnt.prefix.endswith(b'"delta":"')


def test_the_field_that_decides_is_found_behind_one_that_does_not() -> None:
    event = b'data: {"reasoning":"x","choices":[{"text":"a"}]}\n\n'
    learnt = learn_template(event, array("q"))
    assert learnt is not None
    assert learnt.prefix == b'data: {"reasoning":"x","choices":[{"text":"'


@given(st.lists(st.sampled_from([row[1] for row in CHUNKS]), max_size=8), st.integers(0, 3))
def test_the_compiled_function_and_the_one_in_python_stop_at_the_same_place(chunks: list[bytes], cut: int) -> None:
    data = b"".join(chunks)
    data = data[: len(data) - cut]
    expected = token_template.skip_tokens_in_python(data, 0, PREFIX, SUFFIX)
    assert token_template.skip_tokens(data, 0, PREFIX, SUFFIX) == expected


@pytest.mark.parametrize("start", [-1, 2])
def test_the_compiled_function_refuses_a_start_outside_the_data(start: int) -> None:
    if token_template.skip_tokens is token_template.skip_tokens_in_python:
        pytest.skip("this is the compiled function's check")
    with pytest.raises(ValueError, match="of 1 bytes"):
        token_template.skip_tokens(b"x", start, PREFIX, SUFFIX)
