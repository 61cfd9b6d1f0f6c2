"""What a step costs, and the counter that shows it."""

import csv
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.energy.series import EnergySample
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.errors import LoadgenError
from loadgen.simulator.cost_model import CostLaw, CounterOptions, Gpu, Load, SimulatedCounter, each_gpu, kv_cache_tokens
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS, NS_PER_S

HARDWARE = {name: read_hardware(name) for name in ("h200", "h100", "l4")}
MODELS = {name: read_model(name) for name in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b")}
H200, LLAMA = HARDWARE["h200"], MODELS["llama-3.1-8b"]
LAW = CostLaw(H200, LLAMA)
MLENERGY = Path(__file__).parents[3] / "shared" / "data" / "mlenergy_v3_llm.csv"


def load(*sequences: tuple[int, int]) -> Load:
    """Of (tokens, context) pairs."""
    return Load(
        len(sequences),
        sum(c for c, _ in sequences),
        sum(c * s + c * (c + 1) // 2 for c, s in sequences),
        sum(s + 2 * c for c, s in sequences),
    )


def joules_per_output_token(batch: int, hardware=H200, model=LLAMA) -> float:
    """512 tokens in, 128 out, `batch` at once."""
    result = simulate([SubmittedRequest(0, 512, 128)] * batch, hardware, model, EngineOptions(max_num_seqs=batch))
    return result.step_j / (batch * 128)


def watts(step: Load) -> float:
    cost = LAW.cost(step, 60)
    return cost.joules / cost.duration_ns * NS_PER_S


sequences = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 30_000)), min_size=1, max_size=40)
laws = st.builds(
    CostLaw,
    st.sampled_from(list(HARDWARE.values())),
    st.sampled_from(list(MODELS.values())),
    st.sampled_from([1, 2, 4, 8]),
)


@settings(deadline=None)
@given(laws, sequences, st.floats(30, 85))
def test_shares_sum_to_the_step_and_the_limit_holds(law, sequences, temperature_c):
    cost = law.cost(load(*sequences), temperature_c)
    assert math.isclose(sum(cost.share_j(c, s) for c, s in sequences), cost.joules, rel_tol=1e-9)
    assert cost.joules / cost.duration_ns * NS_PER_S <= law.hardware.limit_w * (1 + 1e-9)
    assert min(cost.equal_j, cost.token_j, cost.pair_j, cost.kv_token_j) > 0


@settings(deadline=None)
@given(laws, sequences, st.tuples(st.integers(1, 512), st.integers(0, 8000)))
def test_one_more_sequence_never_makes_a_step_cheaper_or_shorter(law, sequences, extra):
    before, after = law.cost(load(*sequences), 40.0), law.cost(load(*sequences, extra), 40.0)
    assert after.joules > before.joules
    assert after.duration_ns >= before.duration_ns


@pytest.mark.parametrize(
    ("what", "value", "low", "high"),
    [
        ("W, nothing loaded", H200.idle_empty_w, 80, 80),
        ("W, model resident, settled", LAW.idle_w(H200.idle_c), 127, 127),
        ("W, the limit", H200.limit_w, 700, 700),
        ("ms, decode at batch 1, context 576", LAW.cost(load((1, 576)), 35).duration_ns / 1e6, 4.5, 6),
        ("prompt tokens/s in a full prefill step", 8192e9 / LAW.cost(load((8192, 0)), 60).duration_ns, 25_000, 45_000),
        ("W in a full prefill step", watts(load((8192, 0))), 680, 700),
        ("J per output token at batch 1, 512 in, 128 out", joules_per_output_token(1), 2.5, 2.7),
        ("J per output token at batch 32, 512 in, 128 out", joules_per_output_token(32), 0.12, 0.22),
        ("J per output token at batch 256, 512 in, 128 out", joules_per_output_token(256), 0.09, 0.13),
        ("KV tokens beside the 8B weights", kv_cache_tokens(H200, LLAMA), 850_000, 950_000),
    ],
)  # fmt: skip
def test_the_h200_profile_is_sane(what, value, low, high):
    assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9), what


