"""Requests of stated lengths: numbers of tokens that a law gives, such as `512` or `lognormal:512:0.6`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from loadgen.errors import LoadgenError
from loadgen.workload.trace import MAX_TOKENS, Trace, TraceRequest, shortened

if TYPE_CHECKING:
    from loadgen.stats.arrays import Ints

POOL = 10_000
"""Requests drawn from a law, or from bins; a longer run goes round again."""

LAWS = "a number, uniform:LOW:HIGH, normal:MEAN:SD, lognormal:MEDIAN:SIGMA or exponential:MEAN"


def drawn_lengths(law: str, count: int, rng: np.random.Generator) -> Ints:
    """Draw `count` numbers of tokens; more of them begin with the same ones.

    `N` is always N. `uniform:LOW:HIGH` is any whole number from LOW to HIGH, both included. The others are rounded:
    `normal:MEAN:SD`, `lognormal:MEDIAN:SIGMA` (SIGMA is the standard deviation of the natural logarithm) and
    `exponential:MEAN`. A draw below 1 becomes 1. LoadgenError for any other law.
    """
    kind, *texts = law.split(":")
    try:
        numbers = [float(text) for text in (texts or [kind])]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) and 0 <= number <= MAX_TOKENS for number in numbers):
        kind = ""
    match kind if texts else "", numbers:
        case "", [number] if kind and not texts and number >= 1 and number == int(number):
            drawn = np.full(count, number)
        case "uniform", [low, high] if 1 <= low <= high and low == int(low) and high == int(high):
            drawn = rng.integers(int(low), int(high), count, endpoint=True)
        case "normal", [mean, deviation] if mean >= 1:
            drawn = rng.normal(mean, deviation, count)
        case "lognormal", [median, sigma] if median >= 1:
            drawn = rng.lognormal(math.log(median), sigma, count)
        case "exponential", [mean] if mean >= 1:
            drawn = rng.exponential(mean, count)
        case _:
            raise LoadgenError(f"length {shortened(law)!r}: expected {LAWS}, in tokens of 1 or more")
    tokens: Ints = np.rint(np.clip(drawn, 1, MAX_TOKENS)).astype(np.int64)
    return tokens


def drawn_trace(name: str, input_law: str, output_law: str, count: int, rng: np.random.Generator) -> Trace:
    """Return `count` requests without arrivals. Inputs and outputs are independent of each other."""
    rng_inputs, rng_outputs = rng.spawn(2)
    pairs = zip(
        drawn_lengths(input_law, count, rng_inputs).tolist(),
        drawn_lengths(output_law, count, rng_outputs).tolist(),
        strict=True,
    )
    requests = (TraceRequest(arrival_s=0.0, input_tokens=i, output_tokens=o, workload=name) for i, o in pairs)
    return Trace(name, tuple(requests), "", False)
