"""Estimate the work of other clients from the engine's own counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad, Narrow
from loadgen.telemetry.engine_sample import EngineSample, computed_prompt_tokens, counter_values, sample_times

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints

FOREIGN_SHARE = 0.02
"""A smaller share of the engine's output tokens that is not ours is counting noise."""


def with_engine(steps: EngineSteps, engine: Sequence[EngineSample], our_cached: tuple[Ints, Narrow]) -> EngineSteps:
    """Return the same steps with the steps of other clients, as far as the engine's counters exceed ours.

    our_cached: instants and numbers of prompt tokens of ours that came from a prefix cache. They are no work; an engine
    that does not count cached tokens has them among its prompt tokens. Less than FOREIGN_SHARE of the engine's output
    tokens is counting noise, and no other client is assumed.
    """
    generated, counted_prompts = counter_values(engine, "generation_tokens"), counter_values(engine, "prompt_tokens")
    computed = computed_prompt_tokens(engine)
    prompts = counted_prompts if computed is None else computed
    if generated is None or prompts is None or not steps.count:
        return steps
    edges = sample_times(engine)
    our_tokens = _sum_by_interval(edges, steps.end_ns[steps.step], steps.decode)
    our_tokens += _sum_by_interval(edges, _first_token_times(steps), np.ones(len(_first_token_times(steps))))
    our_prefill = _sum_by_interval(edges, steps.end_ns[steps.step], steps.prefill)
    decode = np.maximum(np.diff(generated) - our_tokens, 0.0)
    if float(np.diff(generated).sum() - our_tokens.sum()) < FOREIGN_SHARE * float(np.diff(generated).sum()):
        return steps
    our_steps = _sum_by_interval(edges, steps.end_ns, np.ones(steps.count))
    counted = counter_values(engine, "iterations")
    iterations = np.maximum(np.diff(counted), our_steps) if counted is not None else np.maximum(our_steps, 1.0)
    decoded = steps.decode > 0
    our_prompts = our_prefill + (_sum_by_interval(edges, *our_cached) if computed is None else 0.0)
    prefill = np.maximum(np.diff(prompts) - our_prompts, 0.0)
    in_step = foreign_prefill_in_steps(steps, edges, prefill)
    foreign = ForeignLoad(
        edges_ns=edges,
        members=decode / np.maximum(iterations, 1.0),
        steps=np.where(decode > 0, iterations - our_steps, 0.0),
        prefill=np.maximum(prefill - _sum_by_interval(edges, steps.end_ns, in_step), 0.0),
        decode=decode,
        prefill_in_step=in_step,
        context=float(steps.context[decoded].mean()) if decoded.any() else 0.0,
    )
    return replace(steps, foreign=foreign)


def foreign_prefill_in_steps(steps: EngineSteps, edges_ns: Ints, prefill: Floats) -> Floats:
    """Return float64[S]: the foreign prompt tokens that explain why a step of ours took longer than expected.

    A step is expected to take the median duration of steps without a prefill, plus the median time per prompt token for
    its own. Up to half a step more is noise.
    """
    own = np.bincount(steps.step, steps.prefill, minlength=steps.count)
    length = (steps.end_ns - steps.start_ns).astype(np.float64)
    if not (own == 0).any() or not (own > 0).any():
        return np.zeros(steps.count)
    plain = float(np.median(length[own == 0]))
    per_token = float(np.median((length[own > 0] - plain) / own[own > 0]))
    excess = np.maximum(length - 1.5 * plain - own * per_token, 0.0)
    if per_token <= 0:
        return np.zeros(steps.count)
    explained = _sum_by_interval(edges_ns, steps.end_ns, excess / per_token)
    scale = np.divide(prefill, explained, out=np.zeros(len(explained)), where=explained > prefill)
    scale[(explained > 0) & (explained <= prefill)] = 1.0
    interval = np.clip(np.searchsorted(edges_ns, steps.end_ns, side="right") - 1, 0, len(scale) - 1)
    outside = (steps.end_ns < edges_ns[0]) | (steps.end_ns >= edges_ns[-1])
    return np.where(outside, 0.0, excess / per_token * scale[interval])


def _first_token_times(steps: EngineSteps) -> Ints:
    """Return int64[requests with a chunk]: the end of each one's first prefill, where its first token came."""
    order = np.lexsort((steps.step, steps.request))
    request, prefilling = steps.request[order], steps.prefilling[order]
    ends = prefilling & np.concatenate((~prefilling[1:] | (request[1:] != request[:-1]), [True]))
    _, index = np.unique(request[ends], return_index=True)
    return np.asarray(steps.end_ns[steps.step[order]][ends][index], dtype=np.int64)


def _sum_by_interval(edges_ns: Ints, t_ns: Ints, values: Floats | Narrow) -> Floats:
    """Return the sum of `values` by the interval that t_ns falls in; values outside all intervals are left out."""
    interval = np.searchsorted(edges_ns, t_ns, side="right") - 1
    inside = (interval >= 0) & (interval < len(edges_ns) - 1)
    return np.bincount(interval[inside], values[inside], minlength=len(edges_ns) - 1).astype(np.float64)
