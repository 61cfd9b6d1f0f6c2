"""Figures of measured values as SVG files for light and dark pages, drawn with the plots of loadgen.report.svg."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.report import svg
from loadgen.report.format import number
from loadgen.report.markup import Markup, tag
from loadgen.stats.intervals import Interval

STYLE = """
text{font:12px system-ui,sans-serif;fill:#1f2328}.rule{stroke:#8c959f;stroke-width:1;opacity:.35}
.curve{stroke:var(--c);stroke-width:2;vector-effect:non-scaling-stroke;fill:none}
.dot{stroke:var(--c);stroke-width:7;stroke-linecap:round;vector-effect:non-scaling-stroke}
.plot,.plot svg{overflow:visible}
.s0{--c:#0969da}.s1{--c:#9a6700}.s2{--c:#1a7f37}.s3{--c:#cf222e}.s4{--c:#8250df}.s5{--c:#57606a}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}
.s0{--c:#58a6ff}.s1{--c:#d29922}.s2{--c:#3fb950}.s3{--c:#ff7b72}.s4{--c:#d2a8ff}.s5{--c:#8b949e}}
"""
PLOT = (640, 280)
LEFT, TOP = 70, 46


@dataclass(frozen=True)
class Line:
    """Points of one kind. joined: False where values between two points have no meaning. dots: False for a law."""

    name: str
    points: list[tuple[float, Interval]]
    colour: int
    dash: int = 0
    joined: bool = True
    dots: bool = True


def picture(title: str, x_name: str, lines: Sequence[Line], x: svg.Axis, y: svg.Axis) -> str:
    """Return one plot with its legend below, as a complete SVG file."""
    width, height = PLOT
    description = "; ".join(f"{line.name}: " + ", ".join(_point_text(place) for place in line.points) for line in lines)
    plot = svg.plot("figure", title, description, x, y, height, [_marks(line, x, y, height) for line in lines])
    below = TOP + height + 52
    extent = (LEFT + width + 30, below + 20 * ((len(lines) + 1) // 2) + 6)
    parts = [
        tag("style", Markup(STYLE)),
        tag("text", title, x=LEFT, y=20),
        tag("svg", plot, x=LEFT, y=TOP, width=width, height=height + 30, overflow="visible"),
        tag("text", x_name, x=LEFT + width, y=below - 16, text_anchor="end"),
        *(_entry(line, index, below) for index, line in enumerate(lines)),
    ]
    size = {"viewBox": f"0 0 {extent[0]} {extent[1]}", "width": extent[0], "height": extent[1]}
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", **size) + "\n"


def _point_text(place: tuple[float, Interval]) -> str:
    return f"{place[0]:g}: {number(place[1].mean)}"


def _entry(line: Line, index: int, below: float) -> Markup:
    across, down = LEFT + 350 * (index % 2), below + 20 * (index // 2) + 4
    piece = tag("line", x1=across, x2=across + 28, y1=down, y2=down, stroke_dasharray=_dash(line), class_="curve")
    dot = tag("path", d=f"M{across + 14} {down}h.01", class_="dot")
    text = tag("text", line.name, x=across + 36, y=down + 4)
    return tag("g", *([piece] if line.joined else []), *([dot] if line.dots else []), text, class_=f"s{line.colour}")


def _dash(line: Line) -> str | None:
    return svg.DASHES[line.dash]


def _marks(line: Line, x: svg.Axis, y: svg.Axis, height: float) -> Markup:
    across = x.at(np.array([place for place, _ in line.points]))
    level = y.at(np.array([interval.mean for _, interval in line.points]))
    path = "L".join(f"{a * svg.WIDTH:.1f} {height * (1 - v):.1f}" for a, v in zip(across, level, strict=True))
    curve = tag("path", d=f"M{path}", class_="curve", stroke_dasharray=_dash(line))
    bars = [_bar(float(a), interval, y, height) for a, (_, interval) in zip(across, line.points, strict=True)]
    titles = [f"{line.name}, {_point_text(place)}" for place in line.points]
    places = zip(
        np.round(across * svg.WIDTH, 1).tolist(), np.round(height * (1 - level), 1).tolist(), titles, strict=True
    )
    dots = (tag("path", tag("title", text), d=f"M{a:g} {down:g}h.01") for a, down, text in places)
    marks = [*([curve] if line.joined else []), *bars, *([tag("g", *dots, class_="dot")] if line.dots else [])]
    return tag("g", *marks, class_=f"s{line.colour}")


def _bar(across: float, interval: Interval, y: svg.Axis, height: float) -> Markup:
    """Draw the bar of an interval from low to high, cut at the frame."""
    if interval.low is None or interval.high is None:
        return Markup()
    low, high = height * (1 - y.at(np.array([max(interval.low, y.low), interval.high])))
    return tag("path", d=f"M{across * svg.WIDTH:.1f} {low:.1f}V{high:.1f}", class_="curve")


def batch_axis() -> svg.Axis:
    return svg.Axis(1, 512, True, tuple((float(2**k), str(2**k)) for k in range(10)))


def share_axis(low: int, high: int) -> svg.Axis:
    """Return an axis in per cent with a tick every 20."""
    return svg.Axis(low, high, False, tuple((float(v), f"{v} %".replace("-", "−")) for v in range(low, high + 1, 20)))


def by_batch(batches: Sequence[int], of: Callable[[int], Interval | None]) -> list[tuple[float, Interval]]:
    return [(float(batch), interval) for batch in batches if (interval := of(batch)) is not None]


def scaled(interval: Interval | None, by: float) -> Interval | None:
    """Return the interval in other units; a negative factor swaps its ends."""
    if interval is None:
        return None
    if interval.low is None or interval.high is None:
        return Interval(by * interval.mean, None, None, interval.count)
    low, high = sorted((by * interval.low, by * interval.high))
    return Interval(by * interval.mean, low, high, interval.count)


def alone(value: float) -> Interval:
    return Interval(value, None, None, 1)
