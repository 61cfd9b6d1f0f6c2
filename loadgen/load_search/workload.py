"""The requests of a search: read once, and scheduled anew for each probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload.arrivals import cycle_s
from loadgen.workload.length_source import source_path
from loadgen.workload.load import Load, check_alone, planned_schedule, stated_options, streams_of, with_tags
from loadgen.workload.schedule import after_all, merged_schedule
from loadgen.workload.sessions import History, settle_history
from loadgen.workload.sources import open_source, read_source, source_sha256
from loadgen.workload.stream_schedule import schedule_streams
from loadgen.workload.streams import Streams, share_rate
from loadgen.workload.token_bins import is_bins

if TYPE_CHECKING:
    from loadgen.run.config import RunConfig
    from loadgen.workload.schedule import Schedule
    from loadgen.workload.trace import Trace
    from loadgen.workload.words import WordsFile


_SESSIONS_S = 120.0
"""Age of the sessions in a probe whose users think between turns."""
_LONGER, _MORE = 1.2, 30.0
"""Arrivals are drawn for so many times as long, and so many requests more, to have enough of them."""


class Requests(NamedTuple):
    """The requests of a probe."""

    schedule: Schedule
    history: History
    """The answers that later turns of its sessions are sent with."""
    plan: dict[str, Any]
    """The making of the schedule, for run.json."""


class Workload:
    """The requests that a `Load` describes, at any rate, for any time, with any seed.

    The rates of streams are their shares; a stream without arrivals of its own has those of `load`.
    """

    def __init__(
        self,
        load: Load,
        words: WordsFile,
        config: RunConfig,
        history: History | None = None,
        *,
        source: Trace | None = None,
        say: Callable[[str], None],
    ) -> None:
        """Read the requests, whose words are stored in `words`.

        history: the answers that later turns are sent with. source: requests in memory, in place of a trace.
        """
        path = source_path(load.trace) if load.trace else None
        self._load, self._words, self._config, self._history = load, words, config, history
        self._say, self._remarks = say, set[str]()
        self._sha256 = source_sha256(path) if path else None
        self._source = source
        self._requests_sha256: str | None = None
        if source is not None:
            check_alone(load)
            self._requests_sha256 = sha256(msgspec.json.encode(source.requests)).hexdigest()
        self._streams: Streams = {}
        self._sources: dict[str, Trace] = {}
        is_drawn = load.laws is not None if path is None else is_bins(path)
        if load.streams or (path and path.suffix == ".toml"):
            self._streams = _weighted(streams_of(load, path), load)
            for name, stream in self._streams.items():
                if stream.trace is not None:
                    self._sources[name] = read_source(source_path(stream.trace), words, model=stream.model)
        elif source is None and not is_drawn:
            arrivals = load.arrivals | {"arrival": "poisson"}  # all of it is read: any request may be the first
            self._source = open_source(path, load.laws, words, arrivals, load.limits, config.model)

    @property
    def name(self) -> str:
        """The trace, the names of the streams, or the lengths of made-up prompts."""
        if self._streams:
            return "+".join(self._streams)
        return self._load.trace or (self._source.name if self._source else f"{self._load.input}:{self._load.output}")

    def hold_to(self, limits_ms: dict[str, float]) -> None:
        """Hold all requests to the same limits, in place of those that streams state."""
        self._streams = {
            name: msgspec.structs.replace(stream, goodput=limits_ms) for name, stream in self._streams.items()
        }

    @property
    def limits_ms(self) -> dict[str, float]:
        """Limits that all streams state alike; empty where they do not."""
        limits = [stream.goodput for stream in self._streams.values()]
        return limits[0] if limits and all(one == limits[0] for one in limits) else {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the requests follow from, for a search that goes on."""
        in_memory = {"requests_sha256": self._requests_sha256} if self._requests_sha256 else {}
        return {**msgspec.to_builtins(self._load), "trace_sha256": self._sha256, **in_memory}

    def requests(self, rate_rps: float, duration_s: float, seed: int) -> Requests:
        """Return the requests of a probe."""
        schedule, plan = self._schedule(rate_rps, _LONGER * duration_s + _MORE / rate_rps, seed)
        schedule = with_even_counts(schedule, duration_s)
        if _has_pauses(schedule) and self._history != "live":
            longer, plan = self._schedule(rate_rps, _SESSIONS_S + duration_s, seed)
            schedule = from_the_middle(longer, _SESSIONS_S)
        if not schedule.requests:
            probe = f"a probe of {duration_s:g} s at {rate_rps:g} requests/s"
            raise LoadgenError(f"no request falls into {probe}; ask for longer ones, or for more requests/s")
        schedule, history = settle_history(schedule, self._history, self._config.endpoint)
        made = {"rps": rate_rps, "duration_s": duration_s, "seed": seed, "stop": self._load.stop}
        return Requests(schedule, history, plan | made)

    def _schedule(self, rate_rps: float, duration_s: float, seed: int) -> tuple[Schedule, dict[str, Any]]:
        load = msgspec.structs.replace(self._load, rps=rate_rps, duration_s=duration_s, seed=seed)
        if self._streams:
            return self._schedule_streams(load)
        source = rotated(self._source, seed) if self._source is not None else None
        if source is not None:
            load = msgspec.structs.replace(load, trace=None)
        schedule, plan = planned_schedule(load, self._words, self._config.model, source=source, say=self._say_once)
        if source is not None and schedule.arrival == "trace" and len(schedule.requests) == len(source.requests):
            self._say_once(f"with its own arrivals a probe is one pass of {self.name}: at high rates it is shorter")
        return schedule, plan | {"trace": self.name, "trace_sha256": self._sha256}

    def _say_once(self, line: str) -> None:
        """Say what is true of each probe when the first one shows it."""
        if line not in self._remarks:
            self._remarks.add(line)
            self._say(line)

    def _schedule_streams(self, load: Load) -> tuple[Schedule, dict[str, Any]]:
        streams = share_rate(self._streams, load.rps)
        sources = {name: rotated(source, load.seed) for name, source in self._sources.items()}
        schedule = schedule_streams(streams, **load.limits, stop=load.stop, words=self._words, sources=sources)
        plan = {"trace": self.name, "trace_sha256": self._sha256, "streams": stated_options(streams)}
        return with_tags(load, schedule, plan)


