"""The figures of a run's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report import request_charts, svg
from loadgen.report.charts.figure import figure as draw
from loadgen.report.heat_map import Shade, empty, figure, heat_map, shaded_table
from loadgen.report.markup import Markup, join, tag
from loadgen.report.run_limits import workloads
from loadgen.report.time_charts import time_axis, time_charts, time_note
from loadgen.results.over_time import bins_of
from loadgen.results.over_time import over_time as numbers_over_time
from loadgen.stats.distributions import RANKS, by_rank

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats

__all__ = ["Shade", "empty", "figure", "heat_map", "shaded_table", "workloads"]

PERCENTILES = (50, 90, 99)
SHARE_AXIS = svg.Axis(0, 1, False, tuple((p, f"{100 * p:g} %") for p in (0, 0.25, 0.5, 0.75, 0.9, 0.99)))


def legend(names: list[str]) -> Markup:
    if not names:
        return Markup()
    items = (tag("li", svg.swatch(i), " ", tag("span", name)) for i, name in enumerate(names))
    return tag("ul", *items, class_="legend")


def share_curve(
    values: Floats,
    shares: Floats,
    percentiles: Sequence[float],
    titles: Sequence[str],
    x: svg.Axis,
    height: float,
    index: int,
) -> Markup:
    """Return series `index`: a step curve of the share at or below each value, from (lowest, 0) up to (highest, 1).

    values, shares: ascending, drawn at up to RANKS of them. percentiles: the values at PERCENTILES, where the dots are;
    `titles` are their tooltips.
    """
    kept = by_rank(len(values), RANKS)
    places = x.at(values[kept])
    # A step curve needs an end: from each value to the next it stays at that value's share.
    curve = svg.steps(
        np.concatenate([places[:1], places, places[-1:]]),
        SHARE_AXIS.at(np.concatenate([[0.0], shares[kept]])),
        height,
        stroke_dasharray=svg.DASHES[index % len(svg.DASHES)],
    )
    dotted = SHARE_AXIS.at(np.array(PERCENTILES) / 100)
    dots = svg.dots(x.at(np.array(percentiles)), dotted, height, titles, class_="dot mark")
    return tag("g", curve, dots, class_=f"s{index % 6}")


# ---------------------------------------------------------------- figures of the page


def over_time(result: RunResult) -> Markup:
    """Return the charts over time, one below another, after the rules that they have in common."""
    made = numbers_over_time(result)
    if made is None:
        return tag("p", "Nothing was sent and no energy was read.", class_="empty")
    figures = [draw(chart) for chart in time_charts(result, made)]
    return join([tag("p", time_note(made), class_="soft"), *figures])


def latency(result: RunResult, key: str, heading: str) -> Markup:
    """Return the distribution of "ttft", "ttfa", "tpot", "itl", "e2e" or "response"."""
    return draw(request_charts.latency(result, key, heading))


def ttft_by_input(result: RunResult) -> Markup:
    """Return TTFT against input length."""
    return draw(request_charts.ttft_by_input(result))


def scatter(result: RunResult) -> Markup:
    """Return joules against input + output tokens."""
    return draw(request_charts.joules_by_tokens(result))


def lag(result: RunResult) -> Markup:
    """Return how late the client sent."""
    bins = bins_of(result)
    return Markup() if bins is None else draw(request_charts.schedule_lag(result, time_axis(bins)))
