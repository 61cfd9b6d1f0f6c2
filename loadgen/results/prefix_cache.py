"""Judges how much of a run's prompts came from the server's prefix cache: by the answers' usage, else by the engine's
own counters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loadgen.results.metrics import with_planned_prompts
from loadgen.results.verdict import Check
from loadgen.telemetry.engine_sample import EngineSample, cached_share, counter_values

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.workload.schedule import ScheduledRequest

MAX_CACHED_SHARE = 0.02
"""Share of the prompt tokens that may be cached beyond what prompts have in common: counting noise."""


class CachedTokens(NamedTuple):
    """Prompt tokens, and how many of them came from a prefix cache, at least."""

    prompt: float
    cached: float
    counted_by: str
    """"usage" or "engine"."""
    others: float = 0.0
    """Prompt tokens of other clients, which the engine counted too; any of the cached ones may be theirs."""

    @property
    def share(self) -> float:
        """Share of the prompt that was cached, at most 1: some gateways leave cached tokens out of the prompt's."""
        return min(self.cached / self.prompt, 1.0) if self.prompt else 0.0


def prefix_cache(result: RunResult) -> Check:
    """Return whether the prompts were new to the server, beyond what the trace declares as shared."""
    counted = cached_tokens(with_planned_prompts(result.schedule, result.records), result.engine)
    if counted is None:
        reason = (
            "not known whether prompts came from the server's prefix cache: neither usage nor its metrics count them"
            if any(record.ok for record in result.records)
            else None
        )
        return Check(name="prefix_cache", status=None, reason=reason)
    shared = shareable_tokens([*result.warmed, *result.schedule]) - shareable_tokens(result.warmed)
    expected = shared + (result.info.server.get("common_prompt_tokens") or 0) * len(result.records)
    unexpected = counted.cached - max(expected, MAX_CACHED_SHARE * counted.prompt)
    by = " by its own counters" if counted.counted_by == "engine" else ""
    if unexpected <= 0:
        return Check(name="prefix_cache", status="ok")
    if any(request.words for request in result.schedule):
        reason = (
            f"{counted.share:.0%} of the prompt tokens came from the server's prefix cache{by}; it is not known how "
            "much of that your own prompts share, and how much an earlier run had left there"
        )
        return Check(name="prefix_cache", status=None, reason=reason)
    if unexpected <= counted.others:
        reason = (
            f"not known how many of these prompts came from the server's prefix cache: its own counters say "
            f"{counted.share:.0%}, with {counted.others:,.0f} prompt tokens of other clients"
        )
        return Check(name="prefix_cache", status=None, reason=reason)
    declared = f"the trace shares {shared / counted.prompt:.0%} at most" if shared else "no prompt shares a prefix"
    reason = (
        f"{counted.share:.0%} of the prompt tokens came from the server's prefix cache{by}, although {declared}: an "
        "earlier run with this --seed filled it, and time to first token and prefill joules are those of a warm cache; "
        "use another --seed"
    )
    return Check(name="prefix_cache", status="warning", reason=reason, rows=["ttft_s", "energy.prefill_joules"])


def cached_tokens(records: Sequence[RequestRecord], engine: Sequence[EngineSample]) -> CachedTokens | None:
    """Return what is known of cached prompt tokens; None if neither the usage nor the engine counts them.

    Gateways report 0 of what they do not know: where usage has no cached token, the engine's counters prevail, unless
    they count other clients too.
    """
    answered = [record for record in records if record.cached_tokens is not None and record.input_tokens]
    of_usage = CachedTokens(
        float(sum(record.input_tokens or 0 for record in answered)),
        float(sum(record.cached_tokens or 0 for record in answered)),
        "usage",
    )
    if of_usage.cached:
        return of_usage
    counted = of_engine(engine, sum(record.input_tokens or 0 for record in records))
    return of_usage if answered and (counted is None or counted.others) else counted


def of_engine(engine: Sequence[EngineSample], ours: int) -> CachedTokens | None:
    """Return what the engine counted between its first and last sample; None if it does not say. `ours`: our prompt
    tokens of that time."""
    prompts, share = counter_values(engine, "prompt_tokens"), cached_share(engine)
    if prompts is None or share is None:
        return None
    grown = float(prompts[-1] - prompts[0])
    others = grown - ours if grown - ours > MAX_CACHED_SHARE * grown else 0.0
    return CachedTokens(grown, share * grown, "engine", others)


def shareable_tokens(schedule: Sequence[ScheduledRequest]) -> int:
    """Return the prompt tokens that an earlier prompt of the schedule begins with too, at most."""
    texts: dict[int, int] = {}
    blocks: set[int] = set()
    shared = 0
    for request in schedule:
        if request.text_id is not None:
            shared += min(request.text_tokens, texts.get(request.text_id, 0))
            texts[request.text_id] = max(request.text_tokens, texts.get(request.text_id, 0))
        remaining = (request.input_tokens or 0) - request.text_tokens
        for block in request.prefix_ids:
            if block not in blocks:
                break
            shared += min(request.block_tokens, max(remaining, 0))
            remaining -= request.block_tokens
        blocks.update(request.prefix_ids)
    return shared
