"""Cells of an energy profile in virtual time: the same closed loop as on a server, in milliseconds. Simulated."""

from collections.abc import Iterator, Sequence

import numpy as np

from loadgen.energy_model.energy_profile import GridPoint
from loadgen.energy_model.hardware import Hardware, Model
from loadgen.energy_model.waves import RequestShape, grid_point_of, wave_boundaries, wave_repeats
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS

WAVES = 3
"""One to fill the batch, two to measure."""


COUNTER_NS = NS_PER_MS
"""Waves of a few tokens end within milliseconds; no client has to read this counter."""


def simulated_cells(
    hardware: Hardware, model: Model, bins: Sequence[RequestShape], batches: Sequence[int], within: float
) -> Iterator[GridPoint]:
    """Every bin at every batch: `batch` sequences at a time, the next one starts when one ends."""
    for batch in batches:
        for lengths in bins:
            # One wave more than is measured keeps the batch full to the end of the last one.
            run = closed_loop([lengths] * (batch * (WAVES + 1)), hardware, model, batch)
            finished = sorted(r.token_ns[-1] for r in run.requests)[: batch * WAVES]
            yield grid_point_of(
                lengths, batch, wave_repeats(wave_boundaries(finished, batch, 1, 0), _Curve(run)), within
            )


def closed_loop(lengths: Sequence[RequestShape], hardware: Hardware, model: Model, batch: int) -> SimulatedRun:
    """All there from the start, `batch` at a time: the load that saturates that batch."""
    arrivals = [SubmittedRequest(0, *each) for each in lengths]
    return simulate(arrivals, hardware, model, EngineOptions(max_num_seqs=batch), CounterOptions(COUNTER_NS))


class _Curve:
    """Joules between two instants of a run, from its counter."""

    def __init__(self, run: SimulatedRun) -> None:
        self._t_ns = np.array([s.t_ns for s in run.counter])
        self._joules = np.array([s.joules for s in run.counter])

    def __call__(self, start_ns: int, end_ns: int) -> float | None:
        a, b = np.interp([start_ns, end_ns], self._t_ns, self._joules)
        return float(b - a)
