"""The open loop: send each request at its instant, whatever became of the ones before; then drain.

Only the later turns of a session wait for something: for the answer before them, and then for their user to think.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from loadgen.clock import monotonic_ns
from loadgen.record import RequestRecord
from loadgen.run.pacer import Pacer
from loadgen.run.turns import Turns
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest

BODIES_AHEAD = 64
SLACK_NS = 500_000
NEAR_NS = 3_000_000
"""The event loop's own timers are good enough until so long before an instant."""

Landed = Callable[[RequestRecord], None]


class InFlight(Protocol):
    """A request that was launched."""

    def cancel(self) -> Any:
        """It lands soon, if it has not."""


Launch = Callable[[ScheduledRequest, bytes, int, Landed], InFlight]
"""(request, body, scheduled_ns, landed). Never raises; tells `landed` the record, once, after it has returned."""


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
        launch: Launch,
        on_record: Callable[[RequestRecord], None],
        max_concurrency: int | None = None,
    ) -> None:
        self._requests = [request for request in schedule.requests if request.after is None]
        self._turns = Turns(schedule.requests)
        self._started = 0
        self._make_body = make_body
        self._fly = launch
        self._on_record = on_record
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._in_flight: dict[int, InFlight] = {}
        self._thinking: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] | None = None
        self._start_ns = 0
        self._bodies: deque[bytes] = deque()
        self._slowest_body_ns = 0
        self.tallies = Tallies()
        self.stopped_by = "completed"

    async def run(self, start_ns: int) -> None:
        """Until every scheduled request has exactly one record. Offsets count from `start_ns`.

        What `make_body`, `send` or `on_record` raises ends the run: requests in flight are cancelled.
        """
        self._start_ns = start_ns
        self._over = asyncio.get_running_loop().create_future()
        self._sender = asyncio.create_task(self._send_all(start_ns))
        self._sender.add_done_callback(self._ended)
        try:
            await self._over
        finally:
            self._sender.cancel()
            self._cancel_flights()
            for user in self._thinking:
                user.cancel()
        for request in [*self._requests[self._started :], *self._turns.left()]:
            self._on_record(_not_sent(request, start_ns))

    def stop(self, why: str) -> None:
        self.stopped_by = why
        if self._sender:
            self._sender.cancel()
        for user in self._thinking:
            user.cancel()

    def abort(self) -> None:
        self.stop("aborted")
        self._cancel_flights()

    def _cancel_flights(self) -> None:
        for flight in list(self._in_flight.values()):
            flight.cancel()

    async def _send_all(self, start_ns: int) -> None:
        with Pacer() as pacer:
            for at, request in enumerate(self._requests):
                scheduled_ns = start_ns + request.offset_ns
                if self._bodies or monotonic_ns() < scheduled_ns:
                    await self._make_ahead(at, scheduled_ns, pacer)
                    body = self._bodies.popleft()
                else:  # late, or behind a cap: nothing is ahead
                    body = self._make_body(request)
                await pacer.until(scheduled_ns)
                if self._slots:
                    await self._slots.acquire()
                self._started += 1
                self._launch(request, body, scheduled_ns)

    def _launch(self, request: ScheduledRequest, body: bytes, scheduled_ns: int) -> None:
        self.tallies.sent += 1
        self.tallies.in_flight += 1
        self._in_flight[request.index] = self._fly(request, body, scheduled_ns, self._landed)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The sender has, or a user has thought."""
        self._thinking.discard(task)
        if not task.cancelled() and (err := task.exception()):
            self._fail(err)
        self._end_if_drained()

    def _landed(self, record: RequestRecord) -> None:
        del self._in_flight[record.index]
        if self._slots:
            self._slots.release()
        try:
            self.tallies.add(record)
            self._on_record(record)
            self._follow(record)
        except BaseException as err:
            self._fail(err)
        if not self._in_flight:
            self._end_if_drained()

    def _end_if_drained(self) -> None:
        assert self._sender is not None and self._over is not None
        busy = self._in_flight or self._thinking
        if self._sender.done() and not busy and not self._over.done():
            self._over.set_result(None)

    def _fail(self, err: BaseException) -> None:
        assert self._over is not None
        if not self._over.done():
            self._over.set_exception(err)

    async def _make_ahead(self, at: int, scheduled_ns: int, pacer: Pacer) -> None:
        """Bodies from request `at` on: its own, and while there is time until `scheduled_ns` those of the next ones.

        Made before they are due, they cost no lateness, not even when several requests come at once.
        """
        requests, ready = self._requests, self._bodies
        while not ready or (
            len(ready) < BODIES_AHEAD
            and at + len(ready) < len(requests)
            and scheduled_ns - monotonic_ns() > 2 * self._slowest_body_ns + SLACK_NS
        ):
            begun_ns = monotonic_ns()
            ready.append(self._make_body(requests[at + len(ready)]))
            self._slowest_body_ns = max(self._slowest_body_ns, monotonic_ns() - begun_ns)
            if scheduled_ns > monotonic_ns():
                await asyncio.sleep(0)  # there is time, and answers are coming in
            else:
                await pacer.breathe()

    def _follow(self, record: RequestRecord) -> None:
        """The next turn of the record's session, if it has one; or an account of the turns that a failure ends."""
        for lost in self._turns.given_up(record):
            why = f"turn {record.index} of its session failed: {record.error}"
            self._on_record(_not_sent(lost, self._start_ns, why))
        if self.stopped_by == "completed" and (following := self._turns.after(record)):
            user = asyncio.create_task(self._think(*following))
            self._thinking.add(user)
            user.add_done_callback(self._ended)

    async def _think(self, turn: ScheduledRequest, scheduled_ns: int) -> None:
        body = self._make_body(turn)
        await _sleep_until(scheduled_ns)
        if self._slots:
            await self._slots.acquire()
        self._turns.sent(turn)
        self._launch(turn, body, scheduled_ns)


async def _sleep_until(deadline_ns: int) -> None:
    """With a timer of its own: many users think at once, and a Pacer has one waiter."""
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
