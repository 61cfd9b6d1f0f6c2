"""Requests of the users: endless lengths from bins, or a trace's schedule. Independent of gevent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import profile_path
from loadgen.workload import schedule
from loadgen.workload.length_source import source_path
from loadgen.workload.sources import read_independent
from loadgen.workload.token_bins import TokenBins, read_bins, sample_lengths

if TYPE_CHECKING:
    from loadgen.locust.options import Settings
    from loadgen.workload.schedule import Schedule

SAMPLE = 256
"""Lengths drawn at a time: as a block they are closer to the bins than one by one."""


def plan(settings: Settings) -> Schedule:
    """Make the schedule that `loadgen replay` makes of the same options."""
    assert settings.trace is not None
    return schedule.build_schedule(
        read_independent(source_path(settings.trace), "locust sends each request at its instant: use loadgen replay"),
        seed=settings.seed,
        rps=settings.rps,
        arrival=settings.arrival,
        duration_s=settings.duration_s,
        num_requests=settings.num_requests,
    )


def fitting_bins(name: str, limit: int | None) -> TokenBins:
    """Read bins. Raises LoadgenError when the model's context holds no request of theirs."""
    bins = read_bins(profile_path("workloads", name, "json"))
    if limit is not None and all(b.mean_input + b.mean_output > limit for b in bins.bins):
        raise LoadgenError(f"no request of {name} fits into the model's {limit} tokens: choose other bins")
    return bins


def lengths(bins: TokenBins, limit: int | None, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield (input, output) tokens for ever, without the pairs that exceed the model's context."""
    while True:
        for pair in zip(*(side.tolist() for side in sample_lengths(bins, SAMPLE, rng)), strict=True):
            if limit is None or sum(pair) <= limit:
                yield pair
