"""The plan of a run: complete, seeded and written down before the first byte is sent."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen import arrivals
from loadgen.errors import LoadgenError
from loadgen.trace import Trace, TraceRequest, rescale
from loadgen.units import NS_PER_S

Arrival = Literal["trace", "poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)


class ScheduledRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of schedule.jsonl. The prompt itself is made from (seed, index, lengths) when it is needed."""

    index: int
    offset_ns: int
    workload: str
    input_tokens: int
    output_tokens: int
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Every request of a run in order of its instant. rate_rps: the mean that was planned, None for one request."""

    requests: tuple[ScheduledRequest, ...]
    arrival: Arrival
    rate_rps: float | None
    seed: int

    @property
    def sha256(self) -> str:
        """Of schedule.jsonl's bytes."""
        return hashlib.sha256(encode(self.requests)).hexdigest()


def encode(requests: Sequence[ScheduledRequest]) -> bytes:
    """schedule.jsonl."""
    return b"".join(msgspec.json.encode(request) + b"\n" for request in requests)


def build(
    trace: Trace,
    *,
    seed: int,
    rps: float | None = None,
    arrival: Arrival = "trace",
    burstiness: float = 1.0,
    duration_s: float | None = None,
    num_requests: int | None = None,
) -> Schedule:
    """The trace's lengths at the instants of `arrival`.

    `trace` keeps the trace's own instants, stretched or squeezed so that the requests taken come at a mean of `rps`; it
    ends where the trace ends. The other processes are drawn from `seed` at rate `rps` (the trace's own mean by default)
    and take the trace's lengths in order, from the top again when it runs out.
    """
    rate = rps if rps is not None else trace.mean_rps
    if arrival == "trace":
        chosen = _take(trace, rate if rps is not None else None, duration_s, num_requests)
        if rps is not None:
            chosen = list(rescale(chosen, rps))
        offsets_s = np.array([request.arrival_s for request in chosen]) - chosen[0].arrival_s
    else:
        if rate is None:
            raise LoadgenError(f"trace {trace.name} has no mean rate of its own; say one with --rps")
        count = num_requests if num_requests is not None or duration_s is not None else len(trace.requests)
        rng = np.random.default_rng(seed)
        offsets_s = arrivals.offsets(arrival, rate, rng, burstiness=burstiness, count=count, duration_s=duration_s)
        if not len(offsets_s):
            raise LoadgenError(f"no request falls into {duration_s} s at {rate} requests/s; ask for a longer run")
        chosen = list(islice(cycle(trace.requests), len(offsets_s)))
    offsets_ns = np.rint(offsets_s * NS_PER_S).astype(np.int64)
    requests = tuple(
        _scheduled(i, int(at), request) for i, (at, request) in enumerate(zip(offsets_ns, chosen, strict=True))
    )
    return Schedule(requests, arrival, rate if arrival != "trace" or rps is not None else _mean_rate(offsets_s), seed)


def _take(trace: Trace, rps: float | None, duration_s: float | None, num_requests: int | None) -> list[TraceRequest]:
    """The first requests of the trace: as many as `duration_s` holds (at `rps`, if given) and `num_requests` allows."""
    available = trace.requests
    if num_requests is not None and num_requests > len(available):
        raise LoadgenError(
            f"--num-requests {num_requests}, but trace {trace.name} has {len(available)}; "
            "its own arrivals cannot be continued: use --arrival poisson to go round again"
        )
    limit = len(available) if num_requests is None else num_requests
    if duration_s is not None and rps is not None:
        limit = min(limit, max(1, round(duration_s * rps)))
    elif duration_s is not None:
        first = available[0].arrival_s
        limit = min(limit, sum(request.arrival_s - first < duration_s for request in available))
    return list(available[:limit])


def _mean_rate(offsets_s: NDArray[np.float64]) -> float | None:
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
