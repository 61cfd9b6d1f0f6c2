"""The live fit: what the windows tell, and the prior where they are all alike."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.engine_steps import EngineSteps
from loadgen.sidecar.foreign_energy import STEP_TOKENS
from loadgen.sidecar.live_fit import CONTEXT_TOKENS, fit_prices
from support.attribution_runs import counter

STEP_J, TOKEN_J = 2.0, 0.02


def steps_of(prompts: list[float]) -> EngineSteps:
    """Steps of 100 ms, each with a prompt and a decoded token."""
    count = len(prompts)
    step = np.repeat(np.arange(count), 2).astype(np.int32)
    first = np.arange(2 * count) % 2 == 0
    prefill = np.zeros(2 * count, np.float32)
    prefill[first] = prompts
    edges_ns = np.arange(count + 1) * 100_000_000
    return EngineSteps(
        start_ns=edges_ns[:-1], end_ns=edges_ns[1:], iterations=np.ones(count), step=step,
        request=np.zeros(2 * count, np.int32), prefilling=first, prefill=prefill,
        decode=np.where(first, 0, 1).astype(np.float32), context=np.zeros(2 * count, np.float32),
        unseen_ns=np.zeros((0, 2), np.int64),
    )  # fmt: skip


def fitted(prompts: list[float], true: list[float] | None = None) -> tuple[float, float]:
    """Return the prices of a step and of a token. true: tokens that the energy is of, if not of those of the steps."""
    joules = [STEP_J + TOKEN_J * (tokens + 1) for tokens in (true or prompts)]
    prices = fit_prices(counter([100.0 * k for k in range(len(prompts) + 1)], joules), steps_of(prompts))
    return prices.step_j, prices.prefill_token_j


def test_windows_that_differ_have_their_prices() -> None:
    prompts = np.random.default_rng(0).uniform(0, 400, 200).tolist()
    assert fitted(prompts) == pytest.approx((STEP_J, TOKEN_J), rel=0.03)


def test_windows_that_are_alike_have_those_of_the_prior_whatever_their_noise() -> None:
    """Prompts of 4,000 tokens whose place in time is known to 10 % would all be the price of a step."""
    rng = np.random.default_rng(0)
    seen = rng.normal(4000, 400, 200).tolist()
    step_j, token_j = fitted(seen, [4000.0] * 200)
    assert step_j == pytest.approx(STEP_TOKENS * token_j, rel=0.1)
    assert token_j == pytest.approx((STEP_J + TOKEN_J * 4001) / (4001 + STEP_TOKENS), rel=0.03)


def test_no_energy_and_too_few_windows_have_no_price() -> None:
    assert fitted([100.0] * 3) == (0, 0)
    steps = steps_of([100.0] * 20)
    nothing = fit_prices(counter([100.0 * k for k in range(21)], [0.0] * 20), steps)
    assert not nothing.values.any()


def test_context_has_a_price_where_windows_tell_it_and_else_that_of_the_prior() -> None:
    steps = steps_of([4000.0] * 100)
    steps = replace(steps, context=np.where(steps.prefilling, 0, 1000).astype(np.float32))
    prices = fit_prices(counter([100.0 * k for k in range(101)], [84.0] * 100), steps)
    assert prices.decode_context_j == pytest.approx(prices.prefill_token_j / CONTEXT_TOKENS, rel=0.1)
