"""The plan of a run: complete, seeded and written down before the first byte is sent."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload import arrivals
from loadgen.workload.arrivals import Numbers, Points, Seconds
from loadgen.workload.trace import Trace, TraceRequest

Arrival = Literal["trace", "poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)

Scale = Literal["compress", "thin", "superpose"]
"""How a trace's own arrivals get another rate: time squeezed or stretched; some left out; copies added."""
SCALES: tuple[Scale, ...] = get_args(Scale)


class ArrivalSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one stream's requests are to come. What comes are requests, or sessions, whose later turns follow answers."""

    workload: str | None
    """None: all requests of the run."""
    process: Arrival
    rate_rps: float | None
    """Of what comes, in the mean; None for one request."""
    burstiness: float = 1.0
    shape: list[tuple[float, float]] | None = None
    """(second, what comes/s): the rate of every moment."""
    sessions: bool = False


class ScheduledRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of schedule.jsonl. The prompt itself is made from (seed, index, lengths) when it is needed."""

    index: int
    offset_ns: int
    workload: str
    input_tokens: int
    output_tokens: int
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()
    after: int | None = None
    """Index of the turn before this one in its session. The request is then due `think_ns` after the end of that turn's
    answer; `offset_ns` is when that would be if answers took no time."""
    think_ns: int = 0
    text_id: int | None = None
    text_tokens: int = 0
    """The prompt opens with the first `text_tokens` tokens of text `text_id`, which has no end. The turns of a session
    are such text only: so a turn's prompt holds the whole prompt before it. The rest is `prefix_ids`, then unique."""


@dataclass(frozen=True)
class Schedule:
    """Every request of a run in order of its instant. rate_rps: the mean that was planned, None for one request."""

    requests: tuple[ScheduledRequest, ...]
    arrival: Arrival | None
    """None: several streams, each with its own."""
    rate_rps: float | None
    seed: int
    asked: tuple[ArrivalSpec, ...] = ()

    @property
    def sha256(self) -> str:
        """Of schedule.jsonl's bytes."""
        return hashlib.sha256(encode_schedule(self.requests)).hexdigest()


def encode_schedule(requests: Sequence[ScheduledRequest]) -> bytes:
    """schedule.jsonl."""
    return _encoder.encode_lines(requests)


_encoder = msgspec.json.Encoder()


def build_schedule(
    trace: Trace,
    *,
    seed: int,
    rps: float | None = None,
    arrival: Arrival = "trace",
    burstiness: float = 1.0,
    duration_s: float | None = None,
    num_requests: int | None = None,
    scale: Scale = "compress",
    shape: Points | None = None,
) -> Schedule:
    """The trace's lengths at the instants of `arrival`: see `instants`."""
    rng = np.random.default_rng(seed)
    found = instants(trace, rng, rps=rps, arrival=arrival, burstiness=burstiness, duration_s=duration_s,
                     num_requests=num_requests, scale=scale, shape=shape)  # fmt: skip
    offsets_ns = np.rint(found.offsets_s * NS_PER_S).astype(np.int64).tolist()
    chosen = (
        relabel_for_pass(trace.requests[pick], lap)
        for pick, lap in zip(found.picks.tolist(), found.laps.tolist(), strict=True)
    )
    requests = tuple(_scheduled(i, at, request) for i, (at, request) in enumerate(zip(offsets_ns, chosen, strict=True)))
    asked = ArrivalSpec(workload=None, process=arrival, rate_rps=found.rate_rps, burstiness=burstiness,
                  shape=None if shape is None else list(shape))  # fmt: skip
    return Schedule(requests, arrival, found.rate_rps, seed, (asked,))


class ArrivalTimes(NamedTuple):
    """When requests come, which request of the trace each is, and in which lap through the trace (0: the first)."""

    offsets_s: Seconds
    picks: Numbers
    laps: Numbers
    rate_rps: float | None
    """Planned mean; None for one request."""


