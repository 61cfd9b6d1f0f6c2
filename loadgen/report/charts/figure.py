"""A chart on a page: its heading, its static drawing, its data for the library, and its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.charts.static import colour_class, dash, draw_static, names, scale, shown, stands_left
from loadgen.report.format import clean
from loadgen.report.markup import Markup, json_data, tag
from loadgen.report.page import linked_heading

if TYPE_CHECKING:
    from loadgen.report import svg
    from loadgen.report.charts.chart import Axis, Chart, Series

DIGITS = 5
"""Significant digits of a value in the page's data."""


def figure(chart: Chart) -> Markup:
    """Return the figure. The page's script replaces the drawing by an interactive one."""
    if not any(shown(series, chart).any() for series in chart.series):
        return tag("figure", tag("h3", chart.title), tag("p", "There is nothing to draw.", class_="empty"))
    return tag(
        "figure",
        linked_heading("h3", chart.title, chart.key, has_id=False),
        legend(chart),
        tag("p", _axis_title(chart.y), class_="unit"),
        tag("div", draw_static(chart), class_="static"),
        tag("p", _axis_title(chart.x), class_="unit x"),
        json_data(chart_data(chart)),
        tag("figcaption", chart.caption) if chart.caption else "",
        class_="chart wide" if chart.wide else "chart",
        id=chart.key,
    )


def legend(chart: Chart) -> Markup:
    """Return the names of the series in their colours; nothing where there is only one name.

    Series of one name belong together, such as a curve and its dots.
    """
    first = {name: next(i for i, s in enumerate(chart.series) if s.name == name) for name in names(chart)}
    if len(first) < 2:
        return Markup()
    items = (tag("li", _swatch(chart, index), tag("span", name)) for name, index in first.items())
    return tag("ul", *items, class_="legend")


def _swatch(chart: Chart, index: int) -> Markup:
    """Return a small picture of the series' marks."""
    kind, colour = chart.series[index].kind, colour_class(chart.series[index].colour)
    match kind:
        case "dots":
            mark = tag("path", d="M14 6h.01", class_=f"dot mark d{names(chart).index(chart.series[index].name) % 2}")
        case _:
            class_ = "curve band" if chart.series[index].band else "curve"
            mark = tag("path", d="M0 6H28", class_=class_, stroke_dasharray=dash(chart, index))
    return tag("svg", mark, width="28", height="12", class_=f"swatch {colour}", aria_hidden="true")


def _axis_title(axis: Axis) -> str:
    """Return the title with the unit, where the labels do not carry it."""
    if axis.unit == "1/s":
        return f"{axis.title} per second"
    carried = axis.unit in ("", "s", "J", "share") or axis.unit in axis.title
    return axis.title if carried else f"{axis.title} ({axis.unit})"


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return what the page's script draws: axes, series with their values, and limits."""
    return {
        "key": chart.key,
        "title": chart.title,
        "text": chart.text,
        "group": chart.group,
        "height": chart.height,
        "x": _axis(chart.x, scale(chart, "x")),
        "y": _axis(chart.y, scale(chart, "y")),
        "series": [_series(series) | {"dash": _dash(chart, index)} for index, series in enumerate(chart.series)],
        "limits": [
            {"value": limit.value, "name": limit.name, "of": limit.of, "left": stands_left(limit, chart)}
            for limit in chart.limits
        ],
    }


def _dash(chart: Chart, index: int) -> list[int] | None:
    """Return the lengths of the dashes and gaps in CSS pixels; None of a solid line and of other marks."""
    text = dash(chart, index)
    return None if text is None else [int(length) for length in text.split()]


def _axis(axis: Axis, drawn: svg.Axis) -> dict[str, Any]:
    """Return the axis with the ends and the labelled values of the static drawing, so that both drawings are alike."""
    return {
        "title": axis.title,
        "unit": axis.unit,
        "log": axis.log,
        "low": drawn.low,
        "high": drawn.high,
        "ticks": [value for value, label in drawn.ticks if label],
        "stated": axis.ticks is not None,
        "whole": axis.whole,
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "name": clean(series.name),
        "kind": series.kind,
        "colour": series.colour,
        "x": _rounded(series.x),
        "y": _rounded(series.y),
        "low": None if series.low is None else _rounded(series.low),
        "high": None if series.high is None else _rounded(series.high),
        "hints": series.hints,
        "labels": series.labels,
        "band": series.band,
        "requests": series.requests,
    }


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """Return the values with DIGITS significant digits; null for what is unknown."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]
