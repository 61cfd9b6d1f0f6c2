"""Sessions as graphs: instants, lanes, starts in the middle, and sessions that are too long."""

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload.agent_sessions import read_sessions
from loadgen.workload.schedule import Schedule, ScheduledRequest, Timing, after_all, truncated
from loadgen.workload.session_graphs import fit_sessions, from_middle, graph, without
from loadgen.workload.stream_schedule import schedule_streams, schedule_trace
from loadgen.workload.streams import Stream
from loadgen.workload.trace import Trace, TraceRequest
from loadgen.workload.words import WordsFile
from support.agent_files import FORKED, session, talk, write_session


def trace_of(folder: Path, *sessions: dict[str, Any]) -> Trace:
    return read_sessions([write_session(folder, one) for one in sessions], Counter())


def planned(trace: Trace, *, count: int | None = None, duration_s: float | None = None, **options: Any) -> Schedule:
    return schedule_trace(trace, Stream(**options), seed=0, duration_s=duration_s, num_requests=count)


def by_session(schedule: Schedule) -> dict[str | None, list[ScheduledRequest]]:
    sessions: dict[str | None, list[ScheduledRequest]] = defaultdict(list)
    for request in schedule.requests:
        sessions[request.session_id].append(request)
    return sessions


def edges(requests: tuple[ScheduledRequest, ...]) -> set[tuple[str | None, int, int]]:
    return {(r.task, r.input_tokens or 0, requests[parent].input_tokens or 0) for r in requests for parent in r.parents}


# -- instants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "speedup", "offsets_s", "thinks_s"),
    [
        ("recorded", 1, [0, 3, 3.5, 5, 5.5, 7, 11.5, 20], [0] * 8),
        ("recorded", 10, [0, 0.3, 0.35, 0.5, 0.55, 0.7, 1.15, 2], [0] * 8),
        ("think", 1, [0, 2, 2.5, 3.5, 4, 5, 8.5, 16], [0, 2, 2.5, 1, 4, 3, 5, 7.5]),
        ("think", 2, [0, 1, 1.25, 1.75, 2, 2.5, 4.25, 8], [0, 1, 1.25, 0.5, 2, 1.5, 2.5, 3.75]),
        ("afap", 1, [0] * 8, [0] * 8),
    ],
)
def test_the_timing_says_when_requests_are_due_and_never_what_they_wait_for(
    tmp_path: Path, timing: Timing, speedup: float, offsets_s: list[float], thinks_s: list[float]
) -> None:
    trace = trace_of(tmp_path, FORKED)
    schedule = planned(trace, timing=timing, speedup=speedup)
    assert [request.offset_ns for request in schedule.requests] == [round(t * NS_PER_S) for t in offsets_s]
    thinks_ns = [round(t * NS_PER_S) for t in thinks_s]
    assert Counter(request.think_ns for request in schedule.requests) == Counter(thinks_ns)
    assert edges(schedule.requests) == edges(planned(trace).requests)
    assert len(edges(schedule.requests)) == 9
    assert all(parent < request.index for request in schedule.requests for parent in request.parents)
    assert {request.streamed for request in schedule.requests} == {msgspec.UNSET, False}


def test_think_is_the_default_and_an_unknown_think_time_is_the_time_between_the_requests(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, FORKED)
    assert planned(trace) == planned(trace, timing="think")
    unknown = [msgspec.structs.replace(request, think_s=None) for request in trace.requests]
    turns = graph(unknown, "think", 1.0)
    assert [turn.wait_ns / NS_PER_S for turn in turns] == [0, 3, 3.5, 5, 2, 4, 6, 8.5]


def test_requests_in_memory_that_wait_for_what_is_not_there_are_an_error() -> None:
    row = {"arrival_s": 0.0, "input_tokens": 1, "output_tokens": 1, "session_id": "s"}
    one, two = TraceRequest(**row, request_id="a", after=("b",)), TraceRequest(**row, request_id="b", after=("a",))
    for requests in ((one, two), (two, one)):
        with pytest.raises(LoadgenError, match=r"session 's': a request waits for '[ab]', which is no earlier"):
            planned(Trace("t", requests, ""))


