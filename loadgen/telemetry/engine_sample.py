"""The counters of an engine at one instant: what is polled, written to engine.jsonl and read from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints

EngineSample = Mapping[str, float]
"""One line of engine.jsonl: `t_ns`, and those of these fields that the engine's page tells, each with one meaning.

Counters: `prompt_tokens` of whole prompts, cached tokens included; `cached_tokens`, those of them that came from a
prefix cache; `computed_tokens`, the others, where the engine counts them itself; `generation_tokens`; `iterations`, the
engine's steps; `preemptions`; of speculative decoding, `drafts` that were verified, their `draft_tokens` and the
`accepted_tokens` among those. At the instant: `running` and `waiting` requests, which never overlap; `kv_cache_usage`
from 0 to 1. Each is summed over the engines behind one page, but for the KV cache, which is the fullest one's.
"""

PROMPT_COUNTERS = frozenset(("prompt_tokens", "cached_tokens", "computed_tokens"))
"""Counters of prompts. An engine that only generates counts prompts that another engine has computed."""

MAX_HOLD_S = 5.0
"""A reading of a gauge holds until the next one, and no longer than this."""


def sample_times(engine: Sequence[EngineSample]) -> Ints:
    """Return int64[len(engine)]: when the counters were read."""
    return np.array([int(sample["t_ns"]) for sample in engine], dtype=np.int64)


def counter_values(engine: Sequence[EngineSample], name: str) -> Floats | None:
    """Return one counter over time; None when it went back (the engine restarted), or a sample lacks it.

    Engines show some counters only once they have counted something: before its first sample, a counter was 0.
    """
    first = next((i for i, sample in enumerate(engine) if name in sample), None)
    if len(engine) < 2 or first is None or any(name not in sample for sample in engine[first:]):
        return None
    values = np.array([0.0] * first + [sample[name] for sample in engine[first:]], dtype=np.float64)
    return values if bool((np.diff(values) >= 0).all()) else None


def counter_growth(engine: Sequence[EngineSample], name: str) -> Floats:
    """Return float64[len(engine) - 1]: growth of a counter between samples, 0 where it is not shown.

    One that went down began at zero again: the engine restarted.
    """
    values = [sample.get(name, 0.0) for sample in engine]
    return np.array([end - start if end >= start else end for start, end in pairwise(values)], dtype=np.float64)


def summed_samples(engines: Sequence[Sequence[EngineSample]]) -> list[dict[str, float]]:
    """Return the sums of the counters of several engines, at the instants of the first one's samples that all have a
    sample before and after; between two, a counter is taken to grow evenly. Of the KV cache, the fullest one's.

    Only what every engine shows has a sum. Empty where an engine has no two samples.
    """
    if not engines or any(len(samples) < 2 for samples in engines):
        return []
    times = [sample_times(samples) for samples in engines]
    at_ns = times[0][(times[0] >= max(t[0] for t in times)) & (times[0] <= min(t[-1] for t in times))]
    names = set.intersection(*(set(samples[-1]) for samples in engines)) - {"t_ns", "engine"}
    columns: dict[str, Floats] = {}
    for name in names:
        rows = [
            np.interp(at_ns, t_ns, [sample.get(name, 0.0) for sample in samples])
            for t_ns, samples in zip(times, engines, strict=True)
        ]
        columns[name] = np.max(rows, axis=0) if name == "kv_cache_usage" else np.sum(rows, axis=0)
    return [{"t_ns": t, **{name: float(columns[name][k]) for name in columns}} for k, t in enumerate(at_ns.tolist())]


def computed_prompt_tokens(engine: Sequence[EngineSample]) -> Floats | None:
    """Return the prompt tokens that the engine computed, over time, without those from its prefix cache; None when it
    does not count them apart."""
    computed = counter_values(engine, "computed_tokens")
    prompts, cached = counter_values(engine, "prompt_tokens"), counter_values(engine, "cached_tokens")
    return prompts - cached if computed is None and prompts is not None and cached is not None else computed


def cached_share(engine: Sequence[EngineSample]) -> float | None:
    """Return the share of the prompt tokens between the first and the last sample that came from the prefix cache; None
    when the engine does not count them, or had no prompt."""
    prompts, cached = counter_values(engine, "prompt_tokens"), counter_values(engine, "cached_tokens")
    if prompts is None or cached is None or prompts[-1] <= prompts[0]:
        return None
    return float((cached[-1] - cached[0]) / (prompts[-1] - prompts[0]))