def _weighted(streams: Streams, load: Load) -> Streams:
    """Return the streams with their rates as weights. LoadgenError: one has none, or a rate that changes."""
    weighted = {}
    for name, stream in streams.items():
        if stream.shape is not None:
            raise LoadgenError(f"stream {name} has a shape: a search needs a rate that stays the same during a probe")
        weight = stream.weight or stream.rps
        if weight is None and len(streams) > 1:
            raise LoadgenError(f"stream {name} has no rate, its share of the load: give one, such as --stream {name}:2")
        own = {} if stream.arrival else {"arrival": load.arrival, "burstiness": load.burstiness}
        weighted[name] = msgspec.structs.replace(stream, rps=None, weight=weight or 1.0, **own)
    return weighted


def _has_pauses(schedule: Schedule) -> bool:
    """Return whether users think between the turns of sessions, and a turn can be sent without those before it."""
    waits = any(request.think_ns for request in schedule.requests)
    return waits and not any(request.words and request.words.continues for request in schedule.requests)


def from_the_middle(schedule: Schedule, start_s: float) -> Schedule:
    """Return the part of a schedule from an instant on. Sessions that began before it go on with their later turns.

    A probe that began with first turns alone would have less load than its rate until sessions are as old as they get.
    """
    start_ns = round(start_s * NS_PER_S)
    kept = [request for request in schedule.requests if request.offset_ns >= start_ns]
    index = {request.index: i for i, request in enumerate(kept)}
    requests = tuple(
        msgspec.structs.replace(
            request,
            index=index[request.index],
            offset_ns=request.offset_ns - start_ns,
            after=after_all([index[parent] for parent in request.parents if parent in index]),
        )
        for request in kept
    )
    return replace(schedule, requests=requests, requested_arrivals=())


def with_even_counts(schedule: Schedule, duration_s: float) -> Schedule:
    """Return the arrivals before `duration_s`, which are as many in each stream as its rate says.

    These are the first n arrivals of the process, given that the next one is at n / rate: of a Poisson process, n
    arrivals anywhere. The number that a probe would get by chance is most of what its share of misses varies by near
    the capacity, and says nothing of the server (conditioning on what is known: A. M. Law, Simulation Modeling and
    Analysis, 11.6). Sessions stay as they are.
    """
    parts = []
    for spec in schedule.requested_arrivals:
        requests = tuple(request for request in schedule.requests if spec.workload in (None, request.workload))
        count = max(1, round((spec.rate_rps or 0.0) * duration_s))
        if spec.rate_rps and not spec.sessions and count < len(requests) and (next_ns := requests[count].offset_ns):
            factor = count / spec.rate_rps * NS_PER_S / next_ns
            requests = tuple(
                msgspec.structs.replace(request, offset_ns=int(factor * request.offset_ns))
                for request in requests[:count]
            )
        else:
            requests = tuple(request for request in requests if request.offset_ns < duration_s * NS_PER_S)
        parts.append(replace(schedule, requests=requests, requested_arrivals=(spec,)))
    return replace(schedule, requests=merged_schedule(parts, schedule.seed).requests)


def rotated(source: Trace, seed: int) -> Trace:
    """Return the trace from a request on that `seed` draws, and what came before it at the end.

    A session stays whole: it is where its first turn is.
    """
    requests = source.requests
    firsts: dict[str, int] = {}
    place = [
        i if request.session_id is None else firsts.setdefault(request.session_id, i)
        for i, request in enumerate(requests)
    ]
    start = place[int(np.random.default_rng([seed, 4]).integers(len(requests)))]
    start_s = requests[start].arrival_s
    times_s = np.array([request.arrival_s for request in requests])
    lap_s = cycle_s(times_s) if source.timed and times_s[-1] > times_s[0] else 0.0
    moved = [
        (request.arrival_s - start_s + lap_s * (place[i] < start), place[i] < start, i)
        for i, request in enumerate(requests)
    ]
    moved.sort()
    return msgspec.structs.replace(
        source,
        requests=tuple(
            msgspec.structs.replace(requests[i], arrival_s=arrival_s if source.timed else 0.0)
            for arrival_s, _, i in moved
        ),
    )
