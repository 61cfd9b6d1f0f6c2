"""Steps of prompts whose tokens came late."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.late_tokens import MIN_STEPS, TOO_SHORT, with_late_prefills_joined
from loadgen.units import NS_PER_MS
from support.attribution_runs import request_ns

TOKENS_A_MS = 20


def prompts_in_turn(tokens: Sequence[int], late: Sequence[int] = (), more: int = 0) -> EngineSteps:
    """Return the steps of an engine that computes one prompt after the other. The token of a `late` one comes half a
    step's time after that of the next. more: tokens that follow each first one, the next 5 ms after it."""
    ends_ns = np.cumsum(tokens) * NS_PER_MS // TOKENS_A_MS
    seen_ns = [int(ends_ns[i + 1]) - 2 * NS_PER_MS if i in late else int(end) for i, end in enumerate(ends_ns)]
    return engine_steps_of([
        request_ns(i, 0, [end + 5 * NS_PER_MS * k for k in range(more + 1)], prompt=prompt)
        for i, (prompt, end) in enumerate(zip(tokens, seen_ns, strict=True))
    ])  # fmt: skip


def test_a_prompt_whose_token_came_with_the_next_is_one_step_with_it() -> None:
    tokens = [200, 400, 800, 300] * 6
    steps = prompts_in_turn(tokens, late=[1, 10, 17])
    joined = {1: 2, 10: 11, 17: 18}
    members = [steps.request[steps.step == step].tolist() for step in range(steps.count)]
    assert members == [[i, joined[i]] if i in joined else [i] for i in range(len(tokens)) if i not in joined.values()]
    assert steps.iterations.tolist() == [len(own) for own in members]
    length_ms = (steps.end_ns - steps.start_ns) / NS_PER_MS
    assert length_ms.tolist() == [sum(tokens[i] for i in own) / TOKENS_A_MS for own in members]
    assert (steps.start_ns[1:] >= steps.end_ns[:-1]).all()


@pytest.mark.parametrize("tokens", [[200, 400, 800, 300] * 6, [40, 4000] * 12, [100] * 3])
def test_steps_that_last_as_long_as_their_prompts_take_are_left_alone(tokens: list[int]) -> None:
    steps = prompts_in_turn(tokens)
    assert steps.request.tolist() == steps.step.tolist() == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("share", "pause_ms", "joined"), [(0.8, 0, True), (1.2, 0, False), (0.8, 5, False)],
    ids=["a short step", "a step that is long enough", "a short step after a pause"],
)  # fmt: skip
def test_a_step_is_joined_to_the_one_before_only_if_it_is_short_and_follows_at_once(
    share: float, pause_ms: int, joined: bool
) -> None:
    """share: of the longest time that is too short."""
    steps = prompts_in_turn([200] * 24)
    ends_ns, starts_ns = steps.end_ns.copy(), steps.start_ns.copy()
    starts_ns[7] = ends_ns[7] - round(share * TOO_SHORT * 200 / TOKENS_A_MS * NS_PER_MS)
    ends_ns[6] = starts_ns[7] - pause_ms * NS_PER_MS
    moved = with_late_prefills_joined(replace(steps, start_ns=starts_ns, end_ns=ends_ns))
    assert moved.count == steps.count - joined
    assert (moved.step[7] == moved.step[6]) == joined


def test_few_steps_are_no_evidence() -> None:
    assert prompts_in_turn([200, 400] * (MIN_STEPS // 4), late=[2]).count == MIN_STEPS // 2


def test_a_step_with_a_decode_in_it_is_joined_to_none() -> None:
    tokens = [200, 400, 800, 300] * 6
    late = [1, 10, 17]
    steps = prompts_in_turn(tokens, late, more=1)
    decoding = np.bincount(steps.step, ~steps.prefilling, minlength=steps.count) > 0
    assert decoding.sum() > 20 and (steps.iterations[decoding] == 1).all()
