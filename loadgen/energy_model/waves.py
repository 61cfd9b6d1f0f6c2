"""Compute one grid point of an energy profile from completions and an energy curve: whole waves, repeats, their spread.

A *wave* is as many completions as requests are in flight. Over whole waves of equal requests, the work that a window
cuts off at its start equals the work that it includes at its end, whether the batch runs in step or staggered.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from loadgen.energy_model.energy_profile import GridKey, GridPoint
from loadgen.stats.intervals import half_width


class RequestShape(NamedTuple):
    """Input and output tokens of every request of a grid point."""

    input: int
    output: int


class Repeat(NamedTuple):
    """One measurement over whole waves."""

    requests: int
    duration_s: float
    joules: float


def wave_boundaries(
    finished_ns: Sequence[int], batch: int, skip_waves: int, min_repeat_ns: int
) -> list[tuple[int, int]]:
    """Return (instant, completions up to it) at the ends of whole waves, at least `min_repeat_ns` apart.

    finished_ns: sorted. The first boundary is the end of wave `skip_waves`, which must be at least 1 so that the
    ramp-up is over.
    """
    boundaries: list[tuple[int, int]] = []
    for count in range(batch * skip_waves, len(finished_ns) + 1, batch):
        t_ns = finished_ns[count - 1]
        if not boundaries or t_ns - boundaries[-1][0] >= min_repeat_ns:
            boundaries.append((t_ns, count))
    return boundaries


def wave_repeats(
    boundaries: Sequence[tuple[int, int]], joules_between: Callable[[int, int], float | None]
) -> list[Repeat]:
    """Return one repeat per pair of neighbouring boundaries, without those whose energy is unknown or not yet known."""
    repeats = []
    for (start_ns, start_count), (end_ns, end_count) in pairwise(boundaries):
        joules = joules_between(start_ns, end_ns)
        if joules is not None:
            repeats.append(Repeat(end_count - start_count, (end_ns - start_ns) / 1e9, joules))
    return repeats


def grid_point_of(key: GridKey, repeats: Sequence[Repeat], within: float) -> GridPoint:
    """Return the mean over all requests and its spread. within: the relative half width that settles the point."""
    requests = sum(r.requests for r in repeats)
    joules_per_request = [r.joules / r.requests for r in repeats]
    stderr = float(np.std(joules_per_request, ddof=1)) / math.sqrt(len(repeats)) if len(repeats) > 1 else None
    return GridPoint(
        **key._asdict(),
        joules_per_request=round(sum(r.joules for r in repeats) / requests, 6),
        stderr=None if stderr is None else round(stderr, 6),
        repeats=len(repeats),
        requests=requests,
        duration_s=round(sum(r.duration_s for r in repeats), 3),
        settled=half_width(joules_per_request) <= within,
    )
