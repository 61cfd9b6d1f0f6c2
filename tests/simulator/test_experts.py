"""Experts are drawn, read once a step, and paid for by the sequences that chose them."""

from itertools import permutations

import msgspec
import numpy as np
import pytest

from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.simulator.engine import Engine, EngineOptions, Sequence, SubmittedRequest, simulate
from loadgen.simulator.experts import Experts, Routing
from loadgen.simulator.speculation import Speculation

H200 = read_hardware("h200")
QWEN = read_model("qwen3-30b-a3b")
SMALL = msgspec.structs.replace(QWEN, experts=8, experts_per_token=2)
EXPERT_BYTES = QWEN.expert_parameters * QWEN.bytes_per_parameter


def experts(model=SMALL, routing: Routing = Routing(), gpus: int = 1) -> Experts:  # noqa: B008
    return Experts(model, routing, gpus, np.random.default_rng(1))


def decoding(count: int) -> list[Sequence]:
    return [Sequence(0, 100, 9, computed=100) for _ in range(count)]


def shares_read(routers: Experts, tokens: int, steps: int = 60) -> float:
    """Mean share of the experts that decode steps of so many sequences read."""
    sequences = decoding(tokens)
    return float(np.mean([routers.reads([], sequences).read_bytes for _ in range(steps)])) / EXPERT_BYTES


def test_the_parts_are_shapley_values_of_an_expert_is_read_if_a_sequence_that_chose_it_is_there():
    routers, sequences = experts(), decoding(4)
    reads = routers.reads([], sequences)
    chosen = [set(np.flatnonzero(routers.choices[seq.experts]).tolist()) for seq in sequences]
    parts = np.zeros(len(chosen))
    orders = list(permutations(range(len(chosen))))
    for order in orders:
        seen: set[int] = set()
        for i in order:
            parts[i] += len(chosen[i] - seen) / len(orders)
            seen |= chosen[i]
    assert reads.read_bytes == pytest.approx(len(seen) / routers.choices.shape[1] * EXPERT_BYTES)
    assert reads.shares == pytest.approx(parts / len(seen), rel=1e-5)


def test_sequences_that_chose_alike_pay_alike_and_experts_of_one_alone_are_its_own():
    routers, sequences = experts(), decoding(3)
    routers.repeat = 1.0
    for seq, choice in zip(sequences, (0, 0, 1), strict=True):
        seq.experts = choice
    routers.choices[:] = 0
    routers.choices[0, :6] = routers.choices[1, 6:8] = 1  # six experts of two sequences, two of one alone
    assert routers.reads([], sequences).shares == pytest.approx([3 / 8, 3 / 8, 2 / 8])


def test_a_token_chooses_k_different_experts_in_each_group_of_layers():
    by_group = experts(QWEN).choices.reshape(-1, QWEN.experts).sum(axis=1)
    assert (by_group == QWEN.experts_per_token).all()


def test_more_tokens_read_more_experts_up_to_all_of_them():
    routers = experts(QWEN)
    shares = [shares_read(routers, tokens) for tokens in (1, 4, 16, 64)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(QWEN.experts_per_token / QWEN.experts)
    assert (np.diff(shares) / (3, 12, 48) <= shares[0]).all(), "no token reads more than its own experts"
    prompt = Sequence(0, 4096, 9)
    assert routers.reads([(prompt, 4096)], []).read_bytes > 0.98 * EXPERT_BYTES


def test_skewed_popularity_and_repeated_choices_read_fewer_experts():
    even, skewed = (shares_read(experts(QWEN, Routing(skew=skew)), 16) for skew in (0.0, 1.5))
    assert skewed < 0.9 * even
    chunk = [(Sequence(0, 16, 9), 16)]
    fresh, sticky = (experts(QWEN, Routing(skew=0.0, repeat=repeat)) for repeat in (0.0, 0.9))
    read = [np.mean([routers.reads(chunk, []).read_bytes for _ in range(40)]) for routers in (fresh, sticky)]
    assert read[1] < 0.5 * read[0]


def test_neighbouring_tokens_of_a_sequence_choose_alike_as_often_as_they_repeat():
    routers, sequences = experts(QWEN, Routing(repeat=0.6)), decoding(500)
    routers.reads([], sequences)
    before = [seq.experts for seq in sequences]
    routers.reads([], sequences)
    same = np.mean([seq.experts == choice for seq, choice in zip(sequences, before, strict=True)])
    assert same == pytest.approx(0.6, abs=0.08)


def test_a_step_of_expert_parallel_gpus_waits_for_the_one_that_reads_most():
    for gpus, parallel in ((1, True), (4, False)):
        reads = experts(QWEN, Routing(parallel=parallel), gpus).reads([], decoding(5))
        assert reads.waited_bytes == reads.read_bytes
    reads = experts(QWEN, Routing(parallel=True), 4).reads([], decoding(5))
    assert reads.read_bytes < reads.waited_bytes <= 4 * reads.read_bytes


def test_a_mixture_whose_tokens_take_all_experts_is_a_dense_model():
    everything = msgspec.structs.replace(QWEN, experts=4, experts_per_token=4)
    dense = msgspec.structs.replace(QWEN, expert_parameters=0.0, experts=1, experts_per_token=1)
    arrivals = [SubmittedRequest(i * 10**7, 300 + i, 20) for i in range(12)]
    runs = [simulate(arrivals, H200, model) for model in (everything, dense)]
    assert runs[0].step_j == pytest.approx(runs[1].step_j)
    assert [r.token_ns for r in runs[0].requests] == [r.token_ns for r in runs[1].requests]
    assert [r.decode_j for r in runs[0].requests] == pytest.approx([r.decode_j for r in runs[1].requests])


def test_a_verified_draft_chooses_experts_for_each_of_its_tokens_and_a_draft_model_has_none():
    draft = Speculation(read_model("llama-3.1-8b"), (0.7, 0.7))
    run = simulate([SubmittedRequest(0, 50, 40)] * 3, H200, SMALL, EngineOptions(speculation=draft))
    assert sum(r.prefill_j + r.decode_j for r in run.requests) == pytest.approx(run.step_j)
    one, three = (experts(QWEN).reads([], decoding(4), width).read_bytes for width in (1, 3))
    assert three > 1.5 * one
    with pytest.raises(LoadgenError, match="dense"):
        Speculation(QWEN, (0.7,))


def test_a_dense_model_draws_nothing():
    assert Engine(H200, read_model("llama-3.1-8b"), EngineOptions()).experts is None


@pytest.mark.parametrize("wrong", [{"skew": -0.1}, {"repeat": 1.0}, {"repeat": -0.1}])
def test_routing_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="experts"):
        Routing(**wrong)
