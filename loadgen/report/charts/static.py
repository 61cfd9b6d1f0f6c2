"""Draw a chart as SVG, for print and for readers without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from loadgen.report import svg
from loadgen.report.charts.chart import Axis, Chart, Colour, Limit, Series, tick_text
from loadgen.report.markup import Markup, tag

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

MAX_HINTS = 300
"""Dots of a series that have a tooltip each; more of them are one path without tooltips."""
DENSE = 120
"""Steps of a series over time beyond which it has no dashes: they would hide its shape."""
LETTER = 6.6
"""Width of a letter of an axis, in CSS pixels."""
LINE = 13
"""Height of a line of text, in CSS pixels."""
LABEL_LETTERS = 6
"""Room for the label of a mark, in letters."""
WIDTHS = {False: 400, True: 640}
"""Widths, in CSS pixels, for which labels are kept apart, of a chart that is not and that is `wide`."""
PHONE = 290
"""Width of a plot on a phone, in CSS pixels: labels of an axis are kept apart on it."""
FAR = {False: 3, True: 30}
"""A limit above this multiple of the highest mark, on a linear and on a logarithmic axis, does not stretch the axis."""


@dataclass(frozen=True)
class Frame:
    """The area of the marks: svg.WIDTH units wide, `height` high, with y downwards."""

    x: svg.Axis
    y: svg.Axis
    height: float

    def across(self, values: Floats) -> Floats:
        return np.round(self.x.at(values) * svg.WIDTH, 1)

    def down(self, values: Floats) -> Floats:
        return np.round(self.height * (1 - self.y.at(values)), 1)


def draw_static(chart: Chart) -> Markup:
    """Return the svg of a chart that has at least one mark."""
    frame = Frame(scale(chart, "x"), scale(chart, "y"), chart.height)
    marks = [_marks(chart, index, frame) for index in range(len(chart.series))]
    lines = [_limit_line(limit, frame) for limit in chart.limits if _is_inside(limit, frame)]
    words = [*_limit_names(chart, frame), *_labels(chart, frame)]
    return svg.plot(chart.key, chart.title, chart.text, frame.x, frame.y, chart.height, [*lines, *marks], words)


def shown(series: Series, chart: Chart) -> NDArray[np.bool_]:
    """Return which of the marks can be drawn: the known ones, and on a logarithmic axis only those above 0."""
    y = np.isfinite(series.y) & ((series.y > 0) | (not chart.y.log))
    x = np.isfinite(series.x)
    positive = (series.x > 0) | (not chart.x.log)
    # A step that begins at 0 is drawn from the low end of a logarithmic axis.
    return y & x[:-1] & x[1:] & positive[1:] if series.kind == "steps" else y & x & positive


# ---------------------------------------------------------------- axes


def scale(chart: Chart, of: Literal["x", "y"]) -> svg.Axis:
    """Return the axis with its ends and its labelled values: those stated, else those of the marks and limits."""
    axis = chart.x if of == "x" else chart.y
    low, high = _ends(chart, axis, of)
    if axis.ticks is not None:
        return svg.Axis(low, high, axis.log, _apart(axis, low, high, of, chart.height))
    if axis.log:
        gap = 0.19 if of == "x" else LINE / chart.height
        made = svg.log_axis(low, high, lambda value: tick_text(value, axis.unit), gap)
        stated = (low if axis.low else made.low, high if axis.high else made.high)
    else:
        num_ticks = 5 if of == "x" else max(2, min(4, chart.height // 30))
        made = svg.linear_axis(low, high, lambda value: tick_text(value, axis.unit), num_ticks)
        stated = (low, high)
    inside = (t for t in made.ticks if stated[0] * 0.999 <= t[0] <= stated[1] * 1.001 or not axis.log)
    return svg.Axis(*stated, axis.log, tuple(t for t in inside if not axis.whole or t[0] == round(t[0])))


def _ends(chart: Chart, axis: Axis, of: Literal["x", "y"]) -> tuple[float, float]:
    """Return the ends of an axis, the higher one above the lower one. Equal values are drawn against 0."""
    values = _values(chart, axis, of)
    low = float(values.min()) if axis.low is None or (axis.log and axis.low <= 0) else axis.low
    high = float(values.max()) if axis.high is None or (axis.log and axis.high <= 0) else axis.high
    if axis.log:
        is_exact = axis.ticks is not None or axis.low or axis.high
        return low, high if high > low or not is_exact else 10 * low
    if high <= low and axis.low is None:
        low = min(low, 0.0)
    if high <= low and axis.high is None:
        high = max(high, 0.0)
    # Whole numbers need a second label.
    high = high if high > low and not (axis.whole and axis.high is None and high < low + 1) else low + 1
    return low, high + 0.04 * (high - low) if of == "y" and axis.high is None else high


def _values(chart: Chart, axis: Axis, of: Literal["x", "y"]) -> Floats:
    """Return the values that must be inside the frame."""
    parts: list[Floats] = []
    for series in chart.series:
        known = shown(series, chart)
        if of == "x" and series.kind == "steps":
            parts += [series.x[:-1][known], series.x[1:][known]]
        elif of == "x":
            parts.append(series.x[known])
        else:
            parts += [array[known] for array in (series.y, series.low, series.high) if array is not None]
    values = np.concatenate([*parts, np.array([])]).astype(float)
    values = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
    values = values if len(values) else np.array([1.0])
    limits = [limit.value for limit in chart.limits if limit.of == of and (limit.value > 0 or not axis.log)]
    near = [value for value in limits if value <= FAR[axis.log] * values.max()]
    return np.concatenate([values, near])


def _apart(axis: Axis, low: float, high: float, of: str, height: int) -> tuple[tuple[float, str], ...]:
    """Return the stated ticks inside the ends; a label that would touch the one before it is left out."""
    ticks, end = [], -np.inf
    place = svg.Axis(low, high, axis.log, ())
    for value in axis.ticks or ():
        if not (low <= value <= high) or (axis.log and value <= 0):
            continue
        label = tick_text(value, axis.unit)
        length = (LETTER * (len(label) + 1) / PHONE) if of == "x" else LINE / height
        begins = float(place.at(np.array([value]))[0]) - length / 2
        fits = begins >= end - 1e-9
        ticks.append((value, label if fits else ""))
        end = begins + length if fits else end
    return tuple(ticks)


# ---------------------------------------------------------------- marks


def _marks(chart: Chart, index: int, frame: Frame) -> Markup:
    """Return series `index`: its marks, and the whiskers below them."""
    series = chart.series[index]
    known = shown(series, chart)
    whiskers = _whiskers(series, known, frame) if series.kind != "steps" else Markup()
    if series.kind == "dots":
        drawn = _dots(series, known, frame, f"dot mark d{names(chart).index(series.name) % 2}")
    else:
        drawn = _curve(series, known, frame, dash(chart, index))
    return tag("g", whiskers, drawn, class_=colour_class(series.colour))


def names(chart: Chart) -> list[str]:
    """Return the names of the series, once each. Series of one name belong together, such as a curve and its dots."""
    return list(dict.fromkeys(series.name for series in chart.series))


def dash(chart: Chart, index: int) -> str | None:
    """Return the dashes of a series of lines or steps: each has its own, so that colour is not the only difference.

    None for a band, which is broad, and for a series over time of so many values that dashes would hide its shape.
    """
    series = chart.series[index]
    if series.kind == "dots" or series.band or (chart.group is not None and len(series.y) > DENSE):
        return None
    lines = dict.fromkeys(other.name for other in chart.series if not other.band)
    return svg.DASHES[list(lines).index(series.name) % len(svg.DASHES)]


def _curve(series: Series, known: NDArray[np.bool_], frame: Frame, dashes: str | None) -> Markup:
    """Return a path that is broken where a value is unknown. A point without neighbours is a dot."""
    x, y = frame.across(series.x).tolist(), frame.down(np.where(known, series.y, frame.y.low)).tolist()
    path, alone = [], []
    for start, stop in _runs(known):
        if series.kind == "steps":
            path.append(f"M{x[start]:g} {y[start]:g}H{x[start + 1]:g}")
            path += [f"V{y[i]:g}H{x[i + 1]:g}" for i in range(start + 1, stop)]
        elif stop == start + 1:
            alone.append(f"M{x[start]:g} {y[start]:g}h.01")
        else:
            path.append("M" + "L".join(f"{x[i]:g} {y[i]:g}" for i in range(start, stop)))
    kind = "curve band" if series.band else "curve"
    curve = tag("path", d="".join(path), class_=kind, fill="none", stroke_dasharray=dashes) if path else Markup()
    dots = tag("path", d="".join(alone), class_="dot") if alone else Markup()
    return tag("g", curve, dots)


def _runs(known: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of every run of neighbours that are known."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _dots(series: Series, known: NDArray[np.bool_], frame: Frame, class_: str) -> Markup:
    places = [
        f"M{x:g} {y:g}h.01"
        for x, y in zip(frame.across(series.x[known]).tolist(), frame.down(series.y[known]).tolist(), strict=True)
    ]
    if series.hints is None or len(places) > MAX_HINTS:
        return tag("path", d="".join(places), class_=class_)
    hints = [series.hints[i] for i in np.flatnonzero(known).tolist()]
    dots = (tag("path", tag("title", hint), d=place) for place, hint in zip(places, hints, strict=True))
    return tag("g", *dots, class_=class_)


def _whiskers(series: Series, known: NDArray[np.bool_], frame: Frame) -> Markup:
    """Return the intervals of y. An end outside the frame is cut there, and an arrowhead says so."""
    if series.low is None and series.high is None:
        return Markup()
    path = []
    for i in np.flatnonzero(known).tolist():
        x, middle = float(frame.across(series.x[i : i + 1])[0]), float(frame.down(series.y[i : i + 1])[0])
        for ends, outward in ((series.low, 1), (series.high, -1)):
            if ends is None or np.isnan(ends[i]):
                continue
            end = float(frame.down(ends[i : i + 1])[0])
            cut = ends[i] < frame.y.low if outward == 1 else ends[i] > frame.y.high
            tip = f"M{x - 5:g} {end - 5 * outward:g}L{x:g} {end:g}L{x + 5:g} {end - 5 * outward:g}"
            path.append(f"M{x:g} {middle:g}V{end:g}" + (tip if cut else f"M{x - 5:g} {end:g}H{x + 5:g}"))
    return tag("path", d="".join(path), class_="whisker", fill="none") if path else Markup()


# ---------------------------------------------------------------- limits and labels


def _is_inside(limit: Limit, frame: Frame) -> bool:
    axis = frame.x if limit.of == "x" else frame.y
    return axis.low <= limit.value <= axis.high


def _limit_line(limit: Limit, frame: Frame) -> Markup:
    value = np.array([limit.value])
    if limit.of == "x":
        return tag("path", d=f"M{frame.across(value)[0]:g} 0V{frame.height:g}", class_="limit")
    return tag("path", d=f"M0 {frame.down(value)[0]:g}H{svg.WIDTH}", class_="limit")


def _limit_names(chart: Chart, frame: Frame) -> Iterator[Markup]:
    """Yield the names at the ends of the lines; a limit outside the frame has an arrow that points to it.

    Names at one edge stand below each other, so that no two of them touch. Those of limits of x stand at the lower
    edge, where no distribution is; over time at the upper one.
    """
    rows = {"x": 0, "y": 0}
    last = sum(limit.of == "x" for limit in chart.limits) - 1
    for limit in chart.limits:
        axis = frame.x if limit.of == "x" else frame.y
        place = float(axis.at(np.array([limit.value]))[0])
        outside = "→↑" if place == 1 else "←↓"
        name = limit.name if _is_inside(limit, frame) else f"{limit.name} {outside[limit.of == 'y']}"
        if limit.of == "x":
            side = {"text_anchor": "end", "dx": "-5"} if place > 0.6 else {"text_anchor": "start", "dx": "5"}
            y = frame.height - 4 - LINE * (last - rows["x"]) if chart.group is None else 11 + LINE * rows["x"]
            yield tag("text", name, x=f"{100 * place:.2f}%", y=f"{y:g}", class_="limit-name", **side)
            rows["x"] += 1
            continue
        line = frame.height * (1 - place)
        y = line - 5 if line > LINE + 4 else line + LINE * (1 + rows["y"])
        rows["y"] += line <= LINE + 4
        end = {"x": "0", "text_anchor": "start"} if stands_left(limit, chart) else {"x": "100%", "text_anchor": "end"}
        yield tag("text", name, y=f"{y:.1f}", **end, class_="limit-name")


def stands_left(limit: Limit, chart: Chart) -> bool:
    """Return whether the name of a limit of y stands at the left end of its line: where more dots, with their labels,
    are at its right end than at its left one, on a phone too."""
    if limit.of == "x":
        return False
    frame = Frame(scale(chart, "x"), scale(chart, "y"), chart.height)
    line = frame.down(np.array([limit.value]))[0]
    length = LETTER * (len(limit.name) + LABEL_LETTERS) / PHONE
    more = 0
    for series in chart.series:
        if series.kind == "dots":
            known = shown(series, chart)
            places = frame.x.at(series.x[known])[np.abs(frame.down(series.y[known]) - line) < 2 * LINE]
            more += int((places > 1 - length).sum() - (places < length).sum())
    return more > 0


def _labels(chart: Chart, frame: Frame) -> Iterator[Markup]:
    """Yield the texts beside the marks, but for those that would touch one before."""
    width = WIDTHS[chart.wide]
    boxes: list[tuple[float, float, float]] = []
    for series in chart.series:
        known = np.flatnonzero(shown(series, chart)) if series.labels is not None else np.array([], int)
        for i in known.tolist():
            text = series.labels[i] if series.labels is not None else ""
            place, y = float(frame.x.at(series.x[i : i + 1])[0]), float(frame.down(series.y[i : i + 1])[0])
            length = LETTER * len(text)
            is_left = place * width + 9 + length > width
            begin = place * width + (-9 - length if is_left else 9)
            touches = any(begin < e and b < begin + length and abs(y - other) < LINE for b, e, other in boxes)
            if not text or touches:
                continue
            boxes.append((begin, begin + length, y))
            side = {"text_anchor": "end", "dx": "-9"} if is_left else {"text_anchor": "start", "dx": "9"}
            yield tag("text", text, x=f"{100 * place:.2f}%", y=f"{y:g}", dy="-0.35em", class_="label", **side)


def colour_class(colour: Colour) -> str:
    """Return the class that sets the colour of marks."""
    return f"s{colour % 6}" if isinstance(colour, int) else f"c-{colour}"
