"""Share a schedule out over locust users on any number of workers, with one start for all.

Each replaying user says when it is ready. When as many are as the test has, the conductor (in the master, or in the
only process) numbers them by worker index and tells each its shard and the common start, as wall-clock time: between
machines the start is as common as their clocks are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.pool import Group
from gevent.queue import Queue

from loadgen.clock import anchor, monotonic_ns
from loadgen.errors import LoadgenError
from loadgen.run.pacer import BODIES_AHEAD, GEVENT_SPIN_NS
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.client.request_body import Message
    from loadgen.workload.schedule import ScheduledRequest

_LEAD_S = 1.0
"""Time between the last preparation and the first request: the start has to be announced to other hosts first."""


class Ready(NamedTuple):
    """The message of a replaying user that it is ready."""

    worker_index: int
    node: str
    user: int
    """Its number within its worker."""
    plan: str
    """The schedule's sha256: all must hold the same."""
    requests: int
    """Number of requests in the schedule."""


class Part(NamedTuple):
    """The share of one user: every `of`-th request from `shard` on; offsets count from `start_wall_ns`."""

    user: int
    shard: int
    of: int
    start_wall_ns: int
    run_id: str

    def of_schedule(self, requests: Sequence[ScheduledRequest]) -> Sequence[ScheduledRequest]:
        return requests[self.shard :: self.of]

    def start_ns(self) -> int:
        """Return the start on this machine's CLOCK_MONOTONIC."""
        clocks = anchor()
        return self.start_wall_ns - clocks.wall_ns + clocks.monotonic_ns


class Outcome(NamedTuple):
    """The result of a part."""

    shard: int
    sent: int
    failed: int


def assign(ready: Sequence[Ready], start_wall_ns: int, run_id: str) -> list[tuple[str, Part]]:
    """Return (node, part) for every user, in order of worker index. Raises LoadgenError when they hold different
    plans."""
    plans = {user.plan for user in ready}
    if len(plans) > 1:
        raise LoadgenError(
            f"the workers have {len(plans)} different schedules; the trace file must be the same on every machine"
        )
    in_order = sorted(ready)
    return [(user.node, Part(user.user, i, len(ready), start_wall_ns, run_id)) for i, user in enumerate(in_order)]


class Conductor:
    """One replay, as the master sees it. `tell(node, part)` reaches a user; `alive()` names the nodes still there."""

    def __init__(self, run_id: str, tell: Callable[[str, Part], None], alive: Callable[[], set[str]]) -> None:
        self.run_id = run_id
        self._tell = tell
        self._alive = alive
        self._ready: list[Ready] = []
        self._nodes: dict[int, str] = {}
        """Shard -> node; empty until the replay has begun."""
        self._outcomes: dict[int, Outcome] = {}

    @property
    def begun(self) -> bool:
        return bool(self._nodes)

    def ready(self, user: Ready) -> None:
        self._ready.append(user)

    def begin_if(self, users: int) -> bool:
        """Assign the parts when `users` are ready. Users who come later have no part."""
        if self.begun or not users or len(self._ready) < users:
            return False
        parts = assign(self._ready, anchor().wall_ns + round(_LEAD_S * NS_PER_S), self.run_id)
        self._nodes = {part.shard: node for node, part in parts}
        for node, part in parts:
            self._tell(node, part)
        return True

    def done(self, outcome: Outcome) -> None:
        self._outcomes[outcome.shard] = outcome

    @property
    def over(self) -> bool:
        """True if every shard was finished, or lost with its worker."""
        alive = self._alive()
        return self.begun and all(shard in self._outcomes or node not in alive for shard, node in self._nodes.items())

    def plan(self) -> str:
        """Describe the replay in one line."""
        schedule = self._ready[0]
        return f"{schedule.requests} requests, shared by {len(self._nodes)} users; schedule {schedule.plan[:12]}"

    def summary(self) -> tuple[str, bool]:
        """Return the result in one line, and True if every scheduled request was sent."""
        planned = self._ready[0].requests
        sent = sum(outcome.sent for outcome in self._outcomes.values())
        failed = sum(outcome.failed for outcome in self._outcomes.values())
        lost = len(self._nodes) - len(self._outcomes)
        words = f"{sent} of {planned} scheduled requests sent, {failed} failed"
        return words + (f"; {lost} users were lost with their workers" if lost else ""), sent == planned


def play(
    requests: Sequence[ScheduledRequest],
    start_ns: int,
    make_message: Callable[[ScheduledRequest], Message],
    send: Callable[[ScheduledRequest, Message, int], Any],
) -> None:
    """Send each request at its instant, in an open loop; return when all have ended.

    When the calling greenlet is killed, so are its requests.
    """
    messages: Queue[Message] = Queue(BODIES_AHEAD)
    in_flight = Group()

    def make_messages() -> None:
        for request in requests:
            messages.put(make_message(request))
            gevent.sleep(0)  # responses are still coming in

    maker = gevent.spawn(make_messages)
    try:
        for request in requests:
            message = messages.get()
            scheduled_ns = start_ns + request.offset_ns
            until(scheduled_ns)
            in_flight.spawn(send, request, message, scheduled_ns)
        in_flight.join()
    finally:
        maker.kill()
        in_flight.kill()


def until(deadline_ns: int) -> None:
    """Wait for an instant. Other greenlets run at least once: a client behind its schedule must still read its
    responses."""
    gevent.sleep(0)
    while (remaining_ns := deadline_ns - monotonic_ns()) > 0:
        gevent.sleep(max(0, remaining_ns - GEVENT_SPIN_NS) / NS_PER_S)
