import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.errors import LoadgenError
from loadgen.stats.distributions import count_values, ks_distance, spearman
from loadgen.workload import token_bins
from loadgen.workload.token_bins import (
    TokenBin,
    TokenBins,
    bins_json,
    count_bins,
    count_pairs,
    fit_bins,
    geometric_theta,
    merge_counts,
    read_bins,
    sample_lengths,
)
from loadgen.workload.trace import read_trace
from loadgen.workload.trace_formats import iter_import

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SHIPPED = [("chat", "conv"), ("code", "code")]


def lengths_of(requests):  # type: ignore[no-untyped-def]
    return np.array([(r.input_tokens, r.output_tokens) for r in requests]).T


def correlation(x, y):  # type: ignore[no-untyped-def]
    return spearman(x, y, np.ones(len(x), np.int64))


def original(name: str):  # type: ignore[no-untyped-def]
    path = DATA / f"AzureLLMInferenceTrace_{name}.csv"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    return lengths_of(iter_import(path, Counter()))


def fitted(pairs, edges="quantile", size=10**6) -> TokenBins:  # type: ignore[no-untyped-def]
    inputs, outputs = (np.array(side) for side in zip(*pairs, strict=True))
    parts = [(inputs[i : i + size], outputs[i : i + size]) for i in range(0, len(inputs), size)]
    return fit_bins("b", lambda: parts, edges, {})


lengths = st.one_of(st.integers(1, 20), st.integers(1, 20_000))
pairs_of_lengths = st.lists(st.tuples(lengths, lengths), min_size=1, max_size=200)


@settings(deadline=None)
@given(pairs_of_lengths, st.sampled_from(["paper", "log2", "quantile"]), st.integers(1, 50))
def test_bins_hold_every_request_once_and_its_tokens(pairs, edges, size) -> None:  # type: ignore[no-untyped-def]
    bins = fitted(pairs, edges, size)
    assert bins.count == len(pairs)
    assert bins.mean_input == pytest.approx(np.mean([i for i, _ in pairs]), rel=1e-3)
    assert bins.mean_output == pytest.approx(np.mean([o for _, o in pairs]), rel=1e-3)
    for b in bins.bins:
        (i0, i1), (o0, o1) = b.input_range, b.output_range
        inside = [(i, o) for i, o in pairs if i0 < i <= i1 and o0 < o <= o1]
        assert b.count == len(inside)
        assert b.mean_input == pytest.approx(np.mean([i for i, _ in inside]), abs=1e-3)
        assert b.mean_output == pytest.approx(np.mean([o for _, o in inside]), abs=1e-3)


@settings(deadline=None)
@given(pairs_of_lengths, st.sampled_from(["paper", "log2", "quantile"]))
def test_bins_are_the_same_after_a_file(pairs, edges) -> None:  # type: ignore[no-untyped-def]
    bins = fitted(pairs, edges)
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "b.json").write_bytes(bins_json(bins))
        assert read_bins(path) == bins


def test_a_spike_gets_a_bin_of_its_own() -> None:
    """Half of all inputs are 777 exactly: no draw may smear them over their neighbours."""
    inputs = [777] * 500 + list(range(500, 1000))
    bins = fitted([(i, 5) for i in inputs])
    assert (776, 777) in {b.input_range for b in bins.bins}
    drawn, _ = sample_lengths(bins, 1000, default_rng(0))
    assert abs(int((drawn == 777).sum()) - 501) <= 1


def test_lengths_beyond_the_papers_edges_get_one_more_bin() -> None:
    bins = fitted([(10, 5), (9000, 600), (20_000, 600)], "paper")
    assert bins.bins[-1] == TokenBin(
        input_range=(8192, 20_000), output_range=(512, 600), count=2, mean_input=14_500, mean_output=600
    )
    assert fitted([(8192, 512)], "paper").input_edges[-1] == 8192


