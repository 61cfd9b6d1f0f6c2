"""Numbers in words and Markdown tables, as the pages of docs/results write them.

They differ from loadgen.report.format: a large number is rounded to its significant digits too (12,300 instead of
12,345), and a negative share has a minus sign instead of a hyphen.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from loadgen.stats.intervals import Interval, interval


def sig(value: float | None, digits: int = 3) -> str:
    """Return `value` with three significant digits, never an exponent."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded)))))
    return f"{rounded:,.{places}f}"


def plus_minus(values: Sequence[float]) -> str:
    """Return mean ± half of the 95 % interval, with as many digits as the mean; one repeat has no interval."""
    return in_words(interval(values)) if values else "-"


def in_words(measured: Interval) -> str:
    """Return mean ± half of an interval, with at least one significant digit in the half."""
    mean = sig(measured.mean)
    if measured.low is None or measured.high is None:
        return f"{mean} (one repeat)"
    half, digits = (measured.high - measured.low) / 2, len(mean.partition(".")[2])
    while half and not round(half, digits):
        digits += 1
    return f"{measured.mean:,.{digits}f} ± {half:.{digits}f}"


def percents(reduction: Interval | None, sign: int = 1) -> str:
    """Return a reduction in per cent with its interval; with sign -1 the change."""
    if reduction is None:
        return "-"
    ends = sorted(sign * 100 * end for end in (reduction.low, reduction.high) if end is not None)
    plus = "+" if sign < 0 else ""
    mean = f"{sign * 100 * reduction.mean:{plus}.1f} %"
    return (mean + (f" [{ends[0]:{plus}.1f}, {ends[1]:{plus}.1f}]" if ends else "")).replace("-", "−")


def percent(value: float | None, signed: bool = False) -> str:
    """Return a ratio in per cent with one decimal, and a plus sign for a positive one if `signed`."""
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f} %".replace("-", "−")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
