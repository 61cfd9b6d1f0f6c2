"""Figures of measured values as SVG files that read on light and on dark, in the plots of loadgen.report.svg."""

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
    """Points of one kind. joined: False where what lies between two points has no meaning. dots: False for a law."""

    name: str
    points: list[tuple[float, Interval]]
    colour: int
    dash: int = 0
    joined: bool = True
    dots: bool = True


def picture(title: str, x_name: str, lines: Sequence[Line], x: svg.Axis, y: svg.Axis) -> str:
    """One plot with its legend below, in a file of its own."""
    width, height = PLOT
    told = "; ".join(f"{one.name}: " + ", ".join(_told(place) for place in one.points) for one in lines)
    plot = svg.plot("figure", title, told, x, y, height, [_marks(one, x, y, height) for one in lines])
    below = TOP + height + 52
    whole = (LEFT + width + 30, below + 20 * ((len(lines) + 1) // 2) + 6)
    parts = [
        tag("style", Markup(STYLE)),
        tag("text", title, x=LEFT, y=20),
        tag("svg", plot, x=LEFT, y=TOP, width=width, height=height + 30, overflow="visible"),
        tag("text", x_name, x=LEFT + width, y=below - 16, text_anchor="end"),
        *(_entry(one, index, below) for index, one in enumerate(lines)),
    ]
    size = {"viewBox": f"0 0 {whole[0]} {whole[1]}", "width": whole[0], "height": whole[1]}
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", **size) + "\n"


def _told(place: tuple[float, Interval]) -> str:
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
    level = y.at(np.array([found.mean for _, found in line.points]))
    moves = "L".join(f"{a * svg.WIDTH:.1f} {height * (1 - v):.1f}" for a, v in zip(across, level, strict=True))
    curve = tag("path", d=f"M{moves}", class_="curve", stroke_dasharray=_dash(line))
    bars = [_bar(float(a), found, y, height) for a, (_, found) in zip(across, line.points, strict=True)]
    titles = [f"{line.name}, {_told(place)}" for place in line.points]
    dots = svg.dots(across, level, height, titles, class_="dot")
    return tag("g", *([curve] if line.joined else []), *bars, *([dots] if line.dots else []), class_=f"s{line.colour}")


def _bar(across: float, found: Interval, y: svg.Axis, height: float) -> Markup:
    """From low to high, cut at the frame."""
    if found.low is None or found.high is None:
        return Markup()
    low, high = height * (1 - y.at(np.array([max(found.low, y.low), found.high])))
    return tag("path", d=f"M{across * svg.WIDTH:.1f} {low:.1f}V{high:.1f}", class_="curve")


def batch_axis() -> svg.Axis:
    return svg.Axis(1, 512, True, tuple((float(2**k), str(2**k)) for k in range(10)))


def share_axis(low: int, high: int) -> svg.Axis:
    """In per cent, a tick every 20."""
    return svg.Axis(low, high, False, tuple((float(v), f"{v} %".replace("-", "−")) for v in range(low, high + 1, 20)))


def by_batch(batches: Sequence[int], of: Callable[[int], Interval | None]) -> list[tuple[float, Interval]]:
    return [(float(batch), found) for batch in batches if (found := of(batch)) is not None]


def scaled(found: Interval | None, by: float) -> Interval | None:
    """In other units; a negative one turns the ends around."""
    if found is None:
        return None
    if found.low is None or found.high is None:
        return Interval(by * found.mean, None, None, found.count)
    low, high = sorted((by * found.low, by * found.high))
    return Interval(by * found.mean, low, high, found.count)


def alone(value: float) -> Interval:
    return Interval(value, None, None, 1)
