"""Distributions and dots are of the completed requests, and a dot leads to its request."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.report import request_charts
from loadgen.report.charts.chart import Axis, Chart
from loadgen.results.drawn_requests import drawn_requests
from loadgen.results.metrics import token_gaps_ns
from support import sample_runs

TIME = Axis("time", "s", low=0.0, high=120.0)


@pytest.mark.parametrize("key", ["ttft", "tpot", "e2e", "response"])
def test_a_distribution_has_a_curve_and_dots_of_each_workload(key: str) -> None:
    result = sample_runs.run()
    chart = request_charts.latency(result, key, key.upper())
    assert [(series.name, series.kind) for series in chart.series] == [
        ("chat", "steps"),
        ("code", "steps"),
        ("chat", "dots"),
        ("code", "dots"),
    ]
    values = [getattr(r, f"{key}_ns") for r in result.records if r.ok and r.workload == "chat"]
    known = [value for value in values if value is not None]
    assert chart.series[2].x.tolist() == pytest.approx(np.percentile(known, (50, 90, 99)) / 1e9)
    assert chart.series[0].y[-1] == 1


def test_gaps_between_tokens_are_counted_one_by_one_and_drawn_at_ranks() -> None:
    result = sample_runs.run()
    chart = request_charts.latency(result, "itl", "ITL")
    gaps = token_gaps_ns([r for r in result.records if r.ok and r.workload == "chat"])
    assert f"chat: {len(gaps):,} gaps" in chart.caption
    assert all(len(series.y) <= 501 for series in chart.series)


def test_answers_in_one_piece_have_no_times_of_tokens() -> None:
    result = sample_runs.run(num_requests=20, failing=0)
    records = [msgspec.structs.replace(r, chunk_ns=[r.finished_ns or 0]) for r in result.records]
    whole = replace(result, records=[r for r in records if (r.output_tokens or 0) >= 4])
    assert not request_charts.latency(whole, "ttft", "TTFT").series
    assert request_charts.latency(whole, "e2e", "E2E").series


def _points(chart: Chart) -> dict[int, tuple[float, float]]:
    points: dict[int, tuple[float, float]] = {}
    for series in chart.series:
        assert series.requests is not None
        points |= dict(zip(series.requests, zip(series.x, series.y, strict=True), strict=True))
    return points


def test_each_dot_is_the_request_that_it_names() -> None:
    result = sample_runs.run()
    assert result.attribution is not None
    joules, drawn = {share.index: share.joules for share in result.attribution.requests}, range(len(result.records))
    ttft, energy = (_points(f(result, drawn)) for f in (request_charts.ttft_by_input, request_charts.joules_by_tokens))
    lag = _points(request_charts.schedule_lag(result, drawn, TIME))
    done = [record for record in result.records if record.ok]
    assert set(ttft) == set(energy) == {record.index for record in done}
    for record in done:
        tokens = (record.input_tokens or 0) + (record.output_tokens or 0)
        assert ttft[record.index] == pytest.approx((record.input_tokens, (record.ttft_ns or 0) / 1e9))
        assert energy[record.index] == pytest.approx((tokens, joules[record.index]))
        assert lag[record.index][1] == pytest.approx(max((record.lag_ns or 0) / 1e9, request_charts.LAG_FLOOR_S))


def test_a_thinned_chart_says_of_how_many_requests_it_is_and_how_they_were_chosen() -> None:
    result = sample_runs.run(num_requests=2_500, rps=100, failing=0)
    chart = request_charts.ttft_by_input(result, drawn_requests(result).tolist())
    assert chart.caption.startswith("1,000 of 2,500 requests: the 50 highest and lowest of TTFT,")
    assert chart.text.startswith("TTFT against input length. 2,500 requests: lowest")


def test_without_energy_there_is_no_dot() -> None:
    assert not request_charts.joules_by_tokens(sample_runs.without_energy(), range(100)).series
