"""A distribution becomes a chart of shares."""

import numpy as np
import pytest

from loadgen.report.charts.chart import Axis
from loadgen.report.charts.distribution import distribution
from loadgen.stats.distributions import RANKS, ShareCurve, curve_of_sample


def _curve(values: list[float]) -> ShareCurve:
    curve = curve_of_sample(values)
    assert curve is not None
    return curve


def test_a_curve_rises_from_nothing_to_the_whole_and_has_its_percentiles_as_dots() -> None:
    chart = distribution("ttft", "TTFT", Axis("TTFT", "s", log=True), {"chat": _curve([0.1, 0.2, 0.4])})
    line, dots = chart.series
    assert (line.kind, line.x.tolist()) == ("steps", [0.1, 0.1, 0.2, 0.4, 0.4])
    assert line.y.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (dots.name, dots.y.tolist()) == (line.name, [0.5, 0.9, 0.99])
    assert dots.x[0] == pytest.approx(0.2)
    assert dots.hints is not None
    assert dots.hints[0] == "chat: p50 = 200 ms"
    assert chart.y.high == 1


@pytest.mark.parametrize(("log", "start"), [(True, 0.5), (False, 0.0)])
def test_values_of_zero_are_below_the_low_end_of_a_logarithmic_axis(log: bool, start: float) -> None:
    line = distribution("gap", "Gaps", Axis("gap", "s", log=log), {"a": _curve([0, 0, 1, 2])}).series[0]
    assert line.y[0] == start
    assert (line.x[0] > 0) == log


def test_a_group_without_a_positive_value_has_no_marks_but_is_counted() -> None:
    chart = distribution("gap", "Gaps", Axis("gap", "s", log=True), {"a": _curve([0, 0]), "b": _curve([1])})
    assert {series.name for series in chart.series} == {"b"}
    assert "a: 2 requests" in chart.caption


def test_a_long_sample_is_drawn_at_ranks_and_the_caption_says_so() -> None:
    curves = {"chat": _curve(np.arange(1, 5_001).tolist())}
    chart = distribution("itl", "ITL", Axis("ITL", "s", log=True), curves, of="gap")
    assert 400 < len(chart.series[0].y) <= RANKS + 1
    assert "chat: 5,000 gaps" in chart.caption
    assert "up to 500 ranks, closer together above 99 %" in chart.caption
