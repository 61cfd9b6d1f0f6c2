"""The laws of a cumulative energy series, and of the two ways that points are made from polls."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.counter_track import CounterTrack, PowerTrack, is_rounding
from loadgen.energy.nvml import VERNIER
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries, outermost, series_by_domain
from support.energy_windows import windows_of

MS = 1_000_000


@st.composite
def serieses(draw: st.DrawFn, gaps: bool = True) -> EnergySeries:
    """2 to 30 points; steps of 1 ms to 1 s and 0 to 1000 J; some of them unknown."""
    n = draw(st.integers(2, 30))
    lengths = draw(st.lists(st.integers(MS, 1000 * MS), min_size=n, max_size=n))
    steps = draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n))
    slack = draw(st.lists(st.integers(0, MS // 2), min_size=n, max_size=n))
    gap = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))) if gaps else np.zeros(n, dtype=np.bool_)
    mj = np.cumsum(np.where(gap, 0, steps))
    return EnergySeries("gpu:0", np.cumsum(lengths), mj, np.array(slack), gap)


@given(serieses())
def test_windows_tile_the_series(series: EnergySeries) -> None:
    windows = list(windows_of(series))
    assert sum(w.millijoules for w in windows) == series.total_mj
    assert [w.start_ns for w in windows[1:]] == [w.end_ns for w in windows[:-1]]
    assert sum(w.end_ns - w.start_ns for w in windows if not w.known) == series.unknown_ns


@given(serieses(gaps=False), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_energy_is_additive_and_never_negative(series: EnergySeries, a: float, b: float, c: float) -> None:
    first, span = int(series.t_ns[0]), int(series.t_ns[-1] - series.t_ns[0])
    start, middle, end = sorted(first + int(span * x) for x in (a, b, c))
    whole, left, right = series.energy_mj(start, end), series.energy_mj(start, middle), series.energy_mj(middle, end)
    assert whole is not None and left is not None and right is not None
    assert min(whole, left, right) >= 0
    assert left + right == pytest.approx(whole, abs=1e-3)


@given(serieses(gaps=False))
def test_between_two_moves_energy_is_their_difference(series: EnergySeries) -> None:
    assert series.energy_mj(int(series.t_ns[0]), int(series.t_ns[-1])) == series.total_mj


@given(serieses())
def test_nothing_is_said_about_what_was_not_observed(series: EnergySeries) -> None:
    first, last = int(series.t_ns[0]), int(series.t_ns[-1])
    assert series.energy_mj(first - 1, last) is None
    assert series.energy_mj(first, last + 1) is None
    for window in windows_of(series):
        inside = window.start_ns + 1, window.end_ns - 1
        assert (series.energy_mj(*inside) is None) == (not window.known)
        assert (series.uncertainty_mj(*inside) is None) == (not window.known)


@given(serieses(gaps=False), st.floats(0, 1), st.floats(0, 1), st.data())
def test_uncertainty_covers_every_curve_that_could_have_been(
    series: EnergySeries, a: float, b: float, data: st.DataObject
) -> None:
    """The truth: the same values, moved within the slack, all of each step at any one moment of it."""
    shift = data.draw(st.floats(-1, 1))
    assert series.slack_ns is not None
    true_ns = series.t_ns + (shift * series.slack_ns).astype(np.int64)
    jumps_ns = true_ns[:-1] + (data.draw(st.floats(0, 1)) * np.diff(true_ns)).astype(np.int64)
    first, span = int(series.t_ns[0]) + MS // 2, int(series.t_ns[-1] - series.t_ns[0]) - MS
    start, end = sorted(first + int(max(span, 0) * x) for x in (a, b))
    truth = series.mj[np.searchsorted(jumps_ns, end)] - series.mj[np.searchsorted(jumps_ns, start)]
    measured, u = series.energy_mj(start, end), series.uncertainty_mj(start, end)
    if measured is not None and u is not None:
        assert abs(measured - int(truth)) <= u + 1e-3


def test_the_uncertainty_of_an_exact_move_is_nothing_and_of_a_half_step_half_a_step() -> None:
    series = EnergySeries("gpu:0", np.array([0, 100, 200]), np.array([0, 30, 60]))
    assert series.uncertainty_mj(0, 100) == 0
    assert series.uncertainty_mj(0, 150) == 15
    assert series.uncertainty_mj(10, 190) == pytest.approx(27 + 27)


@given(serieses(), st.floats(0, 1), st.floats(0, 1))
def test_clip_keeps_the_windows_that_touch_the_interval(series: EnergySeries, a: float, b: float) -> None:
    first, span = int(series.t_ns[0]), int(series.t_ns[-1] - series.t_ns[0])
    start, end = sorted(first + int(span * x) for x in (a, b))
    if start < end:
        touching = [w for w in windows_of(series) if w.end_ns > start and w.start_ns < end]
        assert list(windows_of(series.clip(start, end))) == touching


def test_samples_of_two_domains_come_apart() -> None:
    samples = [EnergySample(1, "gpu:0", 0.5), EnergySample(1, "gpu:1", 9.0), EnergySample(2, "gpu:0", 1.25)]
    series = series_by_domain(samples)
    assert series["gpu:0"].mj.tolist() == [500, 1250]
    assert series["gpu:1"].total_mj == 0


@pytest.mark.parametrize("second", [EnergySample(1, "gpu:0", 2.0), EnergySample(2, "gpu:0", 0.5)])
def test_a_series_that_goes_back_is_a_bug_of_its_meter(second: EnergySample) -> None:
    with pytest.raises(ValueError, match="gpu:0 go back"):
        series_by_domain([EnergySample(1, "gpu:0", 1.0), second])


def test_a_line_of_energy_jsonl_says_only_what_is_not_usual() -> None:
    assert msgspec.json.encode(EnergySample(7, "gpu:0", 1.5)) == b'{"t_ns":7,"domain":"gpu:0","joules":1.5}'
    unusual = EnergySample(7, "gpu:0", 1.5, slack_ns=3, gap=True)
    assert msgspec.json.decode(msgspec.json.encode(unusual), type=EnergySample) == unusual


@given(st.lists(st.tuples(st.integers(1, 300 * MS), st.integers(0, 50 * MS), st.integers(0, 10**6)), max_size=60))
def test_any_counter_makes_a_series_that_never_goes_back(polls: list[tuple[int, int, int]]) -> None:
    """Whatever the pauses, the costs of a read, and the values: restarts, jitter, standstill."""
    track, now, samples, falls, last = CounterTrack("gpu:0"), 0, [], 0, 0
    for pause, cost, raw in polls:
        before, now = now + pause, now + pause + cost
        if not is_rounding(last, raw):
            falls, last = falls + (raw < last), raw
        if (sample := track.observe(before, now, raw)) is not None:
            samples.append(sample)
    assert track.resets == falls
    for series in series_by_domain(samples).values():
        assert (series.t_ns <= now).all()


def test_a_counter_restart_is_a_gap_after_which_differences_are_true() -> None:
    track = CounterTrack("gpu:0")
    raw = [10_000, 10_100, 10_200, 50, 50, 150, 250]
    samples = [s for i, mj in enumerate(raw) if (s := track.observe(i * 100, i * 100 + 10, mj)) is not None]
    assert [(s.joules, s.gap) for s in samples] == [(10.1, False), (10.2, False), (10.2, True), (10.3, False)]
    assert track.resets == 1


# The ways in which integrating samples goes wrong elsewhere: equal samples dropped, edges left out.
@pytest.mark.parametrize(
    ("powers", "joules"),
    [
        ([(0, 300.0), (1, 300.0), (2, 300.0), (10, 300.0)], 3000),
        ([(0, 100.0), (9, 100.0), (9, 700.0), (10, 700.0)], 1600),
        ([(0, 200.0), (0.9, 200.0), (1.1, 200.0), (2, 200.0)], 400),
        ([(0, 0.0), (10, 100.0)], 500),
    ],
)
def test_power_integrates_by_trapezoids_over_every_poll(powers: list[tuple[float, float]], joules: float) -> None:
    track = PowerTrack("gpu:0", keep_s=0.0, max_gap_s=20.0)
    samples = [sample for t, watts in powers for sample in track.observe(round(t * 1e9), watts)]
    assert samples[-1].joules - samples[0].joules == pytest.approx(joules)


# -- the counter's own clock -------------------------------------------------------------------------------------------


def polled(moves_ns: np.ndarray, rng: np.random.Generator) -> EnergySeries:
    """A series as a poller sees it: each move between two polls 20 to 60 ms apart, put in their middle."""
    t_ns, slack_ns = [], []
    for move in moves_ns.tolist():
        gap = int(rng.integers(20, 60)) * 1_000_000
        before = move - int(rng.integers(0, gap))
        t_ns.append(before + gap // 2)
        slack_ns.append(gap // 2)
    return EnergySeries("gpu:0", np.array(t_ns), np.arange(len(moves_ns)) * 45_000, np.array(slack_ns))


def test_a_regular_counter_is_put_on_its_own_clock() -> None:
    rng = np.random.default_rng(0)
    true = 123_456_789 + np.arange(600) * 100_003_000
    seen = polled(true, rng)
    found = align_to_counter_clock(seen)
    assert np.abs(seen.t_ns - true).mean() > 5_000_000
    assert np.abs(found.t_ns - true).max() < 3_000_000
    assert (found.mj == seen.mj).all()


def test_missed_moves_do_not_upset_the_clock() -> None:
    rng = np.random.default_rng(1)
    every = 5_000_000 + np.arange(600) * 100_000_000
    true = every[np.sort(rng.choice(600, 550, replace=False))]
    assert np.abs(align_to_counter_clock(polled(true, rng)).t_ns - true).max() < 3_000_000


def polled_at(step: float, seconds: float, rng: np.random.Generator) -> tuple[EnergySeries, np.ndarray]:
    """A counter that moves every 100 ms, read every `step` of that in 4 ms, one read in 50 taking 50 ms longer.

    The series, and when the move of each point truly was.
    """
    moves = 37_000_000 + np.arange(round(seconds * 10) + 2) * 100_000_100
    jittered = moves + rng.normal(0, 1e6, len(moves))
    track, samples, at_ns = CounterTrack("gpu:0"), [], 0
    while at_ns < seconds * 1e9:
        took_ns = 4_000_000 + 50_000_000 * (rng.random() < 0.02)
        count = int(np.searchsorted(jittered, at_ns + took_ns // 2))
        if sample := track.observe(at_ns, at_ns + took_ns, 1000 * count):
            samples.append(sample)
        at_ns += max(took_ns, round(100e6 * step)) + int(rng.exponential(500_000))
    [series] = series_by_domain(samples).values()
    return series, moves[series.mj // 1000 - 1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("step", [0.2, VERNIER])
def test_coarse_polls_with_late_reads_still_tell_the_clock(step: float, seed: int) -> None:
    seen, true = polled_at(step, 40.0, np.random.default_rng(seed))
    found = align_to_counter_clock(seen)
    kept = np.isin(seen.mj, found.mj[1:-1])
    assert kept.mean() > 0.9
    assert np.abs(found.t_ns[1:-1] - true[kept]).max() < 4_000_000
    assert found.total_mj == seen.total_mj


def test_a_counter_without_a_clock_is_left_alone() -> None:
    rng = np.random.default_rng(2)
    irregular = polled(np.cumsum(rng.integers(80, 400, 300)) * 1_000_000, rng)
    assert align_to_counter_clock(irregular) is irregular
    exact = EnergySeries("gpu:0", np.arange(100) * 100_000_000, np.arange(100) * 45_000)
    assert align_to_counter_clock(exact) is exact
    short = polled(np.arange(10) * 100_000_000, rng)
    assert align_to_counter_clock(short) is short


def test_outermost_domains_are_those_within_no_other() -> None:
    inside = EnergyDomain(name="gpu:0/memory", source="test", within="gpu:0")
    outside = [EnergyDomain(name=name, source="test") for name in ("gpu:0", "cpu:package-0")]
    assert outermost([outside[0], inside, outside[1]]) == outside
    assert outermost([inside]) == [] == outermost([])


# 0 J at 0, 10 mJ at 100 ns +- 5, 40 mJ at 200 ns +- 5, 100 mJ at 300 ns, unknown between 200 and 300
STEPS = EnergySeries(
    "gpu:0", np.array([0, 100, 200, 300]), np.array([0, 10, 40, 40]), np.array([0, 5, 5, 0]), np.array([0, 0, 0, 1]) > 0
)


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "mj"),
    [
        (0, 200, 40.0), (0, 100, 10.0), (50, 150, 20.0), (100, 100, 0.0), (200, 200, 0.0),
        (-1, 100, None), (0, 201, None), (199, 201, None), (0, 301, None), (250, 250, None),
    ],
)  # fmt: skip
def test_energy_at_the_edges_of_steps_and_gaps(start_ns: int, end_ns: int, mj: float | None) -> None:
    assert STEPS.energy_mj(start_ns, end_ns) == mj
    assert (STEPS.uncertainty_mj(start_ns, end_ns) is None) == (mj is None)


@pytest.mark.parametrize(
    ("end_ns", "mj"),
    [(94, 9.4), (95, 9.5), (96, 40 - 9.6), (100, 40 - 10.0), (104, 40 - 11.2), (105, 40 - 11.5), (106, 40 - 11.8)],
)
def test_an_edge_inside_an_updates_slack_is_uncertain_by_both_its_steps(end_ns: int, mj: float) -> None:
    assert STEPS.uncertainty_mj(0, end_ns) == pytest.approx(mj)


@pytest.mark.parametrize(
    ("end_ns", "mj"),
    [(40, 60.0), (55, 55.0), (95, 95.0), (99, 99.0), (100, 100.0), (104, 100.4), (105, 9.5)],
)
def test_an_edge_in_the_slack_of_a_large_step_is_uncertain_by_that_step(end_ns: int, mj: float) -> None:
    """100 mJ by 100 ns +- 5, then 10 mJ by 200 ns; the first point is known to 60 ns only."""
    series = EnergySeries("gpu:0", np.array([0, 100, 200]), np.array([0, 100, 110]), np.array([60, 5, 0]))
    assert series.uncertainty_mj(200, 200) == 0
    assert series.uncertainty_mj(end_ns, 200) == pytest.approx(mj)


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "points"),
    [(0, 100, [0, 100]), (1, 99, [0, 100]), (100, 200, [100, 200]), (99, 201, [0, 100, 200, 300]), (-9, 0, [0])],
)
def test_clip_cuts_at_the_updates_around_the_interval(start_ns: int, end_ns: int, points: list[int]) -> None:
    assert STEPS.clip(start_ns, end_ns).t_ns.tolist() == points


def test_clip_keeps_slack_and_gaps_or_their_absence() -> None:
    cut = STEPS.clip(200, 300)
    assert cut.slack_ns is not None and cut.slack_ns.tolist() == [5, 0]
    assert cut.gap is not None and cut.gap.tolist() == [False, True]
    exact = EnergySeries("gpu:0", STEPS.t_ns, STEPS.mj).clip(200, 300)
    assert (exact.slack_ns, exact.gap) == (None, None)


def test_the_length_of_gaps_is_unknown_and_their_energy_not_counted() -> None:
    assert (STEPS.unknown_ns, STEPS.total_mj) == (100, 40)
    assert EnergySeries("gpu:0", np.array([5]), np.array([7])).total_mj == 0
    assert EnergySeries("gpu:0", np.array([]), np.array([])).total_mj == 0


def at_the_limit(watts: list[float], capped: list[float], limit_w: float | None = 700.0) -> EnergySeries:
    """Windows of 100 ms with these mean powers and shares of lowered clocks."""
    mj = np.rint(np.concatenate(([0.0], np.cumsum(watts))) * 100).astype(np.int64)
    capped_ns = np.rint(np.concatenate(([0.0], np.cumsum(capped))) * 100 * MS).astype(np.int64)
    return EnergySeries("gpu:0", np.arange(len(mj)) * 100 * MS, mj, capped_ns=capped_ns, limit_w=limit_w)


@pytest.mark.parametrize(
    ("watts", "capped", "expected"),
    [
        ([700, 700, 700], [1, 1, 1], [True, True, True]),
        ([690, 670, 690], [1, 1, 1], [True, False, True]),  # less power than the limit
        ([710, 730, 840], [1, 1, 1], [True, False, False]),  # more: it did not hold
        ([700, 700, 700, 700], [1, 0, 2, 0], [False, True, True, True]),  # late reads: a step of 100 ms now and then
        ([500, 500, 500], [1, 1, 1], [False, False, False]),  # bursts: the clocks are low, the mean power is not high
        ([700, 700, 700], [0, 0, 0], [False, False, False]),  # high power at full clocks
    ],
)
def test_a_window_is_at_the_limit_by_its_clocks_and_its_power(watts, capped, expected) -> None:
    at_limit = at_the_limit(watts, capped).at_limit
    assert at_limit is not None and at_limit.tolist() == expected


def test_without_the_limit_or_the_clocks_it_is_not_known_what_held() -> None:
    series = at_the_limit([700.0], [1.0])
    assert at_the_limit([700.0], [1.0], None).at_limit is None
    assert replace(series, capped_ns=None).at_limit is None
    assert series.clip(0, 100 * MS).at_limit is not None


def test_a_series_has_the_evidence_of_its_samples_and_the_limit_of_its_domain() -> None:
    samples = [EnergySample(i * 100 * MS, "gpu:0", 70.0 * i, capped_ns=i * 100 * MS, sm_mhz=1500) for i in range(3)]
    domain = EnergyDomain(name="gpu:0", source="nvml-counter", limit_w=700.0)
    [series] = series_by_domain(samples, [domain]).values()
    assert series.at_limit is not None and series.at_limit.tolist() == [True, True]
    [partly] = series_by_domain([*samples, EnergySample(300 * MS, "gpu:0", 280.0)], [domain]).values()
    assert partly.at_limit is None, "one sample lacks it"
