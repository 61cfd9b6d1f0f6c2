"""Sessions add up to the run, tasks to their session, and phases to the time to the last answer."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.record import RequestRecord
from loadgen.results.session_accounts import depth_rows, phases_of, session_rows
from loadgen.units import MJ_PER_J, NS_PER_S
from support.session_runs import agent_run, analysed, turn


def millijoules(joules: float | None) -> int:
    assert joules is not None and joules * MJ_PER_J == pytest.approx(round(joules * MJ_PER_J), abs=1e-6)
    return round(joules * MJ_PER_J)


@pytest.mark.parametrize("outside", [0, 3])
def test_sessions_and_what_is_outside_of_them_add_up_to_the_counter_to_the_millijoule(outside: int) -> None:
    agents = agent_run(4)
    others = [turn(len(agents.schedule) + i, None, 2.0 * i, 2.0 * i + 1.0) for i in range(outside)]
    result = analysed([*zip(agents.schedule, agents.records, strict=True), *others])
    assert result.summary is not None and result.attribution is not None and result.summary.sessions is not None
    of_sessions = sum(millijoules(account.joules) for account in result.sessions)
    sessions, whole = result.summary.sessions, result.attribution
    assert millijoules(sessions.joules) == of_sessions
    assert (millijoules(sessions.other_joules) > 0) is (outside > 0)
    accounts = of_sessions + millijoules(sessions.other_joules) + whole.idle_mj + whole.unattributed_mj
    assert accounts == whole.measured_mj


def test_tasks_add_up_to_their_session_and_turns_by_depth_to_all_sessions() -> None:
    result = agent_run()
    assert {tuple(task.task for task in account.tasks) for account in result.sessions} == {(None,), (None, "search")}
    for account in result.sessions:
        for name in ("joules", "prefill_joules", "decode_joules"):
            parts = sum(millijoules(getattr(task, name)) for task in account.tasks)
            assert parts == millijoules(getattr(account, name)), name
        for name in ("requests", "sent", "completed", "input_tokens", "cached_tokens", "output_tokens"):
            assert sum(getattr(task, name) for task in account.tasks) == getattr(account, name), name
    assert result.summary is not None and (sessions := result.summary.sessions) is not None
    assert sum(millijoules(depth.joules) for depth in sessions.by_depth) == millijoules(sessions.joules)
    assert sum(depth.requests for depth in sessions.by_depth) == sessions.requests


def test_what_the_cache_saved_sessions_adds_up_to_what_it_saved_the_run() -> None:
    result = agent_run()
    assert result.summary is not None and result.summary.sessions is not None
    whole, sessions = result.summary.energy.cache, result.summary.sessions.cache
    assert whole is not None and whole.saved_joules and sessions == whole
    parts = [account.cache for account in result.sessions]
    assert sum(part.saved_joules or 0.0 for part in parts if part) == pytest.approx(whole.saved_joules, abs=1e-4)
    of_depths = [depth.cache.saved_joules for depth in result.summary.sessions.by_depth if depth.cache]
    assert of_depths[0] == 0 and sum(joules or 0.0 for joules in of_depths) == pytest.approx(
        whole.saved_joules, abs=1e-4
    )
    assert all(part is not None and 0 < (part.saved_se_joules or 0) < (part.saved_joules or 0) for part in parts)


def test_the_error_of_a_session_is_that_of_the_sum_of_its_requests() -> None:
    result = agent_run(sessions=1)
    assert result.attribution is not None
    [account], whole = result.sessions, result.attribution.sums["all"]
    assert account.se_joules == pytest.approx(whole.attributed_se_joules, abs=1e-6)
    assert account.prefill_se_joules == pytest.approx(whole.prefill_se_joules, abs=1e-6)
    assert account.decode_se_joules == pytest.approx(whole.decode_se_joules, abs=1e-6)
    assert 0 < account.se_joules < 0.1 * (account.joules or 0.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_phases_follow_one_another_from_the_first_request_to_the_last_answer(
    flights: list[tuple[int, int, int]],
) -> None:
    records = [
        RequestRecord(index=i, workload="w", scheduled_ns=sent - late, sent_ns=sent, finished_ns=sent + took)
        for i, (sent, late, took) in enumerate(flights)
    ]
    phases = phases_of(records)
    assert phases[0].start_ns == min(sent for sent, _, _ in flights)
    assert phases[-1].end_ns == max(sent + took for sent, _, took in flights)
    assert all(before.end_ns == after.start_ns for before, after in pairwise(phases))
    for at in range(phases[0].start_ns, phases[-1].end_ns):
        in_flight = any(sent <= at < sent + took for sent, _, took in flights)
        is_due = any(sent - late <= at < sent for sent, late, _ in flights)
        [kind] = [phase.kind for phase in phases if phase.start_ns <= at < phase.end_ns]
        assert kind == ("model" if in_flight else "waiting" if is_due else "tool")


def test_time_is_of_the_model_of_tools_and_of_waiting() -> None:
    result = analysed(
        [
            turn(0, "a", 1.0, 2.0),
            turn(1, "a", 5.5, 6.5, due_s=5.0),  # 3 s of tools, then 0.5 s late
            turn(2, "a", 6.0, 8.0),  # beside the turn before
            turn(3, "b", 2.0, 3.0),
        ]
    )
    a, b = result.sessions
    assert (a.start_s, a.duration_s) == (0.0, 7.0)
    assert (a.model_s, a.tool_s, a.waiting_s) == (3.5, 3.0, 0.5)
    assert (b.start_s, b.duration_s, b.model_s, b.tool_s, b.waiting_s) == (1.0, 1.0, 1.0, 0.0, 0.0)


UNSENT = {"sent_ns": None, "first_token_ns": None, "last_token_ns": None, "finished_ns": None, "chunk_ns": [],
          "input_tokens": None, "cached_tokens": None, "output_tokens": None, "error": "not_sent"}  # fmt: skip


def test_what_is_not_known_is_none() -> None:
    result = analysed(
        [turn(0, "a", 0, 1, cached=None), turn(1, "a", 2, 3, cached=None), turn(2, "b", 1, 2, **UNSENT)], watts=0
    )
    a, b = result.sessions
    assert (a.cached_tokens, a.cached_share, a.joules, a.se_joules, a.within_limits) == (None, None, None, None, None)
    assert (b.requests, b.completed, b.input_tokens, b.start_s, b.duration_s, b.tool_s) == (
        1,
        0,
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("uncounted", [0, None])
def test_a_prompt_without_a_count_of_cached_tokens_has_none_cached_where_others_have_a_count(
    uncounted: int | None,
) -> None:
    """vLLM leaves the count out where it is 0."""
    result = analysed(
        [turn(0, "a", 0, 1, cached=uncounted), turn(1, "a", 2, 3, cached=600), turn(2, "a", 4, 5, cached=uncounted)]
    )
    [account] = result.sessions
    assert (account.input_tokens, account.cached_tokens, account.cached_share) == (3000, 600, 0.2)
    assert None not in [share.saved_joules for share in result.shares.values()]


@pytest.mark.parametrize(
    ("names", "sessions"),
    [([None, None], 0), (["a", "b"], 0), (["a", None], 0), (["a", "a"], 1), (["a", "b", "a", None], 2)],
)
def test_there_are_accounts_only_where_a_session_has_several_requests(names: list[str | None], sessions: int) -> None:
    result = analysed([turn(i, name, i, i + 0.5) for i, name in enumerate(names)])
    assert len(result.sessions) == sessions
    assert result.summary is not None and (result.summary.sessions is not None) is (sessions > 0)


def test_turns_are_counted_within_their_task_in_bins_that_double() -> None:
    turns = [turn(i, "a", i, i + 0.5)[0] for i in range(9)]
    turns += [turn(9, "b", 9, 9.5)[0], turn(10, "a", 10, 11, task="search")[0]]
    assert depth_rows(session_rows(turns)) == {1: [0, 10, 9], 2: [1, 2], 4: [3, 4, 5, 6], 8: [7, 8]}


def test_a_line_of_sessions_has_the_account_and_those_of_its_tasks() -> None:
    account = agent_run().sessions[0]
    line = msgspec.json.decode(msgspec.json.encode(account))
    assert {"session", "workload", "tasks", "joules", "se_joules", "duration_s"} <= line.keys()
    assert line["tasks"][0]["task"] is None
    assert line["duration_s"] * NS_PER_S == pytest.approx(
        sum(line[name] for name in ("model_s", "tool_s", "waiting_s")) * NS_PER_S
    )
