"""The numbers of a run: everything in summary.json. An absent number is null, never zero."""

from typing import Any, Literal

import msgspec

from loadgen.record import Kind, StampedBy
from loadgen.results.verdict import NOT_JUDGED, Verdict
from loadgen.workload.arrival_check import RealizedArrivals


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of `count` values; every other field is None when count is 0. `count` excludes unknown values."""

    count: int
    """Number of known values."""
    mean: float | None = None
    """Arithmetic mean."""
    std: float | None = None
    """Standard deviation: the root of the mean squared distance from the mean. None in an older version's folder, like
    min, p75 and p99_9."""
    min: float | None = None
    """Smallest value."""
    p50: float | None = None
    """The median. Percentiles are interpolated linearly between ranks."""
    p75: float | None = None
    """Percentile 75."""
    p90: float | None = None
    """Percentile 90."""
    p95: float | None = None
    """Percentile 95."""
    p99: float | None = None
    """Percentile 99."""
    p99_9: float | None = None
    """Percentile 99.9."""
    max: float | None = None
    """Largest value."""


class Latency(Distribution, frozen=True, kw_only=True):
    """Latencies of completed requests, and their percentiles if the failed ones are counted as infinitely late.

    A percentile `_with_failures` is that of completed and failed requests together. It is None when it is not reached:
    so many requests failed that it falls on one of them. Without failures it is the plain percentile.
    """

    left_out: int = 0
    """Failed requests, which are in no other statistic. Requests that the end of the run cut off are in none at all."""
    p50_with_failures: float | None = None
    """Median of completed and failed requests together."""
    p75_with_failures: float | None = None
    """Percentile 75 of both."""
    p90_with_failures: float | None = None
    """Percentile 90 of both."""
    p95_with_failures: float | None = None
    """Percentile 95 of both."""
    p99_with_failures: float | None = None
    """Percentile 99 of both."""
    p99_9_with_failures: float | None = None
    """Percentile 99.9 of both."""


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of requests by outcome."""

    scheduled: int
    """Requests of the schedule."""
    sent: int
    """Requests that were sent."""
    completed: int
    """Requests whose whole answer came."""
    failed: int
    """All others, those that were not sent included."""
    by_error: dict[str, int]
    """Failed requests by kind of error; a kind that did not occur is absent."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Requests per second, as requested and as sent."""

    requested_rps: float | None
    """Planned mean; None for a single request and for a closed loop."""
    achieved_rps: float | None
    """Requests sent per second of the run; None when the run has no duration."""
    index_of_dispersion: float | None
    """Variance / mean of the number of requests sent in each second: 1 for Poisson, 0 for constant, more for bursts."""


class ArrivalCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Compares the arrivals of requests (for a stream with sessions: of the sessions) with the requested process."""

    of: str
    """"requests" or "sessions"."""
    process: str | None
    """Name of the requested process; None for several streams together."""
    asked_rps: float | None
    """Requested mean rate of arrivals; None where it is not known."""
    turns: float = 1.0
    """Mean requests of one arrival: 1 but for sessions."""
    scheduled: RealizedArrivals
    """Arrivals at the instants of the schedule."""
    sent: RealizedArrivals
    """Arrivals at the instants at which requests were sent."""
    as_asked: bool | None
    """True when the arrivals are those requested; None when they were not judged."""
    verdict: str
    """The judgement in words."""


Stage = Literal["begun", "answered"]
"""Stage that a request waits for. begun: its first token. answered: the end of its answer. A failure ends both."""


class Saturation(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a run in which the server did not keep up: from `from_s` until the last request was sent."""

    until: Stage
    """Stage that requests waited for."""
    from_s: float
    """Seconds after the first scheduled instant."""
    came_rps: float
    """Requests sent per second."""
    served_rps: float
    """Requests per second that reached the stage."""
    waiting_before: int
    """Requests that were waiting at `from_s`."""
    waiting_after: int
    """Requests that were waiting when the last one was sent."""
    wait_before_s: float
    """Median wait of the first tenth of these requests."""
    wait_after_s: float | None
    """Median wait of the last tenth; None when half of them waited for ever."""


class ServerLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load as the server coped with it."""

    served_rps: float | None
    """Requests completed per second between the first and the last that completed."""
    waiting_max: int
    """Largest number of requests at once that were sent and had no token."""
    engine_running_max: float | None
    """Largest number of running requests in the engine's own counters; None without such counters."""
    engine_waiting_max: float | None
    """Largest number of requests in its queue."""
    drain_s: float | None
    """Time from the last request sent to the end of the last answer."""
    saturation: Saturation | None
    """The part of the run in which the server did not keep up; None when it did."""


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all requests, failed ones too."""

    input: int | None
    """Prompt tokens by the server's count; None when it counts none."""
    output: int | None
    """Output tokens; None when none are known."""
    input_per_s: float | None
    """Prompt tokens per second of the run."""
    output_per_s: float | None
    """Output tokens per second of the run."""
    output_without_chunk: int | None = None
    """Output tokens without a chunk of their own (several came in one chunk, or the server sent nothing for them): when
    each of them came is estimated. None where the server does not count its tokens, or in an older version's folder."""
    cached: int | None = None
    """Prompt tokens that the server took from its prefix cache. None when it does not count them, or in an older
    version's folder."""
    reasoning: int | None = None
    """Output tokens of reasoning by the server's count, and its counts of audio and images. None where no request has
    one."""
    output_audio: int | None = None
    """Output tokens of audio."""
    input_audio: int | None = None
    """Prompt tokens of audio."""
    input_image: int | None = None
    """Prompt tokens of images."""


class KindOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Output of one kind: reasoning, the answer's text, or calls of tools."""

    requests: int
    """Requests with tokens of it."""
    tokens: int
    """Sum by the server's count of reasoning where it has one, otherwise in proportion to the chunks of each kind."""
    joules: float | None = None
    """Energy of the decode steps that generated it. A request's first token comes with its prefill and costs nothing
    here. None without energy, and where the reasoning was not sent: it was over before the first chunk."""
    joules_per_token: float | None = None
    """joules / tokens."""


class LengthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Requested tokens and those that the server's `usage` reports, over completed requests."""

    count: int
    """Answers of requested length; where there are none, prompts of known length."""
    input_asked: int | None
    """Sum over the prompts that `usage` counts, like the next two; None when it counts none."""
    input_counted: int | None
    """Prompt tokens by the server's count."""
    input_max_off: int | None
    """Largest difference of one prompt."""
    output_asked: int | None
    """Sum over the answers of requested length, like the next two; None when no length was requested."""
    output_counted: int | None
    """Output tokens by the server's count."""
    output_max_off: int | None
    """Largest difference of one answer."""
    shorter: int = 0
    """Answers that are shorter than requested, by more than one token and 1 %."""
    longer: int = 0
    """Answers that are longer."""
    stopped: int = 0
    """Answers of `shorter` that the model ended itself: the finish reason is not "length"."""
    not_honoured: list[str] = []
    """Options among `ignore_eos` and `min_tokens` that the server accepted and ignored: `stopped` is the proof."""


