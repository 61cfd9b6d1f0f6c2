"""Simulate the grid points of an energy profile in virtual time, with the closed loop of a live measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen import __version__
from loadgen.energy_model.energy_profile import EnergyProfile, GridKey, GridPoint
from loadgen.energy_model.waves import RequestShape, grid_point_of, wave_boundaries, wave_repeats
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS

if TYPE_CHECKING:
    from loadgen.energy_model.hardware import Hardware, Model

WAVES = 3
"""One wave to fill the batch, two to measure."""

_COUNTER_PERIOD_NS = NS_PER_MS
"""Short, because waves of a few tokens end within milliseconds; no client has to read this counter."""


def simulated_grid(
    hardware: Hardware, model: Model, bins: Sequence[RequestShape], batches: Sequence[int], within: float
) -> Iterator[GridPoint]:
    """Yield every bin at every batch: `batch` sequences at a time, the next one starts when one ends."""
    for batch in batches:
        for lengths in bins:
            # One more wave than is measured keeps the batch full until the last measured wave ends.
            run = closed_loop([lengths] * (batch * (WAVES + 1)), hardware, model, batch)
            finished_ns = sorted(request.token_ns[-1] for request in run.requests)[: batch * WAVES]
            repeats = wave_repeats(wave_boundaries(finished_ns, batch, 1, 0), _EnergyCurve(run))
            yield grid_point_of(GridKey(*lengths, batch), repeats, within)


def simulated_profile(
    hardware: Hardware,
    model: Model,
    bins: Sequence[RequestShape],
    batches: Sequence[int],
    within: float,
    notes: Mapping[str, str],
    progress: Callable[[], None],
) -> EnergyProfile:
    """Simulate a profile. `notes` are added to its provenance; `progress` is called after each grid point."""
    points = []
    for point in simulated_grid(hardware, model, bins, batches, within):
        points.append(point)
        progress()
    return EnergyProfile(
        gpu=hardware.name,
        engine="sim",
        model=model.name,
        simulated=True,
        idle_w=hardware.idle_w,
        provenance={
            "how": f"simulated in virtual time, closed loop, waves 2 to {WAVES} of {WAVES}",
            "loadgen": __version__,
            **notes,
        },
        cells=tuple(points),
    )


def closed_loop(lengths: Sequence[RequestShape], hardware: Hardware, model: Model, batch: int) -> SimulatedRun:
    """Simulate requests that all arrive at the start and run `batch` at a time: the load that saturates that batch."""
    arrivals = [SubmittedRequest(0, *shape) for shape in lengths]
    return simulate(arrivals, hardware, model, EngineOptions(max_num_seqs=batch), CounterOptions(_COUNTER_PERIOD_NS))


class _EnergyCurve:
    """Joules between two instants of a run, from its counter."""

    def __init__(self, run: SimulatedRun) -> None:
        self._t_ns = np.array([sample.t_ns for sample in run.counter])
        self._joules = np.array([sample.joules for sample in run.counter])

    def __call__(self, start_ns: int, end_ns: int) -> float | None:
        start_j, end_j = np.interp([start_ns, end_ns], self._t_ns, self._joules)
        return float(end_j - start_j)
