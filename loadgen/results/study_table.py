"""The table of a study: one row for each run, and groups of repeats with their means, intervals and reductions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

import msgspec

from loadgen.record import SLO_METRICS
from loadgen.results.attainment import WANTED, Attainment
from loadgen.results.verdict import Status
from loadgen.stats.intervals import Interval, interval, paired_reduction, reduction


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of results.csv: one run. None is unknown."""

    cell: str
    """The run's folder."""
    server: str
    """Name of the server in the study."""
    model: str
    """Model."""
    workload: str
    """Name of the workload in the study."""
    batch: int | None
    """Requests kept in flight by a closed loop."""
    rps: float | None
    """Requests per second of an open loop."""
    repeat: int
    """Number of the repeat, from 0."""
    simulated: bool
    """True for the simulated server: nothing was measured on a real model."""
    completed: int
    """Requests that completed."""
    failed: int
    """Requests that failed."""
    duration_s: float
    """Time between the first scheduled instant and the last request's end."""
    input_tokens: int | None
    """Prompt tokens of all requests; None when the server counts none."""
    output_tokens: int | None
    """Output tokens of all requests; None when none are counted."""
    output_tokens_per_s: float | None
    """Output tokens per second of the run."""
    measured_joules: float | None
    """Energy of the run's time; None, like all joules, without a meter."""
    prefill_joules: float | None
    """Part of the attributed energy that prefills used."""
    decode_joules: float | None
    """Part of the attributed energy that decode steps used."""
    idle_joules: float | None
    """Energy of an idle machine over the run's time."""
    unattributed_joules: float | None
    """Energy that belongs to no request."""
    mean_watts: float | None
    """Mean power of the run."""
    joules_per_output_token: float | None
    """Measured joules / output tokens: all the energy of the run's time, idle included."""
    joules_per_request: float | None
    """Measured joules / completed requests."""
    ttft_p50_s: float | None
    """TTFT, median, in which failed requests count as infinitely late, as in all percentiles of this table; None when
    it is reached by one."""
    ttft_p99_s: float | None
    """TTFT, percentile 99."""
    tpot_p50_s: float | None
    """TPOT, median."""
    tpot_p99_s: float | None
    """TPOT, percentile 99."""
    e2e_p50_s: float | None
    """E2E latency, median."""
    goodput_ratio: float | None
    """Share of all requests within every limit; None without limits."""
    good_requests_per_joule: float | None
    """Requests within every limit per measured joule."""
    idealized_joules: float | None
    """Energy that the FLOPs of the workload would take at the peak efficiency of the hardware; None when either is not
    known."""
    measured_over_idealized: float | None
    """Measured joules / idealized joules."""
    energy_valid: bool
    """True when the energy's totals can be trusted."""
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
    e2e_p99_s: float | None = None
    """E2E latency, percentile 99."""
    ttft_met_ratio: float | None = None
    """Share of all requests that completed within the TTFT limit; None without such a limit. The next two likewise."""
    tpot_met_ratio: float | None = None
    """Share of all requests that completed within the TPOT limit."""
    e2el_met_ratio: float | None = None
    """Share of all requests that completed within the limit of E2E latency."""
    verdict: Status | None = None
    """Verdict on the run; None when it was not judged."""
    remarks: str | None = None
    """Reasons of the verdict, where it is not ok."""
    started: str | None = None
    """Start of the run: UTC, ISO 8601, to the second."""
    loadgen_version: str | None = None
    """Version of loadgen that made the run."""
    engine: str | None = None
    """Name of the engine, with its version where the server reports one."""
    engine_options: str | None = None
    """Engine options of the run: name=value, separated by spaces."""
    seed: int | None = None
    """Seed of the run's arrivals and prompts."""
    host_joules: float | None = None
    """Energy of the host beside the GPUs; None where no meter has it."""
    total_joules: float | None = None
    """Energy of the run's boundary: of the GPUs and of what is measured or stated beside them."""
    co2e_grams: float | None = None
    """total_joules in kWh times the grid intensity of the study; None where it states none."""
    cost: float | None = None
    """total_joules in kWh times the price of the study; None where it states none."""

    @property
    def good_per_s(self) -> float | None:
        """Requests within every limit per second."""
        return None if self.goodput_ratio is None else self.goodput_ratio * self.requests / self.duration_s

    @property
    def completed_per_s(self) -> float:
        return self.completed / self.duration_s

    @property
    def requests(self) -> int:
        return self.completed + self.failed


class ConfigurationKey(NamedTuple):
    """The configuration that repeats have in common."""

    server: str
    model: str
    workload: str
    batch: int | None
    rps: float | None


@dataclass(frozen=True)
class StudyInfo:
    """A study beside its rows: its question, and how its runs were made."""

    title: str
    description: str = ""
    baseline: str | None = None
    """The server that reductions are relative to."""
    limits_ms: Mapping[str, float] = field(default_factory=dict)
    """Limits in ms: ttft, tpot, e2el."""
    wanted: float = WANTED
    """Share of the requests that must be within every limit."""
    seed: int | None = None
    workloads: Mapping[str, str] = field(default_factory=dict)
    """Description of each workload: its lengths or its trace."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Reason of each run that failed."""
    remaining: int = 0
    """Number of runs to go."""
    pages: frozenset[str] = frozenset()
    """Runs that have a report of their own, in runs/NAME/report.html beside the study's."""
    file: str | None = None
    sha256: str | None = None
    """SHA-256 of the study's file."""
    command: str | None = None
    """Command line that goes on with the study, or makes it again."""


SHARES = frozenset({"goodput_ratio", "ttft_met_ratio", "tpot_met_ratio", "e2el_met_ratio"})
"""Fields of Row that lie between 0 and 1. No other is negative either."""


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
        """Return the mean and its 95 % interval, which has no ends where it would leave the range of the field."""
        values = self.values(field)
        return interval(values, 0.0, 1.0 if field in SHARES else inf) if values else None

    @property
    def joules_per_good_request(self) -> Interval | None:
        """Return measured joules / requests within every limit; None where that is unknown, or a repeat has none."""
        costs = [1 / good if good else inf for good in self.values("good_requests_per_joule")]
        return interval(costs, 0.0) if costs and max(costs) < inf else None

    @property
    def load(self) -> float:
        """Requests per second of an open loop, requests in flight of a closed one."""
        return float(self.key.rps or self.key.batch or 0)

    @property
    def attainment(self) -> Attainment:
        """Return the means of the repeats' shares of requests within the limits."""
        by_limit = {limit: self.mean(f"{limit}_met_ratio") for limit in SLO_METRICS}
        return Attainment(
            self.load,
            self.mean("goodput_ratio"),
            {limit: share for limit, share in by_limit.items() if share is not None},
            sum(row.requests for row in self.rows),
        )


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
