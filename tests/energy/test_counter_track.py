"""Laws of the points that are made from polls, with values computed by hand."""

from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.energy.counter_track import AGE_NS, GPU_MAX_W, CounterTrack, PowerTrack, ceiling_w
from loadgen.energy.series import EnergySample

MS = 1_000_000
S = 1_000_000_000


def test_an_update_lies_between_the_start_of_the_poll_before_and_the_end_of_its_own() -> None:
    track = CounterTrack("gpu:0")
    assert track.observe(100, 110, 5_000) is None, "the first value is no point"
    assert track.observe(200, 210, 5_000) is None, "an equal value is no update"
    assert track.observe(300, 330, 5_001) == EnergySample(265, "gpu:0", 5.001, slack_ns=65)


def test_a_continuous_counter_is_true_within_its_own_read() -> None:
    track = CounterTrack("gpu:0", continuous=True)
    track.observe(100, 110, 1_000)
    assert track.observe(200, 220, 2_000) == EnergySample(210, "gpu:0", 2.0, slack_ns=10)


def test_the_period_is_the_median_of_eight_intervals() -> None:
    track = CounterTrack("gpu:0", continuous=True)
    instants = [0, 100, 200, 300, 400, 500, 600, 700, 1500, 1600]
    periods = []
    for i, t_ms in enumerate(instants):
        track.observe(t_ms * MS, t_ms * MS, i)
        periods.append(track.period_s)
    assert periods[:9] == [None] * 9, "the first value is no update, so nine values hold seven intervals"
    assert periods[9] == pytest.approx(0.1)


def test_after_an_outage_an_update_is_at_most_one_and_a_half_periods_old() -> None:
    track = CounterTrack("gpu:0")
    for i in range(12):
        track.observe(i * 100 * MS, i * 100 * MS, i)
    assert track.period_s == 0.1
    sample = track.observe(10 * S, 10 * S, 999)
    assert sample == EnergySample(10 * S - 75 * MS, "gpu:0", 0.999, slack_ns=75 * MS)


def test_two_restarts_without_an_update_between_are_one_gap_and_two_resets() -> None:
    track = CounterTrack("gpu:0", continuous=True)
    values = [1_000, 1_500, 90, 20, 40, 70]
    samples = [s for i, mj in enumerate(values) if (s := track.observe(i * 10, i * 10, mj)) is not None]
    assert [(s.joules, s.gap) for s in samples] == [(1.5, False), (1.5, True), (1.53, False)]
    assert track.resets == 2


# From 1,000 J, in 0.1 s: the series in joules after each value, with the gap's mark, and resets. 10 kW for it are 2 kJ.
JUMPS: dict[str, tuple[list[int], list[tuple[float, bool]], int]] = {
    "the most that a card draws": ([1_400_000], [(1400, False)], 0),
    "to the bound": ([3_000_000], [(3000, False)], 0),
    "past the bound": ([3_000_001], [(1000, True)], 1),
    "a gigajoule, then as before": ([1_000_001_000_000, 1_000_001_030_000], [(1000, True), (1030, False)], 1),
    "a gigajoule and back": ([10**12, 1_030_000, 1_060_000, 1_090_000], [(1000, True), (1000, True), (1030, False)], 2),
    "0 for one read and back": ([0, 1_030_000, 1_060_000], [(1000, True), (1030, False)], 1),
    "back by rounding": ([999_999, 1_030_000], [(1030, False)], 0),
    "back by more than rounding": ([999_998, 1_030_000, 1_060_000], [(1000, True), (1030, False)], 1),
}  # fmt: skip


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("jump", JUMPS)
def test_no_update_is_more_than_a_card_can_draw(jump: str, continuous: bool) -> None:
    values, series, resets = JUMPS[jump]
    track = CounterTrack("gpu:0", continuous=continuous)
    start_ns = 10 * S
    track.observe(start_ns, start_ns, 999_000)
    track.observe(start_ns, start_ns, 1_000_000)
    samples = [
        track.observe(t_ns, t_ns, mj) for t_ns, mj in zip(count(start_ns + S // 10, S // 10), values, strict=False)
    ]
    assert [(sample.joules, sample.gap) for sample in samples if sample is not None] == series
    assert track.resets == resets


def test_an_update_after_an_outage_may_be_as_large_as_the_outage_is_long() -> None:
    track = CounterTrack("gpu:0")
    for t_s, mj in ((0, 0), (1, 700_000), (2, 1_400_000)):
        track.observe(t_s * S, t_s * S, mj)
    sample = track.observe(102 * S, 102 * S, 71_400_000)
    assert sample is not None and not sample.gap and sample.joules == 71_400


@given(st.lists(st.tuples(st.integers(1, 10**10), st.integers(0, 10**12)), max_size=30), st.booleans())
def test_no_history_of_a_counter_makes_more_than_a_card_can_draw(
    history: list[tuple[int, int]], continuous: bool
) -> None:
    track, now_ns, samples = CounterTrack("gpu:0", continuous=continuous), 0, []
    for pause_ns, mj in history:
        now_ns += pause_ns
        if (sample := track.observe(now_ns, now_ns, mj)) is not None:
            samples.append(sample)
    for a, b in pairwise(samples):
        elapsed_s = (b.t_ns + b.slack_ns - a.t_ns + a.slack_ns + AGE_NS) / S
        assert 0 <= b.joules - a.joules <= GPU_MAX_W * elapsed_s + 1e-3


@pytest.mark.parametrize(
    ("domain", "watts"),
    [("gpu:0", 10_000), ("gpu:0@node-1", 10_000), ("cpu:package-1/core", 2_000), ("dram:1", 2_000), ("psys", 20_000),
     ("cpu:all", 20_000), ("anything", 20_000)],
)  # fmt: skip
def test_every_domain_has_a_ceiling(domain: str, watts: float) -> None:
    assert ceiling_w(domain) == watts


def test_power_is_kept_at_the_first_poll_at_least_keep_s_later() -> None:
    track = PowerTrack("gpu:0", keep_s=0.1)
    kept = [bool(track.observe(t_ms * MS, 100.0)) for t_ms in (0, 50, 99, 100, 199, 200)]
    assert kept == [True, False, False, True, False, True]


@pytest.mark.parametrize(("pause_ns", "gap"), [(S, False), (S + 1, True)])
def test_an_interval_longer_than_a_second_is_a_gap(pause_ns: int, gap: bool) -> None:
    track = PowerTrack("gpu:0")
    track.observe(0, 100.0)
    samples = track.observe(pause_ns, 300.0)
    assert [sample.gap for sample in samples] == [gap]
    assert samples[-1].joules == (0.0 if gap else 200.0)


def test_a_gap_has_both_its_ends() -> None:
    track = PowerTrack("gpu:0", keep_s=0.5)
    track.observe(0, 100.0)
    assert track.observe(200 * MS, 100.0) == []
    assert track.observe(5 * S, 100.0) == [
        EnergySample(200 * MS, "gpu:0", pytest.approx(20.0)),
        EnergySample(5 * S, "gpu:0", pytest.approx(20.0), gap=True),
    ]
