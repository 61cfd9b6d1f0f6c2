"""The work of other clients is what the engine's counters show beyond ours."""

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.other_clients import foreign_prefill_in_steps, with_engine
from loadgen.attribution.shapley import attribute_energy
from loadgen.record import RequestRecord
from support.attribution_runs import MS, counter, engine_samples, request


def stream(count: int) -> RequestRecord:
    """One stream with a chunk every 10 ms and a prompt of 10 tokens."""
    return request(0, 0, [10.0 * k for k in range(1, count + 1)], prompt=10)


def counters(generated: float, prompts: float, iterations: float) -> list[dict[str, float]]:
    start = {"t_ns": -1.0, "generation_tokens": 0.0, "prompt_tokens": 0.0, "iterations": 0.0}
    end = {"t_ns": 2e9, "generation_tokens": generated, "prompt_tokens": prompts, "iterations": iterations}
    return [start, end]


def test_foreign_tokens_and_steps_by_hand() -> None:
    """The engine made 300 tokens in 150 steps and read 30 prompt tokens; 100, 100 and 10 of them are ours."""
    foreign = engine_steps_of([stream(100)], counters(300, 30, 150)).foreign
    assert foreign is not None
    assert foreign.decode.tolist() == [200]
    assert foreign.members.tolist() == [pytest.approx(200 / 150)]
    assert foreign.steps.tolist() == [50]
    assert foreign.prefill.tolist() == [20]


@pytest.mark.parametrize(
    "counted",
    [
        {"prompt_tokens": 1030.0, "cached_tokens": 990.0},  # vLLM
        {"prompt_tokens": 1030.0, "cached_tokens": 990.0, "computed_tokens": 40.0},  # llama.cpp
        {"computed_tokens": 40.0},  # llama.cpp before it counted cached tokens
        {"prompt_tokens": 1030.0},  # LMDeploy: it counts 40 tokens, and our 990 that its usage calls cached
    ],
)
def test_cached_tokens_are_taken_off_once_whatever_the_engine_counts(counted: dict[str, float]) -> None:
    """10 of our 1,000 prompt tokens were computed; the other 30 that were are foreign."""
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=1000, cached=990)
    end = {"t_ns": 2e9, "generation_tokens": 300.0, "iterations": 150.0, **counted}
    foreign = engine_steps_of([ours], [dict.fromkeys(end, 0.0) | {"t_ns": -1.0}, end]).foreign
    assert foreign is not None and foreign.prefill.tolist() == [30]


@pytest.mark.parametrize(("generated", "foreign"), [(100, False), (102, False), (103, True)])
def test_two_percent_more_tokens_than_ours_are_noise(generated: float, foreign: bool) -> None:
    assert (engine_steps_of([stream(100)], counters(generated, 10, 100)).foreign is not None) == foreign


def test_a_first_token_comes_at_the_end_of_the_last_prefill_step() -> None:
    """Request 0 prefills in steps 0 and 1 and never decodes; request 1 prefills in step 1 and decodes in step 2."""
    steps = EngineSteps(
        start_ns=np.array([0, 10, 20]),
        end_ns=np.array([10, 20, 30]),
        iterations=np.ones(3),
        step=np.array([0, 1, 1, 2], dtype=np.int32),
        request=np.array([0, 0, 1, 1], dtype=np.int32),
        prefilling=np.array([True, True, True, False]),
        prefill=np.array([5, 5, 5, 0], dtype=np.float32),
        decode=np.array([0, 0, 0, 1], dtype=np.float32),
        context=np.zeros(4, dtype=np.float32),
        unseen_ns=np.zeros((0, 2), dtype=np.int64),
    )
    engine = [
        {"t_ns": 10.0 * k + 5 if k else 0.0, "generation_tokens": 100.0 * k, "prompt_tokens": 0.0} for k in range(4)
    ]
    foreign = with_engine(steps, engine, (np.zeros(0, np.int64), np.zeros(0, np.float32))).foreign
    assert foreign is not None
    assert foreign.decode.tolist() == [100, 98, 99]


def test_other_clients_joules_are_unattributed() -> None:
    """One stream of ours, one of somebody else, in the same 100 steps: half of the energy is unattributed."""
    ours = request(0, 0, [10.0 * k for k in range(1, 101)], prompt=10)
    series = counter([i * 100.0 for i in range(11)], [40.0] * 10)
    counters = engine_samples((-1, 0, 0, 0), (500, 100, 20, 50), (1001, 200, 20, 100))
    result = attribute_energy([series], [ours], 0, 1000 * MS, engine=counters)
    assert result.measured_mj == 400_000
    assert result.attributed_mj == pytest.approx(200_000, rel=0.05)
    assert result.unattributed_mj == pytest.approx(200_000, rel=0.05)
    alone = attribute_energy([series], [ours], 0, 1000 * MS, engine=engine_samples((-1, 0, 0, 0), (1001, 100, 10, 100)))
    assert (alone.attributed_mj, alone.unattributed_mj) == (400_000, 0)


@pytest.mark.parametrize(("foreign", "edges", "expected"), [
    (100, [0, 100], [0, 0, 0, 25]),
    (25, [0, 100], [0, 0, 0, 25]),
    (5, [0, 100], [0, 0, 0, 5]),  # no more than the engine counted
    (100, [0, 80], [0, 0, 0, 0]),  # the step ends outside
    (100, [80, 100], [0, 0, 0, 25]),
])  # fmt: skip
def test_a_step_that_took_too_long_held_foreign_prompt_tokens(
    foreign: float, edges: list[int], expected: list[float]
) -> None:
    """A plain step takes 10 ns, a prompt token 1 ns: the last step is 25 ns longer than one and a half plain ones."""
    steps = EngineSteps(
        start_ns=np.array([0, 10, 20, 40]),
        end_ns=np.array([10, 20, 40, 80]),
        iterations=np.ones(4),
        step=np.arange(4, dtype=np.int32),
        request=np.zeros(4, dtype=np.int32),
        prefilling=np.array([False, False, True, False]),
        prefill=np.array([0, 0, 10, 0], dtype=np.float32),
        decode=np.array([1, 1, 0, 1], dtype=np.float32),
        context=np.zeros(4, dtype=np.float32),
        unseen_ns=np.zeros((0, 2), dtype=np.int64),
    )
    assert foreign_prefill_in_steps(steps, np.array(edges), np.array([foreign])).tolist() == pytest.approx(expected)