@pytest.mark.parametrize(("_", "name"), SHIPPED)
@pytest.mark.parametrize(("edges", "key"), [("paper", "paper_bins_ceil"), ("log2", "ceil_log2_hist")])
def test_counts_agree_with_published_histograms_of_the_originals(_: str, name: str, edges, key: str) -> None:  # type: ignore[no-untyped-def]
    inputs, outputs = original(name)
    stats = json.loads((DATA / f"AzureLLMInferenceTrace_{name}.stats.json").read_text())
    bins = fit_bins("b", lambda: [(inputs, outputs)], edges, {}).bins
    if edges == "log2":
        published = stats[key]["counts"]
        counts = {f"{int(math.log2(b.input_range[1]))},{int(math.log2(b.output_range[1]))}": b.count for b in bins}
    else:
        published = stats[key]
        inside = [b for b in bins if b.input_range[1] <= 8192 and b.output_range[1] <= 512]
        counts = {f"{b.input_range[1]},{b.output_range[1]}": b.count for b in inside}
        assert sum(b.count for b in bins) - sum(counts.values()) == stats["paper_bins_excluded"]
    assert counts == published


# -- sample


@settings(deadline=None)
@given(pairs_of_lengths, st.integers(1, 500), st.integers(0, 99))
def test_draws_stay_inside_the_bins_in_their_proportion(pairs, n: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    bins = fitted(pairs, "log2")
    inputs, outputs = sample_lengths(bins, n, default_rng(seed))
    assert len(inputs) == len(outputs) == n
    placed = 0
    for b in bins.bins:
        (i0, i1), (o0, o1) = b.input_range, b.output_range
        drawn = int(((inputs > i0) & (inputs <= i1) & (outputs > o0) & (outputs <= o1)).sum())
        assert abs(drawn - n * b.count / bins.count) < 1 + 1e-9
        placed += drawn
    assert placed == n


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 5000), st.floats(0, 1), st.integers(0, 9))
def test_draws_have_the_mean_of_their_bin(width: int, lo: int, where: float, seed: int) -> None:
    """Stratified draws: the mean of n is within width / n of the law's, so within 1 % of the width for 200."""
    mean = round(lo + 1 + where * (width - 1), 3)
    b = TokenBin(input_range=(lo, lo + width), output_range=(0, 1), count=1, mean_input=mean, mean_output=1)
    bins = TokenBins(name="b", provenance={}, edges="log2", input_edges=(), output_edges=(), bins=(b,))
    inputs, _ = sample_lengths(bins, 200, default_rng(seed))
    assert inputs.mean() == pytest.approx(mean, abs=0.01 * width)


def test_a_mean_in_the_middle_is_a_uniform_law() -> None:
    b = TokenBin(input_range=(0, 100), output_range=(0, 100), count=1, mean_input=50.5, mean_output=50.5)
    bins = TokenBins(name="b", provenance={}, edges="log2", input_edges=(), output_edges=(), bins=(b,))
    inputs, outputs = sample_lengths(bins, 1000, default_rng(0))
    for drawn in (inputs, outputs):
        assert np.abs(np.bincount(drawn, minlength=101)[1:] - 10).max() <= 2
    assert abs(correlation(inputs, outputs) or 0) < 0.1  # independent within a bin


