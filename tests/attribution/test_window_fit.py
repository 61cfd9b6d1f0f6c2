"""Fits to windows made under a known law."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import (
    COLUMNS,
    guessed_windows,
    member_features,
    overlap,
)
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.attribution.window_fit import align_phase, fit_coefficients, fit_without_outliers
from loadgen.energy.series import EnergySeries
from loadgen.units import NS_PER_S
from support.attribution_runs import MS, counter, request


def test_windows_with_guessed_work_of_others_are_no_evidence() -> None:
    """Sixty windows of one step at 10 J, and forty at 50 J in which others' work is guessed."""
    records = [request(0, 0, [100.0 * k for k in range(1, 101)], prompt=0)]
    steps = engine_steps_of(records)
    series = counter([100.0 * k for k in range(101)], [10.0] * 60 + [50.0] * 40)
    guessed = replace(steps, guessed_ns=np.array([[6000 * MS + 1, 10_000 * MS]]))
    assert guessed_windows(guessed, series.t_ns).sum() == 40
    assert fit_coefficients(series, guessed).misfit == pytest.approx(0, abs=1e-6)
    assert (fit_coefficients(series, steps).misfit or 0) > 0.5


def lawful(truth: list[float], every_ms: float, longest: int) -> tuple[EngineSteps, EnergySeries]:
    """Random requests, and exact windows of 100 ms under a law of five coefficients and 127 W of idle power."""
    rng = np.random.default_rng(0)
    records, at = [], 2000.0
    for index in range(200):
        at += rng.exponential(every_ms)
        first = at + rng.uniform(20, 60)
        chunks = [first + 6 * k for k in range(int(rng.integers(1, longest)))]
        records.append(request(index, at, chunks, int(rng.integers(10, 6000))))
    work = engine_steps_of(records)
    edges = np.arange(0, int(work.end_ns[-1]) + 200 * MS, 100 * MS)
    step, window, share = overlap(edges, work.start_ns, work.end_ns)
    cost = np.bincount(work.step, member_features(work) @ np.array(truth), minlength=work.count)
    busy_ns = np.bincount(window, share * (work.end_ns - work.start_ns)[step], minlength=len(edges) - 1)
    joules = np.bincount(window, share * cost[step], minlength=len(edges) - 1) + 127 * (100 * MS - busy_ns) / 1e9
    mj = np.concatenate(([0], np.cumsum(np.rint(joules * 1000)))).astype(np.int64)
    return work, EnergySeries("gpu:0", edges, mj)


def test_the_fit_finds_the_law_that_made_the_windows() -> None:
    truth = [2.5, 0.018, 1e-6, 0.015, 2e-5]
    work, series = lawful(truth, every_ms=120, longest=60)
    found = fit_coefficients(series, work)
    assert [getattr(found, column) for column in COLUMNS] == pytest.approx(truth, rel=0.02)
    assert found.idle_w == pytest.approx(127, rel=0.001)
    assert found.r_squared == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("late_ms", [-15, 0, 12, 21])
def test_a_polled_counters_phase_is_found_from_the_work(late_ms: int) -> None:
    """A counter that is seen late_ms late: shifted back, its windows follow from the work again."""
    work, exact = lawful([2.5, 0.018, 0.0, 0.015, 0.0], every_ms=300, longest=40)
    seen = EnergySeries("gpu:0", exact.t_ns + late_ms * MS, exact.mj, np.full(len(exact), 2 * MS))
    assert abs(int(align_phase(seen, work).t_ns[0]) - int(exact.t_ns[0])) <= 3 * MS
    assert align_phase(exact, work) is exact


def test_without_idle_time_the_idle_power_is_unknown() -> None:
    busy = request(0, 0, [float(10 + 10 * k) for k in range(100)])
    assert fit_coefficients(counter([0, 200, 400, 600, 800], [50.0] * 4), engine_steps_of([busy])).idle_w is None


def test_a_row_far_off_is_excluded_from_the_fit() -> None:
    """19 rows of 2 and one of 1000: the first fit is 51.9 everywhere, and the last row 19 times as far off."""
    b = np.array([2.0] * 19 + [1000.0])
    x, error, kept = fit_without_outliers(np.ones((20, 1)), b, np.ones(20, bool))
    assert x.tolist() == pytest.approx([2])
    assert error == pytest.approx(0, abs=1e-9)
    assert kept.tolist() == [True] * 19 + [False]


@pytest.mark.parametrize(("rows", "fitted"), [(3, False), (4, True)])
def test_a_fit_needs_two_rows_per_column(rows: int, fitted: bool) -> None:
    a = np.array([[1.0, k] for k in range(6)])
    x, error, kept = fit_without_outliers(a, a @ np.array([3.0, 5.0]), np.arange(6) < rows)
    assert kept.sum() == rows
    assert x.tolist() == pytest.approx([3, 5] if fitted else [0, 0])
    assert error == (pytest.approx(0, abs=1e-9) if fitted else None)


def at_the_limit(limit_w: float, count: int = 150) -> tuple[EngineSteps, EnergySeries]:
    """Steps of a prefill and some decodes under a law of 2.5 J, 18 mJ and 15 mJ, each as long as the limit makes it."""
    rng = np.random.default_rng(3)
    tokens, decodes = rng.integers(0, 3000, count), rng.integers(1, 200, count)
    end_ns = np.rint(np.cumsum(2.5 + 0.018 * tokens + 0.015 * decodes) / limit_w * NS_PER_S).astype(np.int64)
    step = np.concatenate((np.arange(count), np.repeat(np.arange(count), decodes))).astype(np.int32)
    prefilling = np.arange(len(step)) < count
    steps = EngineSteps(
        start_ns=np.concatenate(([0], end_ns[:-1])),
        end_ns=end_ns,
        iterations=np.ones(count),
        step=step,
        request=np.zeros(len(step), np.int32),
        prefilling=prefilling,
        prefill=np.concatenate((tokens, np.zeros(len(step) - count))).astype(np.float32),
        decode=(~prefilling).astype(np.float32),
        context=np.zeros(len(step), np.float32),
        unseen_ns=np.zeros((0, 2), np.int64),
    )
    edges = np.arange(0, int(end_ns[-1]), 100 * MS)
    return steps, EnergySeries("gpu:0", edges, edges * int(limit_w) // MS, capped_ns=edges, limit_w=limit_w)


def test_at_the_power_limit_the_durations_of_steps_identify_the_law() -> None:
    steps, series = at_the_limit(700.0)
    found = fit_coefficients(series, steps)
    assert found.values == pytest.approx([2.5, 0.018, 0.0, 0.015, 0.0], rel=1e-3, abs=1e-6)
    assert found.r_squared is not None and found.r_squared > 0.999
    blind = fit_coefficients(replace(series, capped_ns=None), steps)
    assert blind.r_squared is None or blind.r_squared < 0.5, "equal windows explain nothing"


def test_no_step_is_a_row_where_the_limit_did_not_hold_or_others_ran() -> None:
    steps, series = at_the_limit(700.0)
    blind = fit_coefficients(replace(series, capped_ns=None), steps)
    assert fit_coefficients(replace(series, limit_w=None), steps) == blind
    assert fit_coefficients(replace(series, capped_ns=np.zeros_like(series.t_ns)), steps) == blind
    nobody = ForeignLoad(series.t_ns[[0, -1]], *np.zeros((4, 1)), context=0.0)
    assert fit_coefficients(series, replace(steps, foreign=nobody)).values == pytest.approx(blind.values, rel=1e-6)
