"""Find the prefills of other clients in steps that took longer than the work of ours in them.

    duration = a + b streams + f(prompt tokens over a floor),   f(x) = c x + d x^2

A step reads all weights, which hides the computation of the first hundred or two of prompt tokens: the floor. Work of
others makes a step longer and never shorter, so this is fitted to the lower part of the durations: a regression on a
quantile (Koenker and Bassett, Econometrica 46, 1978) below the median.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.stats.arrays import Floats

QUANTILE = 0.3
PASSES = 30
FLOORS = (0, 64, 128, 192, 256)
"""Candidates of the number of prompt tokens that a step hides."""
MIN_PREFILLS = 20
"""Fewest steps with a prefill of ours, beside streams that decode, that show what a prompt token takes."""
NOISE = 4.0
"""A step is longer than its work explains when it is by so many times the noise of steps without a prefill."""
SHORTEST_NS = 1.0 * NS_PER_MS
"""Shortest excess: chunks of one step come within it."""
MODEL_ERROR = 0.05
"""Relative error of the prompt tokens that a duration shows: a judgement."""


class ForeignPrefills(NamedTuple):
    """Others' prompts by the durations of steps: float64[S] each.

    tokens: computed in each step. variance: of those. wait_ns: time before a step began in which no stream of ours was
    decoding, and a request of ours waited; a step cannot have taken that long for what is in it.
    """

    tokens: Floats
    variance: Floats
    wait_ns: Floats


def foreign_prefills(steps: EngineSteps, foreign_streams: Floats) -> ForeignPrefills:
    """Return the prompt tokens of others by the duration of each step.

    foreign_streams: float64[S], how many of their streams were running, about.
    """
    prefill = np.bincount(steps.step, steps.prefill, minlength=steps.count).astype(np.float64)
    decoding = np.bincount(steps.step, ~steps.prefilling, minlength=steps.count) > 0
    streams = np.bincount(steps.step, minlength=steps.count) + foreign_streams
    length_ns = (steps.end_ns - steps.start_ns).astype(np.float64)
    plain, mixed = decoding & (prefill == 0), decoding & (prefill > 0)
    none = np.zeros(steps.count)
    if mixed.sum() < MIN_PREFILLS or not plain.any():
        return ForeignPrefills(none, none, none)
    streams -= np.median(streams[plain])  # where they are always as many, they have no price
    base_ns, stream_ns = quantile_fit(np.stack((np.ones(plain.sum()), streams[plain]), axis=1), length_ns[plain])
    rest_ns = length_ns - base_ns - stream_ns * streams
    floor, linear, square = _prefill_law(prefill[mixed], rest_ns[mixed])
    own = np.maximum(prefill - floor, 0.0)
    excess_ns = rest_ns - linear * own - square * own**2
    below_ns = -excess_ns[plain & (excess_ns < 0)]  # what lies above may be others' work
    noise_ns = 2 * float(np.median(below_ns)) if len(below_ns) else 0.0  # of normal noise, its standard deviation
    longer = excess_ns > max(NOISE * noise_ns, SHORTEST_NS)
    total_ns = linear * own + square * own**2 + np.maximum(excess_ns, 0.0)
    beyond = 2 * total_ns / (linear + np.sqrt(linear**2 + 4 * square * total_ns)) - own
    tokens = beyond + floor - np.minimum(prefill, floor)
    tokens = np.where(longer & decoding & (tokens > 2 * MODEL_ERROR * prefill), tokens, 0.0)
    variance = (noise_ns / linear) ** 2 + (MODEL_ERROR * (prefill + tokens)) ** 2
    return ForeignPrefills(tokens, variance, np.where(longer & ~decoding, excess_ns, 0.0))


def _prefill_law(prefill: Floats, length_ns: Floats) -> tuple[float, float, float]:
    """Return the floor and the prices of a token over it and of its square, by the smallest loss of the quantile."""
    best = (np.inf, 0.0, 1.0, 0.0)
    for floor in FLOORS:
        over = np.maximum(prefill - floor, 0.0)
        for powers in ((1, 2), (1,)):  # a negative price of the square is none
            columns = np.stack([over**power for power in powers], axis=1)
            prices = quantile_fit(columns, length_ns)
            residual = length_ns - columns @ prices
            loss = float(np.where(residual > 0, QUANTILE * residual, (QUANTILE - 1) * residual).sum())
            if prices.min() > 0 and loss < best[0]:
                best = (loss, float(floor), *prices.tolist(), 0.0)[:4]
    return best[1:]


def quantile_fit(x: Floats, y: Floats) -> Floats:
    """Return the coefficients under which a share QUANTILE of y lies below x @ coefficients, by iterated weights."""
    scale = np.maximum(np.abs(x).max(axis=0), 1e-12)
    x = x / scale
    weight = np.ones(len(y))
    for _pass in range(PASSES):
        weighted = x * weight[:, None]
        coefficients = np.linalg.lstsq(weighted.T @ x, weighted.T @ y, rcond=None)[0]
        residual = y - x @ coefficients
        smallest = max(0.01 * float(np.median(np.abs(residual))), 1e-9)
        weight = np.where(residual > 0, QUANTILE, 1 - QUANTILE) / np.maximum(np.abs(residual), smallest)
    return np.asarray(coefficients / scale)
