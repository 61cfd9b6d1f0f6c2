"""The table of a study: one row for each run, and groups of repeats with their means, intervals and reductions."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import msgspec

from loadgen.stats.intervals import Interval, interval, paired_reduction, reduction


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of results.csv: one run. None is unknown."""

    cell: str
    """The run's folder."""
    server: str
    model: str
    workload: str
    batch: int | None
    """Requests kept in flight by a closed loop."""
    rps: float | None
    """Requests per second of an open loop."""
    repeat: int
    simulated: bool
    completed: int
    failed: int
    duration_s: float
    input_tokens: int | None
    output_tokens: int | None
    output_tokens_per_s: float | None
    measured_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    idle_joules: float | None
    unattributed_joules: float | None
    mean_watts: float | None
    joules_per_output_token: float | None
    """Measured joules / output tokens: all the energy of the run's time, idle included."""
    joules_per_request: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    e2e_p50_s: float | None
    goodput_ratio: float | None
    good_requests_per_joule: float | None
    idealized_joules: float | None
    measured_over_idealized: float | None
    energy_valid: bool
    gpu: str | None
    """Name, and the beginning of the UUID where it is known."""
    temperature_c: float | None
    """Temperature of the hottest GPU, before the run."""
    arrival: str | None = None
    """Arrival process of an open loop: poisson, constant, "gamma 0.25" (its burstiness), trace, or streams."""
    steady_joules_per_output_token: float | None = None
    """The same without the run's ramp and drain; None when it had no steady state."""
    idle_watts: float | None = None
    """Power before the run, with the model resident."""


class ConfigurationKey(NamedTuple):
    """The configuration that repeats have in common."""

    server: str
    model: str
    workload: str
    batch: int | None
    rps: float | None


@dataclass(frozen=True)
class Group:
    """The repeats of one configuration, in the order of `repeat`."""

    key: ConfigurationKey
    rows: tuple[Row, ...]

    def values(self, field: str) -> list[float]:
        """Return the known values of a field, one per repeat."""
        return [float(value) for row in self.rows if (value := getattr(row, field)) is not None]

    def mean(self, field: str) -> float | None:
        values = self.values(field)
        return fmean(values) if values else None

    def interval(self, field: str) -> Interval | None:
        values = self.values(field)
        return interval(values) if values else None


def groups(rows: Iterable[Row]) -> list[Group]:
    """Return the rows by configuration, sorted by server, model, workload, batch and rate; an absent load first."""
    by_key: dict[ConfigurationKey, list[Row]] = {}
    for row in rows:
        key = ConfigurationKey(row.server, row.model, row.workload, row.batch, row.rps)
        by_key.setdefault(key, []).append(row)

    def order(key: ConfigurationKey) -> tuple[Any, ...]:
        return *key[:3], key.batch is not None, key.batch or 0, key.rps is not None, key.rps or 0

    return [Group(key, tuple(sorted(by_key[key], key=lambda row: row.repeat))) for key in sorted(by_key, key=order)]


def reduction_between(baseline: Group, other: Group, field: str) -> Interval:
    """Return the reduction of `field` from `baseline` to `other`, with its interval.

    Open loops draw their arrivals from the repeat's number, so equal repeats are pairs. Closed loops draw nothing.
    """
    before, after = (
        {row.repeat: value for row in group.rows if (value := getattr(row, field)) is not None}
        for group in (baseline, other)
    )
    drawn = baseline.key.rps is not None and other.key.rps is not None
    if drawn and (pairs := sorted(before.keys() & after.keys())):
        return paired_reduction([before[repeat] for repeat in pairs], [after[repeat] for repeat in pairs])
    return reduction(list(before.values()), list(after.values()))
