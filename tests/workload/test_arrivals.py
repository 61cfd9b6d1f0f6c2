import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.errors import LoadgenError
from loadgen.stats.distributions import index_of_dispersion, ks_exponential
from loadgen.workload import arrivals as processes
from loadgen.workload.arrivals import Points, cycle_s, expected_counts, offsets, points_of, superposed, thinned, warped

SEEDS = range(5)


def gaps_of(arrivals):  # type: ignore[no-untyped-def]
    return np.diff(arrivals, prepend=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_thousand_poisson_arrivals_look_poisson(seed: int) -> None:
    arrivals = offsets("poisson", 2.0, default_rng(seed), count=10_000)
    dispersion = index_of_dispersion(arrivals, 1.0)
    assert dispersion is not None and 0.9 <= dispersion <= 1.1
    distance, critical = ks_exponential(gaps_of(arrivals))
    assert distance < critical
    gaps = gaps_of(arrivals)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03  # 3 / sqrt(n)
    assert 10_000 / arrivals[-1] == pytest.approx(2.0, rel=0.03)


def test_ks_rejects_one_poisson_run_in_twenty() -> None:
    """It is a 5 % test: a critical value too strict or too lax shows as another share of 400 runs."""
    runs = (ks_exponential(default_rng(seed).exponential(3.0, 500)) for seed in range(400))
    rejected = sum(distance > critical for distance, critical in runs)
    assert 8 <= rejected <= 34  # 20 +- 3 standard deviations


@pytest.mark.parametrize("seed", SEEDS)
def test_ks_rejects_gaps_that_are_not_exponential(seed: int) -> None:
    for process, burstiness in (("gamma", 0.8), ("gamma", 1.25), ("constant", 1.0)):
        arrivals = offsets(process, 10, default_rng(seed), burstiness=burstiness, count=10_000)  # type: ignore[arg-type]
        distance, critical = ks_exponential(gaps_of(arrivals))
        assert distance > critical


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_gaps_of_gamma_vary_by_1_over_the_root_of_burstiness(burstiness: float) -> None:
    gaps = gaps_of(offsets("gamma", 5, default_rng(1), burstiness=burstiness, count=50_000))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.03)
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.03)


def test_constant_is_exact() -> None:
    assert offsets("constant", 4, default_rng(0), duration_s=1).tolist() == [0, 0.25, 0.5, 0.75]
    assert offsets("constant", 4, default_rng(0), count=3).tolist() == [0, 0.25, 0.5]


@settings(deadline=None)
@given(
    st.sampled_from(["poisson", "gamma", "constant"]),
    st.floats(0.1, 1000),
    st.floats(0.01, 100),
    st.integers(0, 2**32),
    st.floats(0.2, 5),
)
def test_arrivals_are_sorted_and_inside_the_duration(process, rate, duration_s, seed, burstiness) -> None:  # type: ignore[no-untyped-def]
    arrivals = offsets(process, rate, default_rng(seed), burstiness=burstiness, duration_s=duration_s)
    assert arrivals.dtype == np.float64
    assert np.all(np.diff(arrivals) >= 0)
    assert np.all((arrivals >= 0) & (arrivals < duration_s))


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_same_seed_same_bytes_and_a_longer_run_starts_as_the_shorter(process) -> None:  # type: ignore[no-untyped-def]
    def run(**end) -> bytes:  # type: ignore[no-untyped-def]
        return offsets(process, 100, default_rng(3), burstiness=0.5, **end).tobytes()

    assert run(count=9000) == run(count=9000)
    assert run(count=9000).startswith(run(count=5000))
    assert run(count=90_000).startswith(run(duration_s=60))
    assert len(run(duration_s=60)) > 8 * 4096
    assert run(count=10, duration_s=60) == run(count=10)
    assert run(count=90_000, duration_s=60) == run(duration_s=60)