def test_same_seed_same_draws_and_no_order_in_them() -> None:
    bins = fitted([(i, 2001 - i) for i in range(1, 2001)])
    first, second = (sample_lengths(bins, 500, default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, sample_lengths(bins, 500, default_rng(8)))
    assert abs(correlation(first[0], np.arange(500)) or 0) < 0.15
    assert correlation(*first) == pytest.approx(-1, abs=0.01)


# -- the shipped bins and traces


@pytest.mark.parametrize(("shipped", "name"), SHIPPED)
def test_shipped_bins_are_those_of_the_original(shipped: str, name: str) -> None:
    inputs, outputs = original(name)
    bins = read_bins(ROOT / "profiles" / "workloads" / f"azure-2023-{shipped}.json")
    assert fit_bins(bins.name, lambda: [(inputs, outputs)], bins.edges, bins.provenance) == bins
    assert {"source", "licence", "cite", "command", "file_sha256"} <= set(bins.provenance)


@pytest.mark.parametrize(("shipped", "name"), SHIPPED)
def test_shipped_traces_look_like_the_originals(shipped: str, name: str) -> None:
    inputs, outputs = original(name)
    requests = read_trace(ROOT / "traces" / f"{shipped}.jsonl").requests
    drawn = lengths_of(requests)
    assert len(requests) == 2000 and {r.workload for r in requests} == {shipped}
    assert ks_distance(count_values(drawn[0]), count_values(inputs)) <= 0.03
    assert ks_distance(count_values(drawn[1]), count_values(outputs)) <= 0.03
    assert correlation(*drawn) == pytest.approx(correlation(inputs, outputs), abs=0.05)


@pytest.mark.parametrize(("shipped", "name"), SHIPPED)
def test_the_likeness_is_not_the_luck_of_a_seed(shipped: str, name: str) -> None:
    inputs, outputs = original(name)
    bins = read_bins(ROOT / "profiles" / "workloads" / f"azure-2023-{shipped}.json")
    for seed in range(20):
        drawn = sample_lengths(bins, 2000, default_rng(seed))
        assert ks_distance(count_values(drawn[0]), count_values(inputs)) <= 0.025
        assert ks_distance(count_values(drawn[1]), count_values(outputs)) <= 0.025


# -- bad files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": []}, "no bins"),
        ({"count": 0}, "bin 0: count 0"),
        ({"input_range": [5, 5]}, "bin 0: input_range 5, 5"),
        ({"output_range": [-1, 5]}, "bin 0: output_range -1, 5"),
        ({"mean_output": 9.5}, "bin 0: mean_output 9.5"),
        ({"mean_input": "x"}, "not token bins"),
    ],
)
def test_invalid_bins_are_an_error(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    value = json.loads(bins_json(fitted([(3, 8)], "log2")))
    (value if "bins" in change else value["bins"][0]).update(change)
    (path := tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(LoadgenError, match=message):
        read_bins(path)


def test_no_bins_and_no_requests_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(LoadgenError, match="cannot read"):
            read_bins(path)
    with pytest.raises(LoadgenError, match="no requests"):
        fit_bins("b", list, "log2", {})
    with pytest.raises(LoadgenError, match="at least 1"):
        sample_lengths(fitted([(1, 1)]), 0, default_rng(0))


# -- edges


@pytest.mark.parametrize(
    ("edges", "length", "input_range"),
    [
        ("paper", 32, (0, 32)),
        ("paper", 33, (32, 64)),
        ("paper", 8192, (4096, 8192)),
        ("paper", 8193, (8192, 8193)),
        ("log2", 1, (0, 1)),
        ("log2", 2, (1, 2)),
        ("log2", 1024, (512, 1024)),
        ("log2", 1025, (1024, 2048)),
        ("quantile", 7, (6, 7)),
    ],
)
def test_a_length_equal_to_an_edge_is_in_the_bin_below_it(edges, length: int, input_range: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    (only,) = fitted([(length, 5)], edges).bins
    assert (only.input_range, only.count, only.mean_input) == (input_range, 1, length)


def test_pairs_are_counted_across_chunks_in_ascending_order() -> None:
    chunks = [(np.array([2, 1, 2]), np.array([5, 9, 5])), (np.array([1, 2]), np.array([9, 4]))]
    pairs = count_pairs(chunks)
    assert list(zip(pairs.inputs.tolist(), pairs.outputs.tolist(), pairs.counts.tolist(), strict=True)) == [
        (1, 9, 2), (2, 4, 1), (2, 5, 2),
    ]  # fmt: skip
    with pytest.raises(LoadgenError, match="no requests"):
        count_pairs([])


# -- by hand


def test_bins_between_edges_by_hand() -> None:
    chunks = [(np.array([1, 4, 5]), np.array([2, 2, 2])), (np.array([4, 8]), np.array([3, 3]))]
    assert count_bins(chunks, (0, 4, 8), (0, 2, 4)) == (
        TokenBin(input_range=(0, 4), output_range=(0, 2), count=2, mean_input=2.5, mean_output=2),
        TokenBin(input_range=(0, 4), output_range=(2, 4), count=1, mean_input=4, mean_output=3),
        TokenBin(input_range=(4, 8), output_range=(0, 2), count=1, mean_input=5, mean_output=2),
        TokenBin(input_range=(4, 8), output_range=(2, 4), count=1, mean_input=8, mean_output=3),
    )


def test_means_have_three_decimals() -> None:
    (b,) = count_bins([(np.array([1, 1, 2]), np.array([1, 2, 2]))], (0, 4), (0, 4))
    assert (b.mean_input, b.mean_output) == (1.333, 1.667)


@pytest.mark.parametrize("width", [2, 3, 10, 1000])
@pytest.mark.parametrize("theta", [-3.0, -0.5, -1e-2, -1e-4, -1e-7])
def test_theta_gives_the_mean_of_the_truncated_geometric_law(width: int, theta: float) -> None:
    k = np.arange(1, width + 1)
    weights = np.exp(theta * k)
    mean = float((k * weights).sum() / weights.sum())
    solved = float(geometric_theta(np.array([mean]), np.array([float(width)]))[0])
    weights = np.exp(solved * k)
    assert (k * weights).sum() / weights.sum() == pytest.approx(mean, rel=1e-6)
    if theta <= -1e-4:
        assert solved == pytest.approx(theta, rel=1e-3)


def test_counts_of_equal_keys_are_added_in_order_of_the_keys() -> None:
    parts = [(np.array([3, 9]), np.array([1, 2])), (np.array([1, 3]), np.array([5, 7]))]
    keys, counts = merge_counts(parts)
    assert (keys.tolist(), counts.tolist()) == ([1, 3, 9], [5, 8, 2])


@pytest.mark.parametrize("merge_rows", [0, 1, 3, 100])
def test_pairs_are_counted_the_same_however_often_they_are_merged(
    monkeypatch: pytest.MonkeyPatch, merge_rows: int
) -> None:
    monkeypatch.setattr(token_bins, "MERGE_ROWS", merge_rows)
    chunks = [(np.array([2, 1, 2**31 - 1]), np.array([5, 6, 2**31 - 1])), (np.array([2, 2]), np.array([5, 4]))] * 2
    counted = count_pairs(chunks)
    assert list(zip(counted.inputs.tolist(), counted.outputs.tolist(), counted.counts.tolist(), strict=True)) == [
        (1, 6, 2), (2, 4, 2), (2, 5, 4), (2**31 - 1, 2**31 - 1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("longest", "edges"), [(1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2, 4)), (4, (0, 1, 2, 4)), (5, (0, 1, 2, 4, 8))]
)
def test_edges_at_powers_of_2_end_at_the_first_that_is_not_below_the_longest(
    longest: int, edges: tuple[int, ...]
) -> None:
    assert fitted([(longest, 1)], "log2").input_edges == edges


def test_quantile_edges_of_64_lengths_hold_two_each() -> None:
    assert fitted([(i, 1) for i in range(1, 65)]).input_edges == tuple(range(0, 65, 2))


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("count", 1, True),
        ("input_range", [0, 2**31 - 1], True),
        ("input_range", [0, 2**31], False),
        ("input_range", [-1, 9], False),
        ("mean_input", 2.999, True),
        ("mean_input", 2.998, False),
        ("mean_input", 4.001, True),
        ("mean_input", 4.002, False),
    ],
)
def test_the_limits_of_a_bin(tmp_path: Path, field: str, value: object, valid: bool) -> None:
    content = json.loads(bins_json(fitted([(3, 8), (4, 8)], "log2")))
    assert content["bins"][0]["input_range"] == [2, 4]
    content["bins"][0][field] = value
    (path := tmp_path / "b.json").write_text(json.dumps(content))
    if valid:
        assert read_bins(path).bins
    else:
        with pytest.raises(LoadgenError, match=f"bin 0: {field} "):
            read_bins(path)


def test_one_draw_is_valid_and_none_is_not() -> None:
    bins = fitted([(3, 8)], "log2")
    assert [len(side) for side in sample_lengths(bins, 1, default_rng(0))] == [1, 1]
    with pytest.raises(LoadgenError, match="0 requests: expected at least 1"):
        sample_lengths(bins, 0, default_rng(0))


def test_quantile_edges_begin_at_0_and_just_below_the_shortest_length() -> None:
    assert fitted([(i, 1) for i in range(101, 165)]).input_edges[:3] == (0, 100, 102)
