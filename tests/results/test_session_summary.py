"""The numbers of all sessions together are those of their accounts."""

import pytest

from loadgen.results.summary import SessionSummary
from support.session_runs import agent_run, analysed, turn


def summary_of(turns: list, **config: object) -> SessionSummary:
    summary = analysed(turns, **config).summary
    assert summary is not None and summary.sessions is not None
    return summary.sessions


def test_only_sessions_whose_every_request_completed_have_a_cost_and_a_time() -> None:
    failed = {"error": "http", "status": 500}
    sessions = summary_of([turn(0, "a", 0, 1), turn(1, "b", 1, 2), turn(2, "a", 4, 5), turn(3, "b", 6, 7, **failed)])
    assert (sessions.sessions, sessions.completed, sessions.requests) == (2, 1, 4)
    assert (sessions.time_to_last_answer_s.count, sessions.time_to_last_answer_s.max) == (1, 5.0)
    assert sessions.joules_per_session is not None and sessions.joules_per_session.count == 1
    assert sessions.joules_per_turn is not None and sessions.joules_per_turn.count == 3


@pytest.mark.parametrize(
    ("config", "good", "goodput"),
    [
        ({}, None, None),
        ({"goodput": {"e2el": 1500.0}}, 1, 0.5),
        ({"goodput": {"e2el": 3000.0}}, 2, 1.0),
        ({"goodput": {"ttft": 1.0}}, 0, 0.0),
        ({"streams": {"other": {"goodput": {"e2el": 1500.0}}}}, 0, 0.0),
    ],
)
def test_a_session_is_good_when_its_every_turn_met_the_limits(
    config: dict[str, object], good: int | None, goodput: float | None
) -> None:
    sessions = summary_of(
        [
            turn(0, "a", 0, 1),
            turn(1, "b", 1, 2, workload="other"),
            turn(2, "a", 4, 5),
            turn(3, "b", 6, 8, workload="other"),
        ],
        **config,
    )
    assert (sessions.good, sessions.goodput) == (good, goodput)


def test_a_session_without_energy_has_no_joules_rather_than_none_used() -> None:
    sessions = summary_of([turn(0, "a", 0, 1), turn(1, "a", 2, 3)], watts=0)
    assert (sessions.joules, sessions.other_joules, sessions.joules_per_session) == (None, None, None)
    assert [depth.joules for depth in sessions.by_depth] == [None, None]


def test_deeper_turns_have_larger_cached_shares_where_prompts_grow() -> None:
    result = agent_run()
    assert result.summary is not None and result.summary.sessions is not None
    shares = [depth.cached_share or 0.0 for depth in result.summary.sessions.by_depth]
    assert shares[0] == 0 and min(shares[1:]) > 0.5
