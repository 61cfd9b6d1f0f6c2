"""From completions and an energy curve to one cell of an energy profile: whole waves, repeats, their spread.

A *wave* is as many completions as are in flight. Over whole waves of equal requests, the work that a window cuts off
at its start is the work that it takes in at its end, whether the batch runs in step or staggered.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from loadgen.energy_model.energy_profile import GridPoint
from loadgen.stats.intervals import half_width


class RequestShape(NamedTuple):
    """Lengths of the requests of a cell."""

    input: int
    output: int


class Repeat(NamedTuple):
    requests: int
    duration_s: float
    joules: float


def wave_boundaries(finished_ns: Sequence[int], batch: int, skip_waves: int, least_ns: int) -> list[tuple[int, int]]:
    """(instant, completions up to it) at the ends of whole waves, each at least `least_ns` after the one before.

    finished_ns: sorted. The first boundary is the end of wave `skip_waves`, which must be at least 1: the ramp is over.
    """
    found: list[tuple[int, int]] = []
    for count in range(batch * skip_waves, len(finished_ns) + 1, batch):
        t_ns = finished_ns[count - 1]
        if not found or t_ns - found[-1][0] >= least_ns:
            found.append((t_ns, count))
    return found


def wave_repeats(edges: Sequence[tuple[int, int]], joules_between: Callable[[int, int], float | None]) -> list[Repeat]:
    """Between neighbouring boundaries; those whose energy is not known yet (or never will be) are left out."""
    found = []
    for (start_ns, before), (end_ns, after) in pairwise(edges):
        joules = joules_between(start_ns, end_ns)
        if joules is not None:
            found.append(Repeat(after - before, (end_ns - start_ns) / 1e9, joules))
    return found


def grid_point_of(lengths: RequestShape, batch: int, measured: Sequence[Repeat], within: float) -> GridPoint:
    """The mean over all requests, and how the repeats spread. within: the relative half width that was asked for."""
    requests = sum(r.requests for r in measured)
    each = [r.joules / r.requests for r in measured]
    several = len(each) > 1
    return GridPoint(
        input=lengths.input,
        output=lengths.output,
        batch=batch,
        joules_per_request=round(sum(r.joules for r in measured) / requests, 6),
        stderr=round(float(np.std(each, ddof=1)) / math.sqrt(len(each)), 6) if several else None,
        repeats=len(measured),
        requests=requests,
        duration_s=round(sum(r.duration_s for r in measured), 3),
        settled=half_width(each) <= within,
    )
