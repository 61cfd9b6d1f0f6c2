from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from loadgen.cli import cli
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile
from loadgen.energy_model.estimate import (
    bin_shares,
    ceiling_pairs,
    estimates,
    fit_two_phase,
    flops,
    ideal,
    mean_overlap,
    surface,
)
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.energy_model.waves import RequestShape
from loadgen.errors import LoadgenError
from loadgen.servers.launcher import served
from loadgen.simulator.virtual_profile import closed_loop
from loadgen.stats.nnls import nnls
from loadgen.workload.token_bins import CountedPairs, count_pairs

INPUTS, OUTPUTS, BATCHES = (32, 256, 2048), (8, 64, 512), (1, 16, 128)
A = {"a0": 0.5, "a1": 0.02, "a2": 4e-7, "c": 2.4, "b": 0.01, "k": 2e-5}


def law(n: float, o: float, batch: float) -> float:
    contexts = (o - 1) * n + o * (o - 1) / 2
    return A["a0"] + A["a1"] * n + A["a2"] * n**2 + A["c"] * o / batch + A["b"] * (o - 1) + A["k"] * contexts


def profile(cells: list[GridPoint] | None = None) -> EnergyProfile:
    every = [
        GridPoint(input=n, output=o, batch=b, joules_per_request=law(n, o, b), stderr=0.01 * law(n, o, b))
        for n in INPUTS
        for o in OUTPUTS
        for b in BATCHES
    ]
    return EnergyProfile(
        gpu="h200",
        engine="none",
        model="llama-3.1-8b",
        simulated=True,
        idle_w=100.0,
        provenance={},
        cells=tuple(every if cells is None else cells),
    )


def workload(*rows: tuple[int, int, int]) -> CountedPairs:
    """Of (input, output, how many)."""
    n, o, count = np.array(rows, dtype=np.int64).T
    return CountedPairs(n, o, count)


def joules(pairs: CountedPairs, of: EnergyProfile, batch: float) -> dict[str, float]:
    return {e.method: e.joules for e in estimates(pairs, of, batch, None, None)}


def test_the_fit_finds_the_law_that_made_the_cells() -> None:
    fit = fit_two_phase(profile().cells)
    assert fit is not None and fit.rms < 1e-6
    assert [fit.request, fit.input_token, fit.input_token_squared, fit.step, fit.output_token, fit.context_token] == (
        pytest.approx(list(A.values()), rel=1e-4)
    )


@given(st.integers(32, 2048), st.integers(8, 512), st.floats(1, 128))
def test_where_the_law_holds_every_length_and_batch_is_right(n: int, o: int, batch: float) -> None:
    found = joules(workload((n, o, 3)), profile(), batch)
    assert found["interpolated"] == pytest.approx(3 * law(n, o, batch), rel=1e-4)
    assert found["two-phase"] == pytest.approx(3 * law(n, o, batch), rel=1e-4)
    assert found["ceiling"] >= found["interpolated"] * (1 - 1e-6)


def test_at_a_cell_the_interpolation_is_what_was_measured_whatever_the_fit_says() -> None:
    rng = np.random.default_rng(1)
    noisy = [msgspec.structs.replace(c, joules_per_request=c.joules_per_request * rng.uniform(0.7, 1.4))
             for c in profile().cells]  # fmt: skip
    for cell in noisy:
        found = joules(workload((cell.input, cell.output, 1)), profile(noisy), cell.batch)
        assert found["interpolated"] == pytest.approx(cell.joules_per_request)


def test_the_spread_of_a_sum_at_one_cell_is_that_cells() -> None:
    (found, *_) = estimates(workload((256, 64, 10)), profile(), 16, None, None)
    assert found.stderr_joules == pytest.approx(0.01 * found.joules)


def test_independent_cells_average_their_errors_out() -> None:
    (found, *_) = estimates(workload((256, 64, 10), (2048, 8, 10), (32, 512, 10)), profile(), 16, None, None)
    assert found.stderr_joules is not None and found.stderr_joules < 0.01 * found.joules


def test_a_few_cells_have_no_fit_and_interpolate_in_log_space() -> None:
    cells = [GridPoint(input=n, output=10, batch=1, joules_per_request=j) for n, j in ((100, 1.0), (400, 4.0))]
    assert joules(workload((200, 10, 1)), profile(cells), 1)["interpolated"] == pytest.approx(2.0)


def test_ceiling_takes_the_next_edge_up_and_holds_longer_ones() -> None:
    ceiled, held = ceiling_pairs(workload((1, 1, 1), (32, 8, 1), (33, 9, 1), (9000, 20, 5)))
    assert ceiled.inputs.tolist() == [32, 32, 64, 8192]
    assert ceiled.outputs.tolist() == [8, 8, 16, 32]
    assert held == 5


def test_flops_are_those_of_the_weights_and_of_every_pair() -> None:
    model = read_model("llama-3.1-8b")
    one = flops(np.array([1]), np.array([1]), model)[0]
    assert one == 2 * 8.03e9 + 4 * 32 * 32 * 128
    assert flops(np.array([3]), np.array([1]), model) == flops(np.array([1]), np.array([3]), model)


