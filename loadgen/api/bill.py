"""The bill of a sidecar's ledger, from a program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.results.bill import SHARES, BillSums, ShareIdle, SpanOfTime, bill_of, bill_table
from loadgen.results.bill_boundary import bill_boundary
from loadgen.results.factors import factors_of
from loadgen.units import s_from_ns

if TYPE_CHECKING:
    from loadgen.results.summary import Boundary
    from loadgen.results.table import Table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Bill:
    """Energy that the requests of a ledger used, in whole millijoules. `loadgen.bill` makes it; it never changes."""

    counter_mj: int
    """Energy that the meter counted: the sum of `energy_mj` over the lines."""
    measured_s: float
    """Time that was measured, of all sidecars together."""
    from_unix_s: float | None
    """Begin of the first period, in Unix time; None if there is none."""
    to_unix_s: float | None
    """End of the last period."""
    lost_requests: int
    """Requests without a line, because the sidecar's disk was full: their energy is unattributed."""
    by: tuple[str, ...]
    """Labels of the lines."""
    share_idle: ShareIdle
    """Division of the idle energy."""

    def __init__(self, sums: BillSums) -> None:
        """Hold the sums of a ledger."""
        self._sums = sums
        self.by, self.share_idle = sums.by, sums.share_idle
        self.counter_mj, self.lost_requests = sums.counter_mj, sums.lost_requests
        self.measured_s = s_from_ns(sums.measured_ns)
        self.from_unix_s = None if sums.from_unix_ns is None else s_from_ns(sums.from_unix_ns)
        self.to_unix_s = None if sums.to_unix_ns is None else s_from_ns(sums.to_unix_ns)

    @cached_property
    def lines(self) -> Table:
        """One row for each group of requests, those of most energy first, and one each for idle, unattributed and
        unsettled energy."""
        return bill_table(self._sums)

    @cached_property
    def boundary(self) -> Boundary:
        """The parts of what serving takes that the energy has, its total, and CO2e and cost by the stated factors."""
        return bill_boundary(self._sums)

    def to_dict(self) -> dict[str, Any]:
        """Return what `loadgen bill --json` prints."""
        names = ("by", "share_idle", "from_unix_s", "to_unix_s", "measured_s", "counter_mj", "lost_requests")
        head = {name: getattr(self, name) for name in names}
        return head | {"boundary": msgspec.to_builtins(self.boundary), "lines": list(self.lines.rows())}


def bill(
    folder: str | os.PathLike[str],
    *,
    by: str | Sequence[str] = "workload",
    start: datetime | date | str | None = None,
    end: datetime | date | str | None = None,
    share_idle: ShareIdle = "none",
    pue: float | None = None,
    grid_intensity: float | None = None,
    grid_source: str | None = None,
    price: float | None = None,
) -> Bill:
    """Return the bill of a ledger that `loadgen sidecar --ledger` wrote: what `loadgen bill` prints.

    by: model, workload, engine, day or a label of `sidecar --label`, or several of them. start, end: the bill is of the
    periods that end at `start` or later and before `end`: a time, a date, or either in ISO 8601; without a zone it is
    UTC. share_idle: none, by-tokens or by-energy. pue: facility power over IT power. grid_intensity: grams of CO2e per
    kWh, with its source and date. price: per kWh.
    LoadgenError: the folder holds no ledger, or a file of it is damaged.
    """
    if share_idle not in SHARES:
        raise LoadgenError(f"share_idle: {str(share_idle)[:80]!r} is none of {', '.join(SHARES)}")
    span = SpanOfTime(unix_ns(start, "start"), unix_ns(end, "end"))
    if span.from_ns is not None and span.to_ns is not None and span.from_ns >= span.to_ns:
        raise LoadgenError("the bill would end before it begins: give an end after the start")
    factors = factors_of(pue=pue, grid_intensity=grid_intensity, grid_source=grid_source, price=price)
    return Bill(bill_of(Path(folder), (by,) if isinstance(by, str) else tuple(by), span, share_idle, factors))


def unix_ns(instant: datetime | date | str | None, name: str) -> int | None:
    """Return an instant in Unix time; without a zone it is UTC. Raises LoadgenError when it is none."""
    if instant is None:
        return None
    try:
        if isinstance(instant, str):
            instant = datetime.fromisoformat(instant)
        elif not isinstance(instant, datetime):
            instant = datetime(instant.year, instant.month, instant.day)
        instant = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
        return (instant - EPOCH) // timedelta(microseconds=1) * 1_000
    except (ValueError, OverflowError, AttributeError) as err:
        raise LoadgenError(f"{name}: {str(instant)[:40]!r} is no time in ISO 8601, such as 2026-11-01T00:00Z") from err
