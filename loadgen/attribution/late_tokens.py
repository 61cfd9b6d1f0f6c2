"""Join steps of prompts whose tokens came late.

An engine may hand on the tokens of a step only when the next one has run: vLLM does where its scheduler is ahead of the
GPU and its forward pass waits for the transfer of keys and values. The first of two steps then seems to have taken the
time of both, and the second one almost none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loadgen.attribution.engine_steps import BURST_GAP_NS, EngineSteps

TOO_SHORT = 0.5
"""Share of the mean time for its prompt tokens: a step that lasted less has not computed all of them itself."""
MIN_STEPS = 20
"""Fewest steps of prompts alone from which the mean is taken."""


def with_late_prefills_joined(steps: EngineSteps) -> EngineSteps:
    """Join each step that computes only prompts, follows another such step and is too short for its tokens, to that
    step."""
    prompts = np.bincount(steps.step, ~steps.prefilling, minlength=steps.count) == 0
    tokens = np.bincount(steps.step, steps.prefill, minlength=steps.count)
    length_ns = (steps.end_ns - steps.start_ns).astype(np.float64)
    if prompts.sum() < MIN_STEPS or not tokens[prompts].any():
        return steps
    token_ns = length_ns[prompts].sum() / tokens[prompts].sum()
    follows = prompts[1:] & prompts[:-1] & (steps.start_ns[1:] - steps.end_ns[:-1] < BURST_GAP_NS)
    late = np.concatenate(([False], follows & (length_ns[1:] < TOO_SHORT * token_ns * tokens[1:])))
    first = np.flatnonzero(~late)
    last = np.append(first[1:], steps.count) - 1
    return replace(
        steps,
        start_ns=steps.start_ns[first],
        end_ns=steps.end_ns[last],
        iterations=np.add.reduceat(steps.iterations, first),
        step=(np.cumsum(~late, dtype=np.int32) - 1)[steps.step],
    )