class NaturalEndings(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that end where the model ends them, by the server's `usage`, over completed requests: outcomes that no
    length was requested for."""

    tokens: Distribution
    """Lengths of these answers."""
    limited: int
    """Answers that a limit of tokens ended: the finish reason is "length"."""
    recorded: int
    """Answers that the trace has a recorded length for. The next two are sums over these; None when there are none."""
    recorded_tokens: int | None
    """Tokens of the recorded answers."""
    counted_tokens: int | None
    """Tokens of the answers that came."""
    shorter: int
    """Answers that are shorter than the recorded ones, by more than one token and 1 %."""
    longer: int
    """Answers that are longer."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Completed requests that met every limit in `slo_ms`; if that is empty, every limit of their own stream."""

    slo_ms: dict[str, float]
    """Limits in milliseconds by metric: ttft, tpot, e2el."""
    good: int
    """Requests that met every limit."""
    ratio: float | None
    """Share of all scheduled requests that met every limit; None without requests."""
    rps: float | None
    """Requests within every limit per second of the run."""
    met: dict[str, int] = {}
    """Completed requests that met each limit in `slo_ms`. Empty in an older version's folder."""


class SteadyState(msgspec.Struct, frozen=True, kw_only=True):
    """The run without its ramp and its drain.

    N is the largest number of requests ever in flight at once. The steady state begins when N requests have had their
    first token, and ends when all but N have finished (ML.ENERGY's rule, arXiv 2505.06371).
    """

    start_s: float
    """Counted from the first scheduled instant, like end_s."""
    end_s: float
    """End of the steady state."""
    joules: float
    """Measured energy between the two."""
    output_tokens: int
    """Output tokens between the two."""
    joules_per_output_token: float | None
    """joules / output_tokens; None without tokens."""


class CacheEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy that a prefix cache saved, and that was used for tokens computed before, by the fitted law. Sums over the
    requests for which it is known; None where it is known for none."""

    saved_joules: float | None = None
    """Energy that the cached prompt tokens would have cost, all else equal."""
    saved_se_joules: float | None = None
    """Standard error of saved_joules: that of the fitted prices."""
    recomputed_joules: float | None = None
    """Part of the attributed energy that was used for prompt tokens that the cache had held and lost, and for the
    contexts of preempted streams."""
    recomputed_se_joules: float | None = None
    """Standard error of recomputed_joules."""


class DomainEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy that one meter's domain counted during the run. Domains overlap: never add them, the accounts do."""

    name: str
    """Name of the domain in run.json."""
    source: str
    """Origin of the joules, such as "nvml-counter" or "rapl"."""
    scope: str
    """Part of a machine. "accelerator": a GPU; "host": CPU packages and memory; "machine": what may contain both."""
    within: str | None = None
    """The domain that contains this one."""
    joules: float | None = None
    """Energy between two updates around the run; None where there were none."""
    mean_watts: float | None = None
    """The same over the time between these updates."""


class HostEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of the host beside the GPUs: measured = idle + attributed + unattributed, to the millijoule. Its meters
    count everything on the host, so a request's part of it is an estimate."""

    source: str
    """Origin of the joules, such as "rapl"."""
    share_by: str
    """Way in which the energy in flight is shared: by "time" in flight, or by "tokens"."""
    measured_joules: float
    """Energy of the host's domains that lie within no other of them."""
    idle_joules: float
    """Part that flowed while no request of this client was in flight."""
    attributed_joules: float
    """Part that is shared among the requests."""
    unattributed_joules: float
    """Part of other clients, by their share of the engine's output tokens; and what no counted token can have."""
    joules_per_request: Distribution
    """Shared energy of each completed request."""
    joules_per_output_token: float | None = None
    """attributed_joules / output tokens."""
    coverage: float
    """Share of the run's time that the host's meters cover."""
    reasons: list[str] = []
    """Reasons why these joules are incomplete; empty where they are whole."""


class BoundaryPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what serving takes, and whether the joules of this run have it."""

    part: str
    """Name: "accelerator", "host", "idle", "chassis" or "overhead"."""
    basis: str
    """Origin: "measured", "simulated", "estimated" or "not included"."""
    joules: float | None = None
    """Its energy; None where it is not included."""
    note: str = ""
    """Its sources, or what the estimate assumes."""


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """Parts that the joules of the run include, and what follows from them by stated factors. Idle is in the others."""

    parts: list[BoundaryPart]
    """The parts of what serving takes."""
    total_joules: float
    """Energy of the accelerators, the host, the chassis and the overhead, where each is included."""
    pue: float | None = None
    """Facility power over IT power, as stated by the user."""
    grid_intensity: float | None = None
    """Carbon intensity of the grid in grams of CO2e per kWh, as stated by the user."""
    grid_source: str | None = None
    """Source and date of grid_intensity, as stated by the user."""
    price: float | None = None
    """Price per kWh, as stated by the user."""
    co2e_grams: float | None = None
    """total_joules in kWh times grid_intensity."""
    cost: float | None = None
    """total_joules in kWh times price."""
    cost_per_million_output_tokens: float | None = None
    """cost over the output tokens of this client, idle included."""


class EngineEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """The energy accounts of one of several engines: measured = idle + prefill + decode + unattributed."""

    name: str
    """Name of the engine, as --engine gives it."""
    role: str | None = None
    """"prefill" or "decode"; null where it computes whole requests."""
    domains: list[str]
    """Counters of its energy."""
    requests: int
    """Requests that it served, in part or in whole."""
    named_by: dict[str, int] = {}
    """These by the evidence: "header" of the response, "span" of the engine, "only engine" that can have served them,
    or "counters" of all engines, which make it likely."""
    input_tokens: int
    """Prompt tokens of these requests."""
    output_tokens: int
    """Output tokens that it generated of these; 0 where another engine generates."""
    measured_joules: float | None = None
    """Energy that its counters counted; null without energy, as all below."""
    idle_joules: float | None = None
    """Part of it used while no request was in flight there."""
    prefill_joules: float | None = None
    """Part that prefills used."""
    decode_joules: float | None = None
    """Part that decode steps used."""
    unattributed_joules: float | None = None
    """Part of other clients, and what no counted token can have."""
    attributed_se_joules: float | None = None
    """Standard error of prefill_joules + decode_joules, of the fitted law."""
    idle_watts: float | None = None
    """Its power at rest; null if it was never idle."""
    held_out_r_squared: float | None = None
    """Share of the variance of held-out windows that its law explains; null where nothing was held out."""


class EnergySummary(msgspec.Struct, frozen=True, kw_only=True):
    """measured = idle + attributed + unattributed, to the millijoule."""

    valid: bool
    """True when the energy can be trusted."""
    totals_valid: bool | None = None
    """True when the totals can be trusted, even if the energy of single requests, of workloads, of prefill and of
    decode cannot, because the fitted law explains nothing. None in an older version's folder, or without a meter."""
    reasons: list[str]
    """Reasons why the energy cannot be trusted, or is missing. Empty when valid."""
    source: str | None = None
    """Origin of the joules, such as "nvml-counter"; None without a meter, like all below."""
    method: str | None = None
    """Method of attribution."""
    came_whole: int = 0
    """Answers that are one object. Each is taken for one step that ends with it, and shares that step's energy by the
    tokens of its prompt."""
    duration_s: float | None = None
    """Time that the joules are of: between two updates of the counter around the run."""
    measured_joules: float | None = None
    """Energy of that time."""
    measured_se_joules: float | None = None
    """Standard error of measured_joules: the instants at which the counter updated are uncertain at both ends."""
    idle_joules: float | None = None
    """Part that an idle machine would have used, with the model resident."""
    attributed_joules: float | None = None
    """Part that is attributed to requests."""
    attributed_se_joules: float | None = None
    """Standard error of attributed_joules: that of measured_joules, and that of the idle power."""
    unattributed_joules: float | None = None
    """Part that belongs to no request."""
    steady: SteadyState | None = None
    """The steady state; None when the run is too short to have one."""
    coverage: float | None = None
    """Share of the run's time that the counter covers, times this client's share of the engine's output tokens."""
    mean_watts: float | None = None
    """measured_joules / duration_s."""
    idle_watts: float | None = None
    """Power at rest; None when it is not known."""
    capped_share: float | None = None
    """Share of the run's time in which the power limit held the GPUs' clocks down; None where no GPU counts it."""
    at_limit_share: float | None = None
    """Share in which their mean power was that of the limit too, so that energy followed time and not work. None where
    the limit or `capped_share` is not known."""
    coefficients: dict[str, float | None] | None = None
    """Coefficients of the attribution's fit, in joules and watts."""
    coefficients_se: dict[str, float] | None = None
    """Standard errors of the coefficients that are not zero."""
    held_out_r_squared: float | None = None
    """Share of the variation that the fit explains of windows that it was not made of: five blocks of neighbouring
    windows, each predicted by a fit of the others. Below 0, it explains nothing. None with fewer than 50 windows."""
    fit_notes: list[str] = []
    """Sentences about a poor fit: its causes, what it did not tell apart, and the numbers that this affects."""
    joules_per_request: Distribution | None = None
    """Attributed energy of each completed request."""
    joules_per_output_token: float | None = None
    """Attributed joules / output tokens."""
    joules_per_token: float | None = None
    """Attributed joules / (prompt tokens + output tokens); None when the server does not count prompts."""
    prefill_joules: float | None = None
    """Part of attributed_joules that prefills used."""
    prefill_se_joules: float | None = None
    """Standard error of prefill_joules: of the fitted law. What prefill gains, decode loses."""
    decode_joules: float | None = None
    """Part of attributed_joules that decode steps used."""
    decode_se_joules: float | None = None
    """Standard error of decode_joules."""
    cache: CacheEnergy | None = None
    """Energy that the prefix cache saved; None where it is not known, or in an older version's folder."""
    domains: list[DomainEnergy] = []
    """The domains of all meters, side by side."""
    host: HostEnergy | None = None
    """Energy of the host beside the GPUs, in none of the numbers above; None where no meter counts both."""
    engines: list[EngineEnergy] = []
    """Accounts of each engine, which sum to those above; empty where there is one."""
    boundary: Boundary | None = None
    """Parts that the joules include; None without a meter, or in an older version's folder."""


class SpeculationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Speculative decoding between the engine's first and last counters, of all clients; joules are of this one's."""

    drafts: int
    """Drafts that were verified: at most one for each stream in a decode step."""
    draft_tokens: int
    """Tokens in these drafts."""
    accepted_tokens: int
    """Tokens of drafts that were accepted."""
    acceptance: float
    """accepted_tokens / draft_tokens."""
    tokens_per_step: float
    """Tokens that a stream gets from a decode step with a draft: 1 + accepted_tokens / drafts."""
    rejected_joules: float | None = None
    """Estimate of what rejected tokens added to the attributed energy: their number times the fitted price of a token,
    without the contexts that the draft model reads. None without energy, or where the fit found no such price."""
    rejected_se_joules: float | None = None
    """Standard error of rejected_joules: that of the fitted price."""
    rejected_share: float | None = None
    """rejected_joules / attributed_joules."""


class WorkloadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's share of the run. It has no idle or unattributed energy: those belong to no workload."""

    requests: RequestCounts
    """Numbers of requests by outcome."""
    ttft_s: Latency
    """Time to first token."""
    ttfa_s: Latency = Latency(count=0)
    """Time to the first answer token: the first that is no reasoning. None in an older version's folder."""
    tpot_s: Latency
    """Time per output token after the first."""
    itl_s: Distribution
    """Inter-token latency."""
    e2e_s: Latency
    """End-to-end latency."""
    response_s: Latency
    """Response time."""
    tokens: TokenCounts
    """Numbers and rates of tokens."""
    output_kinds: dict[Kind, KindOutput] = {}
    """Reasoning, answer and calls of tools, those that occur. Empty in an older version's folder."""
    goodput: Goodput | None
    """Requests within the limits of latency; None without limits."""
    arrivals: ArrivalCheck | None = None
    """Its arrivals against its process; None where the workload is not a stream."""
    attributed_joules: float | None = None
    """Energy attributed to its requests; None without a meter, like all below."""
    attributed_se_joules: float | None = None
    """Standard error of attributed_joules: of the fitted law. Joules per token have the same relative error."""
    prefill_joules: float | None = None
    """Part that prefills used."""
    prefill_se_joules: float | None = None
    """Standard error of prefill_joules."""
    decode_joules: float | None = None
    """Part that decode steps used."""
    decode_se_joules: float | None = None
    """Standard error of decode_joules."""
    joules_per_request: Distribution | None = None
    """Attributed energy of each completed request."""
    joules_per_output_token: float | None = None
    """Attributed joules / output tokens."""
    joules_per_token: float | None = None
    """Attributed joules / (prompt tokens + output tokens); None when the server does not count prompts."""
    cache: CacheEnergy | None = None
    """Energy that the prefix cache saved; None where it is not known, or in an older version's folder."""
    host_joules: float | None = None
    """Estimate of its requests' part of the host's energy, by the rule of `host`; None where no meter counts the host
    beside the GPUs."""


class DepthCost(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of sessions at some depth. The turn of a request is its number within its task, from 1."""

    first_turn: int
    """First turn of the bin: 1, 2, 4, 8 and so on."""
    last_turn: int
    """Last turn of the bin: 1, 3, 7, 15 and so on."""
    requests: int
    """Requests of the schedule."""
    sent: int
    """Requests that were sent."""
    completed: int
    """Requests whose whole answer came."""
    input_tokens: int | None
    """Prompt tokens by the server's count; None when it counts none."""
    cached_share: float | None
    """Cached share of the prompts whose cached tokens are counted."""
    output_tokens: int | None
    """Output tokens; None when none are known."""
    joules: float | None = None
    """Energy attributed to these requests; None without a meter, like all below."""
    se_joules: float | None = None
    """Standard error of joules."""
    prefill_joules: float | None = None
    """Part that prefills used."""
    decode_joules: float | None = None
    """Part that decode steps used."""
    joules_per_turn: Distribution | None = None
    """Energy of each completed request."""
    cache: CacheEnergy | None = None
    """Energy that the prefix cache saved; None where it is not known."""


class SessionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of several turns. sessions.jsonl has the account of each session and of each task within it."""

    sessions: int
    """Sessions of the schedule."""
    completed: int
    """Sessions whose every request completed."""
    tasks: int
    """Main threads and sub-agents of all sessions."""
    requests: int
    """Requests of all sessions."""
    session_requests: Distribution
    """Requests of each session."""
    time_to_last_answer_s: Distribution
    """Time from the first request of each completed session to the end of its last answer."""
    model_s: float | None
    """Time, summed over the sessions, in which a request of the session was in flight. None when nothing was sent."""
    tool_s: float | None
    """Time in which none was in flight and none was due: the time of tools, or of users who think."""
    waiting_s: float | None
    """Time in which none was in flight although one was due: the client was late, or held it back."""
    input_tokens: int | None
    """Prompt tokens by the server's count; None when it counts none."""
    cached_tokens: int | None
    """Part of them that the server took from its prefix cache; None when it does not count them."""
    output_tokens: int | None
    """Output tokens; None when none are known."""
    cached_share: float | None
    """Cached share of the prompts whose cached tokens are counted."""
    good: int | None
    """Sessions whose every request met the limits of its workload; None without limits."""
    goodput: float | None
    """Share of the sessions with limits whose every request met them: the session goodput."""
    joules: float | None = None
    """Energy attributed to the requests of all sessions; None without a meter, like all below. With other_joules, the
    idle and the unattributed energy it is the measured energy, to the millijoule."""
    other_joules: float | None = None
    """Energy attributed to requests outside of sessions."""
    joules_per_session: Distribution | None = None
    """Energy of each completed session."""
    joules_per_task: Distribution | None = None
    """Energy of each completed task: a main thread or a sub-agent."""
    joules_per_turn: Distribution | None = None
    """Energy of each completed request of a session."""
    cache: CacheEnergy | None = None
    """Energy that the prefix cache saved; None where it is not known."""
    by_depth: list[DepthCost] = []
    """Cost by the turn within a task; a bin without requests is absent."""


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that the client used, and whether its times can be trusted."""

    kept_time: bool | None = None
    """Timing valid. False when the client's own slowness is in the times (see `verdicts`); None when not known."""
    loop_delay_s: Distribution | None = None
    """Delay of the wake-ups of its event loop."""
    waited_s: float | None = None
    """Time in which it was ready to run while other processes had the cores."""
    stamped_by: StampedBy | None = None
    """Source of the tokens' timestamps. None in the folder of an older version."""
    compiled: bool | None = None
    """True if the compiled token reader was in use. Without it, reading tokens costs more CPU time."""
    cpu_s: float | None
    """Processor time of the sending processes; None when it is not known."""
    max_rss_bytes: int | None
    """Largest resident memory of the sending processes together."""
    sampler_period_s: float | None
    """Mean time between two reads of the meter; None without a meter."""
    verdicts: list[str]
    """The reasons of all checks of the verdict that are not ok."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Program, server, workload and machine of a run. It holds no secrets, addresses or host names; run.json has all
    options."""

    loadgen_version: str
    """Version of loadgen that made the run."""
    command: list[str]
    """Words of the command line, without secrets. Empty where a study or a program made the run."""
    started: str | None
    """Instant that the schedule counts from: UTC, ISO 8601. None when the run was killed before its first request."""
    simulated: bool
    """True for the built-in simulated server: nothing in the summary was measured on a real model."""
    model: str | None
    """Requested model; `by_model` has the models where there are several."""
    engine: str | None
    """Name of the inference engine; None when the server does not tell."""
    engine_version: str | None
    """Version of the engine; None when the server does not tell."""
    endpoint: str | None
    """API that took the requests: chat, completions, responses, embeddings or rerank."""
    trace: str | None
    """The trace as the command line named it, or the workload of a study."""
    trace_sha256: str | None
    """SHA-256 of the trace file's bytes; of the TOML file where that names streams. None without one regular file."""
    schedule_sha256: str
    """SHA-256 of the bytes of schedule.jsonl: equal for the same requests at the same instants."""
    seed: int
    """Seed of arrivals, drawn lengths and prompts."""
    system: str | None
    """Operating system of the client's host."""
    cpus: int | None
    """Processors of the client's host."""
    devices: list[str]
    """Devices whose energy was measured, such as "gpu:0 NVIDIA H200": name in run.json, and model where it is known."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run, as in summary.json: seconds, tokens and joules. None is unknown."""

    schema_version: str | None = None
    """Version of the format of this file; null in an older version's folder."""
    run_id: str
    """Random identity of the run."""
    run: Provenance | None = None
    """Origin of the run; null in an older version's folder."""
    duration_s: float
    """Time between the first scheduled instant and the last request's end."""
    stopped_by: str | None
    """"completed", "interrupted", "aborted", or "decided" where a search had seen enough; null when the run was
    killed."""
    requests: RequestCounts
    """Numbers of requests by outcome."""
    rate: Rate
    """Requested and achieved rate of requests."""
    arrivals: ArrivalCheck | None = None
    """Arrivals against their process; None if none was requested (a closed loop), or in an older version's folder."""
    server: ServerLoad | None = None
    """The load as the server coped with it. None if nothing was sent, or in an older version's folder."""
    schedule_lag_s: Distribution
    """Lateness of the client: sent - scheduled, of all requests that were sent."""
    ttft_s: Latency
    """Time to first token: first token - sent."""
    ttfa_s: Latency = Latency(count=0)
    """Time to the first answer token: the first that is no reasoning. None in an older version's folder."""
    tpot_s: Latency
    """Time per output token after the first: (last token - first token) / (output tokens - 1)."""
    itl_s: Distribution
    """Inter-token latency: gaps between successive chunks of an answer, of all requests together."""
    e2e_s: Latency
    """End-to-end latency: finished - sent."""
    response_s: Latency
    """Response time: finished - scheduled."""
    tokens: TokenCounts
    """Numbers and rates of tokens."""
    output_kinds: dict[Kind, KindOutput] = {}
    """Reasoning, answer and calls of tools, those that occur. Empty in an older version's folder."""
    lengths: LengthCheck | None
    """Lengths of prompts and answers against those that were requested; null when none were, or the server counts
    none."""
    endings: NaturalEndings | None = None
    """Answers that end where the model ends them; None when there are none that the server counts."""
    goodput: Goodput | None
    """Requests within the limits of latency; null without limits."""
    speculation: SpeculationSummary | None = None
    """Speculative decoding; None when the engine counts no drafts."""
    energy: EnergySummary
    """Energy of the run, and whether it can be trusted."""
    sessions: SessionSummary | None = None
    """Sessions; None where no session has several requests, or in an older version's folder."""
    by_workload: dict[str, WorkloadSummary]
    """The same of each workload, by its name."""
    by_model: dict[str, WorkloadSummary] = {}
    """The requests of each model; empty where all are of one."""
    by_tag: dict[str, WorkloadSummary] = {}
    """The requests of each value of a tag, by `NAME=VALUE`; those without the tag by `NAME=`. Of a tag with more than
    50 values, those of fewest requests are together `NAME=other`. Empty where no request has a tag."""
    instrument: Instrument
    """The client itself."""
    verdict: Verdict = NOT_JUDGED
    """The one judgement on the run. All of its checks are None in the folder of an older version."""

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of summary.json as plain values."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made
