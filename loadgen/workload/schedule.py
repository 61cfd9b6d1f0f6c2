"""Schedules: the complete, seeded plan of a run, which is written down before the first byte is sent."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.stats.arrays import Floats, Ints
from loadgen.units import NS_PER_S
from loadgen.workload import arrivals
from loadgen.workload.prompts import BLOCK_TOKENS, PromptKind, prompt_kind
from loadgen.workload.words import WordsRef

if TYPE_CHECKING:
    from loadgen.workload.arrivals import Points
    from loadgen.workload.trace import Trace, TraceRequest

Arrival = Literal["trace", "poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)

LINES_OF_PART = 10_000

Scale = Literal["compress", "thin", "superpose"]
"""Ways to give a trace's own arrivals another rate: rescale time, leave some out, or add copies."""


Stop = Literal["auto", "length", "natural"]
"""The ends of answers: at the requested length, or where the model ends them. auto: at the requested length if the
trace requests one."""


Timing = Literal["recorded", "think", "afap"]
"""Instants of the requests of a recorded session: those of the recording, but never before the answers that they wait
for; their think times after these answers; or as fast as possible, at once after them."""

SessionStart = Literal["beginning", "middle"]

TooLong = Literal["refuse", "leave-out", "cut"]
"""Treatment of a session with a request that is longer than the model's context: the run is refused, the session
is left out, or it ends before that request."""


class ArrivalSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Requested arrival process of one stream: of requests, or of sessions, whose later turns follow answers."""

    workload: str | None
    """Name of the stream; None: all requests of the run."""
    process: Arrival
    """Name of the process."""
    rate_rps: float | None
    """Mean arrivals/s. None for a single request; in a request for arrivals, the trace's own rate."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of the gaps: 1 is a Poisson process, less is burstier."""
    shape: list[tuple[float, float]] | None = None
    """(second, arrivals/s) points of a rate that changes, see `arrivals.Points`."""
    sessions: bool = False
    """True if arrivals are those of sessions."""
    turns: float = 1.0
    """Mean requests of one arrival: 1 but for sessions."""


class ScheduledRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of schedule.jsonl. The prompt is its `words`, or generated from (seed, index, lengths) when needed."""

    index: int
    """Number of the request, from 0."""
    offset_ns: int
    """Instant at which it is due, counted from `start_ns` of run.json."""
    workload: str
    """Name of its workload or stream."""
    input_tokens: int | None
    """Unknown, None, until the server has counted them."""
    output_tokens: int | None
    """Requested tokens; with `natural`, those of the recorded answer, or None where there is none."""
    session_id: str | None = None
    """Session that it is a turn of; None outside of sessions."""
    prefix_ids: tuple[int, ...] = ()
    """Blocks of tokens that the prompt shares with others of the same ids."""
    block_size: int | msgspec.UnsetType = msgspec.UNSET
    """Tokens of each prefix id, where they are not BLOCK_TOKENS."""
    after: int | tuple[int, ...] | None = None
    """Index of the request that it waits for, or a list of several. It is due `think_ns` after the end of the last of
    their answers, and not before `offset_ns`, which is that instant if answers took no time."""
    think_ns: int = 0
    """Time between the end of the last answer that it waits for and this request."""
    text_id: int | None = None
    """Text that the turns of a session open with; None outside of sessions with made-up prompts."""
    text_tokens: int = 0
    """The prompt opens with the first `text_tokens` tokens of text `text_id`, which is endless. The turns of a session
    consist of such text only, so that a prompt contains the whole previous one. The blocks of `prefix_ids` follow, then
    unique text."""
    model: str | None = None
    """The model that is requested; None: the run's."""
    words: WordsRef | None = None
    """The request's own words. None: its prompt is made up."""
    natural: bool = False
    """True if the answer ends where the model ends it; False if `output_tokens` are requested."""
    live: bool | msgspec.UnsetType = msgspec.UNSET
    """True for a turn whose messages follow those of the turn before and the answer that was received to them: how many
    tokens they have is not known before."""
    task: str | None = None
    """Sub-agent of its session that sends it; None: the main thread does."""
    streamed: bool | msgspec.UnsetType = msgspec.UNSET
    """False if its answer is requested as a whole; unset where it is streamed."""
    tags: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Names and values that the run is summed up by; unset where there are none."""

    @property
    def parents(self) -> tuple[int, ...]:
        """Indices of the requests that have to end before this one is sent."""
        if self.after is None:
            return ()
        return self.after if isinstance(self.after, tuple) else (self.after,)

    @property
    def block_tokens(self) -> int:
        return BLOCK_TOKENS if self.block_size is msgspec.UNSET else self.block_size


def after_all(parents: Sequence[int]) -> int | tuple[int, ...] | None:
    """Return the field `after` of a scheduled request that waits for `parents`."""
    return None if not parents else parents[0] if len(parents) == 1 else tuple(parents)


def block_size_of(request: TraceRequest) -> int | msgspec.UnsetType:
    """Return the field of a scheduled request for the block size of a trace's: unset where that is usual."""
    return request.block_tokens if request.prefix_ids and request.block_tokens != BLOCK_TOKENS else msgspec.UNSET


