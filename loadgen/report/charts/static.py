"""Draw a chart as SVG, for print and for readers without JavaScript."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loadgen.report import svg
from loadgen.report.charts.chart import Axis, Chart, Colour, Series, tick_text
from loadgen.report.markup import Markup, tag

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats


def draw_static(chart: Chart) -> Markup:
    """Return the svg of a chart that has at least one mark."""
    x, y = scale(chart, "x"), scale(chart, "y")
    marks = [_marks(series, x, y, chart.height) for series in chart.series]
    for limit in chart.limits:
        line = (np.array([0.0, 1.0]), y.at(np.array([limit.value])))
        if limit.of == "x":
            place = float(x.at(np.array([limit.value]))[0]) * svg.WIDTH
            marks.append(tag("path", tag("title", limit.name), d=f"M{place:g} 0V{chart.height}", class_="limit"))
        else:
            marks.append(svg.steps(*line, chart.height, stroke_dasharray="4 4"))
    return svg.plot(chart.key, chart.title, chart.text, x, y, chart.height, marks)


def scale(chart: Chart, of: str) -> svg.Axis:
    """Return the axis with its ends and its labelled values: those stated, else those of the marks and limits."""
    axis: Axis = chart.x if of == "x" else chart.y
    values = [limit.value for limit in chart.limits if limit.of == of]
    for series in chart.series:
        arrays = [series.x] if of == "x" else [series.y, series.low, series.high]
        values += [float(v) for array in arrays if array is not None for v in _ends(array, axis.log)]
    low = axis.low if axis.low is not None else min(values, default=0.0)
    high = axis.high if axis.high is not None else max(values, default=1.0)
    if axis.ticks is not None:
        return svg.Axis(low, high, axis.log, tuple((tick, tick_text(tick, axis.unit)) for tick in axis.ticks))
    if axis.log:
        gap = 0.19 if of == "x" else 0.09
        return svg.log_axis(low, high, lambda value: tick_text(value, axis.unit), gap)
    num_ticks = 5 if of == "x" else 4
    return svg.linear_axis(
        low, high, lambda v: "" if axis.whole and v != int(v) else tick_text(v, axis.unit), num_ticks
    )


def _ends(values: Floats, log: bool) -> Iterable[float]:
    """Return the least and the greatest of the values that the axis can show."""
    shown = values[np.isfinite(values) & (values > 0 if log else True)]
    return (float(shown.min()), float(shown.max())) if len(shown) else ()


def _marks(series: Series, x: svg.Axis, y: svg.Axis, height: float) -> Markup:
    known = np.isfinite(series.y)
    places = x.at(series.x)
    match series.kind:
        case "steps":
            drawn = svg.steps(places, y.at(np.where(known, series.y, y.low)), height)
        case "dots":
            drawn = svg.dots(places[known], y.at(series.y[known]), height, _hints(series, known), class_="dot mark")
        case _:
            across, down = places[known] * svg.WIDTH, height * (1 - y.at(series.y[known]))
            moves = "L".join(f"{h:.1f} {v:.1f}" for h, v in zip(across, down, strict=True))
            drawn = tag("path", d=f"M{moves}", class_="curve", fill="none")
    return tag("g", drawn, class_=colour_class(series.colour))


def _hints(series: Series, known: NDArray[np.bool_]) -> list[str] | None:
    if series.hints is None:
        return None
    return [hint for hint, shown in zip(series.hints, known, strict=True) if shown]


def colour_class(colour: Colour) -> str:
    """Return the class that sets the colour of marks."""
    return f"s{colour % 6}" if isinstance(colour, int) else f"c-{colour}"
