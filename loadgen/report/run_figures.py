"""The figures of a run's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.report import request_charts
from loadgen.report.charts.figure import figure
from loadgen.report.markup import Markup, join, tag
from loadgen.report.time_charts import time_axis, time_charts, time_note
from loadgen.results.over_time import bins_of
from loadgen.results.over_time import over_time as numbers_over_time

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult


def over_time(result: RunResult) -> Markup:
    """Return the charts over time, one below another, after the rules that they have in common."""
    made = numbers_over_time(result)
    if made is None:
        return tag("p", "Nothing was sent and no energy was read.", class_="empty")
    figures = [figure(chart) for chart in time_charts(result, made)]
    return join([tag("p", time_note(made), class_="soft"), *figures])


def latency(result: RunResult, key: str, heading: str) -> Markup:
    """Return the distribution of "ttft", "ttfa", "tpot", "itl", "e2e" or "response"."""
    return figure(request_charts.latency(result, key, heading))


def ttft_by_input(result: RunResult, drawn: Sequence[int]) -> Markup:
    """Return TTFT against input length."""
    return figure(request_charts.ttft_by_input(result, drawn))


def scatter(result: RunResult, drawn: Sequence[int]) -> Markup:
    """Return joules against input + output tokens."""
    return figure(request_charts.joules_by_tokens(result, drawn))


def lag(result: RunResult, drawn: Sequence[int]) -> Markup:
    """Return how late the client sent."""
    bins = bins_of(result)
    return Markup() if bins is None else figure(request_charts.schedule_lag(result, drawn, time_axis(bins)))