@dataclass(frozen=True)
class Schedule:
    """All requests of a run in order of their instants."""

    requests: tuple[ScheduledRequest, ...]
    arrival: Arrival | None
    """The arrival process; None for several streams, each with its own."""
    rate_rps: float | None
    """Planned mean; None for one request."""
    seed: int
    requested_arrivals: tuple[ArrivalSpec, ...] = ()
    """One spec per stream."""
    warmed: tuple[ScheduledRequest, ...] = ()
    """Requests whose prompts are in the server's cache when the run begins: sessions that start in the middle of their
    life."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes of schedule.jsonl."""
        digest = hashlib.sha256()
        for lines in schedule_lines(self.requests):
            digest.update(lines)
        return digest.hexdigest()

    @property
    def prompt_kinds(self) -> set[PromptKind]:
        """Kinds of prompts that have to be made up."""
        return {prompt_kind(request.workload) for request in self.requests if request.words is None}


def encode_schedule(requests: Sequence[ScheduledRequest]) -> bytes:
    """Return the bytes of schedule.jsonl."""
    return _encoder.encode_lines(requests)


def schedule_lines(requests: Sequence[ScheduledRequest]) -> Iterator[bytes]:
    """Yield the bytes of schedule.jsonl in parts: the text of a long schedule is larger than the schedule."""
    for begin in range(0, len(requests), LINES_OF_PART):
        yield encode_schedule(requests[begin : begin + LINES_OF_PART])


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
    stop: Stop = "auto",
) -> Schedule:
    """Schedule the requests of the trace at the times of an arrival process: see `arrival_times`."""
    points = None if shape is None else list(shape)
    if arrival == "trace" and not trace.timed:
        arrival = "poisson"
    spec = ArrivalSpec(workload=None, process=arrival, rate_rps=rps, burstiness=burstiness, shape=points)
    times = arrival_times(trace, spec, np.random.default_rng(seed), scale, duration_s, num_requests)
    offsets_ns = np.rint(times.offsets_s * NS_PER_S).astype(np.int64).tolist()
    requests = []
    for index, (offset_ns, pick, lap) in enumerate(
        zip(offsets_ns, times.picks.tolist(), times.laps.tolist(), strict=True)
    ):
        request = relabel_for_pass(trace.requests[pick], lap)
        scheduled = ScheduledRequest(
            index=index,
            offset_ns=offset_ns,
            workload=request.workload,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            session_id=request.session_id,
            prefix_ids=request.prefix_ids,
            block_size=block_size_of(request),
            model=request.model,
            words=request.words,
            natural=ends_naturally(request, stop),
            tags=request.tags or msgspec.UNSET,
        )
        requests.append(scheduled)
    spec = msgspec.structs.replace(spec, rate_rps=times.rate_rps)
    return Schedule(tuple(requests), arrival, times.rate_rps, seed, (spec,))


def ends_naturally(request: TraceRequest, stop: Stop) -> bool:
    """Return whether the answer ends where the model ends it, or where a body of its own says. LoadgenError: a length
    is to be requested, and cannot be, or is not known."""
    if request.words is not None and request.words.is_body:
        if stop == "length":
            raise LoadgenError(f"--stop length: the request of line {request.words.line} has a body of its own")
        return True
    if stop == "length" and request.output_tokens is None:
        line = f" (line {request.words.line})" if request.words else ""
        raise LoadgenError(f"--stop length: a request{line} has no output_length; give it one, or use --stop natural")
    return stop == "natural" or (stop == "auto" and request.output_tokens is None)


