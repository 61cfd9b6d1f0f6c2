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
