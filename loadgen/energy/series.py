"""Cumulative energy over time.

Every source ends up here as the same thing: points (t, joules since the source was opened) that never go down. Counters
are unwrapped and power is integrated by the meter, so that no reader downstream has to know which it was.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.units import mj_from_j


class EnergyDomain(msgspec.Struct, frozen=True, kw_only=True):
    """A thing that has joules of its own: a GPU, a CPU package."""

    name: str
    """Like "gpu:0", "cpu:package-0", "dram:0". One name means one counter through the whole run."""
    source: str
    """Like "nvml-counter", "nvml-power", "rapl", "simulated", "estimate": how the joules came to be."""
    uuid: str | None = None
    period_s: float | None = None
    """How often the source moves; None until it is known."""
    within: str | None = None
    """The domain that already contains this one. Never add the two."""


class EnergySample(msgspec.Struct, frozen=True):
    """`joules` had flowed by `t_ns`, counted from an arbitrary zero that stays put for the run."""

    t_ns: int
    domain: str
    joules: float


class EnergyWindow(NamedTuple):
    """Between two moves of the counter. `millijoules` is exact: a difference of two readings."""

    start_ns: int
    end_ns: int
    millijoules: int


@dataclass(frozen=True)
class EnergySeries:
    """One domain's change points, in time order.

    t_ns: int64[n], strictly increasing. mj: int64[n], cumulative millijoules, never decreasing.
    """

    domain: str
    t_ns: NDArray[np.int64]
    mj: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.t_ns)

    @property
    def total_mj(self) -> int:
        """All energy between the first and the last point; 0 when there are fewer than two."""
        return int(self.mj[-1] - self.mj[0]) if len(self) > 1 else 0

    def energy_mj(self, start_ns: int, end_ns: int) -> float | None:
        """Millijoules in [start, end], interpolating the cumulative curve; None outside what was observed."""
        if len(self) < 2 or start_ns < self.t_ns[0] or end_ns > self.t_ns[-1]:
            return None
        at_start, at_end = np.interp([start_ns, end_ns], self.t_ns, self.mj)
        return float(at_end - at_start)

    def windows(self) -> Iterator[EnergyWindow]:
        """Every interval between neighbouring points. They tile the series: their energies sum to `total_mj`."""
        for i in range(len(self) - 1):
            yield EnergyWindow(int(self.t_ns[i]), int(self.t_ns[i + 1]), int(self.mj[i + 1] - self.mj[i]))

    def clip(self, start_ns: int, end_ns: int) -> "EnergySeries":
        """The points that cover [start, end]: the last one before start, the first one after end, all between.

        Cut at the counter's own moves, never inside a step, so that every window stays an exact difference.
        """
        first = max(int(np.searchsorted(self.t_ns, start_ns, side="right")) - 1, 0)
        last = int(np.searchsorted(self.t_ns, end_ns, side="left")) + 1
        return EnergySeries(self.domain, self.t_ns[first:last], self.mj[first:last])


def series_by_domain(samples: Iterable[EnergySample]) -> dict[str, EnergySeries]:
    """Samples of any number of domains, in any order of domains, each domain in time order."""
    points: dict[str, list[tuple[int, int]]] = {}
    for sample in samples:
        points.setdefault(sample.domain, []).append((sample.t_ns, mj_from_j(sample.joules)))
    return {domain: _series(domain, pairs) for domain, pairs in points.items()}


def _series(domain: str, pairs: list[tuple[int, int]]) -> EnergySeries:
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if np.any(np.diff(table[:, 0]) <= 0) or np.any(np.diff(table[:, 1]) < 0):
        raise ValueError(f"energy samples of {domain} go back in time or in joules: the meter must not let them")
    return EnergySeries(domain, table[:, 0], table[:, 1])
