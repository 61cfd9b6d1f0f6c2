"""The charts of a study: a curve for each server, its dots labelled, and limits where they can be read."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.report.charts.chart import Chart
from loadgen.report.charts.figure import figure
from loadgen.report.study_figures import (
    ENERGY_PER_GOOD,
    ENERGY_PER_TOKEN,
    Curve,
    attainment_charts,
    curves,
    front_charts,
    load_axis,
    load_charts,
    power_charts,
    throughput_charts,
)
from loadgen.results.study_table import Row, StudyInfo, groups
from loadgen.stats.intervals import Interval
from support.study_rows import full_row, repeats

RATES = ((None, 2.0), (None, 8.0), (None, 16.0))


def of(rows: list[Row]) -> list[Curve]:
    return curves(groups(rows))


def dots(chart: Chart) -> list[str]:
    """Return the labels of the dots of all curves."""
    return [label for series in chart.series if series.kind == "dots" for label in series.labels or ()]


def test_curves_keep_their_colours_and_are_in_the_order_of_the_load() -> None:
    found = of(repeats((None, 16.0), (None, 2.0), (8, None)) + repeats((None, 2.0), server="other"))
    assert [(curve.name, curve.colour) for curve in found] == [
        ("other, at rates", 0),
        ("plain, at rates", 1),
        ("plain, in batches", 2),
    ]
    assert [group.load for group in found[1].groups] == [2.0, 16.0]
    models = of([full_row(model="n"), full_row(model="m")])
    assert [curve.name for curve in models] == ["plain, m", "plain, n"]


@pytest.mark.parametrize(
    ("loads", "keys"),
    [
        ([(None, 8.0)], []),
        ([(None, 2.0), (None, 8.0), (8, None)], ["joules-per-token-rate-0"]),
        ([(None, 2.0), (None, 8.0), (8, None), (64, None)], ["joules-per-token-rate-0", "joules-per-token-batch-0"]),
    ],
)
def test_a_chart_over_the_load_needs_two_loads(loads: list[tuple[int | None, float | None]], keys: list[str]) -> None:
    assert [chart.key for chart in load_charts(of(repeats(*loads)), ENERGY_PER_TOKEN)] == keys


def test_the_least_of_each_curve_is_marked() -> None:
    (chart,) = load_charts(of(repeats(*RATES)), ENERGY_PER_TOKEN)
    assert dots(chart) == ["", "", "least: 0.510 J"], "the mean of 0.50, 0.51 and 0.52"


def test_a_load_without_a_good_request_has_no_cost_of_one() -> None:
    rows = [full_row(rps=rps, good_requests_per_joule=good) for rps, good in ((2.0, 0.5), (8.0, 0.25), (16.0, 0.0))]
    (chart,) = load_charts(of(rows), ENERGY_PER_GOOD)
    assert chart.series[0].x.tolist() == [2.0, 8.0] and chart.series[0].y.tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("means", "ends", "is_log", "low", "high"),
    [
        ([2.0, 4.0], [(1.8, 4.4), (None, None)], False, 0.0, 1.1 * 4.4),
        ([2.0, 4.0], [(1.0, 50.0), (None, None)], False, 0.0, 1.1 * 8.0),
        ([1.0, 40.0], [(0.9, 44.0), (None, None)], True, 0.9 / 1.3, 1.5 * 44.0),
        ([1.0, 40.0], [(1e-9, 1e9), (None, None)], True, 0.5 / 1.3, 1.5 * 80.0),
        ([3.0], [(None, None)], False, 0.0, 1.1 * 3.0),
    ],
)
def test_an_axis_has_room_for_bars_up_to_half_or_twice_the_extreme_means(
    means: list[float], ends: list[tuple[float | None, float | None]], is_log: bool, low: float, high: float
) -> None:
    axis = load_axis([Interval(mean, *end, 3) for mean, end in zip(means, ends, strict=True)], ENERGY_PER_TOKEN)
    assert (axis.low, axis.high, axis.log) == (pytest.approx(low), pytest.approx(high), is_log)


def test_attainment_is_a_share_with_a_line_at_the_wanted_one() -> None:
    study = StudyInfo("t", limits_ms={"ttft": 200.0}, wanted=0.95)
    (chart,) = attainment_charts(of(repeats(*RATES)), study)
    assert (chart.y.unit, chart.y.low, chart.y.high) == ("share", 0.0, 1.0)
    assert [(limit.value, limit.name) for limit in chart.limits] == [(0.95, "95 % wanted")]
    assert "TTFT ≤ 200 ms" in chart.caption


def test_latency_over_throughput_has_the_load_beside_each_dot() -> None:
    ttft, tpot = throughput_charts(of(repeats(*RATES)), {"ttft": 250.0})
    assert dots(ttft) == dots(tpot) == ["2/s", "8/s", "16/s"]
    assert ttft.series[0].x.tolist() == [200.0, 800.0, 1600.0]
    assert [limit.value for limit in ttft.limits] == [0.25] and tpot.limits == ()
    e2e = throughput_charts(of(repeats(*RATES, e2e_p99_s=2.0)), {"e2el": 1000.0})
    assert [chart.y.title for chart in e2e] == ["TTFT p99", "TPOT p99", "E2E p99"]


def test_without_tokens_throughput_is_requests_served() -> None:
    ttft, _ = throughput_charts(of(repeats(*RATES, output_tokens_per_s=None)), {})
    assert (ttft.x.title, ttft.series[0].x.tolist()) == ("Requests served", [8.0, 8.0, 8.0])


def test_a_limit_far_beyond_the_values_is_in_the_caption_and_not_in_the_picture() -> None:
    chart, _ = throughput_charts(of(repeats(*RATES)), {"ttft": 5000.0})
    assert chart.limits == () and "The limit TTFT ≤ 5000 ms lies far beyond these values." in chart.caption


def test_the_front_is_drawn_through_the_settings_that_nothing_beats() -> None:
    """J per token falls with the rate while TPOT grows: all rates are on it; a dearer, slower server is not."""
    rows = repeats(*RATES) + repeats((None, 16.0), server="worse", joules_per_output_token=20.0, tpot_p99_s=0.02)
    (chart,) = front_charts(of(rows), {"tpot": 10.0})
    assert chart.series[0].name == "Pareto front" and len(chart.series[0].x) == 3
    assert "plain 2/s; plain 8/s; plain 16/s." in chart.caption


def test_a_front_needs_three_configurations_that_know_both() -> None:
    assert front_charts(of(repeats(*RATES[:2])), {}) == []
    assert front_charts(of([*repeats(*RATES[:2]), full_row(rps=16.0, tpot_p99_s=None)]), {}) == []
    (chart,) = front_charts(of(repeats(*RATES)), {"e2el": 1.0, "ttft": 200.0})
    assert chart.x.title == "TTFT p99"


def test_idle_power_is_a_line_below_the_power_under_load() -> None:
    rows = [full_row(), full_row(rps=2.0, mean_watts=200.0, idle_watts=60.0)]
    (chart,) = power_charts(of(rows))
    assert [(limit.value, limit.name) for limit in chart.limits] == [(90.0, "idle: 90.0 W")], "the mean of 120 and 60 W"
    assert power_charts(of([full_row(), full_row(rps=2.0, mean_watts=None)])) == []


def test_every_chart_has_marks_inside_its_axes() -> None:
    study = StudyInfo("t", limits_ms={"ttft": 200.0, "tpot": 10.0})
    drawn = of(repeats(*RATES, (8, None), (64, None)) + repeats(*RATES, server="other", ttft_p99_s=9.0))
    charts = [
        *attainment_charts(drawn, study),
        *throughput_charts(drawn, study.limits_ms),
        *load_charts(drawn, ENERGY_PER_GOOD),
        *load_charts(drawn, replace(ENERGY_PER_TOKEN, marks_least=False)),
        *front_charts(drawn, study.limits_ms),
        *power_charts(drawn),
    ]
    assert len(charts) == 10 and len({chart.key for chart in charts}) == 10
    for chart in charts:
        assert chart.text and "<svg" in figure(chart)
        for series in chart.series:
            for axis, values in ((chart.x, series.x), (chart.y, series.y)):
                assert axis.low is not None and axis.high is not None
                assert np.all((axis.low <= values) & (values <= axis.high)), (chart.key, axis.title)
