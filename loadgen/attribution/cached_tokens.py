"""Cached prompt tokens of each request, where the server's usage does not count them.

The engine's counters say how many prompt tokens came from its cache between two samples, and the plan says how many of
each prompt can have: those that earlier requests had. Where the two agree, each request has what the plan says. Where
fewer were cached, the requests whose prefills took longer than what the plan leaves to compute lacked theirs.

Without counters, the times of the prefills decide whether the server has a cache: with one they follow from the tokens
that the plan leaves to compute, without one from the whole prompts. A prefill that took about as long as the whole
prompt does found its prefix evicted.

A server computes prompts in order, so that a prefill begins when its request was sent, or when the one before it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from loadgen.attribution.engine_steps import BURST_GAP_NS
from loadgen.stats.nnls import nnls
from loadgen.telemetry.engine_sample import counter_values, sample_times
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample

BLOCK_TOKENS = 16
"""Caches hold whole blocks, of this many tokens or more, and at least one token of a prompt is computed."""
EDGE_NS = 50 * NS_PER_MS
"""A first token so close to a sample of the counters may be before or after it."""
MIN_PREFILLS = 20
"""Fewest prefills whose times tell whether there is a cache."""
MAX_PREFILLS = 5000
"""Prefills that the law of their times is fitted to, at most: as many, at even distances in the run."""
CLEARLY = 0.5
"""A cache explains the times of the prefills if that leaves less than this part of the error without one."""
EVICTED = 0.1
"""A prefill that took longer by no more than this share of what its cached tokens save lacked none of them."""
PASSES = 3
"""Passes over the law of the prefills' times and the tokens that it is fitted with."""


@dataclass(frozen=True)
class Prefills:
    """Prompts of n requests, and the G times in which they were computed: those that end within a burst are of one.

    prompt, plan: float64[n], tokens, and those that can have been cached; NaN: not known. first_ns: int64[n], the first
    tokens. group, rank: int64[n], the time of each, and how many of that time were sent before. seconds: float64[G].
    """

    prompt: Floats
    plan: Floats
    first_ns: Ints
    group: Ints
    rank: Ints
    seconds: Floats

    def work(self, cached: Floats) -> Floats:
        """Return float64[G, 3]: the constant, the tokens and the pairs that the prefills take time for."""
        sums = [np.bincount(self.group, column, minlength=len(self.seconds)) for column in self.own_work(cached).T]
        return np.stack((np.ones(len(self.seconds)), *sums), axis=1)

    def own_work(self, cached: Floats) -> Floats:
        """Return float64[n, 2]: the tokens and the pairs of each prefill."""
        tokens = self.prompt - cached
        return np.stack((tokens / 1e3, tokens * (cached + tokens / 2) / 1e8), axis=1)


def prefills_of(prompt: Floats, plan: Floats, sent_ns: Ints, first_ns: Ints) -> Prefills:
    """Return the prefills of requests by the instants at which they were sent and got their first tokens."""
    order = np.argsort(first_ns, kind="stable")
    new = np.concatenate(([True], np.diff(first_ns[order]) >= BURST_GAP_NS))
    group = np.empty(len(prompt), np.int64)
    group[order] = np.cumsum(new) - 1
    end_ns = first_ns[order][new]
    begin_ns = np.full(len(end_ns), np.iinfo(np.int64).max)
    np.minimum.at(begin_ns, group, sent_ns)
    begin_ns[1:] = np.maximum(begin_ns[1:], end_ns[:-1])
    in_turn = np.lexsort((sent_ns, group))
    rank = np.empty(len(prompt), np.int64)
    rank[in_turn] = np.arange(len(prompt)) - np.searchsorted(group[in_turn], group[in_turn])
    return Prefills(prompt, plan, first_ns, group, rank, np.maximum(end_ns - begin_ns, 0) / NS_PER_S)


