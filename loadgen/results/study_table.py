"""Runs of a study as rows of a table, and what repeats of them say: means, intervals, reductions, the Pareto front."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

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
    """Requests kept in flight, for a closed loop."""
    rps: float | None
    """Requests per second asked for, for an open one."""
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
    """measured / output tokens: all the energy of the run's time, idle included."""
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
    """Of the hottest GPU, before the run."""
    arrival: str | None = None
    """Of an open loop: poisson, constant, "gamma 0.25" (its burstiness), trace, or streams."""
    steady_joules_per_output_token: float | None = None
    """Without the run's ramp and drain; None when it had no steady state."""
    idle_watts: float | None = None
    """Before the run, with the model resident."""


Key = tuple[str, str, str, int | None, float | None]
"""server, model, workload, batch, rps: what repeats have in common."""


@dataclass(frozen=True)
class Group:
    """The repeats of one configuration."""

    key: Key
    rows: tuple[Row, ...]

    def interval(self, field: str) -> Interval | None:
        values = self.values(field)
        return interval(values) if values else None

    def values(self, field: str) -> list[float]:
        return [float(value) for row in self.rows if (value := getattr(row, field)) is not None]

    def mean(self, field: str) -> float | None:
        values = self.values(field)
        return fmean(values) if values else None


def groups(rows: Iterable[Row]) -> list[Group]:
    """Repeats together, in the order of their configuration."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault((row.server, row.model, row.workload, row.batch, row.rps), []).append(row)
    ordered = sorted(found.items(), key=lambda item: [(part is not None, part or 0) for part in item[0][3:]])
    by_name = sorted(ordered, key=lambda item: item[0][:3])
    return [Group(key, tuple(sorted(of_one, key=lambda row: row.repeat))) for key, of_one in by_name]


def reduction_between(baseline: Group, other: Group, field: str) -> Interval:
    """Open loops draw their arrivals from the repeat's number: equal repeats are pairs. Closed loops draw nothing."""
    b, x = ({row.repeat: v for row in g.rows if (v := getattr(row, field)) is not None} for g in (baseline, other))
    drawn = baseline.key[4] is not None and other.key[4] is not None
    if drawn and (both := sorted(b.keys() & x.keys())):
        return paired_reduction([b[i] for i in both], [x[i] for i in both])
    return reduction(list(b.values()), list(x.values()))