class ArrivalTimes(NamedTuple):
    """Arrivals of requests of a trace, in order; all columns have the same length."""

    offsets_s: Floats
    picks: Ints
    """Index in the trace of each request."""
    laps: Ints
    """Pass through the trace that each request belongs to, from 0."""
    rate_rps: float | None
    """Planned mean; None for one request."""


def arrival_times(
    trace: Trace,
    spec: ArrivalSpec,
    rng: np.random.Generator,
    scale: Scale = "compress",
    duration_s: float | None = None,
    num_requests: int | None = None,
) -> ArrivalTimes:
    """Return the arrivals that `spec` requests, before `duration_s` and at most `num_requests` of them.

    The process `trace` keeps the trace's own instants and ends where the trace ends. At another rate these are
    compressed, thinned or superposed, as `scale` says: compressed, they have exactly the requested mean, otherwise up
    to chance. The other processes are drawn at the requested rate (the trace's own mean by default) and take its
    lengths in order, starting over when it runs out. With a shape, any process follows a rate that changes, until the
    last point or `duration_s`.
    """
    rps = spec.rate_rps
    if rps is not None and not (math.isfinite(rps) and rps > 0):
        raise LoadgenError(f"rate {rps}: expected requests/s, finite and above 0")
    if scale != "compress" and (spec.process != "trace" or rps is None):
        raise LoadgenError(
            f"--scale {scale} gives a trace's own arrivals another rate: it needs --rps, and no --arrival"
        )
    if spec.shape is not None:
        if rps is not None:
            raise LoadgenError("--shape says the rate of every moment: leave out --rps")
        return _shaped_times(trace, spec, spec.shape, rng, duration_s, num_requests)
    rate = rps if rps is not None else trace.mean_rps
    if spec.process == "trace":
        times = _own_times(trace, rps, rng, scale, duration_s, num_requests)
    elif rate is None:
        raise LoadgenError(f"trace {trace.name} has no mean rate of its own; say one with --rps")
    else:
        count = num_requests if num_requests is not None or duration_s is not None else len(trace.requests)
        offsets_s = arrivals.offsets(
            spec.process, rate, rng, burstiness=spec.burstiness, count=count, duration_s=duration_s
        )
        order = np.arange(len(offsets_s))
        times = ArrivalTimes(offsets_s, order % len(trace.requests), order // len(trace.requests), rate)
    if not len(times.offsets_s):
        raise LoadgenError(f"no request falls into {duration_s} s at {rate} requests/s; ask for a longer run")
    return times


def _shaped_times(
    trace: Trace,
    spec: ArrivalSpec,
    shape: Points,
    rng: np.random.Generator,
    duration_s: float | None,
    num_requests: int | None,
) -> ArrivalTimes:
    """Warp the process at rate 1 to the rate of the shape: as many arrivals as the shape expects until its end."""
    end_s = shape[-1][0] if duration_s is None else duration_s
    count = float(arrivals.expected_counts(np.array([end_s]), shape)[0])
    if count == 0:
        raise LoadgenError(f"no request falls into {end_s:g} s of this shape; ask for a longer run")
    unit = msgspec.structs.replace(spec, rate_rps=1.0, shape=None)
    times = arrival_times(trace, unit, rng, duration_s=count, num_requests=num_requests)
    return times._replace(offsets_s=arrivals.warped(times.offsets_s, shape), rate_rps=count / end_s)


def _own_times(
    trace: Trace,
    rps: float | None,
    rng: np.random.Generator,
    scale: Scale,
    duration_s: float | None,
    num_requests: int | None,
) -> ArrivalTimes:
    """Return the trace's own arrivals, counted from its first, at the rate `rps` if that is given."""
    if num_requests is not None and num_requests > len(trace.requests):
        raise LoadgenError(
            f"--num-requests {num_requests}, but trace {trace.name} has {len(trace.requests)}; "
            "its own arrivals cannot be continued: use --arrival poisson to go round again"
        )
    offsets_s = np.array([request.arrival_s for request in trace.requests])
    offsets_s -= offsets_s[0]
    picks = np.arange(len(offsets_s))
    laps = np.zeros(len(offsets_s), dtype=np.int64)
    if rps is not None and scale != "compress":
        # Sessions stay or go as a whole.
        _, sessions = np.unique([r.session_id or f"\0{i}" for i, r in enumerate(trace.requests)], return_inverse=True)
        cycle_s = arrivals.cycle_s(offsets_s)
        users = rps * cycle_s / len(offsets_s)
        if scale == "superpose":
            offsets_s, picks, laps = arrivals.superposed(offsets_s, sessions, users, rng)
        elif users > 1:
            raise LoadgenError(
                f"trace {trace.name} has {len(offsets_s) / cycle_s:.4g} requests/s and cannot be thinned to {rps:g}: "
                "use --scale superpose or compress"
            )
        else:
            picks = np.flatnonzero(arrivals.thinned(sessions, users, rng))
            offsets_s, laps = offsets_s[picks], laps[picks]
    limit = len(offsets_s) if num_requests is None else num_requests
    if duration_s is not None and rps is not None and scale == "compress":
        limit = min(limit, max(1, round(duration_s * rps)))
    elif duration_s is not None:
        limit = min(limit, int(np.searchsorted(offsets_s, duration_s)))
    offsets_s, picks, laps = offsets_s[:limit], picks[:limit], laps[:limit]
    if rps is None:
        own_rps = (len(offsets_s) - 1) / float(offsets_s[-1]) if offsets_s.any() else None
        return ArrivalTimes(offsets_s, picks, laps, own_rps)
    if scale == "compress" and len(offsets_s) > 1:
        offsets_s = offsets_s * (len(offsets_s) / rps / arrivals.cycle_s(offsets_s))
    return ArrivalTimes(offsets_s, picks, laps, rps)


def relabel_for_pass(request: TraceRequest, lap: int) -> TraceRequest:
    """Return the request as another user's: it shares session and prefix with requests of the same lap only.

    Lap 0 is the request itself.
    """
    if lap == 0 or not (request.session_id or request.prefix_ids):
        return request
    session = request.session_id and f"{request.session_id}+{lap}"
    ids = tuple(stable_hash63(f"{lap}/{block}") for block in request.prefix_ids)
    return msgspec.structs.replace(request, session_id=session, prefix_ids=ids)


def stable_hash63(name: str) -> int:
    """Return a number of 63 bits for a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1


def merged_schedule(parts: Sequence[Schedule], seed: int) -> Schedule:
    """Merge schedules: all requests in order of their instants, then of their parts, renumbered."""
    entries = [(part, request) for part, schedule in enumerate(parts) for request in schedule.requests]
    entries.sort(key=lambda entry: (entry[1].offset_ns, entry[0], entry[1].index))
    index = {(part, request.index): i for i, (part, request) in enumerate(entries)}
    requests = tuple(
        msgspec.structs.replace(request, index=i, after=after_all([index[part, parent] for parent in request.parents]))
        for i, (part, request) in enumerate(entries)
    )
    rates = [part.rate_rps for part in parts]
    rate = sum(r for r in rates if r is not None) if None not in rates else None
    arrival = parts[0].arrival if len(parts) == 1 else None
    specs = tuple(spec for part in parts for spec in part.requested_arrivals)
    warmed = tuple(request for part in parts for request in part.warmed)
    return Schedule(requests, arrival, rate, seed, specs, warmed)


def truncated(schedule: Schedule, count: int) -> Schedule:
    """Return the first `count` requests. A turn is planned after its predecessor, so no session loses its beginning."""
    requests = schedule.requests[:count]
    return replace(schedule, requests=requests, warmed=of_sessions(schedule.warmed, requests))


def of_sessions(
    warmed: Iterable[ScheduledRequest], requests: Iterable[ScheduledRequest]
) -> tuple[ScheduledRequest, ...]:
    """Return those of `warmed` whose session is among `requests`: prompts of others are not needed in the cache."""
    sessions = {request.session_id for request in requests}
    return tuple(request for request in warmed if request.session_id in sessions)
