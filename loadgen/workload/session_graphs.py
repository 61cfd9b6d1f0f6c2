"""Sessions as graphs: which requests each one waits for, and how its instant follows from the recording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, after_all, of_sessions

if TYPE_CHECKING:
    import numpy as np

    from loadgen.workload.schedule import ScheduledRequest, Timing
    from loadgen.workload.trace import TraceRequest


class Turn(NamedTuple):
    """A request of a planned session."""

    request: TraceRequest
    offset_ns: int
    """Earliest instant, counted from the start of the session: as if answers took no time."""
    parents: tuple[int, ...]
    """Positions in the session of the requests that it waits for."""
    wait_ns: int
    """Time between the last of their answers and this request."""


def are_graphs(requests: Iterable[TraceRequest]) -> bool:
    """Return whether some request states what it waits for."""
    return any(request.after for request in requests)


def chain(turns: Sequence[TraceRequest], waits_ns: Sequence[int]) -> list[Turn]:
    """Plan a session whose every turn waits for the one before it."""
    planned: list[Turn] = []
    due_ns = 0
    for position, (turn, wait_ns) in enumerate(zip(turns, waits_ns, strict=True)):
        due_ns += wait_ns
        planned.append(Turn(turn, due_ns, (position - 1,) if position else (), wait_ns))
    return planned


def graph(turns: Sequence[TraceRequest], timing: Timing, speedup: float) -> list[Turn]:
    """Plan a session whose requests state what they wait for; times of the recording are divided by `speedup`.

    Where a think time is not known, the time between the instants of the requests stands for it.
    """
    planned: list[Turn] = []
    positions: dict[str, int] = {}
    for position, turn in enumerate(turns):
        try:
            parents = tuple(positions[name] for name in turn.after)
        except KeyError as err:
            session = f"session {turn.session_id!r}"
            raise LoadgenError(
                f"{session}: a request waits for {err.args[0]!r}, which is no earlier one of it"
            ) from err
        if turn.request_id is not None:
            positions[turn.request_id] = position
        since_start_s = turn.arrival_s - turns[0].arrival_s
        think_s = turn.think_s
        if think_s is None and parents:
            think_s = turn.arrival_s - max(turns[parent].arrival_s for parent in parents)
        wait_ns = round((think_s or 0.0) / speedup * NS_PER_S) if timing == "think" and parents else 0
        if timing == "afap":
            offset_ns = 0
        elif timing == "think" and parents:
            offset_ns = max(planned[parent].offset_ns for parent in parents) + wait_ns
        else:
            offset_ns = round(since_start_s / speedup * NS_PER_S)
        planned.append(Turn(turn, offset_ns, parents, wait_ns))
    return planned


def from_middle(
    turns: Sequence[TraceRequest], rng: np.random.Generator
) -> tuple[Sequence[TraceRequest], list[TraceRequest]]:
    """Return a session from a random turn of its main thread on, and the request whose prompt is then in the cache.

    What began before that turn is over: sub-agents that ran then go on with the requests that began after it. A session
    of one turn starts with it, and with nothing in the cache.
    """
    main = [position for position, turn in enumerate(turns) if turn.task is None]
    if len(main) < 2:
        return turns, []
    first = int(rng.integers(1, len(main)))
    over, start_s = set(main[:first]), turns[main[first]].arrival_s
    kept = [turn for i, turn in enumerate(turns) if turn.arrival_s >= start_s and i not in over]
    names = {turn.request_id for turn in kept}
    resumed = [
        msgspec.structs.replace(turn, after=tuple(parent for parent in turn.after if parent in names)) for turn in kept
    ]
    return resumed, [turns[main[first - 1]]]


ANSWER_NS_PER_TOKEN = 10_000_000
"""Time that an answer is taken to last where sessions are put on lanes: how long it will last is not known before."""


class Lanes:
    """Lanes that play sessions one after another, so that as many sessions are alive at a time.

    A session goes to the lane that is likely to be free first.
    """

    def __init__(self, count: int) -> None:
        self._free: list[tuple[int, int]] = [(0, lane) for lane in range(count)]
        """(likely end in ns, lane)."""
        self._end_ns = [0] * count
        """Earliest end of each lane: as if answers took no time."""
        self._last: list[tuple[int, ...]] = [()] * count
        """Last requests of each lane, by their indices."""

    def start(self) -> tuple[int, tuple[int, ...]]:
        """Return the planned start of the next session in ns, and the requests that have to be over before it."""
        _, lane = self._free[0]
        return self._end_ns[lane], self._last[lane]

    def play(self, requests: Sequence[ScheduledRequest]) -> None:
        """Put the session for which `start` was called on its lane."""
        likely_ns, lane = heappop(self._free)
        end_ns = max((request.offset_ns for request in requests), default=self._end_ns[lane])
        answers_ns = ANSWER_NS_PER_TOKEN * sum(request.output_tokens or 0 for request in requests)
        heappush(self._free, (likely_ns + end_ns - self._end_ns[lane] + answers_ns, lane))
        waited_for = {parent for request in requests for parent in request.parents}
        last = tuple(request.index for request in requests if request.index not in waited_for)
        self._end_ns[lane], self._last[lane] = end_ns, last or self._last[lane]


# -- sessions that are too long ---------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    schedule: Schedule
    sessions: int
    """Sessions with a request that is too long."""
    requests: int
    """Requests that were left out, of these sessions."""


def fit_sessions(schedule: Schedule, limit: int, how: Literal["leave-out", "cut"]) -> Fitted:
    """Leave out the sessions with a request of more than `limit` tokens, prompt and answer, or end them before it.

    A longer prompt that would only fill the cache is not sent. LoadgenError: no request would be left.
    """

    def is_too_long(request: ScheduledRequest) -> bool:
        return (request.input_tokens or 0) + (0 if request.natural else request.output_tokens or 0) > limit

    too_long = {request.index for request in schedule.requests if is_too_long(request)}
    schedule = replace(schedule, warmed=tuple(request for request in schedule.warmed if not is_too_long(request)))
    if not too_long:
        return Fitted(schedule, 0, 0)
    session_of = {r.index: r.index if r.session_id is None else r.session_id for r in schedule.requests}
    sessions = {session_of[index] for index in too_long}
    removed: set[int] = set()
    for request in schedule.requests:
        session = session_of[request.index]
        is_over = any(parent in removed and session_of[parent] == session for parent in request.parents)
        if session in sessions and (how == "leave-out" or request.index in too_long or is_over):
            removed.add(request.index)
    if len(removed) == len(schedule.requests):
        raise LoadgenError(f"every session has a request of more than {limit:,} tokens: nothing is left to send")
    return Fitted(without(schedule, removed), len(sessions), len(removed))


def without(schedule: Schedule, removed: Set[int]) -> Schedule:
    """Return the schedule without some requests: what waited for one of them waits for what that one waited for."""
    stands_for: dict[int, tuple[int, ...]] = {}
    """The parents that take the place of a removed request."""
    index: dict[int, int] = {}
    kept: list[ScheduledRequest] = []
    for request in schedule.requests:
        parents = tuple(dict.fromkeys(p for parent in request.parents for p in stands_for.get(parent, (parent,))))
        if request.index in removed:
            stands_for[request.index] = parents
            continue
        index[request.index] = len(kept)
        after = after_all([index[parent] for parent in parents])
        kept.append(msgspec.structs.replace(request, index=len(kept), after=after))
    return replace(schedule, requests=tuple(kept), warmed=of_sessions(schedule.warmed, kept))
