"""Laws of the simulated draft model."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.simulator.engine import Engine, EngineOptions, Sequence, SubmittedRequest, simulate
from loadgen.simulator.speculation import Acceptance, Speculation
from loadgen.units import NS_PER_MS
from support.engine_steps import run

H200 = read_hardware("h200")
LLAMA = read_model("llama-3.1-8b")
DRAFT = read_model("llama-3.2-1b")
FOUR = Speculation(DRAFT, (0.7, 0.7, 0.7, 0.7))
SPECULATING = EngineOptions(speculation=FOUR)

arrivals = st.lists(
    st.builds(SubmittedRequest, st.integers(0, 300 * NS_PER_MS), st.integers(1, 200), st.integers(1, 20)),
    min_size=1,
    max_size=10,
)
options = st.builds(
    EngineOptions,
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 256),
    kv_cache_tokens=st.integers(240, 900),
    speculation=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=5).map(lambda p: Speculation(DRAFT, tuple(p))),
)


@settings(max_examples=60, deadline=None)
@given(arrivals, options)
def test_every_joule_is_owed_once_and_every_token_is_emitted_once(arrivals, options):
    sequences = [Sequence(*arrival) for arrival in arrivals]
    steps = run(Engine(H200, LLAMA, options), sequences)
    owed_j = sum(seq.prefill_j + seq.decode_j for seq in sequences)
    assert math.isclose(owed_j, sum(step.joules for step in steps), rel_tol=1e-9)
    assert all(0 <= seq.rejected_j <= seq.decode_j for seq in sequences)
    assert [seq.emitted for seq in sequences] == [arrival.output_tokens for arrival in arrivals]
    for step in steps:
        assert step.drafted is not None
        computed = sum(tokens for _, tokens in step.prefills) + options.width * step.drafted.drafts
        assert step.drafted.drafts == len(step.decodes) and computed <= options.max_num_batched_tokens
        assert step.drafted.emitted <= step.drafted.drafts + sum(step.drafted.accepted)
        assert list(step.drafted.accepted) == sorted(step.drafted.accepted, reverse=True), "a run from the first on"


def test_the_counters_count_drafts_and_the_instants_are_those_of_steps():
    result = simulate([SubmittedRequest(0, 100, 200)] * 8, H200, LLAMA, SPECULATING, tail_ns=100 * NS_PER_MS)
    last = result.engine[-1]
    chunks = sum(len(request.token_ns) for request in result.requests)
    assert last["drafts"] == chunks - 8, "the first chunk of a request is its prefill's"
    assert last["draft_tokens"] == 4 * last["drafts"]
    assert last["generation_tokens"] == 8 * 200
    cut = last["drafts"] + last["accepted_tokens"] + 8 - 8 * 200
    assert 0 <= cut < 8 * 5, "only the end of an answer cuts accepted tokens off"


def test_without_a_draft_model_no_draft_is_counted_and_a_step_emits_one_token():
    result = simulate([SubmittedRequest(0, 100, 20)], H200, LLAMA, tail_ns=100 * NS_PER_MS)
    assert result.engine[-1]["drafts"] == result.engine[-1]["draft_tokens"] == 0
    assert len(result.requests[0].token_ns) == 20 and result.requests[0].rejected_j == 0


def accepted(options: Speculation, sequences: int, steps: int) -> np.ndarray:
    """bool[steps, sequences, k]: which draft tokens were accepted."""
    acceptance = Acceptance(options, np.random.default_rng(1))
    own, drift = zip(*(acceptance.sequence() for _ in range(sequences)), strict=True)
    rows = []
    for _ in range(steps):
        passes, drift = acceptance.draw(own, drift)
        rows.append(passes)
    return np.array(rows)


def test_the_first_position_is_accepted_as_often_as_stated():
    rate = accepted(Speculation(DRAFT, (0.7, 0.5)), 1000, 50)[:, :, 0].mean()
    assert abs(rate - 0.7) < 0.02


@pytest.mark.parametrize(("between", "within", "spread"), [(0.0, 0.0, False), (0.8, 0.0, True), (0.0, 0.8, True)])
def test_acceptance_differs_between_sequences_and_persists_within_one(between, within, spread):
    first = accepted(Speculation(DRAFT, (0.6,), between, within), 2000, 60)[:, :, 0]
    binomial = math.sqrt(0.6 * 0.4 / len(first))
    assert (first.mean(axis=0).std() > 1.5 * binomial) == spread
    neighbours = np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]
    assert (neighbours > 0.1) == spread


def test_a_better_draft_needs_fewer_steps_and_less_energy_of_an_answer():
    speculations = [replace(FOUR, acceptance=(chance,) * 4) for chance in (0.3, 0.9)]
    one = [SubmittedRequest(0, 64, 256)]
    poor, good = (simulate(one, H200, LLAMA, EngineOptions(speculation=options)) for options in speculations)
    assert len(good.requests[0].token_ns) < len(poor.requests[0].token_ns) < 256
    assert good.step_j < poor.step_j
    assert good.requests[0].rejected_j < poor.requests[0].rejected_j


def test_the_draft_model_costs_time_energy_and_memory():
    tall = EngineOptions(speculation=replace(FOUR, acceptance=(1e-9,) * 4, between=0.0, within=0.0))
    plain = simulate([SubmittedRequest(0, 64, 32)], H200, LLAMA)
    wasted = simulate([SubmittedRequest(0, 64, 32)], H200, LLAMA, tall)
    assert len(wasted.requests[0].token_ns) == 32, "nothing is accepted"
    assert wasted.end_ns > plain.end_ns and wasted.step_j > plain.step_j
    engines = Engine(H200, LLAMA, tall), Engine(H200, LLAMA)
    assert engines[0].scheduler.pool.blocks < engines[1].scheduler.pool.blocks


@pytest.mark.parametrize("acceptance", [(), (0.0,), (0.5, 1.0)])
def test_chances_lie_between_0_and_1(acceptance):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Speculation(DRAFT, acceptance)


def test_a_step_must_hold_the_drafts_of_one_sequence():
    EngineOptions(max_num_batched_tokens=5, speculation=FOUR)
    with pytest.raises(ValueError, match="must hold the draft tokens"):
        EngineOptions(max_num_batched_tokens=4, speculation=FOUR)