@pytest.mark.parametrize(
    ("hardware", "model"), [("h200", "llama-3.1-8b"), ("h200", "qwen3-30b-a3b"), ("h100", "llama-3.1-8b")]
)
def test_batching_always_saves(hardware, model):
    costs = [joules_per_output_token(2**k, HARDWARE[hardware], MODELS[model]) for k in range(9)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_more_gpus_are_faster_and_cost_more_joules_at_batch_1(gpus):
    """The paper's shape (Fernandez et al. 2025): each doubling saves less time than it adds watts."""
    alone, together = (CostLaw(H200, LLAMA, n).cost(load((1, 576)), 40.0) for n in (gpus // 2, gpus))
    assert together.duration_ns < alone.duration_ns
    assert together.duration_ns > alone.duration_ns / 2
    assert together.joules > alone.joules


@given(st.integers(0, 10**12), st.integers(1, 8))
def test_the_gpus_of_a_group_share_its_counter_to_the_millijoule(millijoules, gpus):
    now, later = (each_gpu([EnergySample(0, "gpu:0", mj / 1000)], gpus) for mj in (millijoules, millijoules + 1))
    assert sum(round(one.joules * 1000) for one in now) == millijoules
    assert all(after.joules >= before.joules for before, after in zip(now, later, strict=True))
    assert [one.domain for one in now] == [f"gpu:{i}" for i in range(gpus)]


@pytest.mark.skipif(not MLENERGY.exists(), reason="ML.ENERGY's measurements are not here")
def test_the_h100_profile_has_the_shape_of_mlenergys_measurements():
    """Measured rows: Llama 3.1 8B on one H100, lm-arena-chat, batch 8 to 512.

    The benchmark's prompt lengths are not in its table: 200 is assumed. Asserted: the order, joules per token within a
    factor of two, watts within 15 % (the profile's active_w was set on these rows), tokens/s within a factor of two.
    """
    with MLENERGY.open() as file:
        rows = [
            row for row in csv.DictReader(file)
            if (row["model"], row["gpu"], row["task"]) == ("meta-llama/Llama-3.1-8B-Instruct", "H100", "lm-arena-chat")
            and int(row["max_num_seqs"]) in (8, 32, 128, 512)
        ]  # fmt: skip
    assert len(rows) == 4
    simulated = []
    for row in rows:
        batch, output_tokens = int(row["max_num_seqs"]), round(float(row["avg_out"]))
        options = EngineOptions(max_num_seqs=batch)
        run = simulate([SubmittedRequest(0, 200, output_tokens)] * (2 * batch), HARDWARE["h100"], LLAMA, options)
        tokens = 2 * batch * output_tokens
        simulated.append(run.step_j / tokens)
        assert 0.5 < run.step_j / tokens / float(row["J_per_tok"]) < 2
        assert 0.85 < run.step_j * NS_PER_S / run.end_ns / float(row["avg_power_w"]) < 1.15
        assert 0.5 < tokens * NS_PER_S / run.end_ns / float(row["tok_s"]) < 2
    assert simulated == sorted(simulated, reverse=True)


def test_attention_grows_with_context_and_prefill_is_quadratic():
    near, far = (LAW.cost(load((2048, s)), 40).joules for s in (0, 60_000))
    assert far > 1.5 * near
    one, two = LAW.cost(load((16_384, 0)), 40).joules, LAW.cost(load((32_768, 0)), 40).joules
    assert two > 2.1 * one
    assert LAW.cost(load((1, 50_000)), 40).duration_ns > 1.2 * LAW.cost(load((1, 500)), 40).duration_ns


def test_a_roofline_one_more_decode_is_nearly_free_while_memory_bounds_and_not_when_compute_does():
    def next_one_ns(batch: int) -> int:
        many = [(1, 1)] * batch
        return LAW.cost(load(*many, (1, 1)), 40).duration_ns - LAW.cost(load(*many), 40).duration_ns

    assert next_one_ns(600) > 2 * next_one_ns(20)


def test_the_fixed_part_is_shared_equally_and_own_work_is_not():
    cost = LAW.cost(load((1, 100), (1, 20_000), (512, 0)), 40)
    short, long, prefill = cost.share_j(1, 100), cost.share_j(1, 20_000), cost.share_j(512, 0)
    assert cost.equal_j < short < long < prefill
    weights_s = LLAMA.parameters * 2 / (H200.peak_bytes_per_s * H200.linear_bytes_efficiency)
    fixed_j = LAW.static_w(40) * (weights_s + H200.launch_gap_s) + LLAMA.parameters * 2 * H200.joules_per_byte
    assert math.isclose(3 * cost.equal_j, fixed_j)


def gpu(options: CounterOptions = CounterOptions(), start_ns: int = 0) -> Gpu:  # noqa: B008
    return Gpu(LAW, SimulatedCounter("gpu:0", start_ns, options, default_rng(0)), start_ns)


def test_power_drifts_with_temperature_and_settles_at_idle_again():
    device = gpu()
    device.idle_until(60 * NS_PER_S)
    assert math.isclose(device.idle_j, 127 * 60, rel_tol=1e-6), "settled from the start"
    cold_w = LAW.idle_w(device.temperature_c)
    while device.now_ns < 120 * NS_PER_S:
        device.run(load((8192, 0)))
    hot_w, hot_c = LAW.idle_w(device.temperature_c), device.temperature_c
    assert hot_w > cold_w + 5
    assert hot_c < H200.ambient_c + H200.kelvin_per_w * H200.limit_w
    device.idle_until(device.now_ns + 300 * NS_PER_S)
    assert math.isclose(LAW.idle_w(device.temperature_c), cold_w, rel_tol=1e-3)


def test_the_counter_moves_on_its_grid_and_shows_the_energy_up_to_that_moment():
    counter = SimulatedCounter("gpu:0", 7, CounterOptions(), default_rng(0))
    counter.add(7 + 250 * NS_PER_MS, 25.0)
    counter.add(7 + 300 * NS_PER_MS, 50.0)
    samples = [(s.t_ns, s.joules) for s in counter.samples]
    assert samples == [(7, 0), (7 + 100 * NS_PER_MS, 10), (7 + 200 * NS_PER_MS, 20), (7 + 300 * NS_PER_MS, 75)]
    assert counter.shown(7 + 299 * NS_PER_MS).joules == 20
    assert counter.shown(7 + 300 * NS_PER_MS).joules == 75


def test_the_counter_counts_the_time_at_the_power_limit():
    counter = SimulatedCounter("gpu:0", 0, CounterOptions(), default_rng(0))
    counter.add(150 * NS_PER_MS, 105.0, capped=True)
    counter.add(180 * NS_PER_MS, 10.0)
    counter.add(300 * NS_PER_MS, 84.0, capped=True)
    assert [sample.capped_ns for sample in counter.samples] == [0, *(ms * NS_PER_MS for ms in (100, 170, 270))]


@pytest.mark.parametrize(("tokens", "capped"), [(1, False), (1024, True)])
def test_the_clocks_are_held_down_in_the_steps_that_reach_the_limit(tokens, capped):
    device = gpu()
    cost = device.run(load((tokens, 0)))
    flushed_ns = 100 * NS_PER_MS * (1 + device.now_ns // (100 * NS_PER_MS))
    device.idle_until(flushed_ns)
    assert cost.capped == capped
    assert device.counter.samples[-1].capped_ns == (cost.duration_ns if capped else 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700 * NS_PER_MS), st.floats(0, 500)), min_size=1, max_size=30))
def test_the_counter_shows_whole_millijoules_never_falls_and_loses_nothing(pieces):
    counter = SimulatedCounter("gpu:0", 0, CounterOptions(), default_rng(0))
    now_ns = 0
    for duration_ns, joules in pieces:
        now_ns += duration_ns
        counter.add(now_ns, joules)
    end_ns = -(-now_ns // (100 * NS_PER_MS)) * 100 * NS_PER_MS
    if end_ns > now_ns:
        counter.add(end_ns, 0.0)
    shown = [s.joules for s in counter.samples]
    assert shown == sorted(shown)
    assert all(math.isclose(j * 1000, round(j * 1000), abs_tol=1e-4) for j in shown)
    assert sum(j for _, j in pieces) - 0.0011 <= shown[-1] <= sum(j for _, j in pieces) + 1e-6
    assert [s.t_ns for s in counter.samples] == list(range(0, end_ns + 1, 100 * NS_PER_MS))


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        (CounterOptions(gain=1.05), 1.0499, 1.0501),
        (CounterOptions(noise=0.05), 0.99, 1.01),
        (CounterOptions(gain=0.95, noise=0.02), 0.94, 0.96),
    ],
)
def test_gain_and_noise_spoil_the_counter_and_not_the_truth(options, low, high):
    device = gpu(options)
    device.idle_until(60 * NS_PER_S)
    assert math.isclose(device.idle_j, 127 * 60, rel_tol=1e-6)
    assert low < device.counter.samples[-1].joules / device.idle_j < high


