"""Sessions: grouping, order, texts and think times, on hand-made lengths."""

from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.record import Endpoint
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest
from loadgen.workload.sessions import (
    NEW_TOKENS,
    History,
    group_sessions,
    settle_history,
    text_numbers,
    think_times_ns,
    thread_sessions,
    waits_ns,
)
from loadgen.workload.trace import TraceRequest
from loadgen.workload.words import WordsRef


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def request(
    arrival_s: float, input_tokens: int = 10, output_tokens: int = 5, session: str | None = None
) -> TraceRequest:
    return TraceRequest(arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, session_id=session)


def test_without_turns_every_request_is_a_session_in_its_order() -> None:
    requests = [request(1), request(2, session="a"), request(3, session="a")]
    assert group_sessions("s", requests, None, rng()) == [[r] for r in requests]


def test_sessions_of_a_trace_are_in_order_of_their_first_turn_and_requests_without_one_stand_alone() -> None:
    a1, b1, lone, a2, alone = (
        request(0, session="a"),
        request(1, session="b"),
        request(2),
        request(3, session="a"),
        request(4),
    )
    assert group_sessions("s", [a1, b1, lone, a2, alone], "trace", rng()) == [[a1, a2], [b1], [lone], [alone]]


def test_threaded_sessions_start_at_sorted_arrivals_of_first_turns() -> None:
    requests = [request(i, 10 * 3 ** (i % 3), 5) for i in range(9)]
    sessions = group_sessions("s", requests, 3.0, rng())
    assert [len(turns) for turns in sessions] == [3, 3, 3]
    starts = [turns[0].arrival_s for turns in sessions]
    assert starts == sorted(starts) == [0, 3, 6]
    assert all([t.input_tokens for t in turns] == [10, 30, 90] for turns in sessions)


def test_a_trace_with_sessions_or_prefixes_of_its_own_is_not_threaded() -> None:
    with pytest.raises(LoadgenError, match='use turns = "trace", or none'):
        group_sessions("s", [request(0, session="a")], 2.0, rng())


@pytest.mark.parametrize(("added", "sessions"), [(NEW_TOKENS - 1, 2), (NEW_TOKENS, 1), (NEW_TOKENS + 1, 1)])
def test_a_turn_adds_new_tokens_at_least(added: int, sessions: int) -> None:
    lengths = [(20, 5), (25 + added, 5)]
    mean_turns = 2 / sessions
    assert len(thread_sessions(lengths, mean_turns, rng())) == sessions


def test_a_turn_that_does_not_hold_its_history_opens_another_text() -> None:
    turns = [request(0, 10, 5), request(1, 16, 5), request(2, 21, 5), request(3, 27, 1), request(4, 28, 1)]
    assert text_numbers(turns) == [0, 0, 1, 1, 2]  # 16 > 15; 21 is not > 21; 27 > 26; 28 is not > 28


@pytest.mark.parametrize(("law", "drawn"), [("constant:1.5", [1_500_000_000] * 3), ("constant:0", [0] * 3)])
def test_constant_think_times_are_exact_nanoseconds(law: str, drawn: list[int]) -> None:
    assert think_times_ns(law, 3, rng()) == drawn
    assert think_times_ns(law, 0, rng()) == []


@pytest.mark.parametrize(
    "law", ["exponential:3:1", "constant:nan", "constant:inf", "lognormal:3:-1", "lognormal:3:1:1"]
)
def test_a_law_of_think_times_with_bad_parameters_is_an_error(law: str) -> None:
    with pytest.raises(LoadgenError, match="expected constant:SECONDS"):
        think_times_ns(law, 1, rng())


LENGTHS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 60)), min_size=1, max_size=120)


@settings(deadline=None)
@given(LENGTHS, st.floats(1, 4), st.integers(0, 99))
def test_threads_hold_every_pair_once_and_every_turn_contains_its_history(
    lengths: list[tuple[int, int]], turns: float, seed: int
) -> None:
    try:
        sessions = thread_sessions(lengths, turns, np.random.default_rng(seed))
    except LoadgenError as err:
        assert "these lengths hold" in str(err)
        return
    assert sorted(row for session in sessions for row in session) == list(range(len(lengths)))
    for session in sessions:
        for previous, turn in pairwise(session):
            assert lengths[turn][0] >= sum(lengths[previous]) + NEW_TOKENS


@pytest.mark.parametrize("turns", [1, 1.5, 2.5])
def test_threaded_sessions_have_the_requested_mean(turns: float) -> None:
    rng = np.random.default_rng(0)
    lengths = [(int(a), int(b)) for a, b in zip(rng.lognormal(6, 1, 3000), rng.lognormal(4, 1, 3000), strict=True)]
    assert len(lengths) / len(thread_sessions(lengths, turns, rng)) == pytest.approx(turns, rel=0.01)