# -- which sessions are alive -----------------------------------------------------------------------------------------

FIVE = [talk(name, turns) for name, turns in zip("abcde", (2, 6, 3, 1, 4), strict=True)]


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("timing", ["think", "afap"])
def test_on_lanes_a_session_follows_all_the_last_requests_of_the_one_before(
    tmp_path: Path, lanes: int, timing: Timing
) -> None:
    schedule = planned(trace_of(tmp_path, *FIVE, FORKED), concurrent_sessions=lanes, timing=timing)
    sessions = by_session(schedule)
    assert len(sessions) == 6 and len(schedule.requests) == 16 + 8
    starts = 0
    for name, requests in sessions.items():
        before = {schedule.requests[p].session_id for p in requests[0].parents}
        starts += not requests[0].parents
        assert name not in before and len(before) <= 1
        if before:
            (previous,) = before
            waited_for = {p for request in sessions[previous] for p in request.parents}
            assert set(requests[0].parents) == {r.index for r in sessions[previous]} - waited_for
            assert requests[0].think_ns == 0
    assert starts == min(lanes, 6)
    assert not schedule.requested_arrivals, "which no process brings"


def test_a_lane_that_is_free_first_gets_the_next_session(tmp_path: Path) -> None:
    sessions = by_session(planned(trace_of(tmp_path, *FIVE), concurrent_sessions=2))
    first = {name: requests[0] for name, requests in sessions.items()}
    before = {
        name: {r.session_id for s in sessions.values() for r in s if r.index in first[name].parents} for name in first
    }
    assert before == {"a": set(), "b": set(), "c": {"a"}, "d": {"c"}, "e": {"d"}}, "b alone is as long as all of them"


def test_more_requests_than_there_are_go_round_as_other_users(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, talk("a", 2), talk("b", 3))
    schedule = planned(trace, concurrent_sessions=1, count=9)
    assert [r.session_id for r in schedule.requests] == ["a", "a", "b", "b", "b", "a+1", "a+1", "b+1", "b+1"]
    assert not set(schedule.requests[0].prefix_ids) & set(schedule.requests[5].prefix_ids)
    assert [r.session_id for r in planned(trace, concurrent_sessions=1, count=4).requests] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(("options", "rate"), [({"sessions_rate": 0.5}, 0.5), ({"rps": 1.5}, 0.5)])
def test_sessions_come_at_a_rate_as_a_poisson_process(tmp_path: Path, options: dict[str, Any], rate: float) -> None:
    trace = trace_of(tmp_path, talk("a", 2), talk("b", 4))
    schedule = planned(trace, duration_s=4000.0, **options)
    starts_s = [request.offset_ns / NS_PER_S for request in schedule.requests if not request.parents]
    assert len(starts_s) == pytest.approx(rate * 4000, rel=0.1)
    gaps = np.diff(starts_s)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)
    (spec,) = schedule.requested_arrivals
    assert (spec.process, spec.sessions, spec.rate_rps) == ("poisson", True, pytest.approx(rate))
    constant = planned(trace, duration_s=10.0, sessions_rate=1.0, arrival="constant")
    assert len({r.session_id for r in constant.requests}) == 10


