"""Each request goes to the endpoint that takes its words, or the run is refused before anything is sent."""

import pytest

from loadgen.errors import LoadgenError
from loadgen.record import Endpoint
from loadgen.workload.routes import endpoints_of, routed
from loadgen.workload.schedule import Schedule, ScheduledRequest
from loadgen.workload.words import WordsRef


def schedule(*endpoints: Endpoint | None, is_body: bool = False) -> Schedule:
    requests = tuple(
        ScheduledRequest(
            index=i,
            offset_ns=0,
            workload="w",
            input_tokens=5,
            output_tokens=7,
            words=WordsRef(line=i + 1, sha256="", offset=0, size=0, endpoint=endpoint, is_body=is_body),
        )
        for i, endpoint in enumerate(endpoints)
    )
    return Schedule(requests, "constant", 1.0, 0)


MADE_UP = Schedule(
    (ScheduledRequest(index=0, offset_ns=0, workload="w", input_tokens=5, output_tokens=7),), "constant", 1.0, 0
)


@pytest.mark.parametrize(
    ("words", "is_body", "run", "taken"),
    [
        ("chat", False, "chat", "chat"),
        ("chat", False, "completions", "chat"),
        ("chat", False, "responses", "responses"),
        ("chat", False, "embeddings", "embeddings does not take messages"),
        ("chat", False, "rerank", "rerank does not take messages"),
        ("completions", False, "chat", "completions"),
        ("completions", False, "completions", "completions"),
        ("completions", False, "responses", "responses"),
        ("completions", False, "embeddings", "embeddings"),
        ("completions", False, "rerank", "rerank does not take a prompt"),
        ("chat", True, "embeddings", "chat"),
        ("rerank", True, "chat", "rerank"),
        (None, True, "chat", "give the line a url"),
        (None, True, "rerank", "give the line a url"),
        (None, True, "responses", "responses"),
        (None, True, "embeddings", "embeddings"),
    ],
)
def test_words_go_where_they_say_or_where_the_run_says(
    words: Endpoint | None, is_body: bool, run: Endpoint, taken: str
) -> None:
    if " " in taken:
        with pytest.raises(LoadgenError, match=f"line 1: .*{taken}"):
            routed(schedule(words, is_body=is_body), run)
        return
    (request,) = routed(schedule(words, is_body=is_body), run).requests
    assert request.words is not None and request.words.endpoint == taken


@pytest.mark.parametrize(
    ("endpoint", "length"), [("chat", 7), ("responses", 7), ("embeddings", None), ("rerank", None)]
)
def test_an_answer_without_tokens_has_no_length(endpoint: Endpoint, length: int | None) -> None:
    (request,) = routed(MADE_UP, endpoint).requests
    assert (request.output_tokens, request.natural) == (length, length is None)


def test_the_endpoints_that_are_needed_are_those_of_some_request() -> None:
    mixed = routed(schedule("embeddings", "rerank", "rerank", "chat", is_body=True), "chat")
    assert endpoints_of(mixed, "chat") == ["chat", "rerank", "embeddings"]
    assert endpoints_of(mixed, "responses") == ["rerank", "chat", "embeddings"]
    assert endpoints_of(MADE_UP, "responses") == ["responses"]
