"""What locust's users ask, and how a schedule is shared out. Nothing here patches sockets: gevent is only imported."""

from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clock import Anchor
from loadgen.errors import LoadgenError
from loadgen.files import profile_path
from loadgen.locust.options import settings
from loadgen.locust.trace_replay import Conductor, Outcome, Part, Ready, assign
from loadgen.locust.workload import fitting_bins, lengths, plan
from loadgen.workload.agent_sessions import read_sessions
from loadgen.workload.schedule import ScheduledRequest
from loadgen.workload.token_bins import read_bins
from loadgen.workload.trace import write_trace
from support.agent_files import FORKED, write_session

CHAT = profile_path("workloads", "azure-2023-chat", "json")


def request(index: int, workload: str = "chat", tokens: int = 300) -> ScheduledRequest:
    return ScheduledRequest(index=index, offset_ns=0, workload=workload, input_tokens=tokens, output_tokens=20)


def ready(count: int, plan: str = "abc") -> list[Ready]:
    return [Ready(i, f"node-{i}", 0, plan, 100) for i in range(count)]


# -- options --


GIVEN = {
    "model": "", "endpoint": "chat", "seed": "3", "think": "0.5", "request_timeout": 60.0, "tokenizer": None,
    "sidecar": "", "chat_bins": "a", "code_bins": "b", "trace": "", "rps": "4", "arrival": "trace", "duration": "",
    "num_requests": "10",
}  # fmt: skip


def test_options_may_come_as_text_from_the_page() -> None:
    given = settings(Namespace(**GIVEN), "http://127.0.0.1:8000")
    assert (given.model, given.sidecar, given.trace, given.duration_s) == (None, None, None, None)
    assert (given.seed, given.think_s, given.rps, given.num_requests) == (3, 0.5, 4.0, 10)


@pytest.mark.parametrize(
    ("host", "base_url"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("https://u:p@gateway/openai", "https://u:p@gateway/openai"),
        ("https://gateway/openai?api-version=1", "https://gateway/openai?api-version=1"),
        ("http://h:1?key=k", "http://h:1/v1?key=k"),
    ],
)
def test_a_host_is_the_api_below_v1_unless_it_has_a_path(host: str, base_url: str) -> None:
    assert settings(Namespace(**GIVEN), host).base_url == base_url


@pytest.mark.parametrize(
    ("changed", "host", "words"),
    [({}, None, "add --host"), ({}, "localhost", "not a server's URL"), ({"rps": "x"}, "http://h", "--rps 'x'")],
)
def test_options_that_cannot_be_say_why(changed: dict[str, str], host: str | None, words: str) -> None:
    with pytest.raises(LoadgenError, match=words):
        settings(Namespace(**{**GIVEN, **changed}), host)


# -- what is asked --


def test_lengths_follow_the_bins_and_what_does_not_fit_is_left_out() -> None:
    bins = read_bins(CHAT)
    drawn = lengths(bins, None, np.random.default_rng(1))
    pairs = np.array([next(drawn) for _ in range(2000)])
    assert pairs[:, 0].mean() == pytest.approx(bins.mean_input, rel=0.05)
    assert pairs[:, 1].mean() == pytest.approx(bins.mean_output, rel=0.05)
    short = lengths(bins, 600, np.random.default_rng(1))
    assert all(sum(next(short)) <= 600 for _ in range(500))


def test_what_no_model_of_that_length_can_take_is_said_before_the_test() -> None:
    with pytest.raises(LoadgenError, match="into the model's 10 tokens"):
        fitting_bins("azure-2023-chat", 10)


# -- how a schedule is shared --


@given(st.integers(1, 9), st.integers(0, 50), st.randoms())
def test_parts_hold_every_request_exactly_once(users: int, count: int, random: object) -> None:
    there = ready(users)
    random.shuffle(there)  # type: ignore[attr-defined]
    parts = assign(there, 0, "run")
    requests = [request(i) for i in range(count)]
    sent = [one.index for _, part in parts for one in part.of_schedule(requests)]
    assert sorted(sent) == list(range(count))
    assert [node for node, _ in parts] == [f"node-{i}" for i in range(users)], "in order of worker index"
    assert {part.start_wall_ns for _, part in parts} == {0}


def test_a_part_begins_at_one_wall_instant_on_clocks_that_count_from_different_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part(user=0, shard=0, of=1, start_wall_ns=1_000_500, run_id="run")
    for monotonic_ns in (7, 90_000):
        now = Anchor(wall_ns=1_000_000, monotonic_ns=monotonic_ns)
        monkeypatch.setattr("loadgen.locust.trace_replay.anchor", lambda now=now: now)
        assert part.start_ns() == monotonic_ns + 500


def test_workers_that_hold_different_plans_do_not_begin() -> None:
    with pytest.raises(LoadgenError, match="2 different schedules"):
        assign([*ready(2), *ready(1, "other")], 0, "run")


def test_a_replay_begins_when_all_are_ready_and_is_over_when_all_have_ended_or_are_lost() -> None:
    told: list[tuple[str, Part]] = []
    alive = {"node-0", "node-1", "node-2"}
    conductor = Conductor("run", lambda node, part: told.append((node, part)), lambda: alive)
    first, *others = ready(3)
    conductor.ready(first)
    assert not conductor.begin_if(0) and not conductor.begin_if(3) and not told
    for one in others:
        conductor.ready(one)
    assert conductor.begin_if(3) and not conductor.begin_if(3), "once"
    assert [node for node, _ in told] == ["node-0", "node-1", "node-2"]
    assert not conductor.over
    conductor.done(Outcome(0, 34, 1))
    conductor.done(Outcome(1, 33, 0))
    assert not conductor.over
    alive.remove("node-2")
    assert conductor.over
    assert conductor.summary() == (
        "67 of 100 scheduled requests sent, 1 failed; 1 users were lost with their workers",
        False,
    )
    alive.add("node-2")
    conductor.done(Outcome(2, 33, 0))
    assert conductor.over and conductor.summary() == ("100 of 100 scheduled requests sent, 1 failed", True)


def test_sessions_that_wait_for_answers_are_refused(tmp_path: Path) -> None:
    file = write_session(tmp_path, FORKED)
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, read_sessions([file], Counter()).requests)
    for path, problem in ((file, "trace import"), (trace, "use loadgen replay")):
        given = settings(Namespace(**GIVEN | {"trace": str(path)}), "http://h:1")
        with pytest.raises(LoadgenError, match=problem):
            plan(given)
