"""Format numbers for reading: a unit, three significant digits, and "-" for unknown."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, isfinite, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadgen.results.search_result import Estimate

UNKNOWN = "-"


def number(value: float | None, digits: int = 3) -> str:
    """Format with `digits` significant digits, never cutting the whole part: 0.0123, 12.3, 12,345."""
    if value is None or not isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10**digits else value
    decimals = max(0, digits - 1 - floor(log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def plural(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def _prefixed(value: float | None, unit: str, prefixes: tuple[tuple[float, float, str], ...]) -> str:
    """Format with the first (from, factor, prefix), largest first, whose `from` the rounded value reaches."""
    if value is None or not isfinite(value):
        return UNKNOWN
    if value == 0:
        return f"0 {unit}"
    # 0.9996 s is "1.00 s": the rounded number chooses the prefix, not the exact one.
    rounded = abs(float(f"{value:.2e}"))
    fitting = (p for p in prefixes if rounded >= p[0])
    _, factor, prefix = next(fitting, prefixes[-1])
    return f"{number(value / factor)} {prefix}{unit}"


def seconds(value: float | None) -> str:
    return _prefixed(value, "s", ((1, 1, ""), (1e-3, 1e-3, "m"), (1e-6, 1e-6, "µ")))


def joules(value: float | None) -> str:
    """Format in J from 0.01 to 9,999, the range of most compared values; else with a prefix."""
    small = ((1e-5, 1e-3, "m"), (1e-8, 1e-6, "µ"), (0, 1e-9, "n"))
    return _prefixed(value, "J", ((1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.01, 1, ""), *small))


def watts(value: float | None) -> str:
    return UNKNOWN if value is None else f"{number(value)} W"


def percent(ratio: float | None) -> str:
    """Format a ratio in percent with one decimal; only exactly 0 and 1 are shown as 0 % and 100 %."""
    if ratio is None or not isfinite(ratio):
        return UNKNOWN
    if 0 < ratio < 0.0005:
        return "<0.1 %"
    if 0.9995 <= ratio < 1:
        return ">99.9 %"
    return f"{100 * ratio:.1f} %"


def share(part: float | None, whole: float | None) -> str:
    return percent(part / whole) if part is not None and whole else UNKNOWN


def with_unit(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None or not isfinite(value) else f"{number(value)} {unit}"


def clean(text: object, limit: int = 400) -> str:
    """Return one short printable line of text from a server: no control or bidirectional characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def tick_seconds(value: float) -> str:
    """Format a round number of seconds for an axis. It is negative before the start of a run."""
    if value == 0:
        return "0 s"
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= factor * 0.999:
            return f"{value / factor:,.10g} {unit}"
    return f"{value / 1e-9:g} ns"


def tick_joules(value: float) -> str:
    """Format a round number of joules for an axis, in the units of `joules` from 10 mJ to 10 kJ."""
    if abs(value) >= 9_999:
        return f"{value / 1e3:,.10g} kJ"
    return f"{value:,g} J" if abs(value) >= 0.0099 or value == 0 else f"{value * 1e3:g} mJ"


def tick_count(value: float) -> str:
    """Format a round number of tokens for an axis."""
    for least, factor, unit in ((999_999, 1e6, "M"), (9_999, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / factor:,.10g}{unit}"
    return f"{value:,.10g}"


def interval_text(estimate: Estimate, text: Callable[[float | None], str] = number) -> str:
    """Return the interval in brackets; its ends have no unit where it is that of the value."""
    unit = text(estimate.value).partition(" ")[2]
    ends = ("unknown" if end is None else text(end) for end in (estimate.low, estimate.high))
    low, high = (end.removesuffix(f" {unit}") if unit else end for end in ends)
    return f"[{low}, {high}]"
