"""Tokens of a prompt that an earlier one had, by the plan and the order in which they were sent."""

from typing import Any

import pytest

from loadgen.record import RequestRecord
from loadgen.results.reusable_tokens import reusable_tokens
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.words import WordsRef

WORDS = WordsRef(line=1, sha256="", offset=0, size=10)


def request(tokens: int = 200, **fields: Any) -> ScheduledRequest:
    return ScheduledRequest(**{"index": 0, "offset_ns": 0, "workload": "agent", "input_tokens": tokens,
                               "output_tokens": 5, "block_size": 64, **fields})  # fmt: skip


def record(sent_ns: int | None, first_ns: int | None) -> RequestRecord:
    chunks = [] if first_ns is None else [first_ns]
    return RequestRecord(
        index=0, workload="agent", scheduled_ns=0, sent_ns=sent_ns, first_token_ns=first_ns, chunk_ns=chunks,
        finished_ns=None if first_ns is None else first_ns + 1, error=None if chunks else "http",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "reusable"),
    [
        ({"prefix_ids": (1, 2, 3)}, {"prefix_ids": (1, 2, 3, 4), "tokens": 300}, 192),
        ({"prefix_ids": (1, 2, 3)}, {"prefix_ids": (1, 2, 9)}, 128),
        ({"prefix_ids": (1, 2, 3)}, {"prefix_ids": (7, 2, 3)}, 0),  # compacted: new text in front
        ({"prefix_ids": (1, 2, 3)}, {"prefix_ids": (1, 2, 3), "tokens": 190}, 190),  # no more than the prompt
        (
            {"prefix_ids": (1, 2, 3), "tokens": 150},
            {"prefix_ids": (1, 2, 3, 4), "tokens": 250},
            150,
        ),  # ended in block 3
        ({"text_id": 5, "text_tokens": 150}, {"text_id": 5, "text_tokens": 190}, 150),
        ({"text_id": 5, "text_tokens": 150}, {"text_id": 5, "text_tokens": 100}, 100),
        ({"text_id": 5, "text_tokens": 150}, {"text_id": 6, "text_tokens": 190}, 0),
        (
            {"text_id": 5, "text_tokens": 9, "prefix_ids": (1,)},
            {"text_id": 5, "text_tokens": 10, "prefix_ids": (1,)},
            9,
        ),
        ({}, {}, 0),
        ({"prefix_ids": (1, 2, 3)}, {"words": WORDS}, None),
        ({"prefix_ids": (1, 2, 3)}, {"prefix_ids": (1, 2), "live": True}, None),
    ],
)
def test_a_prompt_repeats_what_an_earlier_one_began_with(
    first: dict[str, Any], second: dict[str, Any], reusable: int | None
) -> None:
    schedule = [request(**first), request(**second)]
    assert reusable_tokens(schedule, [record(0, 10), record(20, 30)])[1] == reusable


@pytest.mark.parametrize(
    ("earlier", "later", "reusable"),
    [
        (record(0, 10), record(10, 30), 128),
        (record(0, 11), record(10, 30), 128),  # sent while the other was being computed: it is scheduled after that
        (record(0, None), record(10, 30), 0),  # refused: nobody computed it
        (record(0, 10), record(None, None), None),
    ],
)
def test_only_what_requests_had_that_were_sent_before_counts(
    earlier: RequestRecord, later: RequestRecord, reusable: int | None
) -> None:
    schedule = [request(prefix_ids=(1, 2)), request(prefix_ids=(1, 2, 3))]
    assert reusable_tokens(schedule, [earlier, later]) == [0, reusable]
    assert reusable_tokens(schedule[::-1], [later, earlier]) == [reusable, 0], "the order of the lines is no order"


def test_what_was_sent_before_the_run_is_in_the_cache() -> None:
    schedule = [request(prefix_ids=(1, 2, 9))]
    assert reusable_tokens(schedule, [record(0, 10)], [request(prefix_ids=(1, 2, 3))]) == [128]
