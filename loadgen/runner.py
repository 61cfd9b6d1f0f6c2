"""The open loop: send each request at its instant, whatever became of the ones before; then drain.

Only the later turns of a session wait for something: for the answer before them, and then for their user to think.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from loadgen.clock import monotonic_ns
from loadgen.pacer import Pacer
from loadgen.record import RequestRecord
from loadgen.schedule import Schedule, ScheduledRequest
from loadgen.units import NS_PER_S

BODIES_AHEAD = 64
SLACK_NS = 500_000
NEAR_NS = 3_000_000
"""The event loop's own timers are good enough until so long before an instant."""

Send = Callable[[ScheduledRequest, bytes, int], Awaitable[RequestRecord]]
"""(request, body, scheduled_ns) -> record. Never raises."""


@dataclass
class Tallies:
    """Counts of a run in progress, for whoever watches."""

    sent: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, record: RequestRecord) -> None:
        self.in_flight -= 1
        self.completed += record.ok
        self.failed += not record.ok
        self.input_tokens += record.input_tokens or 0
        self.output_tokens += record.output_tokens or 0


class Runner:
    """One run. `stop` ends the sending and lets the rest finish; `abort` cancels the rest too."""

    def __init__(
        self,
        schedule: Schedule,
        make_body: Callable[[ScheduledRequest], bytes],
        send: Send,
        on_record: Callable[[RequestRecord], None],
        max_concurrency: int | None = None,
    ) -> None:
        self._starts = [request for request in schedule.requests if request.after is None]
        self._started = 0
        self._turns = {request.after: request for request in schedule.requests if request.after is not None}
        """By the index of the turn before; those already sent or given up are out."""
        self._make_body = make_body
        self._send = send
        self._on_record = on_record
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._thinking: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._start_ns = 0
        self._bodies: deque[bytes] = deque()
        self._slowest_body_ns = 0
        self.tallies = Tallies()
        self.stopped_by = "completed"

    async def run(self, start_ns: int) -> None:
        """Until every scheduled request has exactly one record. Offsets count from `start_ns`.

        What `on_record` raises ends the run: requests in flight are cancelled, and it comes out of an ExceptionGroup.
        """
        self._start_ns = start_ns
        async with asyncio.TaskGroup() as group:
            self._sender = group.create_task(self._send_all(start_ns, group))
        left = [*self._starts[self._started :], *self._turns.values()]
        for request in sorted(left, key=lambda request: request.index):
            self._on_record(_not_sent(request, start_ns))

    def stop(self, why: str) -> None:
        self.stopped_by = why
        if self._sender:
            self._sender.cancel()
        for task in self._thinking:
            task.cancel()

    def abort(self) -> None:
        self.stop("aborted")
        for task in self._in_flight:
            task.cancel()

    async def _send_all(self, start_ns: int, group: asyncio.TaskGroup) -> None:
        with Pacer() as pacer:
            for at, request in enumerate(self._starts):
                scheduled_ns = start_ns + request.offset_ns
                await self._make_ahead(at, scheduled_ns)
                body = self._bodies.popleft()
                await pacer.until(scheduled_ns)
                if self._slots:
                    await self._slots.acquire()
                self._started += 1
                self._count_sent()
                task = group.create_task(self._session(request, body, scheduled_ns))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)

    async def _make_ahead(self, at: int, scheduled_ns: int) -> None:
        """Bodies from request `at` on: its own, and while there is time until `scheduled_ns` those of the next ones.

        Made before they are due, they cost no lateness, not even when several requests come at once.
        """
        requests, ready = self._starts, self._bodies
        while not ready or (
            len(ready) < BODIES_AHEAD
            and at + len(ready) < len(requests)
            and scheduled_ns - monotonic_ns() > 2 * self._slowest_body_ns + SLACK_NS
        ):
            begun_ns = monotonic_ns()
            ready.append(self._make_body(requests[at + len(ready)]))
            self._slowest_body_ns = max(self._slowest_body_ns, monotonic_ns() - begun_ns)
            await asyncio.sleep(0)  # answers are still coming in

    def _count_sent(self) -> None:
        self.tallies.sent += 1
        self.tallies.in_flight += 1

    async def _session(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> None:
        """A request, and the turns after it, each once it is due."""
        record = await self._one(request, body, scheduled_ns)
        while (turn := self._turns.get(request.index)) and self.stopped_by == "completed":
            if not record.ok:
                self._give_up(turn, record)
                return
            assert record.finished_ns is not None
            request, scheduled_ns = turn, record.finished_ns + turn.think_ns
            body = self._make_body(turn)
            await self._think(scheduled_ns)
            del self._turns[record.index]
            self._count_sent()
            record = await self._one(turn, body, scheduled_ns)

    async def _think(self, until_ns: int) -> None:
        """Until the instant, and until there is room. `stop` ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._thinking.add(task)
        try:
            await _sleep_until(until_ns)
            if self._slots:
                await self._slots.acquire()
        finally:
            self._thinking.discard(task)

    def _give_up(self, turn: ScheduledRequest, failed: RequestRecord) -> None:
        """A session ends where a turn of it fails: nobody goes on from an answer that never came."""
        why = f"turn {failed.index} of its session failed: {failed.error}"
        left: ScheduledRequest | None = turn
        while left is not None and left.after is not None:
            del self._turns[left.after]
            self._on_record(_not_sent(left, self._start_ns, why))
            left = self._turns.get(left.index)

    async def _one(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> RequestRecord:
        record = await self._send(request, body, scheduled_ns)
        if self._slots:
            self._slots.release()
        self.tallies.add(record)
        self._on_record(record)
        return record


async def _sleep_until(deadline_ns: int) -> None:
    """With a timer of its own: many sessions think at once, and a Pacer has one waiter."""
    if (far_ns := deadline_ns - NEAR_NS - monotonic_ns()) > 0:
        await asyncio.sleep(far_ns / NS_PER_S)
    with Pacer() as pacer:
        await pacer.until(deadline_ns)


def _not_sent(request: ScheduledRequest, start_ns: int, why: str | None = None) -> RequestRecord:
    """`scheduled_ns` of a turn is then its earliest: nobody knows when it would have been due."""
    return RequestRecord(
        index=request.index,
        workload=request.workload,
        scheduled_ns=start_ns + request.offset_ns,
        error="not_sent",
        detail=why,
    )
