"""Numbers as docs/results.md writes them."""

from collections.abc import Iterable, Sequence

import numpy as np

from loadgen.results import Interval, interval


def sig(value: float | None, digits: int = 3) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(rounded)))))
    return f"{rounded:,.{places}f}"


def plus_minus(values: Sequence[float]) -> str:
    """Mean ± half of the 95 % interval, as many digits as the mean; one repeat has none."""
    return in_words(interval(values)) if values else "-"


def in_words(found: Interval) -> str:
    told = sig(found.mean)
    if found.low is None or found.high is None:
        return f"{told} (one repeat)"
    half, digits = (found.high - found.low) / 2, len(told.partition(".")[2])
    while half and not round(half, digits):
        digits += 1
    return f"{found.mean:,.{digits}f} ± {half:.{digits}f}"


def percents(found: Interval | None, sign: int = 1) -> str:
    """A reduction in per cent; with sign -1 the change that it is."""
    if found is None:
        return "-"
    ends = sorted(sign * 100 * end for end in (found.low, found.high) if end is not None)
    plus = "+" if sign < 0 else ""
    told = f"{sign * 100 * found.mean:{plus}.1f} %"
    return (told + (f" [{ends[0]:{plus}.1f}, {ends[1]:{plus}.1f}]" if ends else "")).replace("-", "−")


def percent(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{100 * value:{'+' if signed else ''}.1f} %".replace("-", "−")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
