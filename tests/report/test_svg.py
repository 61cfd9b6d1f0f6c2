"""Axes have few round labels, and hold the data."""

import numpy as np
import pytest

from loadgen.report import svg


@pytest.mark.parametrize("low", [1e-6, 3.3e-4, 0.012, 0.7, 1.0, 64, 9_999])
@pytest.mark.parametrize("factor", [1, 1.5, 3, 9.9, 80, 1_200, 5e4, 3e7])
def test_labels_of_an_axis_never_touch_and_its_ends_hold_the_data(low: float, factor: float) -> None:
    axis = svg.log_axis(low, low * factor, lambda v: f"{v:g}")
    places = axis.at(np.array([value for value, _ in axis.ticks]))
    assert axis.low <= low * 1.0001 and axis.high >= low * factor * 0.9999
    assert len(places) >= 2 and np.diff(places).min() > 0.18


@pytest.mark.parametrize(("low", "high"), [(0, 1e-3), (0, 7), (-0.3, 112), (0, 1684), (0, 86_400), (5, 5)])
def test_ticks_of_a_linear_axis_are_few_round_and_inside(low: float, high: float) -> None:
    axis = svg.linear_axis(low, high, lambda v: f"{v:g}")
    ticks = [value for value, _ in axis.ticks]
    assert 2 <= len(ticks) <= 6
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in ticks)
