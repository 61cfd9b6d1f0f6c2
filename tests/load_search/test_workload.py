"""The requests of a search: the same trace at any rate, from a place of its own in each probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from loadgen.load_search.workload import Workload, rotated
from loadgen.run.config import RunConfig
from loadgen.units import NS_PER_S
from loadgen.workload.load import Load
from loadgen.workload.trace import Trace, TraceRequest
from loadgen.workload.words import stored_words

CONFIG = RunConfig(base_url="http://server/v1", out=Path("unused"))


def trace(sessions: Sequence[str | None], timed: bool = True) -> Trace:
    requests = [
        TraceRequest(arrival_s=float(i) * timed, input_tokens=i + 1, output_tokens=4, session_id=session)
        for i, session in enumerate(sessions)
    ]
    return Trace("made", tuple(requests), "", timed)


@pytest.mark.parametrize("timed", [True, False])
def test_a_rotated_trace_has_the_same_requests_in_the_same_order_round_the_clock(timed: bool) -> None:
    source = trace([None] * 10, timed)
    for seed in range(20):
        turned = rotated(source, seed)
        order = [request.input_tokens or 0 for request in turned.requests]
        assert [(order[0] - 1 + k) % 10 + 1 for k in range(10)] == order
        times_s = [request.arrival_s for request in turned.requests]
        assert times_s == ([float(k) for k in range(10)] if timed else [0.0] * 10)
    assert rotated(source, 3) == rotated(source, 3)


def test_probes_begin_at_other_requests() -> None:
    source = trace([None] * 100)
    assert len({rotated(source, seed).requests[0].input_tokens for seed in range(30)}) > 20


def test_a_session_stays_whole_and_in_order_wherever_the_trace_begins() -> None:
    source = trace(["a", "b", "a", None, "b", "a", "c", "c"])
    for seed in range(40):
        turned = rotated(source, seed)
        times_s = [request.arrival_s for request in turned.requests]
        assert times_s == sorted(times_s)
        assert times_s[0] == 0.0
        for session in "abc":
            turns = [request.input_tokens for request in turned.requests if request.session_id == session]
            assert turns == [request.input_tokens for request in source.requests if request.session_id == session]


def workload(load: Load, source: Trace | None = None) -> Workload:
    with stored_words() as (words, _):
        return Workload(load, words, CONFIG, source=source, say=lambda line: None)


def test_a_probe_has_its_rate_its_duration_and_its_seed() -> None:
    schedule, _, plan = workload(Load(trace="code", arrival="poisson")).requests(50.0, 20.0, 7)
    assert len(schedule.requests) == 1000
    assert 19e9 < schedule.requests[-1].offset_ns < 20e9
    assert (plan["trace"], plan["rps"], plan["seed"], schedule.seed) == ("code", 50.0, 7, 7)


def test_the_arrivals_of_a_probe_are_anywhere_in_it_or_as_even_as_they_were() -> None:
    places = [
        request.offset_ns / 5e9
        for seed in range(40)
        for request in workload(Load(trace="code", arrival="poisson")).requests(10.0, 5.0, seed).schedule.requests
    ]
    assert len(places) == 40 * 50
    places.sort()
    assert max(abs(place - (i + 0.5) / 2000) for i, place in enumerate(places)) < 1.95 / 2000**0.5  # Kolmogorov, 0.1 %
    even = workload(Load(trace="code", arrival="constant")).requests(10.0, 5.0, 1).schedule.requests
    assert [request.offset_ns for request in even] == pytest.approx([i * 1e8 for i in range(50)], abs=1)


def test_streams_keep_their_shares_at_any_rate_and_take_the_arrivals_of_the_search() -> None:
    mix = workload(Load(streams=("a=chat:3", "b=code:1"), arrival="poisson"))
    schedule, _, plan = mix.requests(80.0, 20.0, 1)
    counts = [sum(request.workload == name for request in schedule.requests) for name in ("a", "b")]
    assert counts == [1200, 400]
    assert [request.index for request in schedule.requests] == list(range(1600))
    assert plan["streams"]["a"]["arrival"] == plan["streams"]["b"]["arrival"] == "poisson"
    assert mix.name == "a+b"


@pytest.mark.parametrize("load", [{"trace": "code", "arrival": "poisson"}, {"streams": ("a=chat:3", "b=code:1")}])
def test_each_request_of_a_probe_has_the_tags_of_the_search(load: dict[str, Any]) -> None:
    schedule, _, plan = workload(Load(**load, tags={"tenant": "a"})).requests(20.0, 10.0, 1)
    assert {str(request.tags) for request in schedule.requests} == {"{'tenant': 'a'}"}
    assert plan["tags"] == {"tenant": "a"}


def test_limits_of_the_search_take_the_place_of_those_that_streams_state() -> None:
    shipped = workload(Load(streams=("code:1",)))
    assert shipped.limits_ms == {"ttft": 1000}
    shipped.hold_to({"ttft": 200.0})
    assert shipped.requests(5.0, 10.0, 0).plan["streams"]["code"]["goodput"] == {"ttft": 200.0}
    assert workload(Load(streams=("code:1", "chat:1"))).limits_ms == {}


@pytest.mark.parametrize(
    ("load", "fault"),
    [
        (Load(streams=("a=chat", "b=code:1")), "stream a has no rate, its share of the load"),
        (Load(trace="chat", streams=("b=code:1",)), "give a trace, or streams"),
        (Load(), "nothing to replay"),
    ],
)
def test_what_has_no_share_or_no_requests_is_refused(load: Load, fault: str) -> None:
    with pytest.raises(LoadgenError, match=fault):
        workload(load).requests(1.0, 10.0, 0)


def test_a_probe_of_sessions_begins_among_sessions_that_have_begun_and_has_its_rate_from_the_start() -> None:
    schedule = workload(Load(streams=("chat:1",))).requests(20.0, 60.0, 3).schedule
    offsets_s = [request.offset_ns / 1e9 for request in schedule.requests]
    early, late = sum(offset < 20 for offset in offsets_s), sum(offset >= 40 for offset in offsets_s)
    assert early == pytest.approx(late, rel=0.3)
    assert len(offsets_s) == pytest.approx(20 * 60, rel=0.2)
    assert [request.index for request in schedule.requests] == list(range(len(offsets_s)))
    assert all(request.after is None or request.after < request.index for request in schedule.requests)
    assert any(request.after is not None for request in schedule.requests)


def test_own_arrivals_are_one_pass_which_is_said_once() -> None:
    lines: list[str] = []
    with stored_words() as (words, _):
        small = Workload(Load(), words, CONFIG, source=trace([None] * 50), say=lines.append)
    probes = [small.requests(rate, 10.0, seed).schedule for seed, rate in enumerate((2.0, 20.0, 40.0))]
    assert [len(probe.requests) for probe in probes] == [20, 50, 50]
    assert lines == ["with its own arrivals a probe is one pass of made: at high rates it is shorter"]


def agents(turns: int) -> Trace:
    """Return sessions whose turns come ten seconds after the answer before them."""
    requests = [
        TraceRequest(
            arrival_s=10.0 * i, input_tokens=20 + 20 * i, output_tokens=4, session_id=session, request_id=str(i),
            after=(str(i - 1),) if i else (), think_s=10.0 if i else None,
        )
        for i in range(turns) for session in "ab"
    ]  # fmt: skip
    return Trace("made", tuple(requests), "")


def test_sessions_of_agents_have_the_rate_of_a_probe_and_go_on_from_before_it() -> None:
    schedule = workload(Load(arrival="poisson"), agents(6)).requests(6.0, 60.0, 1).schedule
    assert len(schedule.requests) == pytest.approx(360, rel=0.25)
    assert {request.think_ns for request in schedule.requests if request.parents} == {10 * NS_PER_S}
    assert any(not request.parents and (request.input_tokens or 0) > 20 for request in schedule.requests)


def test_a_probe_that_no_session_falls_into_is_an_error() -> None:
    with pytest.raises(LoadgenError, match=r"no request falls into a probe of 1 s at 0.001 requests/s"):
        workload(Load(arrival="poisson"), agents(2)).requests(0.001, 1.0, 1)
