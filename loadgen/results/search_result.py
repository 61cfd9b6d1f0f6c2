"""The outcome of a search for a load: search.json."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Objective = Literal["rate", "joules_per_good_request"]
Stage = Literal["bracket", "refine", "present"]
Ended = Literal["interval", "budget", "fails", "client", "dropped", "server"]

FAILURES = "failures"
"""Name of that which binds where requests fail; it stands among the names of limits."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive requests of a probe, as [requests, missed]."""

    requests: int
    missed: int


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one rate. Its counts are of the requests sent between `from_s` and `until_s`, in a steady state."""

    name: str
    """The run's folder."""
    number: int
    """Number of the probe of its setting, from 0."""
    rate_rps: float
    """Requests per second, planned."""
    seed: int
    """Seed of its arrivals and prompts."""
    stage: Stage
    """"bracket": a short one that finds the order of magnitude. "refine": a long one near the rate. "present": a
    long one at a rate at which a replica would serve the load of today."""
    planned_s: float
    """Time in which requests were to be sent."""
    wall_s: float
    """Time that it took of the budget, with its start and its drain."""
    stopped_early: bool = False
    """True if it ended before its time, because far too many requests missed their limits."""
    from_s: float = 0.0
    """Beginning of the counted time: the server has filled up. Seconds after the first instant."""
    until_s: float = 0.0
    """End of the counted time: later requests ended in a server that emptied."""
    decision_s: float = 0.0
    """Time after which nine requests in ten have ended or missed a limit; at least, where the run ended before."""
    requests: int = 0
    """Requests of the counted time."""
    good: int = 0
    """Requests that met every limit. A failed one missed them."""
    failed: int = 0
    """Requests that failed."""
    unfinished: int = 0
    """Requests that the end of the run cut off before it was known whether they met their limits; none of them is
    counted."""
    met: dict[str, int] = {}
    """Requests that met each limit."""
    blocks: tuple[Block, ...] = ()
    """The requests in the order in which they were sent, in up to 32 consecutive blocks of equal size, each as
    [requests, missed]."""
    ttft_p50_s: float | None = None
    """TTFT of the counted requests, median."""
    ttft_p99_s: float | None = None
    """TTFT, percentile 99."""
    tpot_p50_s: float | None = None
    """TPOT, median."""
    tpot_p99_s: float | None = None
    """TPOT, percentile 99."""
    e2e_p50_s: float | None = None
    """E2E latency, median."""
    e2e_p99_s: float | None = None
    """E2E latency, percentile 99."""
    output_tokens: int | None = None
    """Output tokens of the counted requests."""
    watts: float | None = None
    """Mean power of the counted time; None without a meter."""
    reasons: tuple[str, ...] = ()
    """Remarks of the verdict on the run."""

    @property
    def missed(self) -> int:
        return self.requests - self.good

    @property
    def counted_s(self) -> float:
        return self.until_s - self.from_s

    @property
    def overloaded(self) -> bool:
        """Return whether most requests missed: the server had no steady state, so its counts depend on the duration."""
        return self.stopped_early or self.missed > self.requests / 2

    @property
    def good_rps(self) -> float | None:
        """Good requests per second at the planned rate; None where no request was counted."""
        return self.rate_rps * self.good / self.requests if self.requests else None

    @property
    def joules_per_good_request(self) -> float | None:
        return self.watts / self.good_rps if self.watts is not None and self.good_rps else None

    @property
    def joules_per_output_token(self) -> float | None:
        if self.watts is None or not self.output_tokens or self.counted_s <= 0:
            return None
        return self.watts * self.counted_s / self.output_tokens


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its interval. An end that the probes do not bound is null."""

    value: float
    """The number."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end."""

    @property
    def relative_width(self) -> float | None:
        """Return the width over the value; None where an end is unknown."""
        return None if self.low is None or self.high is None else (self.high - self.low) / self.value