def test_streams_have_sessions_of_their_own(tmp_path: Path) -> None:
    write_session(tmp_path, FORKED)
    stream = Stream(trace=str(tmp_path), concurrent_sessions=1, timing="afap")
    with (tmp_path / "words").open("wb") as file:
        words = WordsFile(file)
        schedule = schedule_streams({"x": stream, "y": stream}, seed=0, duration_s=None, num_requests=None, words=words)
    assert Counter(request.workload for request in schedule.requests) == {"x": 8, "y": 8}
    ids = {name: {i for r in schedule.requests if r.workload == name for i in r.prefix_ids} for name in "xy"}
    assert not ids["x"] & ids["y"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"timing": "afap", "speedup": 2.0}, "--timing afap waits for answers only: leave out --speedup"),
        ({"timing": "recorded", "concurrent_sessions": 2}, "--timing recorded: it is not known before"),
        ({"concurrent_sessions": 2, "rps": 1.0}, "--concurrent-sessions: a session starts when another is over"),
        ({"concurrent_sessions": 2, "sessions_rate": 1.0}, "--concurrent-sessions: a session starts"),
        ({"concurrent_sessions": 2, "arrival": "poisson"}, "--concurrent-sessions: a session starts"),
        ({"sessions_rate": 2.0, "rps": 1.0}, "--sessions-rate and --rps"),
        ({"think": "constant:1"}, "--think: .* has the think times of its requests"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(LoadgenError, match=fault):
        planned(trace_of(tmp_path, FORKED), **options)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"timing": "think"}, "--timing: no request of t states which others it comes after"),
        ({"speedup": 2.0}, "--speedup: no request of t"),
        ({"session_start": "middle"}, "--session-start: no request of t"),
        ({"sessions_rate": 2.0}, "--sessions-rate: t has no sessions of several turns"),
        ({"concurrent_sessions": 2}, "--concurrent-sessions: t has no sessions"),
    ],
)
def test_a_trace_without_sessions_has_no_options_of_sessions(options: dict[str, Any], fault: str) -> None:
    requests = tuple(TraceRequest(arrival_s=t, input_tokens=5, output_tokens=1) for t in (0, 1.0))
    with pytest.raises(LoadgenError, match=fault):
        planned(Trace("t", requests, ""), **options)


# -- the middle of a session ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_session_from_its_middle_on_has_its_history_in_the_cache(tmp_path: Path, seed: int) -> None:
    turns = trace_of(tmp_path, FORKED).requests
    kept, (cached,) = from_middle(turns, np.random.default_rng(seed))
    assert cached.task is None and cached not in kept
    first = kept[0]
    assert first.task is None and first.after == ()
    assert first.prefix_ids[: len(cached.prefix_ids)] == cached.prefix_ids
    assert [turn.request_id for turn in kept] == [
        turn.request_id for turn in turns if turn.arrival_s >= first.arrival_s and turn is not cached
    ]
    names = {turn.request_id for turn in kept}
    assert all(parent in names for turn in kept for parent in turn.after)
    offsets = [turn.offset_ns for turn in graph(kept, "think", 1.0)]
    assert offsets[0] == 0 and min(offsets) == 0


def test_all_sessions_or_the_first_of_each_lane_start_in_the_middle(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, *FIVE)
    open_ = planned(trace, session_start="middle")
    assert len(open_.warmed) == 4, "one has a single turn"
    assert len(open_.requests) < 16
    lanes = planned(trace, session_start="middle", concurrent_sessions=2)
    assert {request.session_id for request in lanes.warmed} == {"a", "b"}
    assert [len(by_session(lanes)[name]) for name in "cde"] == [3, 1, 4]
    assert planned(trace, session_start="beginning").warmed == ()
    assert open_.warmed == planned(trace, session_start="middle").warmed, "by the seed"


@pytest.mark.parametrize("count", range(1, 12))
def test_prompts_of_sessions_that_are_not_sent_are_not_put_in_the_cache(tmp_path: Path, count: int) -> None:
    whole = planned(trace_of(tmp_path, *FIVE), session_start="middle", sessions_rate=0.5)
    schedule = truncated(whole, count)
    sent = {request.session_id for request in schedule.requests}
    assert schedule.warmed == tuple(request for request in whole.warmed if request.session_id in sent)


# -- sessions that are too long ---------------------------------------------------------------------------------------


def lengths(schedule: Schedule) -> list[tuple[str | None, int]]:
    return [(request.session_id, request.input_tokens or 0) for request in schedule.requests]


