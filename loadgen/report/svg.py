"""Plots that stretch to the width of the page while their text and strokes keep their size.

The outer svg has no viewBox: text and grid lines stand at percentages of it. The data is drawn inside a nested svg of
WIDTH x height units that is stretched in x only; strokes do not scale. A dot is a path of next to no length with wide
ends, so that it keeps its shape (with no length at all, a square one is lost when the page is printed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import numpy as np

from loadgen.report.markup import Markup, tag

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

WIDTH = 1000
Label = Callable[[float], str]
DASHES = (None, "7 4", "2 3", "10 3 2 3", "5 2")


@dataclass(frozen=True)
class Axis:
    """Maps data to 0..1, and holds the labelled values."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, values: Floats) -> Floats:
        """Return the position of values between the ends, 0..1; values outside are put on the nearer end."""
        low, high = (log10(self.low), log10(self.high)) if self.log else (self.low, self.high)
        places = np.log10(np.maximum(values, self.low)) if self.log else np.asarray(values, dtype=float)
        return np.clip((places - low) / (high - low), 0, 1)


def linear_axis(low: float, high: float, label: Label, num_ticks: int = 5) -> Axis:
    """Ticks at 1, 2, 5 times a power of ten, about `num_ticks` of them; the ends are the given ones."""
    high = high if high > low else low + 1
    raw = (high - low) / num_ticks
    power = 10.0 ** floor(log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    ticks = [k * step for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]
    return Axis(low, high, False, tuple((t, label(t)) for t in ticks))


def log_axis(low: float, high: float, label: Label, gap: float = 0.19) -> Axis:
    """Ends moved out to a round number. Ticks at 1-2-5, 1-3 or 1, else at every k-th power of ten: the first of these
    that leaves `gap` of the axis between neighbours, so that their labels do not touch on a phone."""
    low_power, high_power = 10.0 ** floor(log10(low)), 10.0 ** floor(log10(high))
    low = max(m * low_power for m in (1, 2, 5) if m * low_power <= low * 1.0001)
    high = min(m * high_power for m in (1, 2, 5, 10) if m * high_power >= high * 0.9999)
    high = high if high > low * 1.01 else low * 10
    decades = log10(high / low)
    digits = next((d for d, nearest in _DIGITS if nearest / decades >= gap), (1,))
    stride = max(1, ceil(gap * decades)) if digits == (1,) else 1
    exponents = range(floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9) + 1)
    ticks = [m * 10.0**e for e in exponents if e % stride == 0 for m in digits]
    shown = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
    return Axis(low, high, True, tuple((t, label(t)) for t in shown))


_DIGITS = (((1, 2, 5), log10(2)), ((1, 3), log10(3)), ((1,), 1.0))
"""Mantissas, and how many decades the nearest two are apart."""


def plot(
    key: str, title: str, text: str, x: Axis, y: Axis, height: float, marks: Iterable[str],
    words: Iterable[str] = (),
) -> Markup:  # fmt: skip
    """Return the svg. `key` is unique on the page; a screen reader says `title` and `text` instead of the picture.

    `marks` are stretched with the page; `words` are texts at percentages of its width, and keep their size.
    """
    grid, upright = [], []
    for value, label in y.ticks:
        down = f"{height * (1 - y.at(np.array([value]))[0]):.1f}"
        rule = tag("line", x1="0", x2="100%", y1=down, y2=down, class_="rule")
        grid.append(tag("g", rule, tag("text", label, x="-8", y=down, dy="0.35em", text_anchor="end")))
    for value, label in x.ticks:
        across = f"{100 * x.at(np.array([value]))[0]:.2f}%"
        rule = tag("line", x1=across, x2=across, y1="0", y2=f"{height:g}", class_="rule")
        text_below = tag("text", label, x=across, y=f"{height + 18:g}", text_anchor="middle")
        upright.append(tag("g", rule, text_below if label else ""))
    data = tag(
        "svg",
        *marks,
        viewBox=f"0 0 {WIDTH} {height:g}",
        preserveAspectRatio="none",
        width="100%",
        height=f"{height:g}",
        overflow="visible",
    )
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", text, id=f"{key}-text"),
        *upright,
        *grid,
        data,
        *words,
        class_="plot",
        role="img",
        aria_labelledby=f"{key}-title {key}-text",
        height=f"{height + 26:g}",
    )