def test_the_ideal_of_the_sparse_peak_is_half_that_of_the_dense() -> None:
    found = estimates(workload((512, 64, 1)), profile(), 1, read_hardware("h200"), read_model("llama-3.1-8b"))
    by_method = {e.method: e.joules for e in found}
    assert by_method["ideal, dense peak"] / by_method["ideal, sparse peak"] == pytest.approx(1979 / 989)


def test_bins_add_up_to_the_totals() -> None:
    pairs = workload((40, 9, 7), (50, 12, 2), (900, 300, 5))
    found = joules(pairs, profile(), 16)
    shares = bin_shares(pairs, surface(profile(), 16))
    assert sum(s.requests for s in shares) == 14 and len(shares) == 2
    assert sum(s.interpolated_joules for s in shares) == pytest.approx(found["interpolated"])
    assert sum(s.ceiling_joules for s in shares) == pytest.approx(found["ceiling"])


@pytest.mark.parametrize(
    ("change", "pairs", "batch", "said"),
    [
        ("none", (40, 9, 1), 256, "batch 256 is outside"),
        ("none", (131000, 600, 1), 16, "exceeds the context of llama-3.1-8b: 131072"),
        ("hole", (1000, 300, 1), 16, "no measurement of 2048 input and 512 output tokens at batch 16"),
        ("few", (40, 9, 1), 1, "too few to fit"),
    ],
)
def test_what_cannot_be_estimated_is_said(change: str, pairs: tuple[int, int, int], batch: float, said: str) -> None:
    cells = list(profile().cells)
    if change == "hole":
        cells = [c for c in cells if (c.input, c.output, c.batch) != (2048, 512, 16)]
    if change == "few":
        cells = cells[:1]
    with pytest.raises(LoadgenError, match=said):
        estimates(workload(pairs), profile(cells), batch, None, read_model("llama-3.1-8b"))


@given(st.integers(0, 2**32 - 1))
def test_nnls_is_non_negative_and_no_coordinate_can_be_bettered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(20, 5)), rng.normal(size=20)
    x, _ = nnls(a, b)
    gradient = a.T @ (b - a @ x)
    assert (x >= 0).all()
    assert (gradient < 1e-6).all() and np.abs(gradient[x > 0]).max(initial=0.0) < 1e-6


def test_pairs_are_counted_over_chunks() -> None:
    chunks = [(np.array([5, 3, 5]), np.array([1, 2, 1])), (np.array([5, 9]), np.array([1, 2]))]
    counted = count_pairs(chunks)
    assert list(zip(counted.inputs, counted.outputs, counted.counts, strict=True)) == [(3, 2, 1), (5, 1, 3), (9, 2, 1)]


def test_mean_overlap_leaves_idle_time_out() -> None:
    assert mean_overlap(np.array([(0, 10), (5, 10), (100, 110)])) == pytest.approx(25 / 20)


# -- the proof, small -------------------------------------------------------------------------------------------------


def test_estimates_hold_against_the_simulated_truth_on_lengths_that_no_cell_has() -> None:
    """A mixed closed loop of 32: interpolated within 5 %, ceiling far above, the FLOPs bound far below."""
    of = read_energy_profile("h200-sim-llama-3.1-8b")
    hardware, model = read_hardware(of.gpu), read_model(of.model)
    rng = np.random.default_rng(3)
    n = np.exp(rng.uniform(np.log(40), np.log(3000), 800)).astype(np.int64)
    o = np.exp(rng.uniform(np.log(9), np.log(300), 800)).astype(np.int64)
    run = closed_loop([RequestShape(int(i), int(k)) for i, k in zip(n, o, strict=True)], hardware, model, 32)
    found = {e.method: e.joules / run.step_j for e in estimates(count_pairs([(n, o)]), of, 32, hardware, model)}
    assert found["interpolated"] == pytest.approx(1, abs=0.05)
    assert found["ceiling"] > 1.2
    assert found["ideal, sparse peak"] < found["ideal, dense peak"] < 0.8


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["traces/chat.jsonl", "--profile", "nowhere"], "no energy profile called 'nowhere'"),
        (["traces/chat.jsonl", "--profile", "h200-sim-llama-3.1-8b", "--model", "llama-3.1-70b"], "not llama-3.1-70b"),
        (["traces/chat.jsonl", "--profile", "h200-sim-llama-3.1-8b", "--batch", "500"], "outside what profile"),
        (["empty.jsonl", "--profile", "h200-sim-llama-3.1-8b"], "cannot read empty.jsonl"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["estimate", *arguments])
    assert isinstance(result.exception, LoadgenError) and said in str(result.exception)


def test_the_command_prices_and_sums() -> None:
    command = ["estimate", "traces/chat.jsonl", "--profile", "h200-sim-llama-3.1-8b", "--json"]
    answer = msgspec.json.decode(
        CliRunner().invoke(cli, [*command, "--pue", "1.5", "--grid-intensity", "400", "--price", "2"]).output
    )
    first = answer["estimates"][0]
    assert answer["requests"] == 2000 and answer["simulated"]
    assert first["kwh"] * 3.6e6 == pytest.approx(first["joules"])
    assert first["co2e_kg"] == pytest.approx(first["kwh"] * 1.5 * 0.4)
    assert first["cost"] == pytest.approx(first["kwh"] * 3)


