"""Laws of the counter's clock, on synthetic counters of known period and phase."""

import numpy as np
import pytest

from loadgen.energy.counter_clock import JITTER_NS, MIN_UPDATES, align_portion, align_to_counter_clock
from loadgen.energy.series import EnergySeries

MS = 1_000_000


def regular(n: int, period_ms: int, phase_ms: int = 7, slack_ms: int = 15) -> tuple[EnergySeries, np.ndarray]:
    """A counter that is exactly regular, seen up to `slack_ms` early or late by turns; and its true updates."""
    true_ns = (phase_ms + period_ms * np.arange(n)) * MS
    offsets_ms = np.resize([-0.9, 0.2, 0.9, -0.3, 0.6, -0.6, 0.0], n) * slack_ms
    seen_ns = true_ns + (offsets_ms * MS).astype(np.int64)
    return EnergySeries("gpu:0", seen_ns, np.arange(n) * 1000, np.full(n, slack_ms * MS)), true_ns


@pytest.mark.parametrize("period_ms", [90, 100, 137])
@pytest.mark.parametrize("phase_ms", [0, 50, 99_999])
def test_updates_go_to_the_ticks_of_the_true_clock(period_ms: int, phase_ms: int) -> None:
    seen, true_ns = regular(200, period_ms, phase_ms)
    aligned = align_to_counter_clock(seen)
    assert aligned is not seen and len(aligned) == 200
    assert np.abs(aligned.t_ns - true_ns).max() < 2 * MS
    assert aligned.slack_ns is not None and (aligned.slack_ns == JITTER_NS).all()
    assert (aligned.mj == seen.mj).all()


@pytest.mark.parametrize(("updates", "aligned"), [(MIN_UPDATES - 1, False), (MIN_UPDATES, True)])
def test_a_clock_needs_twenty_updates(updates: int, aligned: bool) -> None:
    seen, _ = regular(updates, 100)
    assert (align_to_counter_clock(seen) is not seen) == aligned


def test_a_series_without_uncertainty_is_returned_itself() -> None:
    seen, _ = regular(100, 100)
    for slack in (None, np.zeros(100, dtype=np.int64)):
        exact = EnergySeries("gpu:0", seen.t_ns, seen.mj, slack)
        assert align_to_counter_clock(exact) is exact


@pytest.mark.parametrize(("strays", "aligned"), [(4, True), (16, False)])
def test_a_clock_must_explain_19_of_20_updates(strays: int, aligned: bool) -> None:
    """Strays lie 30 ms off their tick, seen to the millisecond: unambiguous and unexplained."""
    seen, _ = regular(200, 100)
    assert seen.slack_ns is not None
    stray = np.linspace(10, 190, strays).astype(int)
    t_ns, slack_ns = seen.t_ns.copy(), seen.slack_ns.copy()
    t_ns[stray] = (7 + 100 * stray) * MS + 30 * MS
    slack_ns[stray] = MS
    found = align_to_counter_clock(series := EnergySeries("gpu:0", t_ns, seen.mj, slack_ns))
    assert (found is not series) == aligned
    if aligned:
        assert len(found) == 200 - strays and not np.isin(seen.mj[stray], found.mj).any()
        assert found.total_mj == series.total_mj


def test_an_update_that_may_be_either_of_two_ticks_is_dropped_and_its_energy_kept() -> None:
    seen, _ = regular(200, 100)
    assert seen.slack_ns is not None
    slack_ns = seen.slack_ns.copy()
    slack_ns[[50, 120]] = 150 * MS
    found = align_to_counter_clock(EnergySeries("gpu:0", seen.t_ns, seen.mj, slack_ns))
    assert set(seen.mj) - set(found.mj) == {50_000, 120_000}
    assert found.total_mj == seen.total_mj


def test_the_ends_and_the_points_after_a_gap_always_stay() -> None:
    seen, _ = regular(200, 100)
    assert seen.slack_ns is not None
    slack_ns, gap = seen.slack_ns.copy(), np.zeros(200, dtype=np.bool_)
    gap[80] = True
    slack_ns[[0, 80, 199]] = 150 * MS
    found = align_to_counter_clock(EnergySeries("gpu:0", seen.t_ns, seen.mj, slack_ns, gap))
    assert found.gap is not None and found.gap.sum() == 1
    assert {0, 80_000, 199_000} <= set(found.mj)
    assert found.mj[found.gap].tolist() == [80_000]


def test_any_minute_of_a_counter_polled_every_618_of_its_period_shows_its_clock() -> None:
    rng = np.random.default_rng(1)
    polls_ms = np.cumsum(61.8 + rng.exponential(0.2, 9000) + 50 * (rng.random(9000) < 0.01))
    shown = (polls_ms // 100).astype(int)
    new = np.flatnonzero(np.diff(shown)) + 1
    before_ns, after_ns = (polls_ms[new - 1] * MS).astype(int), (polls_ms[new] * MS).astype(int)
    series = EnergySeries("gpu:0", (before_ns + after_ns) // 2, shown[new] * 1000, (after_ns - before_ns) // 2)
    for start in range(0, len(series) - 550, 50):
        aligned = align_to_counter_clock(part := series.at(np.arange(start, start + 550)))
        assert aligned is not part
        assert np.mean(np.abs(aligned.t_ns - aligned.mj * 100 * MS // 1000) < 5 * MS) > 0.99


def test_of_two_updates_on_one_tick_neither_is_believed() -> None:
    seen, _ = regular(200, 100, slack_ms=20)
    assert seen.slack_ns is not None
    t_ns = seen.t_ns.copy()
    t_ns[101] = t_ns[100] + 30 * MS
    aligned = align_to_counter_clock(EnergySeries("gpu:0", t_ns, seen.mj, seen.slack_ns))
    assert len(aligned) == 198 and not np.isin(seen.mj[[100, 101]], aligned.mj).any()
    assert aligned.total_mj == seen.total_mj


def test_a_portion_has_the_clock_of_what_came_before_it_and_keeps_its_ends() -> None:
    seen, true_ns = regular(60, 100)
    portion = align_portion(seen, 45)
    assert portion.t_ns[[0, -1]].tolist() == seen.t_ns[[45, -1]].tolist()
    assert np.abs(portion.t_ns - true_ns[45:])[1:-1].max() < 2 * MS
    assert portion.mj.tolist() == seen.mj[45:].tolist()
    assert portion.slack_ns is not None
    assert portion.slack_ns.tolist() == [15 * MS, *[JITTER_NS] * 13, 15 * MS]


@pytest.mark.parametrize(("updates", "first"), [(60, 58), (MIN_UPDATES - 1, 5), (2, 0)])
def test_a_portion_without_a_clock_or_without_an_interior_is_as_it_was_seen(updates: int, first: int) -> None:
    seen, _ = regular(updates, 100)
    assert align_portion(seen, first).t_ns.tolist() == seen.t_ns[first:].tolist()


def test_portions_that_follow_one_another_have_all_energy_and_all_time_once() -> None:
    seen, _ = regular(200, 100)
    portions = [align_portion(seen.at(slice(0, end + 1)), end - 50) for end in (50, 100, 150)]
    assert [(int(p.t_ns[0]), int(p.t_ns[-1])) for p in portions] == [
        (int(seen.t_ns[end - 50]), int(seen.t_ns[end])) for end in (50, 100, 150)
    ]
    assert sum(portion.total_mj for portion in portions) == int(seen.mj[150] - seen.mj[0])