def with_cached_tokens(
    records: Sequence[RequestRecord], reusable: Sequence[int | None], engine: Sequence[EngineSample] = ()
) -> list[RequestRecord]:
    """Return the records with the cached tokens that the counters, or else the times of the prefills, show, if the
    server's usage has none in any request. A request of which neither shows any stays as it is.

    A gateway reports 0 of what it does not know: the counters prevail over that, the times do not. reusable: tokens at
    the beginning of each prompt that earlier requests had; None: not known.
    """
    rows = [row for row, record in enumerate(records) if record.input_tokens and _first_ns(record) is not None]
    if not rows or any(record.cached_tokens for record in records):
        return list(records)
    prompt = np.array([records[row].input_tokens for row in rows], float)
    plan = np.array([np.nan if reusable[row] is None else reusable[row] for row in rows], float)
    plan = np.minimum(plan, prompt - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    sent_ns, first_ns = np.array([(records[row].sent_ns, _first_ns(records[row])) for row in rows], np.int64).T
    prefills = prefills_of(prompt, plan, sent_ns, first_ns)
    cached = cached_by_counters(prefills, engine)
    if cached is None:
        if any(record.cached_tokens is not None for record in records):
            return list(records)
        cached = cached_by_times(prefills)
    filled = list(records)
    for row, tokens in zip(rows, cached.tolist(), strict=True):
        if not np.isnan(tokens):
            filled[row] = msgspec.structs.replace(records[row], cached_tokens=round(tokens))
    return filled


def _first_ns(record: RequestRecord) -> int | None:
    return record.finished_ns if record.came_whole else record.first_token_ns


def cached_by_counters(prefills: Prefills, engine: Sequence[EngineSample]) -> Floats | None:
    """Return float64[n], the cached tokens of requests by the engine's counters; NaN outside of its samples. None
    without counters."""
    counted, prompts = counter_values(engine, "cached_tokens"), counter_values(engine, "prompt_tokens")
    if counted is None or prompts is None:
        return None
    prompt, first_ns = prefills.prompt, prefills.first_ns
    order = np.argsort(first_ns, kind="stable")
    bounds = _requests_before(np.cumsum(prompt[order]), first_ns[order], sample_times(engine), prompts)
    parts = [order[bounds[k] : bounds[k + 1]] for k in range(len(bounds) - 1)]
    ours = np.array([prompt[part].sum() for part in parts])
    grown, hits = np.diff(prompts), np.diff(counted)
    hits = np.minimum(hits * np.minimum(np.divide(ours, grown, out=np.zeros(len(ours)), where=grown > 0), 1.0), ours)
    cached = np.full(len(prompt), np.nan)
    lacking = np.zeros(len(prompt))
    for _pass in range(PASSES):
        for k, part in enumerate(parts):
            if len(part):
                cached[part] = _divided(float(hits[k]), prompt[part], prefills.plan[part], lacking[part])
        known = np.where(np.isnan(cached), 0.0, cached)
        plan = np.where(np.isnan(prefills.plan), known, prefills.plan)
        lacking = plan * _evicted_share(prefills, plan, _times_law(prefills.work(known), prefills.seconds))
    return cached


def _divided(hits: float, prompt: Floats, plan: Floats, lacking: Floats) -> Floats:
    """Divide cached tokens among requests: as planned, but for what is missing, which is of those that seem to lack
    most, or what was cached beyond the plan, in proportion."""
    plan = np.where(np.isnan(plan), hits / prompt.sum() * prompt, plan)
    missing = float(plan.sum()) - hits
    if missing <= 0:
        beyond = prompt - plan
        return np.asarray(plan + beyond * (-missing / max(float(beyond.sum()), 1.0)))  # 0 where all was cached
    order = np.argsort(-lacking, kind="stable")
    taken = np.zeros(len(plan))
    for limit in (lacking, plan):  # what seems to be missing, and then whatever can be
        room = (limit - taken)[order]
        taken[order] += np.clip(missing - taken.sum() - (np.cumsum(room) - room), 0.0, np.maximum(room, 0.0))
    return plan - taken


def _evicted_share(prefills: Prefills, plan: Floats, law: Floats) -> Floats:
    """Return float64[n]: the share of its planned tokens that each request lacked, by the time of its prefill.

    With a share f of them computed again, that takes b f + c f^2 longer. Of those that were computed in one time, the
    first one in turn is taken to have lacked its own before the next.
    """
    late = np.maximum(prefills.seconds - prefills.work(plan) @ law, 0.0)
    a, half, whole = (prefills.own_work(plan * (1 - share)) @ law[1:] for share in (0.0, 0.5, 1.0))
    c = 2 * (whole - 2 * half + a)
    b = whole - a - c
    share = np.zeros(len(plan))
    for rank in range(int(prefills.rank.max(initial=-1)) + 1):
        rows = np.flatnonzero(prefills.rank == rank)
        own = late[prefills.group[rows]]
        denominator = b[rows] + np.sqrt(np.maximum(b[rows] ** 2 + 4 * c[rows] * own, 0.0))
        share[rows] = np.minimum(np.divide(2 * own, denominator, out=np.zeros(len(own)), where=denominator > 0), 1.0)
        late[prefills.group[rows]] -= b[rows] * share[rows] + c[rows] * share[rows] ** 2
        late = np.maximum(late, 0.0)
    return share


def _requests_before(counted: Floats, first_ns: Ints, t_ns: Ints, prompts: Floats) -> Ints:
    """Return int64[samples]: how many requests each sample of the counters has counted.

    Those with a first token before it, or as many as make up its prompt tokens, if their first tokens are close to it.
    counted: float64[n], prompt tokens of the requests up to each, in order of their first tokens.
    """
    low, at, high = (np.searchsorted(first_ns, t_ns + shift) for shift in (-EDGE_NS, 0, EDGE_NS))
    total = np.concatenate(([0.0], counted))
    before = at.copy()
    for k in range(1, len(t_ns)):
        wanted = total[before[k - 1]] + prompts[k] - prompts[k - 1]
        candidates = np.arange(low[k], high[k] + 1)
        exact = candidates[np.abs(total[candidates] - wanted) < 1]
        before[k] = max(exact[0] if len(exact) else at[k], before[k - 1])
    return before


def cached_by_times(prefills: Prefills) -> Floats:
    """Return float64[n], the cached tokens of requests by the times of their prefills; NaN: not known."""
    plan = np.nan_to_num(prefills.plan)
    if len(prefills.seconds) < MIN_PREFILLS or not plan.any():
        return np.full(len(plan), np.nan)
    whole = prefills.work(np.zeros(len(plan)))
    without = float(np.abs(prefills.seconds - whole @ _times_law(whole, prefills.seconds)).sum())
    share = _evicted_share(prefills, plan, _times_law(prefills.work(plan), prefills.seconds))
    cached = np.where(share > EVICTED, plan * (1 - share), plan)
    work = prefills.work(np.where(share > 0.5, 0.0, plan))
    error = float(np.abs(prefills.seconds - work @ _times_law(work, prefills.seconds)).sum())
    if error > CLEARLY * without or (share > 0.5).all():
        return np.full(len(plan), np.nan)
    return np.where(np.isnan(prefills.plan), np.nan, cached)


def _times_law(work: Floats, seconds: Floats) -> Floats:
    """Return the prices of the prefills' time, by least absolute deviations: one that waited is no evidence."""
    every = -(-len(seconds) // MAX_PREFILLS)
    work, seconds = work[::every], seconds[::every]
    weight = np.ones(len(seconds))
    prices = np.zeros(work.shape[1])
    for _pass in range(20):
        prices, _ = nnls(work * weight[:, None], seconds * weight)
        weight = 1 / np.sqrt(np.maximum(np.abs(seconds - work @ prices), 1e-3))
    return prices