def test_a_replayed_run_takes_about_the_energy_that_is_estimated_for_it(tmp_path: Path) -> None:
    lines = [f'{{"timestamp": {40 * i}, "input_length": 512, "output_length": 64}}\n' for i in range(24)]
    (trace := tmp_path / "t.jsonl").write_text("".join(lines))
    with served("sim", "--counter-period-ms", "20") as url:
        replay = ["replay", str(trace), "--base-url", url, "--json", "--idle", "0.6", "--out", str(tmp_path / "run")]
        CliRunner().invoke(cli, replay, catch_exceptions=False)
    command = ["estimate", "traces/chat.jsonl", "--profile", "h200-sim-llama-3.1-8b", "--json"]
    answer = msgspec.json.decode(
        CliRunner().invoke(cli, [*command, "--measured", str(tmp_path / "run")], catch_exceptions=False).output
    )
    measured = answer["measured"]
    assert measured["requests"] == 24 and answer["requests"] == 2000
    assert answer["batch"] == pytest.approx(max(1.0, min(128.0, measured["mean_decoding"])))
    assert measured["ratios"]["interpolated"] == pytest.approx(1, abs=0.35), "the load rises and falls during the run"


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_flops_of_one_request_by_hand() -> None:
    """3 input and 2 output tokens: 4 tokens are computed, with 1, 2, 3 and 4 (query, key) pairs."""
    model = msgspec.structs.replace(read_model("llama-3.1-8b"), parameters=100.0, layers=2, heads=1, head_dim=2)
    assert flops(np.array([3]), np.array([2]), model)[0] == sum(2 * 100 + 16 * pairs for pairs in (1, 2, 3, 4)) == 960


def test_the_ideal_is_power_limit_over_peak_times_flops() -> None:
    hardware = msgspec.structs.replace(read_hardware("h200"), limit_w=50.0, peak_flops=100.0, peak_sparse_flops=None)
    model = msgspec.structs.replace(read_model("llama-3.1-8b"), parameters=100.0, layers=2, heads=1, head_dim=2)
    (dense,) = ideal(workload((3, 2, 10)), hardware, model)
    assert (dense.method, dense.joules, dense.stderr_joules) == ("ideal, dense peak", 10 * 960 * 50 / 100, None)


def test_a_fit_needs_twelve_points_and_two_values_of_every_letter() -> None:
    points = list(profile().cells)
    assert fit_two_phase(points[:12]) is not None
    assert fit_two_phase(points[:11]) is None
    assert fit_two_phase([point for point in points if point.batch == 16] * 2) is None
    assert fit_two_phase([point for point in points if point.input == 32] * 2) is None
    assert fit_two_phase([point for point in points if point.output == 8] * 2) is None


@pytest.mark.parametrize(
    ("n", "o", "outside"), [(32, 8, 0), (2048, 512, 0), (31, 8, 3), (2049, 8, 3), (32, 7, 3), (32, 513, 3)]
)
def test_lengths_at_the_edges_of_the_grid_are_inside(n: int, o: int, outside: int) -> None:
    assert surface(profile(), 16).outside(workload((n, o, 3))) == outside


@pytest.mark.parametrize("batch", [1, 128])
def test_batches_at_the_edges_of_the_grid_are_inside(batch: int) -> None:
    surface(profile(), batch)
    with pytest.raises(LoadgenError, match="outside what profile"):
        surface(profile(), batch * 1.01 if batch > 1 else 0.99)


def test_a_request_of_exactly_the_context_is_estimated() -> None:
    model = msgspec.structs.replace(read_model("llama-3.1-8b"), context_tokens=100)
    assert estimates(workload((90, 10, 1)), profile(), 16, None, model)
    with pytest.raises(LoadgenError, match=r"90 \+ 11 tokens exceeds the context of llama-3.1-8b: 100 tokens"):
        estimates(workload((90, 11, 1)), profile(), 16, None, model)


def test_a_point_without_repeats_has_the_root_mean_square_of_the_other_errors() -> None:
    points = [
        msgspec.structs.replace(p, stderr=None if p.key == (32, 8, 1) else 0.02 * p.joules_per_request)
        for p in profile().cells
    ]
    (interpolated, *_) = estimates(workload((32, 8, 1)), profile(points), 1, None, None)
    assert interpolated.stderr_joules == pytest.approx(0.02 * interpolated.joules)


@pytest.mark.parametrize(
    ("spans", "overlap"),
    [
        ([(0, 10)], 1.0),
        ([(0, 10), (10, 20)], 1.0),
        ([(0, 10), (0, 10)], 2.0),
        ([(0, 10), (2, 8)], 1.6),
        ([(5, 5), (0, 10)], 1.0),
        ([], 0.0),
    ],
)
def test_mean_overlap_by_hand(spans: list[tuple[int, int]], overlap: float) -> None:
    assert mean_overlap(np.array(spans, dtype=np.int64).reshape(-1, 2)) == pytest.approx(overlap)