def test_the_counter_forgets_old_moves_when_told_to():
    device = gpu(CounterOptions(keep_s=2.0))
    device.idle_until(10 * NS_PER_S)
    assert [s.t_ns for s in device.counter.samples] == [t * 100 * NS_PER_MS for t in range(81, 101)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory_bytes = ", "Invalid value"),
        ("memory_bytes = 1", "missing required field"),
        ("parameters = 'many'\n", "Expected"),
        ("wheels = 4", "unknown field"),
    ],
)
def test_a_bad_profile_says_where_and_what(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(LoadgenError, match=f"mine.toml.*{message}"):
        read_model(str(path)) if "parameters" in text else read_hardware(str(path))


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(LoadgenError, match="does not fit"):
        kv_cache_tokens(HARDWARE["l4"], MODELS["llama-3.1-70b"])


ROUND_GPU = msgspec.structs.replace(
    H200,
    peak_flops=1000.0,
    peak_bytes_per_s=1000.0,
    link_bytes_per_s=1000.0,
    linear_flops_efficiency=0.5,
    linear_bytes_efficiency=0.25,
    attention_flops_efficiency=0.5,
    attention_bytes_efficiency=0.5,
    launch_gap_s=0.5,
    all_reduce_s=0.25,
    sequence_gap_s=0.125,
    idle_empty_w=10.0,
    resident_w=5.0,
    active_w=5.0,
    limit_w=1e9,
    joules_per_flop=0.01,
    joules_per_byte=0.02,
    joules_per_kv_byte=0.03,
    ambient_c=20.0,
    kelvin_per_w=1.0,
    leakage_w_per_k=2.0,
)
"""Idle power 15 W at 35 °C."""

ROUND_MODEL = msgspec.structs.replace(
    LLAMA,
    parameters=100.0,
    layers=2,
    heads=1,
    kv_heads=1,
    head_dim=2,
    bytes_per_parameter=2.0,
    bytes_per_kv_value=1.0,
)
"""200 FLOPs per token, 16 per pair; 200 weight bytes, 8 bytes per KV token."""


def test_a_step_by_hand():
    """n = 2, C = 3, A = 5, K = 7."""
    cost = CostLaw(ROUND_GPU, ROUND_MODEL).cost(Load(2, 3, 5, 7), 35.0)
    seconds = 600 / 500 + 80 / 500 + 0.5 + 2 * 0.125
    dynamic_j = 0.01 * 600 + 0.01 * 80 + 0.03 * 56 + 0.02 * 200
    assert cost.duration_ns == pytest.approx(seconds * 1e9, abs=2) == pytest.approx(2.11e9, abs=2)
    assert cost.joules == pytest.approx(20 * seconds + dynamic_j) == pytest.approx(54.68)
    fixed_j = 20 * (200 / 250 + 0.5) + 0.02 * 200
    assert cost.equal_j == pytest.approx(fixed_j / 2) == pytest.approx(15)
    scale = (54.68 - 30) / (6 + 0.8 + 1.68)
    assert (cost.token_j, cost.pair_j, cost.kv_token_j) == pytest.approx((2 * scale, 0.16 * scale, 0.24 * scale))


def test_each_phase_is_bound_by_the_slower_of_compute_and_memory():
    law = CostLaw(ROUND_GPU, ROUND_MODEL)
    gaps_s = 0.5 + 0.125
    assert law.unlimited_s(Load(1, 1, 0, 0)) == pytest.approx(200 / 250 + gaps_s), "reading the weights"
    assert law.unlimited_s(Load(1, 4, 0, 0)) == pytest.approx(800 / 500 + gaps_s), "computing with them"
    assert law.unlimited_s(Load(1, 1, 5, 7)) == pytest.approx(200 / 250 + 80 / 500 + gaps_s), "computing pairs"
    assert law.unlimited_s(Load(1, 1, 2, 7)) == pytest.approx(200 / 250 + 56 / 500 + gaps_s), "reading the KV cache"


def test_at_the_power_limit_a_step_takes_as_long_as_its_dynamic_energy_needs():
    limited = msgspec.structs.replace(ROUND_GPU, limit_w=22.0)
    cost = CostLaw(limited, ROUND_MODEL).cost(Load(2, 3, 5, 7), 35.0)
    assert cost.duration_ns == pytest.approx(12.48 / (22 - 20) * 1e9, abs=2)
    assert cost.joules == pytest.approx(22 * 6.24)


def test_leakage_adds_to_static_power_above_and_subtracts_below_the_idle_temperature():
    law = CostLaw(ROUND_GPU, ROUND_MODEL)
    assert [law.idle_w(celsius) for celsius in (34.0, 35.0, 36.5)] == [13.0, 15.0, 18.0]
    assert law.static_w(36.5) == 23.0


def test_two_gpus_halve_the_work_and_add_all_reduces():
    """2 x 2 layers x 0.25 s, and 16 bytes per token over the link."""
    law = CostLaw(ROUND_GPU, ROUND_MODEL, 2)
    assert law.unlimited_s(Load(2, 3, 5, 7)) == pytest.approx(0.6 + 0.08 + 1.0 + 3 * 0.016 + 0.5 + 0.25)
    assert law.static_w(35.0) == 40.0


def test_a_step_that_reads_experts_by_hand():
    """40 weight bytes are dense, experts of 60 bytes are read, and the GPU that reads most takes as long as for 80."""
    moe = msgspec.structs.replace(ROUND_MODEL, expert_parameters=80.0, experts=4, experts_per_token=1)
    cost = CostLaw(ROUND_GPU, moe).cost(Load(2, 1, 0, 0, expert_bytes=60.0, waited_expert_bytes=80.0), 35.0)
    seconds = (40 + 80) / 250 + 0.5 + 2 * 0.125
    assert cost.duration_ns == pytest.approx(seconds * 1e9, abs=2)
    assert cost.joules == pytest.approx(20 * seconds + 0.02 * 100 + 0.01 * 80)
    assert cost.equal_j == pytest.approx((20 * (40 / 250 + 0.5) + 0.02 * 40) / 2)
    assert cost.experts_j == pytest.approx(20 * 80 / 250 + 0.02 * 60)
    assert 2 * cost.equal_j + cost.token_j + cost.experts_j == pytest.approx(cost.joules)


def test_kv_tokens_fill_the_memory_beside_the_weights():
    gpu = msgspec.structs.replace(ROUND_GPU, memory_bytes=1000.0)
    assert kv_cache_tokens(gpu, ROUND_MODEL) == (900 - 200) // 8
    assert kv_cache_tokens(gpu, ROUND_MODEL, memory_share=0.208) == 1
    with pytest.raises(LoadgenError, match="does not fit"):
        kv_cache_tokens(gpu, ROUND_MODEL, memory_share=0.2079)