def test_mean_count_of_many_poisson_runs_is_rate_times_duration() -> None:
    """Nothing is clipped at either end: 2,000 runs of 10 expected arrivals each."""
    rng = default_rng(0)
    counts = [len(offsets("poisson", 5, rng, duration_s=2)) for _ in range(2000)]
    assert np.mean(counts) == pytest.approx(10, abs=3 * math.sqrt(10 / 2000))
    assert np.var(counts) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_a_rate_burstiness_or_duration_that_is_not_positive_and_finite_is_an_error(bad: float) -> None:
    for options in (
        {"rate": bad, "count": 1},
        {"rate": 1, "burstiness": bad, "count": 1},
        {"rate": 1, "duration_s": bad},
    ):
        with pytest.raises(LoadgenError, match="expected"):
            offsets("gamma", options.pop("rate"), default_rng(0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [{"count": 0}, {"count": -3}, {"count": 10**12}, {"duration_s": 1e12}])
def test_a_number_of_requests_below_1_or_too_large_is_an_error(limits) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LoadgenError, match="requests: expected at"):
        offsets("poisson", 1, default_rng(0), **limits)


# -- given arrivals at another rate -----------------------------------------------------------------------------------

BURSTY = offsets("gamma", 50, np.random.default_rng(5), burstiness=0.1, duration_s=2000)


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def singly(offsets_s: np.ndarray) -> np.ndarray:
    return np.arange(len(offsets_s))


def test_thinning_lowers_the_rate_and_the_dispersion_as_the_law_says() -> None:
    thinned_s = BURSTY[thinned(singly(BURSTY), 0.2, rng())]
    dispersion, new_dispersion = index_of_dispersion(BURSTY, 1.0), index_of_dispersion(thinned_s, 1.0)
    assert dispersion is not None and new_dispersion == pytest.approx(1 + 0.2 * (dispersion - 1), rel=0.15)
    assert len(thinned_s) == pytest.approx(0.2 * len(BURSTY), rel=0.03)


@given(st.lists(st.integers(0, 20), max_size=50), st.floats(0.01, 1), st.integers(0, 99))
def test_a_group_stays_whole_or_goes(groups: list[int], keep: float, seed: int) -> None:
    mask = thinned(np.array(groups, dtype=np.int64), keep, rng(seed))
    assert len(mask) == len(groups)
    assert all(len({bool(m) for m, g in zip(mask, groups, strict=True) if g == group}) == 1 for group in set(groups))


@pytest.mark.parametrize("times", [0.5, 1.0, 2.5, 4.0])
def test_superposition_adds_rates_and_keeps_the_dispersion(times: float) -> None:
    more = superposed(BURSTY, singly(BURSTY), times, rng())
    assert len(more.offsets_s) == pytest.approx(times * len(BURSTY), rel=0.05)
    assert more.offsets_s[-1] <= (BURSTY[-1] - BURSTY[0]) * (1 + 1 / (len(BURSTY) - 1))
    if times >= 1:
        dispersion, new_dispersion = index_of_dispersion(BURSTY, 1.0), index_of_dispersion(more.offsets_s, 1.0)
        assert dispersion is not None and new_dispersion == pytest.approx(dispersion, rel=0.2)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.integers(1, 5), st.integers(0, 99))
def test_whole_copies_hold_every_arrival_once_each_and_in_its_order(times: list[float], copies: int, seed: int) -> None:
    source = np.sort(np.array(times))
    if source[0] == source[-1]:
        return
    more = superposed(source, singly(source), copies, rng(seed))
    assert np.all(np.diff(more.offsets_s) >= 0)
    assert sorted(more.picks.tolist()) == sorted(list(range(len(source))) * copies)
    for lap in range(2 * copies):
        of_lap = more.laps == lap
        assert np.all(np.diff(more.picks[of_lap]) > 0)
        np.testing.assert_allclose(np.diff(more.offsets_s[of_lap]), np.diff(source[more.picks[of_lap]]), atol=1e-9)
    np.testing.assert_allclose(more.offsets_s[more.laps == 0], source - source[0])


