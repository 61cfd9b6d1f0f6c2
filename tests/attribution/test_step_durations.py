"""A step that took longer than its own work explains had a prefill of others in it."""

import numpy as np
import pytest

from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.step_durations import MIN_PREFILLS, QUANTILE, foreign_prefills, quantile_fit
from loadgen.units import NS_PER_MS

FLOOR, BASE_MS, STREAM_MS, TOKEN_MS = 128, 5.0, 0.01, 0.025


def step_ms(streams: int, prompt_tokens: float) -> float:
    over = max(prompt_tokens - FLOOR, 0)
    return BASE_MS + STREAM_MS * streams + TOKEN_MS * over + 1e-7 * over**2


def steps_of(prompts: list[int], foreign: list[int], decoding: list[bool] | None = None) -> EngineSteps:
    """Steps in which one stream of ours decodes; those with a prompt of ours have a second member."""
    decoding = decoding or [True] * len(prompts)
    lengths = [
        step_ms(decodes + (own > 0), own + others) * NS_PER_MS
        for own, others, decodes in zip(prompts, foreign, decoding, strict=True)
    ]
    end_ns = np.rint(np.cumsum(lengths)).astype(np.int64)
    rows = [(step, False, 0) for step, decodes in enumerate(decoding) if decodes]
    rows += [(step, True, prompt) for step, prompt in enumerate(prompts) if prompt]
    step, prefilling, prefill = (np.array(column) for column in zip(*rows, strict=True))
    return EngineSteps(
        start_ns=np.concatenate(([0], end_ns[:-1])),
        end_ns=end_ns,
        iterations=np.ones(len(prompts)),
        step=step.astype(np.int32),
        request=np.zeros(len(rows), np.int32),
        prefilling=prefilling,
        prefill=prefill.astype(np.float32),
        decode=(~prefilling).astype(np.float32),
        context=np.zeros(len(rows), np.float32),
        unseen_ns=np.zeros((0, 2), np.int64),
    )


OURS = [0 if i % 3 else int(size) for i, size in enumerate(np.random.default_rng(0).integers(200, 4000, 120))]
NOBODY = [0] * len(OURS)


@pytest.mark.parametrize("tokens", [500, 1500, 6000])
@pytest.mark.parametrize("step", [61, 60], ids=["beside a decode", "beside a prompt of ours"])
def test_the_prompt_tokens_of_others_are_in_the_step_that_they_made_longer(step: int, tokens: int) -> None:
    foreign = [tokens if i in (step, 91) else 0 for i in range(len(OURS))]
    told = foreign_prefills(steps_of(OURS, foreign), np.zeros(len(OURS)))
    assert np.flatnonzero(told.tokens).tolist() == [step, 91]
    assert told.tokens[step] == pytest.approx(tokens, rel=0.02, abs=30)


def test_steps_of_ours_alone_show_no_others() -> None:
    told = foreign_prefills(steps_of(OURS, NOBODY), np.zeros(len(OURS)))
    assert not told.tokens.any() and not told.wait_ns.any()


def test_strangers_in_most_steps_do_not_hide_one_another() -> None:
    foreign = [
        int(size) if i % 5 < 3 else 0 for i, size in enumerate(np.random.default_rng(1).integers(500, 4000, 120))
    ]
    told = foreign_prefills(steps_of(OURS, foreign), np.zeros(len(OURS)))
    assert told.tokens == pytest.approx(np.array(foreign, dtype=float), rel=0.1, abs=100)


def test_what_a_prompt_of_ours_waited_is_not_in_its_step() -> None:
    """No stream of ours decodes in step 60, and what precedes it may be another client's step: 40 ms of it are no work
    of ours."""
    decoding = [i != 60 for i in range(len(OURS))]
    steps = steps_of(OURS, NOBODY, decoding)
    later = np.arange(len(OURS)) >= 60
    steps.end_ns[later] += 40 * NS_PER_MS
    steps.start_ns[np.arange(len(OURS)) > 60] += 40 * NS_PER_MS
    told = foreign_prefills(steps, np.zeros(len(OURS)))
    assert not told.tokens.any()
    assert np.flatnonzero(told.wait_ns).tolist() == [60]
    assert told.wait_ns[60] == pytest.approx(40 * NS_PER_MS, rel=0.02)


def test_too_few_prompts_of_ours_show_nothing() -> None:
    count = 3 * (MIN_PREFILLS - 1)
    told = foreign_prefills(steps_of(OURS[:count], [3000] * count), np.zeros(count))
    assert not told.tokens.any() and not told.wait_ns.any()


def test_a_quantile_of_the_values_lies_below_the_fit() -> None:
    rng = np.random.default_rng(0)
    x = np.stack((np.ones(500), rng.uniform(0, 1e6, 500)), axis=1)
    y = x @ [3.0, 1e-5] + rng.exponential(1.0, 500)
    below = np.mean(y < x @ quantile_fit(x, y))
    assert below == pytest.approx(QUANTILE, abs=0.02)