def test_more_turns_than_the_lengths_hold_are_an_error() -> None:
    with pytest.raises(LoadgenError, match="these lengths hold 1 in the mean at most"):
        thread_sessions([(100, 100)] * 10, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("law", "mean_s", "spread_s"),
    [("constant:3", 3, 0), ("exponential:3", 3, 3), ("lognormal:3:0.5", 3, 3 * (np.exp(0.25) - 1) ** 0.5)],
)
def test_think_times_have_the_mean_and_spread_of_their_law(law: str, mean_s: float, spread_s: float) -> None:
    drawn = np.array(think_times_ns(law, 20_000, np.random.default_rng(0))) / NS_PER_S
    assert drawn.mean() == pytest.approx(mean_s, rel=0.03)
    assert drawn.std() == pytest.approx(spread_s, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("law", ["", "3", "normal:3:1", "constant", "constant:-1", "lognormal:3", "lognormal:0:1"])
def test_text_that_is_no_law_of_think_times_is_an_error(law: str) -> None:
    with pytest.raises(LoadgenError, match="expected constant:SECONDS"):
        think_times_ns(law, 1, np.random.default_rng(0))


# -- conversations of words -------------------------------------------------------------------------------------------


def words(line: int, endpoint: Endpoint = "chat", continues: bool = False) -> WordsRef:
    return WordsRef(line=line, sha256="", offset=0, size=0, endpoint=endpoint, continues=continues)


def turn(line: int, after: int | None = None, **fields: Any) -> ScheduledRequest:
    return ScheduledRequest(
        index=line, offset_ns=0, workload="w", input_tokens=None, output_tokens=None, after=after,
        words=words(line, **fields),
    )  # fmt: skip


MADE_UP = ScheduledRequest(index=9, offset_ns=0, workload="w", input_tokens=1, output_tokens=1, after=8)


@pytest.mark.parametrize(
    ("requests", "wanted", "history"),
    [
        ([turn(1), turn(2, after=1)], None, "recorded"),
        ([turn(1), turn(2, after=1)], "live", "live"),
        ([turn(1), turn(2, after=1, continues=True)], None, "live"),
        ([turn(1, endpoint="completions"), turn(2), turn(3, after=2)], "live", "live"),
        ([MADE_UP], None, "recorded"),
        ([MADE_UP, turn(1), turn(2, after=1)], "live", "live"),
        ([turn(1, endpoint="completions"), turn(2, after=1, endpoint="completions")], None, "recorded"),
        ([], None, "recorded"),
    ],
)
def test_the_history_is_recorded_unless_live_is_wanted_or_needed(
    requests: list[ScheduledRequest], wanted: History | None, history: History
) -> None:
    schedule, chosen = settle_history(Schedule(tuple(requests), None, None, 0), wanted)
    assert chosen == history
    live = [request.index for request in schedule.requests if request.live is True]
    assert live == [r.index for r in requests if history == "live" and r.after is not None and r.words]


@pytest.mark.parametrize(
    ("requests", "wanted", "fault"),
    [
        ([turn(1, continues=True)], None, "line 1 continues a session, and no line before it is of that session"),
        ([turn(1), turn(2, after=1, continues=True)], "recorded", "line 2 has only its new messages"),
        ([turn(1), turn(2, after=1, endpoint="completions")], "live", "line 2 has no messages"),
        ([turn(1, endpoint="completions"), turn(2, after=1)], "live", "line 1 has no messages"),
        ([turn(1), turn(2)], "live", "no session has a second turn"),
        ([MADE_UP], "live", "no session has a second turn"),
    ],
)
def test_a_history_that_cannot_be_sent_is_one_line(
    requests: list[ScheduledRequest], wanted: History | None, fault: str
) -> None:
    with pytest.raises(LoadgenError, match=fault):
        settle_history(Schedule(tuple(requests), None, None, 0), wanted)


def test_a_turn_waits_for_nobody_or_by_the_timestamps_or_by_a_law() -> None:
    turns = [request(second) for second in (1.0, 1.5, 4.0)]
    assert waits_ns(None, turns, rng()) == [0, 0, 0]
    assert waits_ns("trace", turns, rng()) == [0, 500_000_000, 2_500_000_000]
    assert waits_ns("constant:2", turns, rng()) == [0, 2_000_000_000, 2_000_000_000]


def test_live_history_is_refused_where_messages_become_an_input() -> None:
    schedule = Schedule((turn(1), turn(2, after=1)), None, None, 0)
    with pytest.raises(LoadgenError, match="line 2 has no messages"):
        settle_history(schedule, "live", "responses")
    assert settle_history(schedule, "live", "completions")[1] == "live", "messages go to chat"


def test_the_prompt_of_a_live_turn_has_no_planned_length() -> None:
    turns = [msgspec.structs.replace(request, input_tokens=9) for request in (turn(1), turn(2, after=1))]
    live, _ = settle_history(Schedule(tuple(turns), None, None, 0), "live")
    assert [request.input_tokens for request in live.requests] == [9, None]
    recorded, _ = settle_history(Schedule(tuple(turns), None, None, 0), None)
    assert [request.input_tokens for request in recorded.requests] == [9, 9]
