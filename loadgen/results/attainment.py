"""Attainment, the share of requests within every limit, by load; and the load at which too few are within them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

WANTED = 0.99
"""Share of requests that must be within every limit, unless a study states another."""
_TOLERANCE = 1e-9
"""Rounding of a mean of shares."""

Outcome = Literal["breaks", "holds", "fails", "unknown"]
"""breaks: the limits hold at the smaller loads and no longer at a larger one. holds: at every load. fails: they do not
hold at the smallest load. unknown: no load has a known share."""


@dataclass(frozen=True)
class Attainment:
    """Requests of one load that completed within their limits, as shares of all requests: failed ones missed."""

    load: float
    """Requests per second, or requests in flight."""
    share: float | None
    """Share within every limit; None: unknown."""
    by_limit: Mapping[str, float] = field(default_factory=dict)
    """Share within each limit; empty: unknown."""
    requests: int = 0
    """Requests that the shares are of."""


@dataclass(frozen=True)
class LimitBreak:
    """The load up to which enough requests are within the limits, and the first at which there are not."""

    outcome: Outcome
    held: Attainment | None = None
    """Largest load below `broken` at which the limits hold."""
    broken: Attainment | None = None
    """Smallest load at which they do not."""
    again: tuple[float, ...] = ()
    """Larger loads at which they hold all the same: the attainment does not fall steadily."""
    binding: tuple[str, ...] = ()
    """Limits that alone miss the wanted share at `broken`, the most often missed first. Empty where each of them alone
    is met often enough, or where their shares are unknown."""


def is_attained(share: float, wanted: float) -> bool:
    return share >= wanted - _TOLERANCE


def limit_break(points: Sequence[Attainment], wanted: float = WANTED) -> LimitBreak:
    """Return where the limits break as the load grows. Loads whose share is unknown are left out."""
    known = sorted(((p.load, p.share, p) for p in points if p.share is not None), key=lambda entry: entry[0])
    if not known:
        return LimitBreak("unknown")
    missed = [point for _, share, point in known if not is_attained(share, wanted)]
    held = [point for _, share, point in known if is_attained(share, wanted)]
    if not missed:
        return LimitBreak("holds", held=held[-1])
    broken = missed[0]
    below = [point for point in held if point.load < broken.load]
    shares = sorted(broken.by_limit.items(), key=lambda item: item[1])
    return LimitBreak(
        "breaks" if below else "fails",
        held=below[-1] if below else None,
        broken=broken,
        again=tuple(point.load for point in held if point.load > broken.load),
        binding=tuple(limit for limit, share in shares if not is_attained(share, wanted)),
    )
