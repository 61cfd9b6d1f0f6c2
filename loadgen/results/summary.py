"""A run in numbers: everything in summary.json. Absent is null, never zero."""

import msgspec

from loadgen.record import StampedBy
from loadgen.workload.arrivals import RealizedArrivals


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Of a sample of `count` values; every other field is None when count is 0. `count` excludes what was unknown."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    scheduled: int
    sent: int
    completed: int
    failed: int
    by_error: dict[str, int]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    requested_rps: float | None
    achieved_rps: float | None
    index_of_dispersion: float | None
    """Variance / mean of the number of requests sent in each second: 1 for Poisson, 0 for constant, more for bursts."""


class ArrivalCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests (of a stream with sessions: the sessions) came as the process asked for would have them come."""

    of: str
    """"requests" or "sessions"."""
    process: str | None
    """None: several streams together."""
    asked_rps: float | None
    scheduled: RealizedArrivals
    """The instants of the plan."""
    sent: RealizedArrivals
    """Those at which requests left."""
    as_asked: bool | None
    """None: not judged."""
    verdict: str


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    input: int | None
    output: int | None
    input_per_s: float | None
    output_per_s: float | None


class LengthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens asked for against tokens that the server's `usage` says it counted, over completed requests."""

    count: int
    input_asked: int
    input_counted: int
    input_max_off: int | None
    output_asked: int
    output_counted: int
    output_max_off: int | None


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Completed requests that met every limit in `slo_ms`; where that is empty, their own stream's limits."""

    slo_ms: dict[str, float]
    good: int
    ratio: float | None
    rps: float | None


class SteadyState(msgspec.Struct, frozen=True, kw_only=True):
    """The run without its ramp and its drain: from when as many requests had their first token as were ever in flight
    at once, until all but that many had finished (ML.ENERGY's rule, arXiv 2505.06371)."""

    start_s: float
    """From the first scheduled instant, like end_s."""
    end_s: float
    joules: float
    output_tokens: int
    joules_per_output_token: float | None


class EnergySummary(msgspec.Struct, frozen=True, kw_only=True):
    """measured = idle + attributed + unattributed, to the millijoule."""

    valid: bool
    reasons: list[str]
    """Why the energy cannot be trusted, or is missing. Empty when valid."""
    source: str | None = None
    method: str | None = None
    duration_s: float | None = None
    measured_joules: float | None = None
    measured_se_joules: float | None = None
    """Standard error of measured_joules: when the counter moved at both ends."""
    idle_joules: float | None = None
    attributed_joules: float | None = None
    attributed_se_joules: float | None = None
    """Standard error of attributed_joules: of what was measured, and of the idle power."""
    unattributed_joules: float | None = None
    steady: SteadyState | None = None
    """None when the run had no steady state."""
    coverage: float | None = None
    """Share of the run's time that the counter saw, times our share of the tokens that the engine made."""
    mean_watts: float | None = None
    idle_watts: float | None = None
    coefficients: dict[str, float | None] | None = None
    """What the attribution's fit found, in joules and watts."""
    joules_per_request: Distribution | None = None
    joules_per_output_token: float | None = None
    joules_per_token: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None


class WorkloadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's part of the run. Its energy has no idle or unattributed account: those belong to no workload."""

    requests: RequestCounts
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    response_s: Distribution
    tokens: TokenCounts
    goodput: Goodput | None
    arrivals: ArrivalCheck | None = None
    """Where the workload is a stream."""
    attributed_joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    joules_per_request: Distribution | None = None
    joules_per_output_token: float | None = None
    joules_per_token: float | None = None


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """What the client cost and how well it kept time."""

    kept_time: bool | None = None
    """False: the client's own slowness is in the times, and `verdicts` says how. None: not known."""
    loop_delay_s: Distribution | None = None
    """How late its event loop woke up."""
    waited_s: float | None = None
    """In which it was ready to run and other processes had the cores."""
    stamped_by: StampedBy | None = None
    """What says when tokens came. Not known of the folder of an older version."""
    compiled: bool | None = None
    """Whether compiled code was there to read tokens. Without, they cost more CPU."""
    cpu_s: float | None
    max_rss_bytes: int | None
    sampler_period_s: float | None
    verdicts: list[str]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    duration_s: float
    """From the first scheduled instant to the last request's end."""
    stopped_by: str | None
    requests: RequestCounts
    rate: Rate
    arrivals: ArrivalCheck | None = None
    """None where nobody asked: in a closed loop, and in the folder of an older version."""
    schedule_lag_s: Distribution
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    response_s: Distribution
    tokens: TokenCounts
    lengths: LengthCheck | None
    goodput: Goodput | None
    energy: EnergySummary
    by_workload: dict[str, WorkloadSummary]
    instrument: Instrument
