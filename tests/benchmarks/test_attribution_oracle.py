"""Attributed joules and their intervals against the simulated engine's own account, for loads and for sessions."""

import numpy as np
import pytest

from benchmarks.accuracy.agent_sessions import MAX_TOKENS, AgentLoad, agent_turns
from benchmarks.accuracy.attribution_oracle import Scenario, cache_truth, score, simulated
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("plain", {"chat": 3.0, "code": 3.0}),
        Scenario("noise", {"chat": 3.0, "code": 3.0}, counter=CounterOptions(noise=0.05)),
        Scenario("heavy", {"chat": 14.0}),
        Scenario("another GPU", {"chat": 1.5, "code": 1.5}, hardware="h100"),
    ],
    ids=lambda scenario: scenario.name,
)
def test_intervals_hold_the_truth_and_are_narrow(scenario: Scenario) -> None:
    """Over runs that nothing was chosen by, 1.96 standard errors hold about 95 % of the requests."""
    scores = [score(simulated(scenario, 60, seed), scenario, "shapley") for seed in (101, 102, 103)]
    covered = np.mean([of["covered"] for of in scores])
    half_width = np.median([of["half_width"] for of in scores])
    assert 0.88 <= covered <= 1.0
    assert half_width < 4.5 * max(np.median([of["median"] for of in scores]), 0.003)


AGENTS = AgentLoad(sessions=6, at_a_time=3, turns=20.0)
CACHED = EngineOptions(prefix_caching=True)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("usage tells the cached tokens", {}, agents=AGENTS, options=CACHED),
        Scenario("counters tell them", {}, agents=AGENTS, options=CACHED, told=False),
        Scenario("nobody tells them", {}, agents=AGENTS, options=CACHED, told=False, engine=False),
        Scenario("eviction", {}, agents=AGENTS, options=EngineOptions(prefix_caching=True, kv_cache_tokens=150_000)),
    ],
    ids=lambda scenario: scenario.name,
)
def test_sessions_of_agents_get_what_they_cost_and_what_the_cache_saved(scenario: Scenario) -> None:
    case = simulated(scenario, 300, 7)
    errors, truth = score(case, scenario, "shapley"), cache_truth(scenario, case, 300, 7)
    assert errors["median"] <= 0.01 and errors["p90"] <= 0.04
    assert errors["session_median"] <= 0.01 and errors["session_max"] <= 0.05
    assert errors["cache"]["saved"] == pytest.approx(truth["saved"], rel=0.1)
    assert errors["cache"]["recomputed"] == pytest.approx(truth["recomputed"], rel=0.1, abs=0.01 * truth["saved"])


def test_turns_begin_with_the_turn_before_unless_the_context_was_compacted() -> None:
    turns = agent_turns(AgentLoad(sessions=8, at_a_time=3), 0, 1)
    kept = []
    for row, turn in enumerate(turns):
        assert all(parent < row for parent in turn.after)
        assert len(turn.blocks) == turn.input_tokens // 16
        assert turn.input_tokens + turn.output_tokens <= MAX_TOKENS
        threads = [(turns[parent].session, turns[parent].task) for parent in turn.after]
        if (turn.session, turn.task) in threads and len(threads) == 1:
            before = turns[turn.after[0]].blocks
            kept.append(turn.blocks[: len(before)] == before)
    assert 0.9 < np.mean(kept) < 1.0, "most turns extend the one before"
    assert {len(turn.after) for turn in turns} >= {0, 1, 2}, "turns wait for several sub-agents"
    assert [turn.session for turn in turns if not turn.after] == [0, 1, 2], "three sessions begin at a time"
