"""A chart on a page: its heading, its static drawing, its data for the library, and its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.charts.static import colour_class, draw_static
from loadgen.report.format import clean
from loadgen.report.markup import Markup, json_data, tag

if TYPE_CHECKING:
    from loadgen.report.charts.chart import Axis, Chart, Series

DIGITS = 5
"""Significant digits of a value in the page's data."""


def figure(chart: Chart) -> Markup:
    """Return the figure. `charts.js` replaces the drawing by an interactive one where JavaScript runs."""
    if not any(np.isfinite(series.y).any() for series in chart.series):
        return tag("figure", tag("h3", chart.title), tag("p", "There is nothing to draw.", class_="empty"))
    return tag(
        "figure",
        tag("h3", chart.title),
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
    colours = {series.name: series.colour for series in chart.series}
    if len(colours) < 2:
        return Markup()
    items = (
        tag("li", tag("i", class_=f"key {colour_class(colour)}"), tag("span", name)) for name, colour in colours.items()
    )
    return tag("ul", *items, class_="legend")


def _axis_title(axis: Axis) -> str:
    """Return the title with the unit, where the labels do not carry it."""
    carried = axis.unit in ("", "s", "J", "share") or axis.unit in axis.title
    return axis.title if carried else f"{axis.title} ({axis.unit})"


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return what `charts.js` draws: axes, series with their values, and limits."""
    return {
        "key": chart.key,
        "title": chart.title,
        "text": chart.text,
        "group": chart.group,
        "height": chart.height,
        "x": _axis(chart.x),
        "y": _axis(chart.y),
        "series": [_series(series) for series in chart.series],
        "limits": [{"value": limit.value, "name": limit.name, "of": limit.of} for limit in chart.limits],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": axis.title,
        "unit": axis.unit,
        "log": axis.log,
        "low": axis.low,
        "high": axis.high,
        "ticks": axis.ticks,
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
        "requests": series.requests,
    }


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """Return the values with DIGITS significant digits; null for what is unknown."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]
