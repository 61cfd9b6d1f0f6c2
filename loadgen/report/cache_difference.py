"""A pair of runs with and without prefix caching: the joules that it saved as measured, beside what the law says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import hypot
from typing import TYPE_CHECKING

import msgspec

from loadgen.report.format import joules, percent, plural
from loadgen.report.run_facts import summary_of, with_error
from loadgen.results.energy_summary import sum_joules
from loadgen.results.metrics import sum_known, with_counted_prompts
from loadgen.results.prefix_cache import MAX_CACHED_SHARE
from loadgen.results.summary import CacheEnergy
from loadgen.results.summary_paths import mean_at

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary
    from loadgen.results.summary_paths import Side


def saved_between(a: Sequence[RunResult], b: Sequence[RunResult], letter: str) -> str | None:
    """Return `cache_difference` of two sides with the same schedule, over the requests that all runs answered."""
    answered = [{record.index for record in run.records if record.ok} for run in (*a, *b)]
    common = set.intersection(*answered)
    if all(len(indices) == len(common) for indices in answered):
        return cache_difference([summary_of(run) for run in a], [summary_of(run) for run in b], letter)
    less, more = ([_over(run, common) for run in side] for side in (a, b))
    return cache_difference(less, more, letter, common=len(common))


def cache_difference(a: Side, b: Side, letter: str, common: int | None = None) -> str | None:
    """Return what caching saved in B against A, or the other way round; None where it is not known, or where nearly the
    same share of the prompts was cached. Both had the same schedule; `letter` is B's.

    A side that counts no cached tokens is taken for one without caching, and the sentence says so. common: number of
    the requests that the summaries are of, where they are not of all.
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
    if attributed is None or saved is None:
        return None
    saved -= mean_at(less, "energy.cache.saved_joules") or 0.0
    errors = [mean_at(side, "energy.cache.saved_se_joules") or 0.0 for side in (less, more)]
    of_measured = f", {percent(saved / attributed)} of the measured difference" if attributed > 0 else ""
    uncounted = f" ({without} counts none)" if few is None else ""
    by_counter = "" if counter is None else f", and the counter {_signed(counter)}"
    of = "" if common is None else f" over the {plural(common, 'request')} that both answered"
    return (
        f"Saved by the prefix cache{of}: {percent(many)} of the prompt tokens were cached in {cached}, "
        f"{percent(few or 0.0)} in {without}{uncounted}. Measured, the requests of {cached} used "
        f"{_signed(attributed)} than those of {without}{by_counter}; by the law of {cached} "
        f"the cache saved {with_error(saved, hypot(*errors))}{of_measured}."
    )


def _over(run: RunResult, indices: Collection[int]) -> Summary:
    """Return the summary of a run with the tokens and joules of these requests; the counter's are not known.

    The error of what was saved is the same share of it as over all requests: the prices are common to all.
    """
    summary, shares = summary_of(run), run.shares
    records = [record for record in with_counted_prompts(run.schedule, run.records) if record.index in indices]
    energy = [shares[record.index] for record in records if record.index in shares]
    cache, saved = summary.energy.cache, sum_known(share.saved_joules for share in energy)
    error = cache.saved_se_joules if cache else None
    if cache and error is not None and cache.saved_joules:
        error *= (saved or 0.0) / cache.saved_joules
    return msgspec.structs.replace(
        summary,
        tokens=msgspec.structs.replace(
            summary.tokens,
            input=sum_known(record.input_tokens for record in records),
            cached=sum_known(record.cached_tokens for record in records),
        ),
        energy=msgspec.structs.replace(
            summary.energy,
            attributed_joules=sum_joules(share.joules for share in energy),
            measured_joules=None,
            cache=CacheEnergy(saved_joules=saved, saved_se_joules=error),
        ),
    )


def _cached_share(side: Side) -> float | None:
    cached, prompts = mean_at(side, "tokens.cached"), mean_at(side, "tokens.input")
    return min(cached / prompts, 1.0) if cached is not None and prompts else None


def _difference(a: Side, b: Side, path: str) -> float | None:
    first, second = mean_at(a, path), mean_at(b, path)
    return None if first is None or second is None else first - second


def _signed(less: float) -> str:
    return f"{joules(abs(less))} {'less' if less >= 0 else 'more'}"