def instants(
    trace: Trace,
    rng: np.random.Generator,
    *,
    rps: float | None,
    arrival: Arrival,
    burstiness: float,
    duration_s: float | None,
    num_requests: int | None,
    scale: Scale,
    shape: Points | None,
) -> ArrivalTimes:
    """`trace` keeps the trace's own instants and ends where the trace ends. At `rps` they are squeezed, thinned or
    superposed, as `scale` says: squeezed, exactly to that mean; by the others, to within chance.

    The other processes are drawn at rate `rps` (the trace's own mean by default) and take the trace's lengths in order,
    from the top again when it runs out. With `shape` any of them follows a rate that changes, until its last point or
    `duration_s`.
    """
    if rps is not None and not (math.isfinite(rps) and rps > 0):
        raise LoadgenError(f"rate {rps}: expected requests/s, finite and above 0")
    if scale != "compress" and (arrival != "trace" or rps is None):
        raise LoadgenError(
            f"--scale {scale} gives a trace's own arrivals another rate: it needs --rps, and no --arrival"
        )
    if shape is not None:
        if rps is not None:
            raise LoadgenError("--shape says the rate of every moment: leave out --rps")
        return _shaped(trace, rng, arrival, burstiness, duration_s, num_requests, shape)
    rate = rps if rps is not None else trace.mean_rps
    if arrival == "trace":
        found = _own(trace, rps, duration_s, num_requests, scale, rng)
    elif rate is None:
        raise LoadgenError(f"trace {trace.name} has no mean rate of its own; say one with --rps")
    else:
        count = num_requests if num_requests is not None or duration_s is not None else len(trace.requests)
        offsets_s = arrivals.offsets(arrival, rate, rng, burstiness=burstiness, count=count, duration_s=duration_s)
        order = np.arange(len(offsets_s))
        found = ArrivalTimes(offsets_s, order % len(trace.requests), order // len(trace.requests), rate)
    if not len(found.offsets_s):
        raise LoadgenError(f"no request falls into {duration_s} s at {rate} requests/s; ask for a longer run")
    return found


def _shaped(
    trace: Trace,
    rng: np.random.Generator,
    arrival: Arrival,
    burstiness: float,
    duration_s: float | None,
    num_requests: int | None,
    shape: Points,
) -> ArrivalTimes:
    """The process at rate 1, put through the shape: as many arrivals as the shape expects, when it expects them."""
    end_s = shape[-1][0] if duration_s is None else duration_s
    count = float(arrivals.expected(np.array([end_s]), shape)[0])
    if count == 0:
        raise LoadgenError(f"no request falls into {end_s:g} s of this shape; ask for a longer run")
    even = instants(trace, rng, rps=1.0, arrival=arrival, burstiness=burstiness, duration_s=count,
                    num_requests=num_requests, scale="compress", shape=None)  # fmt: skip
    return even._replace(offsets_s=arrivals.warped(even.offsets_s, shape), rate_rps=count / end_s)


def _own(
    trace: Trace, rps: float | None, duration_s: float | None, num_requests: int | None, scale: Scale,
    rng: np.random.Generator,
) -> ArrivalTimes:  # fmt: skip
    """The trace's own arrivals, from its first on."""
    if num_requests is not None and num_requests > len(trace.requests):
        raise LoadgenError(
            f"--num-requests {num_requests}, but trace {trace.name} has {len(trace.requests)}; "
            "its own arrivals cannot be continued: use --arrival poisson to go round again"
        )
    at = np.array([request.arrival_s for request in trace.requests])
    at -= at[0]
    picks = np.arange(len(at))
    laps = np.zeros(len(at), dtype=np.int64)
    if rps is not None and scale != "compress":
        at, picks, laps = _others(trace, at, rps, scale, rng)
    limit = len(at) if num_requests is None else num_requests
    if duration_s is not None and rps is not None and scale == "compress":
        limit = min(limit, max(1, round(duration_s * rps)))
    elif duration_s is not None:
        limit = min(limit, int(np.searchsorted(at, duration_s)))
    at, picks, laps = at[:limit], picks[:limit], laps[:limit]
    if rps is not None and scale == "compress" and len(at) > 1:
        at = at * (len(at) / rps / arrivals.cycle_s(at))
    return ArrivalTimes(at, picks, laps, rps if rps is not None else _mean_rate(at))


def _others(
    trace: Trace, at: Seconds, rps: float, scale: Scale, rng: np.random.Generator
) -> tuple[Seconds, Numbers, Numbers]:
    """Fewer or more users than the trace had. A session stays or goes as a whole."""
    times = rps * arrivals.cycle_s(at) / len(at)
    _, sessions = np.unique([r.session_id or f"\0{i}" for i, r in enumerate(trace.requests)], return_inverse=True)
    if scale == "superpose":
        return arrivals.superposed(at, sessions, times, rng)
    if times > 1:
        raise LoadgenError(
            f"trace {trace.name} has {len(at) / arrivals.cycle_s(at):.4g} requests/s and cannot be thinned to {rps:g}: "
            "use --scale superpose or compress"
        )
    kept = np.flatnonzero(arrivals.thinned(sessions, times, rng))
    return at[kept], kept, np.zeros(len(kept), dtype=np.int64)


def relabel_for_pass(request: TraceRequest, lap: int) -> TraceRequest:
    """The request as another user's: what it shares, it shares with requests of the same lap only. Lap 0 is itself."""
    if lap == 0 or not (request.session_id or request.prefix_ids):
        return request
    session = request.session_id and f"{request.session_id}+{lap}"
    ids = tuple(stable_hash63(f"{lap}/{block}") for block in request.prefix_ids)
    return msgspec.structs.replace(request, session_id=session, prefix_ids=ids)


def stable_hash63(name: str) -> int:
    """A number of 63 bits for a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def _mean_rate(offsets_s: Seconds) -> float | None:
    return (len(offsets_s) - 1) / float(offsets_s[-1]) if len(offsets_s) > 1 and offsets_s[-1] > 0 else None


def _scheduled(index: int, offset_ns: int, request: TraceRequest) -> ScheduledRequest:
    return ScheduledRequest(
        index=index,
        offset_ns=offset_ns,
        workload=request.workload,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        session_id=request.session_id,
        prefix_ids=request.prefix_ids,
    )


# -- many schedules, one schedule -------------------------------------------------------------------------------------


def merged_schedule(parts: Sequence[Schedule], seed: int) -> Schedule:
    """Every request of every part, in order of its instant, numbered anew."""
    entries = [(part, request) for part, schedule in enumerate(parts) for request in schedule.requests]
    entries.sort(key=lambda entry: (entry[1].offset_ns, entry[0], entry[1].index))
    index = {(part, request.index): i for i, (part, request) in enumerate(entries)}
    requests = tuple(
        msgspec.structs.replace(request, index=i, after=None if request.after is None else index[part, request.after])
        for i, (part, request) in enumerate(entries)
    )
    rates = [part.rate_rps for part in parts]
    rate = sum(r for r in rates if r is not None) if None not in rates else None
    arrival = parts[0].arrival if len(parts) == 1 else None
    return Schedule(requests, arrival, rate, seed, tuple(asked for part in parts for asked in part.asked))


def truncated(schedule: Schedule, count: int) -> Schedule:
    """The first `count` requests. A turn's predecessor is planned before it: no session loses its beginning."""
    return replace(schedule, requests=schedule.requests[:count])
