"""A pair of runs with and without prefix caching: the joules that it saved as measured, beside what the law says."""

from __future__ import annotations

from math import hypot
from typing import TYPE_CHECKING

from loadgen.report.format import joules, percent
from loadgen.report.run_facts import with_error
from loadgen.results.prefix_cache import MAX_CACHED_SHARE
from loadgen.results.summary_paths import mean_at

if TYPE_CHECKING:
    from loadgen.results.summary_paths import Side


def cache_difference(a: Side, b: Side, letter: str) -> str | None:
    """Return what caching saved in B against A, or the other way round; None where it is not known, or where nearly the
    same share of the prompts was cached. Both had the same schedule; `letter` is B's.

    A side that counts no cached tokens is taken for one without caching, and the sentence says so.
    """
    shares = [_cached_share(side) for side in (a, b)]
    if shares[0] is None and shares[1] is None:
        return None
    if abs((shares[1] or 0.0) - (shares[0] or 0.0)) <= MAX_CACHED_SHARE:
        return None
    sides = [(a, "A", shares[0]), (b, letter, shares[1])]
    (less, without, few), (more, cached, many) = sorted(sides, key=lambda side: side[2] or 0.0)
    attributed = _difference(less, more, "energy.attributed_joules")
    counter = _difference(less, more, "energy.measured_joules")
    saved = mean_at(more, "energy.cache.saved_joules")
    if attributed is None or counter is None or saved is None:
        return None
    saved -= mean_at(less, "energy.cache.saved_joules") or 0.0
    errors = [mean_at(side, "energy.cache.saved_se_joules") or 0.0 for side in (less, more)]
    of_measured = f", {percent(saved / attributed)} of the measured difference" if attributed > 0 else ""
    uncounted = f" ({without} counts none)" if few is None else ""
    return (
        f"Saved by the prefix cache: {percent(many)} of the prompt tokens were cached in {cached}, "
        f"{percent(few or 0.0)} in {without}{uncounted}. Measured, the requests of {cached} used "
        f"{_signed(attributed)} than those of {without}, and the counter {_signed(counter)}; by the law of {cached} "
        f"the cache saved {with_error(saved, hypot(*errors))}{of_measured}."
    )


def _cached_share(side: Side) -> float | None:
    cached, prompts = mean_at(side, "tokens.cached"), mean_at(side, "tokens.input")
    return min(cached / prompts, 1.0) if cached is not None and prompts else None


def _difference(a: Side, b: Side, path: str) -> float | None:
    first, second = mean_at(a, path), mean_at(b, path)
    return None if first is None or second is None else first - second


def _signed(less: float) -> str:
    return f"{joules(abs(less))} {'less' if less >= 0 else 'more'}"
