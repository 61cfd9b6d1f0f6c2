"""Laws of what a request record derives from its instants, and of units and clocks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clock import anchor, monotonic_ns, thread_cpu_ns
from loadgen.record import Kind, RequestRecord
from loadgen.units import j_from_mj, mj_from_j, ns_from_s, s_from_ns
from loadgen.workload.schedule import ScheduledRequest


def record(**fields: Any) -> RequestRecord:
    """Scheduled at 100 ns, sent at 110, tokens at 150 to 350, finished at 360; 5 tokens."""
    usual = {
        "index": 0, "workload": "chat", "scheduled_ns": 100, "sent_ns": 110, "first_token_ns": 150,
        "last_token_ns": 350, "finished_ns": 360, "output_tokens": 5,
    }  # fmt: skip
    return RequestRecord(**{**usual, **fields})


def test_latencies_are_differences_of_the_records_instants() -> None:
    usual = record()
    assert (usual.lag_ns, usual.ttft_ns, usual.e2e_ns, usual.response_ns) == (10, 40, 250, 260)
    assert usual.tpot_ns == 50.0
    assert usual.ok


@pytest.mark.parametrize(
    ("output_tokens", "tpot_ns"), [(None, None), (0, None), (1, None), (2, 200.0), (3, 100.0), (201, 1.0)]
)
def test_time_per_output_token_needs_two_tokens(output_tokens: int | None, tpot_ns: float | None) -> None:
    assert record(output_tokens=output_tokens).tpot_ns == tpot_ns


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("sent_ns", {"lag_ns", "ttft_ns", "e2e_ns"}),
        ("first_token_ns", {"ttft_ns", "tpot_ns"}),
        ("last_token_ns", {"tpot_ns"}),
        ("finished_ns", {"e2e_ns", "response_ns"}),
        ("output_tokens", {"tpot_ns"}),
    ],
)
def test_a_latency_is_unknown_exactly_when_one_of_its_instants_is(missing: str, unknown: set[str]) -> None:
    partial = record(**{missing: None})
    derived = ("lag_ns", "ttft_ns", "tpot_ns", "e2e_ns", "response_ns")
    assert {name for name in derived if getattr(partial, name) is None} == unknown


def test_instants_of_zero_are_measured_and_not_unknown() -> None:
    zero = record(scheduled_ns=0, sent_ns=0, first_token_ns=0, last_token_ns=0, finished_ns=0)
    assert (zero.lag_ns, zero.ttft_ns, zero.tpot_ns, zero.e2e_ns, zero.response_ns) == (0, 0, 0.0, 0, 0)


def test_a_client_that_sent_early_has_a_negative_lag() -> None:
    assert record(sent_ns=90).lag_ns == -10


def test_only_a_request_without_an_error_is_ok() -> None:
    assert not record(error="truncated").ok


def test_an_unanswered_request_keeps_its_schedule_and_nothing_else() -> None:
    request = ScheduledRequest(index=7, offset_ns=500, workload="code", input_tokens=3, output_tokens=4)
    lost = RequestRecord.unanswered(request, 1_000, "cancelled", "the client was killed")
    assert lost == RequestRecord(
        index=7, workload="code", scheduled_ns=1_500, error="cancelled", detail="the client was killed"
    )
    assert RequestRecord.unanswered(request, 0, "not_sent").detail is None
    assert lost.response_ns is None and lost.ttft_ns is None and not lost.ok


@given(st.integers(-(2**50), 2**50))
def test_a_whole_number_of_nanoseconds_or_millijoules_survives_the_way_there_and_back(number: int) -> None:
    assert ns_from_s(s_from_ns(number)) == pytest.approx(number, abs=1)
    assert mj_from_j(j_from_mj(number)) == number


@pytest.mark.parametrize(("joules", "millijoules"), [(0.0, 0), (1.2344, 1234), (1.2346, 1235), (-0.0006, -1)])
def test_joules_become_the_nearest_millijoule(joules: float, millijoules: int) -> None:
    assert mj_from_j(joules) == millijoules


def test_an_anchor_lies_between_the_reads_around_it() -> None:
    start_ns = monotonic_ns()
    moment = anchor()
    assert start_ns <= moment.monotonic_ns <= monotonic_ns()
    assert moment.wall_ns > 10**18, "nanoseconds since 1970"


def test_cpu_time_of_a_thread_never_goes_back() -> None:
    assert thread_cpu_ns() <= thread_cpu_ns()


@pytest.mark.parametrize(
    ("kinds", "ttfa_ns"),
    [
        ([("answer", 3)], 40),
        ([("reasoning", 2), ("answer", 1)], 240),
        ([("reasoning", 1), ("tools", 1), ("answer", 1)], 140),
        ([("reasoning", 3)], None),
        ([], None),
        (None, None),
    ],
)
def test_the_first_answer_token_is_the_first_that_is_no_reasoning(
    kinds: list[tuple[Kind, int]] | None, ttfa_ns: int | None
) -> None:
    sent = record(chunk_ns=[150, 250, 350], kinds=kinds)
    assert sent.ttfa_ns == ttfa_ns
    assert record(chunk_ns=[150, 250, 350], kinds=kinds, sent_ns=None).ttfa_ns is None
