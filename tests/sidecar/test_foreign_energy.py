"""Other clients' work in the windows of the counter: how much by the engine's counters, when by the meter."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.cost_model import cost_shares
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.attribution.span_steps import cadence_of, phases_of, slot_steps
from loadgen.energy.series import EnergySeries
from loadgen.sidecar.foreign_energy import STEP_TOKENS, foreign_cost, prior_prices, windows_beside_others
from loadgen.units import NS_PER_S
from support.attribution_runs import counter, prices, two_steps


def load(decode: list[float], steps: list[float], alone_s: list[float] | None = None) -> ForeignLoad:
    """Other clients in as many intervals of two seconds."""
    nothing = np.zeros(len(decode))
    return ForeignLoad(
        edges_ns=np.arange(len(decode) + 1) * 2 * NS_PER_S, members=nothing, steps=np.array(steps), prefill=nothing,
        decode=np.array(decode), context=0.0,
        alone_ns=None if alone_s is None else np.array(alone_s) * NS_PER_S,
    )  # fmt: skip


def series(*joules: float) -> EnergySeries:
    return counter([1000.0 * second for second in range(len(joules) + 1)], list(joules))


def ours(foreign: ForeignLoad | None) -> EngineSteps:
    """A step of two iterations in the first second, and one of one iteration in the next."""
    return two_steps(foreign)


PRICES = prices(step=10, prefill=0, attention=0, decode=1, read=0)


def test_without_other_clients_nothing_is_theirs() -> None:
    assert foreign_cost(series(5, 5), ours(None), PRICES, np.zeros(3), 0.0) is None


@pytest.mark.parametrize(
    ("joules", "idle_w", "theirs"),
    [
        ((20, 41, 100, 100), 0.0, [0, 30, 20, 20]),  # all that the second window has beyond our 11 J
        ((50, 41, 100, 0), 0.0, [15, 15, 40, 0]),
        ((10, 11, 0, 0), 0.0, [15, 15, 20, 20]),  # the meter shows nothing: spread over the interval
        ((20, 41, 100, 50), 50.0, [0, 30, 40, 0]),  # what idle power explains is not theirs
    ],
)
def test_the_counters_say_how_much_and_the_meter_when(
    joules: tuple[float, ...], idle_w: float, theirs: list[float]
) -> None:
    """30 J in the first interval of two windows, 40 J in the second."""
    steps = ours(load([30, 40], [0, 0], [0, 0]))
    assert cost_shares(steps, PRICES).tolist() == pytest.approx([20, 6, 5])
    got = foreign_cost(series(*joules), steps, PRICES, cost_shares(steps, PRICES), idle_w)
    assert got is not None and got.tolist() == pytest.approx(theirs)


def test_an_interval_with_other_clients_is_one_window_of_the_fit() -> None:
    half_seconds = counter([500.0 * k for k in range(9)], [1.0] * 8)
    energy, steps = windows_beside_others(half_seconds, ours(load([0, 7], [0, 0])))
    assert (energy.t_ns / NS_PER_S).tolist() == [0, 0.5, 1, 1.5, 2, 4]
    assert energy.total_mj == half_seconds.total_mj
    assert steps.context.tolist() == [0, 50, 0], "prompts of others have no context, so ours have none"
    energy, _ = windows_beside_others(half_seconds, ours(load([7, 0], [0, 0])))
    assert (energy.t_ns / NS_PER_S).tolist() == [0, 2, 2.5, 3, 3.5, 4]
    prompts = replace(load([0, 0], [0, 0]), prefill=np.array([0.0, 9.0]))
    energy, _ = windows_beside_others(half_seconds, ours(prompts))
    assert (energy.t_ns / NS_PER_S).tolist() == [0, 0.5, 1, 1.5, 2, 4]


def test_a_window_of_the_fit_with_a_gap_in_it_is_a_gap() -> None:
    gap = np.array([False, False, False, True, False])
    energy, _ = windows_beside_others(replace(series(1, 1, 0, 1), gap=gap), ours(load([7, 7], [0, 0])))
    assert (energy.t_ns / NS_PER_S).tolist() == [0, 2, 4]
    assert energy.gap is not None and energy.gap.tolist() == [False, False, True]


@pytest.mark.parametrize(("seconds", "alone"), [(100, True), (99, False)])
def test_the_fit_leaves_out_the_windows_of_other_clients_who_were_there_for_less_than_half_of_them(
    seconds: int, alone: bool
) -> None:
    """They are there in the first 2 s, of 100 or 99 windows in which nobody else is either."""
    energy = series(*[1.0] * seconds)
    windows, steps = windows_beside_others(energy, ours(load([7, 0], [0, 0])))
    if seconds == 100:
        assert steps.foreign is None and windows.gap is not None
        assert windows.gap.tolist() == [False, True, True, *[False] * 98]
        assert steps.context.tolist() == ours(None).context.tolist()


def test_without_other_clients_the_fit_is_the_plain_one() -> None:
    plain, steps = series(1, 1, 1, 1), ours(None)
    energy, passed = windows_beside_others(plain, steps)
    assert energy is plain and passed is steps


def test_before_a_fit_the_work_costs_what_was_used_above_idle_power() -> None:
    """Two steps of three iterations, 60 prompt tokens and one decoded, in two of four seconds; others do six more."""
    energy = series(150, 150, 20, 20)
    alone = prior_prices(energy, ours(None), 20.0)
    work = 3 + 61 / STEP_TOKENS
    assert alone.step_j == pytest.approx((340 - 2 * 20) / work)
    assert alone.prefill_token_j == alone.decode_token_j == pytest.approx(alone.step_j / STEP_TOKENS)
    beside = prior_prices(energy, ours(load([0, 6], [0, 6], [0, 1])), 20.0)
    assert beside.step_j == pytest.approx((340 - 1 * 20) / (work + 6 + 6 / STEP_TOKENS))
    assert prior_prices(energy, ours(None), None).step_j == pytest.approx(340 / work)
    assert prior_prices(series(0, 0, 0, 0), ours(None), 20.0).step_j > 0
    nobody = slot_steps(phases_of([]), cadence_of(phases_of([])), 0, NS_PER_S, NS_PER_S, np.zeros((0, 2), np.int64))
    assert prior_prices(energy, nobody, 20.0).step_j == 1.0, "no work, no scale"
