"""A chart as data: what it shows, and nothing of how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loadgen.report.format import joules, number, percent, seconds, tick_count, tick_joules, tick_seconds, watts

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats

Unit = Literal["s", "J", "W", "tokens", "share", "1/s", "tokens/s", ""]
"""Unit of an axis. "share" is a ratio from 0 to 1, shown in per cent; "" is a plain number, such as of requests."""

Kind = Literal["line", "steps", "dots"]
"""steps: y[i] holds from x[i] to x[i + 1], and len(x) = len(y) + 1."""

Colour = int | Literal["ink", "soft", "bad", "prefill", "decode", "idle", "unattributed"]
"""Place in the palette of series, or the name of a colour of page.css."""

_VALUES: dict[Unit, Callable[[float], str]] = {
    "s": seconds,
    "J": joules,
    "W": watts,
    "tokens": lambda value: f"{number(value)} tokens",
    "share": percent,
    "1/s": lambda value: f"{number(value)} /s",
    "tokens/s": lambda value: f"{number(value)} tokens/s",
    "": number,
}
_TICKS: dict[Unit, Callable[[float], str]] = {
    "s": tick_seconds,
    "J": tick_joules,
    "tokens": tick_count,
    "share": lambda ratio: f"{100 * ratio:g} %",
}


def value_text(value: float, unit: Unit) -> str:
    """Return a value with its unit, as tooltips and tables show it."""
    return _VALUES[unit](value)


def tick_text(value: float, unit: Unit) -> str:
    """Return a round value as an axis shows it: times, energies and shares with their unit, the others without."""
    return _TICKS[unit](value) if unit in _TICKS else f"{value:,.10g}"


@dataclass(frozen=True)
class Axis:
    """An axis with its title in words. Ends that are None are those of the data."""

    title: str
    unit: Unit = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[float, ...] | None = None
    """The labelled values; None leaves them to whoever draws."""
    whole: bool = False
    """True where only whole numbers make sense, such as of requests: no label stands between two."""


@dataclass(frozen=True)
class Series:
    """One set of marks of one colour. NaN in y is a gap: the value is unknown there."""

    name: str
    x: Floats
    y: Floats
    kind: Kind = "line"
    colour: Colour = 0
    low: Floats | None = None
    """Lower ends of the intervals of y, drawn as whiskers; NaN where there is none. `high` likewise."""
    high: Floats | None = None
    hints: Sequence[str] | None = None
    """Text of each mark's tooltip; None: the series' name and the values."""
    labels: Sequence[str] | None = None
    """Text beside each mark, such as a load; empty text draws none."""
    band: bool = False
    """True for a broad, pale line below the others, such as of a plan that the series beside it should follow."""
    requests: Sequence[int] | None = None
    """Index of the request that each dot is: choosing the dot shows the request."""


@dataclass(frozen=True)
class Limit:
    """A dashed line across the chart, such as the latency limit of a goodput."""

    value: float
    name: str
    of: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Chart:
    """The content of one figure. Charts of one `group` share their x axis: its cursor and its zoom."""

    key: str
    """Unique on the page: letters, digits and hyphens."""
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    text: str
    """Text for a screen reader instead of the picture: the main values."""
    caption: str = ""
    """Note on how the marks were made: what was thinned or averaged, and by which rule."""
    limits: tuple[Limit, ...] = ()
    group: str | None = None
    height: int = 190
    """Height of the plot in CSS pixels, without titles and labels."""
    wide: bool = False
    """True for a figure of the page's whole width."""
