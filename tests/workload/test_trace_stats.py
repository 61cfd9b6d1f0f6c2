"""A description is that of the whole trace, whatever the chunks it is read in."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.report.trace_facts import rank_correlation
from loadgen.stats.distributions import index_of_dispersion, spearman
from loadgen.workload import trace_stats
from loadgen.workload.arrivals import offsets
from loadgen.workload.trace_columns import Columns
from loadgen.workload.trace_stats import (
    RATE_PARTS,
    WINDOWS_S,
    Description,
    Tally,
    rounded_up,
)


def described(columns: Columns, cuts: list[int] | None = None) -> Description:
    tally = Tally()
    edges = sorted({0, len(columns), *(cut % (len(columns) + 1) for cut in cuts or ())})
    for a, b in itertools.pairwise(edges):
        fields = {
            name: value if isinstance(value, str | int | None) else value[a:b]
            for name in columns.__dataclass_fields__
            for value in [getattr(columns, name)]
        }
        tally.add(Columns(**fields))
    return tally.describe()


def same(a: Description, b: Description) -> bool:
    return repr(a) == repr(b)  # arrays and all; none here is long enough to be abridged


@st.composite
def traces(draw: st.DrawFn) -> Columns:
    n = draw(st.integers(1, 30))
    many = {"min_size": n, "max_size": n}
    times = draw(st.lists(st.one_of(st.integers(0, 5), st.floats(0, 30), st.floats(0, 9000)), **many))
    length = st.one_of(st.integers(1, 9), st.integers(1, 2**31 - 1))
    return Columns(
        np.sort(np.array(times, float)),
        np.array(draw(st.lists(length, **many)), np.int64),
        np.array(draw(st.lists(length, **many)), np.int64),
        draw(st.lists(st.sampled_from("ab"), **many)),
        draw(st.none() | st.lists(st.none() | st.sampled_from("xyz"), **many)),
        draw(st.none() | st.lists(st.lists(st.integers(-3, 3), max_size=4).map(tuple), **many)),
    )


@settings(deadline=None, max_examples=60)
@given(traces(), st.lists(st.integers(0, 30), max_size=5))
def test_chunks_do_not_matter(columns: Columns, cuts: list[int]) -> None:
    assert same(described(columns, cuts), described(columns))


@settings(deadline=None, max_examples=60)
@given(traces(), st.lists(st.integers(0, 30), max_size=3))
def test_a_description_agrees_with_numpy_on_the_whole_trace(columns: Columns, cuts: list[int]) -> None:
    stats = described(columns, cuts)
    n, at = len(columns), columns.arrival_s
    assert stats.requests == n == sum((stats.workloads or {}).values()) == stats.pairs.counts.sum()
    for counts, whole in ((stats.inputs, columns.input_tokens), (stats.outputs, columns.output_tokens)):
        assert counts.counts.sum() == n
        assert counts.mean == pytest.approx(whole.mean())
        assert counts.std == pytest.approx(whole.std())
        for p in (0, 37, 50, 99, 100):
            assert counts.percentile(p) == pytest.approx(np.percentile(whole, p))
    expected = spearman(columns.input_tokens, columns.output_tokens, np.ones(n, np.int64))
    correlation = rank_correlation(stats.pairs)
    assert correlation is None if expected is None else correlation == pytest.approx(expected, abs=1e-9)
    for window, index in zip(WINDOWS_S, stats.dispersion, strict=True):
        whole_index = index_of_dispersion(at, window)
        assert index is None if whole_index is None else index == pytest.approx(whole_index)
    if stats.gaps_s is not None:
        assert stats.gaps_s.counts.sum() == n - 1
        gaps = np.sort(np.diff(at))
        assert np.repeat(stats.gaps_s.values, stats.gaps_s.counts) == pytest.approx(gaps, rel=2**-11, abs=1e-300)
    if stats.rates_rps is not None:
        assert sum(stats.rates_rps) * (at[-1] - at[0]) / RATE_PARTS == pytest.approx(n)


@settings(deadline=None, max_examples=60)
@given(traces())
def test_sessions_and_prefixes_by_brute_force(columns: Columns) -> None:
    stats = described(columns)
    turns: dict[str, list[float]] = {}
    for name, at in zip(columns.session_id or (), columns.arrival_s.tolist(), strict=False):
        if name is not None:
            turns.setdefault(name, []).append(at)
    assert (stats.sessions.count if stats.sessions else 0) == len(turns)
    if stats.sessions:
        assert stats.sessions.turns.mean == pytest.approx(np.mean([len(t) for t in turns.values()]))
        gaps = [(t[-1] - t[0]) / (len(t) - 1) for t in turns.values() if len(t) > 1]
        assert (stats.sessions.gap_s is None) == (not gaps)
        assert stats.sessions.gap_s is None or stats.sessions.gap_s.percentile(50) == pytest.approx(np.median(gaps))
    seen: set[int] = set()
    requested = reused = tokens_reused = 0
    for ids, length in zip(columns.prefix_ids or (), columns.input_tokens.tolist(), strict=False):
        for place, block in enumerate(ids):
            requested += 1
            reused += block in seen
            tokens_reused += min(max(length - 512 * place, 0), 512) * (block in seen)
            seen.add(block)
    assert stats.block_reuse == (pytest.approx(reused / requested) if requested else None)
    assert stats.token_reuse == (pytest.approx(tokens_reused / columns.input_tokens.sum()) if requested else None)


def test_rates_lie_where_the_requests_do() -> None:
    """48 parts of an hour against a histogram: a fine part is 1/8192 of the whole at the widest."""
    at = offsets("poisson", 20, default_rng(1), duration_s=3600.0)
    at = at[(at < 900) | (at > 1800)]
    rates = np.array(described(lengths_of(at, 1)).rates_rps)
    expected = np.histogram(at, RATE_PARTS)[0] * (RATE_PARTS / (at[-1] - at[0]))
    assert np.abs(rates - expected).max() < 0.01 * expected.max()
    assert (rates[13:23] == 0).all()


def lengths_of(at: np.ndarray, seed: int) -> Columns:
    rng = default_rng(seed)
    inputs = rng.lognormal(6, 1, len(at)).astype(int) + 1
    return Columns(at, inputs, (inputs * rng.lognormal(-2, 1, len(at))).astype(int) + 1)


def test_too_many_pairs_are_rounded_and_reported_as_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = lengths_of(np.arange(20_000.0), 2)
    whole = described(columns)
    monkeypatch.setattr(trace_stats, "MOST_PAIRS", 4_000)
    rough = described(columns, list(range(0, 20_000, 700)))
    assert (whole.estimated, rough.estimated) == ((), ("joint lengths",))
    assert 4_000 < len(rough.pairs.counts) < 0.9 * len(whole.pairs.counts)
    assert len(set(rough.pairs.inputs)) <= 32 * 16 + 32  # 32 to each power of two, and those below 64
    assert rough.pairs.counts.sum() == 20_000
    assert rank_correlation(rough.pairs) == pytest.approx(rank_correlation(whole.pairs), abs=0.002)
    assert repr(replace(rough, pairs=whole.pairs, estimated=())) == repr(whole)  # all else is exact
    for side, exact in ((rough.pairs.inputs, whole.pairs.inputs), (rough.pairs.outputs, whole.pairs.outputs)):
        assert set(np.ceil(np.log2(side))) == set(np.ceil(np.log2(exact)))  # the heat map's cells stay


def test_too_many_sessions_and_blocks_are_sampled_and_reported_as_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    n, names = 40_000, default_rng(3).integers(0, 10_000, 40_000)
    columns = replace(
        lengths_of(np.arange(float(n)), 3),
        session_id=[f"s{k}" for k in names.tolist()],
        prefix_ids=[(k,) for k in names.tolist()],
    )
    whole = described(columns)
    monkeypatch.setattr(trace_stats, "MOST_KEPT", 2_000)
    rough = described(columns, list(range(0, n, 999)))
    assert rough.estimated == ("sessions", "prefix reuse")
    assert whole.sessions and rough.sessions and whole.block_reuse and rough.block_reuse
    # A sample of 1,000 or more: 4 standard errors are 4 / sqrt(1,000).
    assert rough.sessions.count == pytest.approx(whole.sessions.count, rel=0.13)
    assert rough.sessions.turns.counts.sum() <= 2_000
    assert rough.sessions.turns.mean == pytest.approx(whole.sessions.turns.mean, rel=0.07)
    assert 1 - rough.block_reuse == pytest.approx(1 - whole.block_reuse, rel=0.13)


def test_a_description_of_a_hand_made_trace() -> None:
    times = np.array([10.0, 10.5, 12.0, 13.0, 20.0])
    columns = Columns(
        times, np.array([600, 600, 100, 1, 8]), np.array([1, 2, 2, 2, 1]), ["a", "b", "a", "a", "b"],
        ["x", None, "x", "y", "x"], [(1, 2), (1,), (2,), (), (1,)],
    )  # fmt: skip
    stats = described(columns, [2, 3])
    assert (stats.requests, stats.first_s, stats.last_s, stats.duration_s) == (5, 10.0, 20.0, 10.0)
    assert stats.workloads == {"a": 3, "b": 2}
    assert (stats.inputs.values.tolist(), stats.inputs.counts.tolist()) == ([1, 8, 100, 600], [1, 1, 1, 2])
    assert stats.gaps_s is not None and stats.gaps_s.values.tolist() == [0.5, 1.0, 1.5, 7.0]
    assert stats.sessions is not None and stats.sessions.count == 2
    assert stats.sessions.turns.values.tolist() == [1, 3]
    assert stats.sessions.gap_s is not None and stats.sessions.gap_s.values.tolist() == [5.0]  # x: 10, 12, 20
    assert stats.block_reuse == pytest.approx(3 / 5)
    # Block 1 of 512 tokens and block 2 of 88; again 512 of the second request, 100 of the third, 8 of the last.
    assert stats.token_reuse == pytest.approx((512 + 100 + 8 - (100 - 88) + (100 - 88)) / 1309)


@given(st.integers(1, 2**31 - 1))
def test_a_rounded_length_is_at_most_1_part_in_32_longer_and_has_6_significant_bits(length: int) -> None:
    (rounded,) = rounded_up(np.array([length])).tolist()
    assert length <= rounded <= length * (1 + 1 / 32)
    assert rounded % (1 << max(rounded.bit_length() - 6, 0)) == 0
    assert rounded <= 1 << (length - 1).bit_length(), "never beyond the next power of two"


@pytest.mark.parametrize(("length", "rounded"), [(1, 1), (63, 63), (64, 64), (65, 66), (127, 128), (129, 132)])
def test_lengths_below_64_are_exact(length: int, rounded: int) -> None:
    assert rounded_up(np.array([length])).tolist() == [rounded]
