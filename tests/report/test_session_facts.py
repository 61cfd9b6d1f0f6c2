"""The sessions of a run in words."""

from loadgen.report.session_facts import session_facts
from loadgen.results.run_folder import RunResult
from support.session_runs import agent_run, analysed, turn


def facts_of(result: RunResult) -> dict[str, str]:
    assert result.summary is not None and result.summary.sessions is not None
    return dict(session_facts(result.summary.sessions))


def test_a_run_of_agents_says_all_of_it() -> None:
    facts = facts_of(agent_run(goodput={"e2el": 60_000.0}))
    assert list(facts) == ["sessions", "goodput", "last answer", "tokens", "energy", "by turn"]
    assert (
        facts["sessions"].startswith("6 of 6 sessions completed; ") and "3 sub-agents beside them" in facts["sessions"]
    )
    assert facts["goodput"] == "100.0 % of the sessions met the limits with every request"
    assert "a session p50" in facts["energy"] and "a task p50" in facts["energy"] and "a turn p50" in facts["energy"]


def test_a_line_has_the_numbers_of_the_session() -> None:
    facts = facts_of(analysed([turn(0, "a", 0, 1), turn(1, "a", 4, 5, due_s=3.5, cached=600)]))
    assert facts["sessions"] == "1 of 1 session completed; 2 requests, p50 2 and max 2 in a session"
    assert facts["last answer"] == (
        "p50 5.00 s, p90 5.00 s after the first request of a session; model 40.0 %, tools 50.0 %, waiting 10.0 %"
    )
    assert facts["tokens"] == "2,000 in, 30.0 % of them cached; 40 out"


def test_what_is_not_known_is_left_out_or_a_dash() -> None:
    failed = {"error": "connect", "sent_ns": None, "finished_ns": None, "input_tokens": None, "output_tokens": None}
    facts = facts_of(analysed([turn(i, "a", i, i + 1, cached=None, **failed) for i in range(2)], watts=0))
    assert facts == {
        "sessions": "0 of 1 session completed; 2 requests, p50 2 and max 2 in a session",
        "last answer": "p50 -, p90 - after the first request of a session",
        "tokens": "- in; - out",
    }
