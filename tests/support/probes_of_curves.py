"""Probes of servers whose curve of missed requests is known, without a server."""

from typing import Any

import numpy as np

from loadgen.results.probe_counts import BLOCKS
from loadgen.results.search_result import Block, Probe


def share_at(rate_rps: float, *, rate: float = 10.0, missed: float = 0.05, steepness: float = 12.0) -> float:
    """Return the share of missed requests of a logistic curve through (rate, missed)."""
    odds = missed / (1 - missed) * (rate_rps / rate) ** steepness
    return odds / (1 + odds)


def drawn_probe(
    rate_rps: float, requests: int, share: float, rng: np.random.Generator, clumping: float = 0.0, **changes: Any
) -> Probe:
    """Return a probe with as many requests, whose misses come in runs: the dispersion of its counts is 1 + clumping *
    share. A run has a geometric number of misses with the mean k, and that of such sums is 2 k - 1."""
    length = 1 + clumping * share / 2
    starts = rng.random(requests) < share / (length * (1 - share) + share)
    lengths = rng.geometric(1 / length, requests)
    missed = np.zeros(requests, dtype=bool)
    i = 0
    while i < requests:
        if starts[i]:
            missed[i : i + lengths[i]] = True
            i += lengths[i]
        i += 1
    parts = np.array_split(missed, min(BLOCKS, requests))
    return counted_probe(rate_rps, tuple(Block(len(part), int(part.sum())) for part in parts), **changes)


def counted_probe(rate_rps: float, blocks: tuple[Block, ...], **changes: Any) -> Probe:
    """Return a probe with these blocks."""
    requests, missed = sum(block.requests for block in blocks), sum(block.missed for block in blocks)
    duration_s = requests / rate_rps
    values: dict[str, Any] = {
        "name": "",
        "number": 0,
        "rate_rps": rate_rps,
        "seed": 0,
        "stage": "refine",
        "planned_s": duration_s,
        "wall_s": duration_s,
        "until_s": duration_s,
        "decision_s": 1.0,
        "requests": requests,
        "good": requests - missed,
        "blocks": blocks,
    }
    return Probe(**(values | changes))


def even_probe(rate_rps: float, requests: int, missed: int, **changes: Any) -> Probe:
    """Return a probe whose misses are spread evenly over 16 blocks."""
    ends = [requests * i // 16 for i in range(17)]
    lost = [missed * i // 16 for i in range(17)]
    sizes = zip(np.diff(ends).tolist(), np.diff(lost).tolist(), strict=True)
    return counted_probe(rate_rps, tuple(Block(n, y) for n, y in sizes if n), **changes)