class SettingResult(msgspec.Struct, frozen=True, kw_only=True):
    """A setting of the server's options, its probes and its answer."""

    name: str
    """The options, as "max_num_seqs=64 prefix_caching=on"; empty where the search varies none."""
    options: dict[str, str] = {}
    """Engine options with which the server was started, without the values of secrets."""
    probes: tuple[Probe, ...] = ()
    """Its probes, in the order in which they were made."""
    ended: Ended | None = None
    """Reason for which no more probes were made; null while there are more to come. "interval": it became as narrow as
    was wanted. "budget": its time was over. "fails": the limits are missed at any rate. "client": this client cannot
    send at a higher rate. "dropped": another setting is better. "server": it did not answer."""
    reason: str | None = None
    """The reason in words, where it says more than `ended`."""
    rate: Estimate | None = None
    """Largest rate at which the wanted share of requests is good, in requests/s."""
    binding: tuple[str, ...] = ()
    """Limits that alone are missed too often at rates above it by requests that complete, the most often missed first;
    "failures" stands among them where too many requests fail."""
    least_joules_rate: Estimate | None = None
    """Rate at which a good request costs fewest joules, in requests/s."""
    least_joules: Estimate | None = None
    """Joules per good request at that rate."""
    idle_watts: float | None = None
    """Power of the server at rest, with the model resident."""
    spent_s: float = 0.0
    """Time that it took of the budget, with the start of its server."""

    def target(self, objective: Objective) -> Estimate | None:
        """Return the rate that a search with this objective is after."""
        return self.rate if objective == "rate" else self.least_joules_rate

    def merit(self, objective: Objective) -> Estimate | None:
        """Return the quantity by which settings are compared: the largest rate, or the fewest joules."""
        return self.rate if objective == "rate" else self.least_joules


class ReplicaCost(msgspec.Struct, frozen=True, kw_only=True):
    """The present load on a number of equal servers that share it evenly."""

    replicas: int
    """Servers that share the load."""
    rate_rps: float
    """Requests per second of each."""
    is_within: bool | None = None
    """True if each keeps the limits; null where the interval of the largest rate holds its rate."""
    joules_per_good_request: Estimate | None = None
    """Joules of all replicas together, those at rest included; null for a rate beyond those that were probed."""
    saving: Estimate | None = None
    """Share of the joules per good request of the present number of replicas that it saves."""


class PresentLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load that is served today, and what it would cost on fewer replicas of the best setting."""

    now_rps: float
    """Requests per second, in all."""
    replicas: int = 1
    """Servers that share them."""
    keep_idle: bool = False
    """True for replicas that draw their idle power at rest, false for those that are switched off."""
    costs: tuple[ReplicaCost, ...] = ()
    """Costs from the present number of replicas down to the fewest that may keep the limits."""
    best: int | None = None
    """Number of replicas that cost fewest joules, of those that surely keep the limits; null where none does."""


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """search.json: what was asked, and the answer so far."""

    schema_version: str | None = None
    """Version of the format, MAJOR.MINOR."""
    objective: Objective = "rate"
    """"rate": the largest rate at which enough requests are good. "joules_per_good_request": the rate at which a good
    request costs fewest joules."""
    limits_ms: dict[str, float] = {}
    """Limits in milliseconds by metric: ttft, tpot, e2el."""
    attainment: float | None = None
    """Share of requests that must be within every limit; null: the search for fewest joules is free of it."""
    confidence: float = 0.95
    """Probability of the intervals."""
    width: float = 0.1
    """Relative width of the interval at which the search ends."""
    budget_s: float = 0.0
    """Longest time of the search."""
    spent_s: float = 0.0
    """Time that it took, over all its sittings."""
    trace: str = ""
    """The workload."""
    model: str | None = None
    """Model that the server serves."""
    engine: str | None = None
    """Engine that the server runs."""
    simulated: bool = False
    """True for the simulated server: nothing was measured on a real model."""
    settings: tuple[SettingResult, ...] = ()
    """The settings of the server, each with its probes and its answer; a single one where none were compared."""
    best: str | None = None
    """Name of the best setting; null where none meets the limits."""
    present: PresentLoad | None = None
    """The load of today, where it was stated."""
    started: str | None = None
    """Start of the search: UTC, ISO 8601, to the second."""
    loadgen_version: str | None = None
    """Version of loadgen that began it."""
    command: str | None = None
    """Command line that goes on with the search, without secrets."""

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of search.json as plain values."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made