@pytest.mark.parametrize(
    ("limit", "how", "sessions", "left"),
    [
        (1000, "cut", 0, 9),
        (1000, "leave-out", 0, 9),
        (93, "cut", 1, 7),  # prompts of 56, 72, 88, 104 and 120 tokens, and 5 of each answer
        (93, "leave-out", 1, 4),
        (77, "cut", 2, 5),
        (92, "cut", 2, 5),
    ],
)
def test_what_is_too_long_is_left_out_as_a_session_or_from_there_on(
    tmp_path: Path, limit: int, how: Any, sessions: int, left: int
) -> None:
    schedule = planned(trace_of(tmp_path, talk("a", 5), talk("b", 3), talk("c", 1)), concurrent_sessions=1)
    fitted = fit_sessions(schedule, limit, how)
    assert (fitted.sessions, fitted.requests, len(fitted.schedule.requests)) == (sessions, 9 - left, left)
    assert [request.index for request in fitted.schedule.requests] == list(range(left))
    requests = fitted.schedule.requests
    assert [request.after for request in requests] == [None, *range(left - 1)], "the lane goes on"
    whole = lengths(schedule)
    assert all(row in whole for row in lengths(fitted.schedule))


def test_what_waits_for_a_request_that_is_cut_is_cut_and_what_ran_beside_it_stays(tmp_path: Path) -> None:
    long = msgspec.json.decode(msgspec.json.encode(FORKED))
    long["requests"][1]["requests"][1] |= {"in": 900, "hash_ids": []}
    schedule = planned(trace_of(tmp_path, long))
    fitted = fit_sessions(schedule, 500, "cut")
    assert fitted.requests == 2, "the second request of sub-agent a, and the turn that waits for it"
    assert Counter(r.task for r in fitted.schedule.requests) == {None: 2, "a": 1, "b": 2, "b/c": 1}


@pytest.mark.parametrize(("limit", "warmed"), [(100, 0), (900, 1)])
def test_a_prompt_that_would_only_fill_the_cache_is_not_sent_if_it_is_too_long(limit: int, warmed: int) -> None:
    short, long = (
        ScheduledRequest(index=0, offset_ns=0, workload="w", input_tokens=n, output_tokens=1, session_id="s")
        for n in (50, 500)
    )
    schedule = Schedule((short,), None, None, 0, warmed=(long,))
    assert len(fit_sessions(schedule, limit, "cut").schedule.warmed) == warmed


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="every session has a request of more than 10 tokens: nothing is left"):
        fit_sessions(planned(trace_of(tmp_path, talk("a"))), 10, "leave-out")


@given(st.data())
def test_without_some_requests_the_order_of_the_others_is_kept(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    parents = [sorted(data.draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(count)]
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=i, workload="w", input_tokens=1, output_tokens=1, after=after_all(before))
        for i, before in enumerate(parents)
    )
    removed = data.draw(st.sets(st.integers(0, count - 1)))
    left = without(Schedule(requests, None, None, 0), removed).requests

    def ancestors(of: tuple[ScheduledRequest, ...]) -> set[tuple[int, int]]:
        """Pairs of (earlier, later) request, each named by its offset."""
        before: dict[int, set[int]] = {}
        for request in of:
            before[request.index] = {p for parent in request.parents for p in (parent, *before[parent])}
        return {(of[a].offset_ns, of[b].offset_ns) for b in before for a in before[b]}

    assert ancestors(left) == {pair for pair in ancestors(requests) if not set(pair) & removed}


def test_a_session_of_one_thread_is_a_chain(tmp_path: Path) -> None:
    requests = planned(trace_of(tmp_path, session("s", talk("s", 5)["requests"]))).requests
    assert [request.after for request in requests] == [None, 0, 1, 2, 3]
    assert all(a.prefix_ids == b.prefix_ids[: len(a.prefix_ids)] for a, b in pairwise(requests))


def test_without_ids_the_turns_of_a_thread_share_a_text_and_those_of_others_do_not(tmp_path: Path) -> None:
    requests = [msgspec.structs.replace(request, prefix_ids=()) for request in trace_of(tmp_path, FORKED).requests]
    schedule = planned(Trace("t", tuple(requests), ""))
    texts = {task: {r.text_id for r in schedule.requests if r.task == task} for task in (None, "a", "b", "b/c")}
    assert [len(ids) for ids in texts.values()] == [1, 1, 1, 1]
    assert len(set.union(*texts.values())) == 4
    assert {request.session_id for request in schedule.requests} == {"forked"}