def test_thinning_to_no_share_and_superposing_too_much_are_errors() -> None:
    for keep in (0.0, 1.1):
        with pytest.raises(LoadgenError, match="expected above 0"):
            thinned(np.arange(3), keep, rng())
    with pytest.raises(LoadgenError, match="same instant"):
        superposed(np.zeros(3), np.arange(3), 2, rng())
    with pytest.raises(LoadgenError, match="expected at most"):
        superposed(np.arange(3.0), np.arange(3), 1e9, rng())


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("ramp:1:8:60", [(0, 1), (60, 8)]),
        ("ramp:0:8:0.5", [(0, 0), (0.5, 8)]),
        ("step:1:4:20", [(0, 1), (20, 1), (20, 4), (40, 4)]),
        ("step:1:0:2:10", [(0, 1), (10, 1), (10, 0), (20, 0), (20, 2), (30, 2)]),
    ],
)
def test_shapes_are_points(shape: str, points: list[tuple[float, float]]) -> None:
    assert points_of(shape) == points


@pytest.mark.parametrize(
    "shape",
    ["", "ramp", "ramp:1:8", "ramp:1:2:3:60", "step:1:60", "ramp:-1:8:60", "ramp:1:8:0", "ramp:a:b:c", "sine:1:2:3",
     "ramp:0:0:9", "ramp:nan:1:9", "ramp:1:inf:9"],
)  # fmt: skip
def test_text_that_is_no_shape_is_an_error(shape: str) -> None:
    with pytest.raises(LoadgenError, match="expected ramp:FROM:TO:SECONDS"):
        points_of(shape)


def test_a_ramp_has_the_rate_of_every_moment_and_a_step_jumps() -> None:
    def shaped(points: Points) -> np.ndarray:
        total = float(expected_counts(np.array([points[-1][0]]), points)[0])
        return warped(offsets("poisson", 1, rng(), duration_s=total), points)

    ramp = shaped([(0, 0), (1000, 100)])
    assert len(ramp) == pytest.approx(50_000, rel=0.02)
    assert (ramp < 500).sum() == pytest.approx(12_500, rel=0.04)
    step = shaped(points_of("step:10:50:100"))
    assert (step < 100).sum() == pytest.approx(1000, rel=0.1) and (step >= 100).sum() == pytest.approx(5000, rel=0.05)


RATES = st.floats(0, 50).map(lambda rate: round(rate, 2))


@given(st.lists(RATES, min_size=2, max_size=5).filter(any), st.floats(0.5, 100), st.sampled_from(["ramp", "step"]))
def test_warping_is_the_inverse_of_expecting(rates: list[float], length_s: float, kind: str) -> None:
    rates = rates[:2] if kind == "ramp" else rates
    if not any(rates):
        return
    points = points_of(":".join([kind, *map(str, rates), str(length_s)]))
    total = float(expected_counts(np.array([points[-1][0]]), points)[0])
    counts = np.linspace(0, total * 0.999, 40)
    times_s = warped(counts, points)
    assert np.all(np.diff(times_s) >= -1e-9)
    np.testing.assert_allclose(expected_counts(times_s, points), counts, atol=1e-6 * max(total, 1))


def test_after_the_last_point_its_rate_goes_on_and_a_rate_of_0_ends_it() -> None:
    assert warped(np.array([10.0, 14.0]), [(0, 1), (10, 1), (10, 2), (11, 2)]).tolist() == [10.0, 12.0]
    assert warped(np.array([0.5, 3.0]), [(0, 2), (1, 0)]) == pytest.approx([1 - math.sqrt(0.5)])


