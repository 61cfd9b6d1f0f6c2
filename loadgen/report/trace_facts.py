"""Facts about traces and token bins, as `loadgen trace show` prints them and the trace page lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.format import UNKNOWN, count
from loadgen.stats.distributions import Counts, ks_distance, spearman
from loadgen.workload.agent_sessions import holds_sessions
from loadgen.workload.length_source import DRAWS, draw_bins, iter_lengths, source_path
from loadgen.workload.trace_stats import WINDOWS_S, Description, Tally, describe_lengths

if TYPE_CHECKING:
    from loadgen.workload.token_bins import CountedPairs
    from loadgen.workload.trace_formats import Format

TraceFacts = tuple[dict[str, Any], Description]
"""Facts by name, None where they are unknown, and the statistics that they were taken from."""


FACT_NAMES = {
    "sessions": "sessions",
    "turns_per_session_mean": "turns per session, mean",
    "turns_per_session_p50": "turns per session, p50",
    "turns_per_session_max": "turns per session, max",
    "session_gap_p50_s": "gap between turns, p50 (s)",
    "dropped": "requests left out",
    "prefix_block_reuse": "prompt blocks seen before",
    "prefix_token_reuse": "input tokens seen before",
    "estimated": "estimated",
    "duration_s": "duration (s)",
    "rate_over_time_rps": "requests/s over time",
    "mean_rps": "requests/s, mean",
    "gap_cv": "arrival gaps, std / mean",
    **{f"index_of_dispersion_{w}s": f"dispersion in {w:,} s" for w in WINDOWS_S},
    "spearman": "rank correlation",
    **{
        f"{side}_{key}": f"{side} tokens, {name}"
        for side in ("input", "output")
        for key, name in (
            ("mean", "mean"), ("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("max", "max"),
            ("shares_by_power_of_2", "by power of 2"),
        )
    },
}  # fmt: skip
"""Names in words; a fact that is not here, such as the source of bins, is called by its key."""

DIFFERENCES = {
    "ks_input": "input tokens: Kolmogorov-Smirnov distance",
    "ks_output": "output tokens: Kolmogorov-Smirnov distance",
    "ks_gap": "time between arrivals: Kolmogorov-Smirnov distance",
    "spearman_difference": "rank correlation of input with output: difference",
}
ALIKE = "Small: alike. A distance is the largest gap between two cumulative shares, from 0 (alike) to 1 (no overlap)."


MEANINGS = (
    "Arrival gaps, std / mean, and dispersion (variance / mean of the counts in windows of so many seconds): 1 is "
    "Poisson, more is burstier. Rank correlation: Spearman's, of input with output tokens; 0 is unrelated."
)


def fact_name(key: str) -> str:
    """Return the name of a fact in words."""
    return FACT_NAMES.get(key, key.replace("_", " "))


def describe_source(name: str, format: Format | None) -> TraceFacts:
    """Describe a trace, or bins by path or name, see `source_path`."""
    path = source_path(name)
    if path.suffix == ".json" and not holds_sessions(path):
        bins, pairs = draw_bins(path)
        description = describe_lengths(*pairs)
        kind = f"{len(bins.bins)} bins, percentiles of {DRAWS} draws"
        means = {"input_mean": bins.mean_input, "output_mean": bins.mean_output}
        facts = {"name": bins.name, "kind": kind, "requests": bins.count}
        return facts | _length_facts(description) | means | bins.provenance, description
    dropped: Counter[str] = Counter()
    tally = Tally()
    for columns in iter_lengths(path, dropped, format):
        tally.add(columns)
    description = tally.describe()
    facts = {
        "name": path.name,
        "kind": "trace",
        "requests": description.requests,
        "dropped": dropped.total(),
        "workloads": description.workloads,
        **session_facts(description),
        "prefix_block_reuse": description.block_reuse,
        "prefix_token_reuse": description.token_reuse,
        "estimated": ", ".join(description.estimated) or None,
    }
    return facts | time_facts(description) | _length_facts(description), description


def session_facts(description: Description) -> dict[str, Any]:
    """Return the number of sessions, their turns and the gap between two; only None sessions where none are named."""
    sessions = description.sessions
    if sessions is None:
        return {"sessions": None}
    gap_s = sessions.gap_s
    return {
        "sessions": sessions.count,
        "turns_per_session_mean": sessions.turns.mean,
        "turns_per_session_p50": sessions.turns.percentile(50),
        "turns_per_session_max": int(sessions.turns.values[-1]),
        "session_gap_p50_s": None if gap_s is None else gap_s.percentile(50),
    }


def time_facts(description: Description) -> dict[str, Any]:
    """Return duration, rate (gaps over the duration) and how the arrivals vary; None where too few requests say so."""
    duration_s, gaps_s = description.duration_s, description.gaps_s
    return {
        "duration_s": duration_s or None,  # 0 where all arrive at once, as without timestamps
        "rate_over_time_rps": None if description.rates_rps is None else list(description.rates_rps),
        "mean_rps": (description.requests - 1) / duration_s if duration_s else None,
        "gap_cv": gaps_s.std / gaps_s.mean if gaps_s and gaps_s.mean > 0 else None,
        **{f"index_of_dispersion_{w}s": d for w, d in zip(WINDOWS_S, description.dispersion, strict=True)},
    }


def _length_facts(description: Description) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for side, lengths in (("input", description.inputs), ("output", description.outputs)):
        facts[f"{side}_mean"] = lengths.mean
        facts |= {f"{side}_p{p}": lengths.percentile(p) for p in (50, 90, 99)}
        facts[f"{side}_max"] = int(lengths.values[-1])
        facts[f"{side}_shares_by_power_of_2"] = shares_by_power_of_2(lengths)
    return facts | {"spearman": rank_correlation(description.pairs)}


def shares_by_power_of_2(lengths: Counts) -> list[float]:
    """Return the share of requests with 2^(k-1) < length <= 2^k, for k from 0 to that of the longest."""
    exponents = np.ceil(np.log2(lengths.values)).astype(int)
    shares: list[float] = np.bincount(exponents, lengths.counts / lengths.counts.sum()).tolist()
    return shares


def rank_correlation(pairs: CountedPairs) -> float | None:
    """Return Spearman's correlation of input with output tokens; None when one of them does not vary."""
    return spearman(pairs.inputs, pairs.outputs, pairs.counts)


def differences(a: Description, b: Description) -> dict[str, float | None]:
    """Compare two traces or bins: Kolmogorov-Smirnov distances, and the difference of their rank correlations.

    None where one of them has no gaps, or no correlation.
    """
    rho_a, rho_b = rank_correlation(a.pairs), rank_correlation(b.pairs)
    return {
        "ks_input": ks_distance(a.inputs, b.inputs),
        "ks_output": ks_distance(a.outputs, b.outputs),
        "ks_gap": ks_distance(a.gaps_s, b.gaps_s) if a.gaps_s and b.gaps_s else None,
        "spearman_difference": None if rho_a is None or rho_b is None else abs(rho_a - rho_b),
    }


def format_fact(value: Any, decimal: Callable[[float], str], chart: Callable[[list[float]], str] = str) -> str:
    """Format a fact of any type: `decimal` formats a float, and `chart` a list; of names with counts the first 20."""
    match value:
        case None:
            return UNKNOWN
        case float():
            return decimal(value)
        case int():
            return count(value)
        case list():
            return chart(value)
        case dict():
            return ", ".join(f"{name} {n:,}" for name, n in list(value.items())[:20])
        case _:
            return str(value)
