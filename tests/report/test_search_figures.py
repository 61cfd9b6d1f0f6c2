"""The charts of a search: what they draw follows from what the probes measured."""

import numpy as np
import pytest

from loadgen.report.charts.chart import Chart, Series
from loadgen.report.search_figures import (
    MAX_DRAWN,
    OVERLOADED,
    Curve,
    attainment_charts,
    budget_chart,
    curves,
    energy_charts,
    front_chart,
    latency_charts,
    throughput_chart,
)
from loadgen.results.search_result import Estimate, SearchResult
from support import search_results as examples
from support.search_results import probe, probes, search, setting


def attainment(result: SearchResult) -> Chart:
    return attainment_charts(curves(result), result)[0]


def of_kind(chart: Chart, kind: str, name: str | None = None) -> list[Series]:
    return [series for series in chart.series if series.kind == kind and name in (None, series.name)]


def test_each_probe_with_requests_is_a_dot_and_overloaded_ones_are_apart() -> None:
    result = search(setting(probes=(*probes(), probe(10, requests=0, good=0))))
    (steady,), (overloaded,) = (of_kind(attainment(result), "dots", name) for name in ("probes", OVERLOADED))
    assert sorted([*steady.x, *overloaded.x]) == sorted(p.rate_rps for p in probes())
    assert overloaded.x.tolist() == [32.0] and overloaded.colour == "bad"
    assert overloaded.hints == ["probe 5 at 32 requests/s: 0.0 % (ended early)"]


def test_the_curve_passes_the_wanted_share_at_the_rate_and_ends_where_it_is_not_fitted() -> None:
    (line,) = of_kind(attainment(search()), "line", "probes")
    assert np.interp(13.4, line.x, line.y) == pytest.approx(0.99, abs=0.002)
    assert 13.4 / 2 < line.x[0] < line.x[-1] < 13.4 * 2
    assert (np.diff(line.y) <= 0).all()


@pytest.mark.filterwarnings("error")
def test_costs_are_unknown_without_a_warning_where_no_request_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "good_share", lambda curve, rates: np.zeros(len(rates)))
    (line,) = of_kind(energy_charts(curves(search()), search())[0], "line", "probes")
    assert np.isnan(line.y).all()


@pytest.mark.parametrize(
    ("rate", "ends", "label"),
    [
        (Estimate(value=13.4, low=12.8, high=14.0), [12.8, 14.0], "13.4/s"),
        (Estimate(value=13.4, low=12.8, high=None), [12.8, 32 * 1.2], "13.4/s"),
        (Estimate(value=8.0, low=8.0, high=None), [8.0, 32 * 1.2], "at least 8.00/s"),
    ],
)
def test_the_interval_of_the_rate_lies_on_the_wanted_share(rate: Estimate, ends: list[float], label: str) -> None:
    chart = attainment(search(setting(rate=rate)))
    (band,) = (series for series in chart.series if series.band)
    assert band.x.tolist() == pytest.approx(ends) and band.y.tolist() == [0.99, 0.99]
    (dot,) = of_kind(chart, "dots", band.name)
    assert list(dot.labels or ()) == [label]


@pytest.mark.parametrize(
    "result",
    [examples.limited_by_client(), examples.hopeless(), examples.first_probe()],
    ids=["client", "fails", "first probe"],
)
def test_no_curve_is_drawn_where_no_rate_is_bounded(result: SearchResult) -> None:
    among = curves(result)
    charts = [attainment(result), throughput_chart(among, result), *energy_charts(among, result)]
    assert not [series for chart in charts for series in of_kind(chart, "line", "probes")]
    assert len(attainment_charts(among, result)) == 1


def test_the_close_up_has_the_probes_around_the_wanted_share_alone() -> None:
    whole, close = attainment_charts(curves(search()), search())
    (dots,) = of_kind(close, "dots", "probes")
    assert sorted(dots.x.tolist()) == [12.0, 12.9, 13.9, 14.6]
    assert len(dots.hints or ()) == 4 and close.limits == whole.limits
    assert len(attainment_charts(curves(search()), search(attainment=0.7))) == 1


def test_latencies_have_their_limits_and_both_percentiles_of_a_single_setting() -> None:
    ttft, tpot = latency_charts(curves(search()), search())
    assert [limit.value for limit in (*ttft.limits, *tpot.limits)] == [0.2, 0.01]
    assert [series.name for series in ttft.series] == ["p50", "p99", OVERLOADED]
    of_settings = latency_charts(curves(examples.of_settings()), examples.of_settings())
    assert [series.name for series in of_settings[0].series][:3] == [f"max_num_seqs={n}" for n in (256, 128, 64)]
    assert len(latency_charts(curves(search()), search(limits_ms={"e2el": 900.0}))) == 3


def test_joules_per_good_request_are_power_over_good_requests_per_second() -> None:
    per_good, close, per_token = energy_charts(curves(search()), search())
    dots, tokens = (of_kind(chart, "dots", "probes")[0] for chart in (per_good, per_token))
    place = dots.x.tolist().index(8.0)
    assert dots.y[place] == pytest.approx((300 + 25 * 8) / 8)
    assert tokens.y[place] == pytest.approx((300 + 25 * 8) * 6 / (150 * 48))
    least = of_kind(per_good, "dots")[-1]
    assert (least.x.tolist(), least.y.tolist()) == ([13.4], [48.0])
    assert least.low is not None and least.high is not None and (least.low[0], least.high[0]) == (46.9, 49.1)
    (near,) = of_kind(close, "dots", "probes")
    assert sorted(near.x.tolist()) == [12.0, 12.9, 13.9, 14.6, 16.0]


def test_without_energy_there_is_no_chart_of_it() -> None:
    result = examples.without_energy()
    assert energy_charts(curves(result), result) == []
    assert front_chart(curves(result), result) is None


def test_no_probe_beats_one_of_the_pareto_front() -> None:
    result = examples.of_settings()
    chart = front_chart(curves(result), result)
    assert chart is not None
    front, *dots = chart.series
    points = [point for series in dots for point in zip(series.x, series.y, strict=True)]
    for x, y in zip(front.x, front.y, strict=True):
        assert not any((good >= x and cost < y) or (good > x and cost <= y) for good, cost in points)
    assert front_chart(curves(search()), search()) is None


def test_the_best_settings_are_drawn_first_and_not_more_than_colours_tell_apart() -> None:
    many = [setting(f"s{i}", 1 + i / 10) for i in range(MAX_DRAWN + 2)]
    drawn = curves(search(*many, best="s3"))
    assert [curve.name for curve in drawn] == ["s3", "s7", "s6", "s5", "s4", "s2"]
    assert [curve.colour for curve in drawn] == list(range(MAX_DRAWN))


def test_the_budget_is_drawn_by_the_time_of_each_probe_and_the_estimate_after_it() -> None:
    chart = budget_chart(setting(), search())
    assert chart is not None
    steps, estimates = chart.series
    assert steps.x[-1] == pytest.approx(sum(p.wall_s for p in probes())) and len(steps.y) == 10
    assert len(estimates.x) == 4 and estimates.y[-1] == pytest.approx(13.4, rel=0.05)
    assert budget_chart(setting(probes=probes()[:1]), search()) is None
    bracketing = budget_chart(setting(probes=probes()[:3]), search())
    assert bracketing is not None and [series.kind for series in bracketing.series] == ["steps"]