# -- boundaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "end", "times"),
    [
        (4, {"duration_s": 0.25}, [0]),  # an arrival at the very end is not before it
        (4, {"duration_s": 0.2500001}, [0, 0.25]),
        (4, {"duration_s": 0.1}, [0]),
        (4, {"count": 1}, [0]),
        (4, {"count": 3, "duration_s": 0.5}, [0, 0.25]),
        (0.5, {"duration_s": 4.0}, [0, 2]),
        (0.5, {"duration_s": 4.5}, [0, 2, 4]),
    ],
)
def test_a_constant_process_ends_before_its_duration(rate: float, end: dict, times: list[float]) -> None:  # type: ignore[type-arg]
    assert offsets("constant", rate, default_rng(0), **end).tolist() == times


@pytest.mark.parametrize("process", ["poisson", "gamma"])
@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 8192])
def test_drawn_arrivals_are_the_sums_of_the_gaps_across_blocks(process, count: int) -> None:  # type: ignore[no-untyped-def]
    rng, gaps = default_rng(1), []
    for _ in range(-(-count // 4096)):
        gaps.append(rng.exponential(0.5, 4096) if process == "poisson" else rng.gamma(0.5, 1.0, 4096))
    arrivals = offsets(process, 2.0, default_rng(1), burstiness=0.5, count=count)
    assert len(arrivals) == count
    np.testing.assert_allclose(arrivals, np.cumsum(np.concatenate(gaps))[:count], rtol=1e-12)


def test_an_arrival_process_without_end_is_a_bug() -> None:
    with pytest.raises(ValueError, match="give count or duration_s"):
        offsets("poisson", 1, default_rng(0))


@pytest.mark.parametrize(
    ("points", "time_s", "count"),
    [
        ([(0, 2), (10, 2)], 5.0, 10.0),
        ([(0, 0), (10, 10)], 10.0, 50.0),  # a triangle
        ([(0, 0), (10, 10)], 5.0, 12.5),
        ([(0, 0), (10, 10)], 12.0, 70.0),  # the last rate continues
        ([(0, 1), (20, 1), (20, 4), (40, 4)], 20.0, 20.0),  # at the step
        ([(0, 1), (20, 1), (20, 4), (40, 4)], 21.0, 24.0),
        ([(0, 10), (10, 0)], 10.0, 50.0),
        ([(0, 10), (10, 0)], 99.0, 50.0),
    ],
)
def test_expected_counts_are_the_area_under_the_rate(points: Points, time_s: float, count: float) -> None:
    assert expected_counts(np.array([time_s]), points).tolist() == pytest.approx([count])


def test_keeping_all_arrivals_keeps_all_and_the_period_is_a_mean_gap_longer_than_the_span() -> None:
    assert thinned(np.arange(50), 1.0, rng()).all()
    assert cycle_s(np.array([5.0, 6.0, 9.0])) == 6.0  # 4 s in 2 gaps, and a gap of 2 s
    with pytest.raises(LoadgenError, match="same instant"):
        cycle_s(np.array([5.0]))


def test_one_copy_is_the_source_and_laps_tell_copies_and_wraps_apart() -> None:
    source = np.array([3.0, 4.0, 8.0])
    once = superposed(source, singly(source), 1, rng())
    assert (once.offsets_s.tolist(), once.picks.tolist(), once.laps.tolist()) == ([0, 1, 5], [0, 1, 2], [0, 0, 0])
    twice = superposed(source, singly(source), 2, rng())
    assert twice.laps.tolist().count(0) == 3 and set(twice.laps.tolist()) <= {0, 2, 3}
    shift = rng().random() * 7.5
    shifted = {(round((at + shift) % 7.5, 9), 2 + (at + shift >= 7.5)) for at in (0.0, 1.0, 5.0)}
    pairs = zip(twice.offsets_s.tolist(), twice.laps.tolist(), strict=True)
    assert {(round(at, 9), lap) for at, lap in pairs if lap} == shifted


@pytest.mark.parametrize("count", [1, 4096, 4097])
def test_no_more_blocks_are_drawn_than_the_count_needs(count: int) -> None:
    rng, expected = default_rng(1), default_rng(1)
    offsets("poisson", 2.0, rng, count=count)
    for _ in range(-(-count // 4096)):
        expected.exponential(0.5, 4096)
    assert rng.random() == expected.random()


def test_gamma_is_poisson_unless_a_burstiness_is_requested() -> None:
    default, shape_1 = (offsets("gamma", 5, default_rng(1), count=50, **options) for options in ({}, {"burstiness": 1}))  # type: ignore[arg-type]
    assert np.array_equal(default, shape_1)


def test_at_and_after_the_last_point_counts_and_arrivals_continue_at_its_rate() -> None:
    points = [(0.0, 1.0), (10.0, 3.0)]
    assert expected_counts(np.array([10.0, 11.0, 1000.0]), points).tolist() == [20.0, 23.0, 20.0 + 3 * 990]
    assert warped(np.array([20.0, 23.0, 2990.0]), points).tolist() == [10.0, 11.0, 1000.0]


class Halves:
    """A generator whose every draw is one half, and whose every gap is 1 s."""

    draws = 0

    def random(self, size: int | None = None) -> object:
        self.draws += size or 1
        return 0.5 if size is None else np.full(size, 0.5)

    def exponential(self, scale: float, size: int) -> np.ndarray:
        self.draws += size
        return np.ones(size)


def test_no_gap_is_drawn_after_a_block_that_reaches_the_very_end() -> None:
    halves = Halves()
    assert len(offsets("poisson", 1.0, halves, duration_s=4096.0)) == 4095  # type: ignore[arg-type]
    assert halves.draws == 4096


def test_a_group_is_drawn_once_and_stays_if_its_draw_is_below_the_share() -> None:
    for keep, stays in ((0.5, False), (0.51, True)):
        halves = Halves()
        assert thinned(np.array([7, 7, 9]), keep, halves).tolist() == [stays] * 3  # type: ignore[arg-type]
        assert halves.draws == 2


def test_an_arrival_that_a_shift_brings_to_the_end_has_gone_round() -> None:
    """0 s and 1 s go round in 2 s; the second copy begins 1 s later."""
    twice = superposed(np.array([0.0, 1.0]), np.arange(2), 2, Halves())  # type: ignore[arg-type]
    rows = zip(twice.offsets_s.tolist(), twice.picks.tolist(), twice.laps.tolist(), strict=True)
    assert list(rows) == [(0, 0, 0), (0, 1, 3), (1, 1, 0), (1, 0, 2)]


def test_a_run_may_have_as_many_requests_as_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_ARRIVALS", 10)
    assert len(offsets("constant", 1.0, rng(), count=10)) == 10
    assert len(offsets("constant", 2.0, rng(), duration_s=5.0)) == 10
    source = np.arange(5.0)
    assert len(superposed(source, singly(source), 2, rng()).offsets_s) == 10
    with pytest.raises(LoadgenError, match="expected at most 10 in one run"):
        offsets("constant", 1.0, rng(), count=11)
    for times in (0, 2.2, math.nan, math.inf):
        with pytest.raises(LoadgenError, match="times 5 arrivals: expected at most 10 in one run"):
            superposed(source, singly(source), times, rng())


@pytest.mark.parametrize(
    ("points", "operational", "times_s"),
    [
        ([(0, 1), (1, 1), (1, 0)], [0.5, 1.0, 1.5], [0.5]),  # what is due where the last rate of 0 begins never comes
        ([(0, 2), (1, 0), (2, 0), (2, 1)], [0.75, 1.0, 3.0], [0.5, 2.0, 4.0]),  # 0 only for a while
    ],
)
def test_arrivals_are_left_out_only_where_the_rate_stays_0(
    points: Points, operational: list[float], times_s: list[float]
) -> None:
    assert warped(np.array(operational), points).tolist() == pytest.approx(times_s)
