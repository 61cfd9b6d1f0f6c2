"""The windows of an energy series: the intervals between its points."""

from collections.abc import Iterator
from typing import NamedTuple

from loadgen.energy.series import EnergySeries


class EnergyWindow(NamedTuple):
    """The interval between two updates of the counter. `millijoules` is exact: a difference of two readings."""

    start_ns: int
    end_ns: int
    millijoules: int
    known: bool = True
    """False if the counter restarted inside the window; millijoules is then 0 and means nothing."""


def windows_of(series: EnergySeries) -> Iterator[EnergyWindow]:
    """Yield every interval between neighbouring points. Their energies sum to `total_mj`."""
    for i in range(len(series) - 1):
        known = series.gap is None or not series.gap[i + 1]
        millijoules = int(series.mj[i + 1] - series.mj[i])
        yield EnergyWindow(int(series.t_ns[i]), int(series.t_ns[i + 1]), millijoules, known)
