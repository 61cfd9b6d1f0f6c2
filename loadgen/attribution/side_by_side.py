"""The steps of several engines that share a GPU, as one table: the counter measures them together.

The engines' steps overlap in time. A GPU without MPS gives each process slices of time, so a step beside another takes
longer, and costs what it would have cost alone. Each engine has prices of its own, and the GPU one idle power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.beside_others import SharedSteps
from loadgen.attribution.engine_steps import EngineSteps, Part
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import Memberships
    from loadgen.stats.arrays import Floats


def side_by_side(engines: Sequence[SharedSteps], own: int) -> SharedSteps:
    """Return the steps of all engines, which are numbered engine by engine; memberships are by request.

    The first `own` requests are the same in all of them; those of other clients are numbered behind, the ones that are
    only inferred last.
    """
    known = [shared.foreign[: len(shared.foreign) - shared.inferred] for shared in engines]
    inferred = [shared.foreign[len(shared.foreign) - shared.inferred :] for shared in engines]
    numbers = _numbers(own, known, inferred)
    parts = [
        replace(shared.steps, request=number[shared.steps.request])
        for shared, number in zip(engines, numbers, strict=True)
    ]
    foreign = [record for records in (*known, *inferred) for record in records]
    return SharedSteps(_joined(parts), foreign, sum(map(len, inferred)))


def _numbers(own: int, known: Sequence[Sequence[object]], inferred: Sequence[Sequence[object]]) -> list[Memberships]:
    """Return int32[n] for each engine: the numbers of its requests among those of all."""
    ends = own + np.cumsum([len(records) for records in (*known, *inferred)])
    begins = np.concatenate(([own], ends[:-1]))
    first = [np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)]
    return [
        np.concatenate((np.arange(own), first[n], first[len(known) + n])).astype(np.int32) for n in range(len(known))
    ]


def _joined(parts: Sequence[EngineSteps]) -> EngineSteps:
    parts = [replace(steps, gpu_s=seconds) for steps, seconds in zip(parts, _gpu_seconds(parts), strict=True)]
    counts, members = [steps.count for steps in parts], [len(steps.step) for steps in parts]
    first = np.cumsum(counts) - counts
    request = np.concatenate([steps.request for steps in parts])
    order = np.argsort(request, kind="stable")
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    rows = np.split(row, np.cumsum(members)[:-1])
    return EngineSteps(
        start_ns=np.concatenate([steps.start_ns for steps in parts]),
        end_ns=np.concatenate([steps.end_ns for steps in parts]),
        iterations=np.concatenate([steps.iterations for steps in parts]),
        step=np.concatenate([steps.step + begin for steps, begin in zip(parts, first, strict=True)])[order].astype(
            np.int32
        ),
        request=request[order],
        prefilling=np.concatenate([steps.prefilling for steps in parts])[order],
        prefill=np.concatenate([steps.prefill for steps in parts])[order],
        decode=np.concatenate([steps.decode for steps in parts])[order],
        context=np.concatenate([steps.context for steps in parts])[order],
        unseen_ns=np.concatenate([steps.unseen_ns for steps in parts]),
        guessed_ns=np.concatenate([steps.guessed_ns for steps in parts]),
        parts=tuple(Part(*part) for part in zip(parts, rows, first.tolist(), strict=True)),
    )


def _gpu_seconds(parts: Sequence[EngineSteps]) -> list[Floats]:
    """Return the `gpu_s` of each engine's steps."""
    edges_ns = np.unique(np.concatenate([part_ns for steps in parts for part_ns in (steps.start_ns, steps.end_ns)]))
    running = np.zeros(len(edges_ns))
    for steps in parts:
        np.add.at(running, np.searchsorted(edges_ns, steps.start_ns), 1.0)
        np.add.at(running, np.searchsorted(edges_ns, steps.end_ns), -1.0)
    lengths_s = np.diff(edges_ns, prepend=edges_ns[:1]) / NS_PER_S
    until_s = np.cumsum(lengths_s / np.maximum(np.concatenate(([1.0], np.cumsum(running)[:-1])), 1.0))
    return [
        until_s[np.searchsorted(edges_ns, steps.end_ns)] - until_s[np.searchsorted(edges_ns, steps.start_ns)]
        for steps in parts
    ]
