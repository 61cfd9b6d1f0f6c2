"""The charts over time share one axis, and are of what is known."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.report.charts.chart import Chart
from loadgen.report.time_charts import GROUP, time_charts, time_note
from loadgen.results.over_time import over_time
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Saturation, ServerLoad
from support import sample_runs

ALWAYS = ["rate", "output", "input", "ttft-time", "tpot-time"]


def _charts(result: RunResult) -> dict[str, Chart]:
    made = over_time(result)
    assert made is not None
    return {chart.key: chart for chart in time_charts(result, made)}


def _note(result: RunResult) -> str:
    made = over_time(result)
    assert made is not None
    return time_note(made)


def _with_engine(result: RunResult, **fields: float) -> RunResult:
    """The run with readings of an engine every 500 ms, all alike."""
    times = range(sample_runs.START_NS, sample_runs.START_NS + 60_000_000_000, 500_000_000)
    return replace(result, engine=[{"t_ns": t_ns, **fields} for t_ns in times])


def test_charts_over_time_are_one_group_on_one_axis() -> None:
    charts = _charts(sample_runs.run())
    assert list(charts) == [*ALWAYS, "errors", "in-flight", "power", "token-joules"]
    assert {chart.group for chart in charts.values()} == {GROUP}
    assert len({chart.x for chart in charts.values()}) == 1
    assert all(len(s.x) == len(s.y) + 1 for chart in charts.values() for s in chart.series)
    assert all(chart.y.low == 0 for chart in charts.values())


@pytest.mark.parametrize(
    ("result", "keys"),
    [
        (sample_runs.without_energy(), [*ALWAYS, "errors", "in-flight"]),
        (sample_runs.run(failing=0), [*ALWAYS, "in-flight", "power", "token-joules"]),
        (_with_engine(sample_runs.run(failing=0), waiting=2.0), [*ALWAYS, "in-flight", "waiting", "power"]),
        (_with_engine(sample_runs.run(failing=0), kv_cache_usage=0.5), [*ALWAYS, "in-flight", "kv-cache", "power"]),
    ],
)
def test_there_is_a_chart_of_what_has_values(result: RunResult, keys: list[str]) -> None:
    assert list(_charts(result))[: len(keys)] == keys


def test_what_the_engine_does_not_report_and_what_did_not_happen_is_stated() -> None:
    assert "not drawn: running requests, waiting requests, KV-cache use, preemptions" in _note(sample_runs.run())
    quiet = _with_engine(sample_runs.run(), running=1.0, waiting=0.0, kv_cache_usage=0.1, preemptions=3.0)
    assert "The engine preempted no request." in _note(quiet)
    assert "not drawn: prefix-cache hits." in _note(quiet)
    assert "preemptions" not in _charts(quiet)


def test_preemptions_are_drawn_once_there_are_any() -> None:
    run = _with_engine(sample_runs.run(), preemptions=3.0)
    run.engine[10:] = [sample | {"preemptions": 8.0} for sample in run.engine[10:]]
    chart = _charts(run)["preemptions"]
    assert np.nansum(chart.series[0].y) == pytest.approx(5)


def test_the_limit_of_a_latency_is_a_line_of_its_chart() -> None:
    result = sample_runs.run()
    charts = _charts(replace(result, info=msgspec.structs.replace(result.info, config={"goodput": {"ttft": 200.0}})))
    assert {key: [limit.value for limit in charts[key].limits] for key in ("ttft-time", "tpot-time")} == {
        "ttft-time": [0.2],
        "tpot-time": [],
    }


def test_a_server_that_falls_behind_is_marked_in_each_chart() -> None:
    result = sample_runs.run()
    assert result.summary is not None
    waiting = {"waiting_before": 0, "waiting_after": 40, "wait_before_s": 0.1, "wait_after_s": 4.0}
    found = Saturation(until="begun", from_s=12.0, came_rps=9, served_rps=5, **waiting)
    unknown = dict.fromkeys(("served_rps", "engine_running_max", "engine_waiting_max", "drain_s"))
    summary = msgspec.structs.replace(result.summary, server=ServerLoad(waiting_max=40, saturation=found, **unknown))
    for chart in _charts(replace(result, summary=summary)).values():
        assert [(limit.of, limit.value) for limit in chart.limits if limit.of == "x"] == [("x", 12.0)]
    assert all(limit.of == "y" for chart in _charts(result).values() for limit in chart.limits)


def test_the_kinds_of_failures_are_counted_even_where_there_is_one() -> None:
    result = sample_runs.run()
    records = [msgspec.structs.replace(r, error="http") if r.error else r for r in result.records]
    failed = sum(not record.ok for record in records)
    assert _charts(replace(result, records=records))["errors"].caption == f"When they failed: {failed} http."


def test_idle_power_is_a_line_below_the_power() -> None:
    result = sample_runs.run()
    assert result.summary is not None
    assert [limit.value for limit in _charts(result)["power"].limits] == [result.summary.energy.idle_watts]


def test_the_text_of_a_chart_has_its_highest_value_and_when_it_was() -> None:
    chart = _charts(sample_runs.run())["output"]
    highest = float(np.nanmax(chart.series[0].y))
    assert f"output: at most {highest:,.0f} tokens/s, at" in chart.text
