"""A pair of runs of the same sessions: sums of what both answered, and the committed pair of two H200s."""

from dataclasses import replace

import msgspec
import pytest

from benchmarks.accuracy.session_pair import answered_by_both, pair
from benchmarks.paper.agent_sessions import of_part, runs
from support.session_runs import agent_run

SUMS = ("requests", "input_tokens", "joules", "prefill_joules", "decode_joules")


def test_sums_are_of_the_requests_that_both_runs_answered() -> None:
    on = agent_run()
    lost = on.records[-1]
    records = [*on.records[:-1], msgspec.structs.replace(lost, error="timeout")]
    off = replace(on, records=records)
    assert answered_by_both(on, off) == list(range(len(on.records) - 1))
    made = pair(on, off)["on"]["sums"]
    assert (made["all"]["requests"], made["both"]["requests"]) == (len(on.records), len(on.records) - 1)
    assert made["both"]["joules"] == pytest.approx(made["all"]["joules"] - on.shares[lost.index].joules)


def test_runs_of_two_schedules_are_refused() -> None:
    on = agent_run()
    off = replace(on, info=msgspec.structs.replace(on.info, schedule_sha256="another"))
    with pytest.raises(ValueError, match="different schedules"):
        answered_by_both(on, off)


@pytest.mark.parametrize("name", ["on", "off"])
def test_the_committed_accounts_add_up(name: str) -> None:
    run = runs()[name]
    mj, sums = run["mj"], run["sums"]
    assert mj["measured"] == mj["idle"] + mj["attributed"] + mj["unattributed"]
    assert round(sums["all"]["joules"] * 1000) == mj["attributed"]
    for part in ("session", "turn"):
        accounts = of_part(run, part).values()
        for field in SUMS:
            assert sum(account[field] for account in accounts) == pytest.approx(sums["both"][field]), (part, field)


def test_the_engine_counts_what_the_usage_of_the_answers_says() -> None:
    for run in runs().values():
        usage, counted = run["sums"]["all"], run["counters"]
        assert (counted["prompt_tokens"], counted["generation_tokens"]) == (
            usage["input_tokens"],
            usage["output_tokens"],
        )
        assert counted["cached_tokens"] == (usage["cached_tokens"] or 0)


def test_what_the_law_says_that_caching_saved_is_within_10_percent_of_the_difference() -> None:
    on, off = (run["sums"]["both"] for run in runs().values())
    measured_j = off["joules"] - on["joules"]
    assert on["cache"]["saved_joules"] == pytest.approx(measured_j, rel=0.1)
    assert off["cache"]["recomputed_joules"] == pytest.approx(measured_j, rel=0.1)
