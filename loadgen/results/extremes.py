"""The slowest and the costliest requests of a run, and what they have in common that the others have not. Pure.

The slowest are the 1 % with the largest TTFT; in a run of fewer than 1,000 requests ten, or a tenth of them. A trait
stands out when the median of the slowest is far from the median of all requests: by the factor and by the least
difference of its rule, so that neither a large ratio of small numbers nor a small one of large numbers counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from loadgen.results.request_columns import RequestColumns
    from loadgen.stats.arrays import Floats, Ints

MIN_REQUESTS = 20
"""Fewest requests that are compared: a tenth of fewer is no group."""
SHARE, LEAST, MOST = 0.01, 10, 0.1
"""Share of the requests that the extreme ones are, their least number, and their largest share."""
WINDOW_SHARE = 0.8
"""Share of the extreme requests that a window holds."""
MAX_WINDOW = 1 / 3
"""Longest window in which they are said to have come together, as a share of the time in which requests were sent."""
MIN_TOGETHER = 5
"""Fewest extreme requests that can come together: of fewer, chance puts most into a third of the run."""
SMALL_TAIL = 1.5
"""Least ratio of the smallest extreme value to the median: below it there is nothing to explain."""


class Rule(NamedTuple):
    """Rule by which a trait stands out: at least `factor` times the median of all, and `least` more than it.

    With a factor below 1, at most `factor` times the median, and `least` less than it.
    """

    factor: float
    least: float


SLOW: Mapping[str, Rule] = {
    "queue": Rule(1.5, 2),
    "waiting": Rule(1.5, 3),
    "in_flight": Rule(1.5, 4),
    "input_tokens": Rule(1.5, 128),
    "cached_share": Rule(0.5, 0.1),
    "preemptions": Rule(1.5, 1),
    "lag_s": Rule(2.0, 0.005),
}
"""Causes of a long TTFT by name of a column, in the order in which they are stated."""
COSTLY: Mapping[str, Rule] = {
    "output_tokens": Rule(1.5, 32),
    "input_tokens": Rule(1.5, 128),
    "mean_in_flight": Rule(0.67, 0.5),
    "cached_share": Rule(0.5, 0.1),
    "preemptions": Rule(1.5, 1),
}
"""Causes of a dear request: a request that runs alone has the engine's steps for itself."""


class Trait(NamedTuple):
    """One column of the extreme requests against that of all."""

    name: str
    extreme: float
    """Median of the extreme requests. NaN: unknown, as for `usual`."""
    usual: float
    """Median of all requests."""
    stands_out: bool


class Window(NamedTuple):
    """A part of the run in which many extreme requests were sent."""

    from_s: float
    to_s: float
    inside: int
    """Number of extreme requests that were sent in it."""
    queue_max: float
    """Most requests that the extreme ones met in the engine's queue; NaN without its counters."""
    waiting_max: float
    """Most requests without a token that one of them met."""


@dataclass(frozen=True)
class Extremes:
    """The requests with the largest values of one column."""

    rows: Ints
    """Rows of the columns, the largest value first."""
    of: int
    """Number of requests with a value."""
    least: float
    """Smallest of the extreme values."""
    median: float
    """Median of all values."""
    first_s: float
    """Instant at which the first of them was sent."""
    last_s: float
    window: Window | None
    """The part of the run in which they came together; None when they are spread over it."""
    traits: tuple[Trait, ...]

    @property
    def has_tail(self) -> bool:
        """Return whether the extreme requests are far from the median."""
        return self.least >= SMALL_TAIL * self.median


def largest(values: Floats, count: int) -> Ints:
    """Return the rows of the largest known values, the largest first; of equal ones the first row first."""
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    return order[: min(count, int(np.isfinite(values).sum()))]


def extremes(columns: RequestColumns, values: Floats, rules: Mapping[str, Rule]) -> Extremes | None:
    """Return the requests with the largest `values`, against all; None where there are too few to compare."""
    known = np.isfinite(values)
    count = int(known.sum())
    if count < MIN_REQUESTS:
        return None
    rows = largest(values, max(math.ceil(SHARE * count), min(LEAST, int(MOST * count))))
    sent_s = columns.sent_s[rows]
    return Extremes(
        rows=rows,
        of=count,
        least=float(values[rows[-1]]),
        median=float(np.median(values[known])),
        first_s=float(sent_s.min()),
        last_s=float(sent_s.max()),
        window=_window(columns, rows),
        traits=tuple(_trait(name, getattr(columns, name), rows, known, rule) for name, rule in rules.items()),
    )


def slowest(columns: RequestColumns) -> Extremes | None:
    """Return the requests with the longest TTFT."""
    return extremes(columns, columns.ttft_s, SLOW)


def costliest(columns: RequestColumns) -> Extremes | None:
    """Return the requests with the most joules."""
    return extremes(columns, columns.joules, COSTLY)


def share_of_largest(values: Floats, share: float) -> float:
    """Return the part of the sum that the largest values have, `share` of them; NaN where the sum is not above 0."""
    known = np.sort(values[np.isfinite(values)])[::-1]
    total = float(known.sum())
    return float(known[: math.ceil(share * len(known))].sum()) / total if total > 0 else math.nan


def outstanding(columns: RequestColumns, row: int, names: Sequence[str]) -> list[str]:
    """Return those of these columns in which one request stands out: by the rules above against the median, and among
    the tenth of all requests that is farthest from it."""
    rules, found = {**COSTLY, **SLOW}, []
    for name in names:
        values: Floats = getattr(columns, name)
        known = np.isfinite(values)
        if known[row] and _trait(name, values, np.array([row]), known, rules[name]).stands_out:
            is_low = rules[name].factor < 1
            edge = float(np.percentile(values[known], 10 if is_low else 90))
            if values[row] <= edge if is_low else values[row] >= edge:
                found.append(name)
    return found


def _trait(name: str, values: Floats, rows: Ints, known: np.ndarray, rule: Rule) -> Trait:
    extreme, usual = _median(values[rows]), _median(values[known])
    if rule.factor < 1:
        stands_out = extreme <= rule.factor * usual and usual - extreme >= rule.least
    else:
        stands_out = extreme >= rule.factor * usual and extreme - usual >= rule.least
    return Trait(name, extreme, usual, bool(stands_out))


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _window(columns: RequestColumns, rows: Ints) -> Window | None:
    """Return the shortest part of the run that holds most of these requests; None when it is no small part."""
    sent_s = np.sort(columns.sent_s[rows])
    inside = math.ceil(WINDOW_SHARE * len(rows))
    if len(rows) < MIN_TOGETHER:
        return None
    lengths_s = sent_s[inside - 1 :] - sent_s[: len(sent_s) - inside + 1]
    first = int(np.argmin(lengths_s))
    from_s, to_s = float(sent_s[first]), float(sent_s[first + inside - 1])
    if to_s - from_s > MAX_WINDOW * float(np.ptp(columns.sent_s)):
        return None
    met = rows[(columns.sent_s[rows] >= from_s) & (columns.sent_s[rows] <= to_s)]
    queue, waiting = columns.queue[met], columns.waiting[met]
    return Window(
        from_s=from_s,
        to_s=to_s,
        inside=len(met),
        queue_max=float(np.nanmax(queue)) if np.isfinite(queue).any() else math.nan,
        waiting_max=float(waiting.max()),
    )
