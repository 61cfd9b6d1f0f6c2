"""Sends a schedule from this process, in an open loop: each request at its instant, whatever became of those before.

Only the later requests of sessions wait for something: for the answers before them, and then for a user to think or a
tool to run. When a request fails, those of its session that wait for it, directly or not, are given up; a request of
another session that waits for it is sent once it is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from loadgen.client.answer import Answer
from loadgen.client.client import Client, Exchange, Post
from loadgen.client.request_body import LiveHistory
from loadgen.clock import monotonic_ns
from loadgen.errors import NotReadyError
from loadgen.record import RequestRecord
from loadgen.results.metrics import is_overdue
from loadgen.run.config import limits_of
from loadgen.run.pacer import BODIES_AHEAD, BYTES_AHEAD, Pacer
from loadgen.run.process_stats import ProcessMeter, SendingCost, no_collections
from loadgen.run.progress import WARMING_UP, Tallies, Waiting
from loadgen.telemetry.otlp_export import SpanSender
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.client.request_body import Message
    from loadgen.run.config import PreparedRun
    from loadgen.workload.schedule import Schedule, ScheduledRequest

_log = logging.getLogger(__name__)

MARGIN_NS = 500_000
"""Time before an instant in which no further body is made ahead."""
NEAR_NS = 3_000_000
"""Time before an instant until which the event loop's own timers are good enough."""
EARLY_NS = 250_000_000
"""Time before the instant of a later turn at which its body is made: while its user thinks, none is held."""
MAX_WAITING = 3
"""Requests in flight that a view names."""


class ScheduleSender(Protocol):
    """Sends a schedule once. `Sender` does so from this process, `SenderProcesses` from several others."""

    @property
    def tallies(self) -> Tallies:
        """Counts so far."""

    @property
    def oldest(self) -> list[Waiting]:
        """The MAX_WAITING requests that have been in flight for the longest time, the oldest first."""

    @property
    def stopped_by(self) -> str:
        """The end of the run in run.json's words: `completed` until `stop` or `abort` was called."""

    @property
    def processes(self) -> list[dict[str, Any]] | None:
        """The outcome of each sending process, for run.json; None for this one alone."""

    async def run(self, start_ns: int) -> SendingCost:
        """Return once every request has exactly one record. Offsets count from `start_ns`.

        LoadgenError: a record could not be kept. Requests in flight are then cancelled.
        """

    def count_overdue(self) -> None:
        """Count in `tallies` the requests in flight that have missed a limit already."""

    def stop(self, reason: str) -> None:
        """End the sending; requests in flight complete, those not sent get a record that says so."""

    def abort(self, reason: str = "aborted") -> None:
        """End the sending and cancel the requests in flight."""


class Sender:
    """Sends a schedule from this process: a `ScheduleSender`. `write` gets each record, once; `write_answer`, if the
    answers are kept, each choice of each answer."""

    processes: list[dict[str, Any]] | None = None

    def __init__(
        self,
        schedule: Schedule,
        prepared: PreparedRun,
        client: Client,
        write: Callable[[RequestRecord], None],
        write_answer: Callable[[Answer], None] | None = None,
    ) -> None:
        config = prepared.config
        self.tallies = Tallies()
        self.stopped_by = "completed"
        self._first_turns = [request for request in schedule.requests if not request.parents]
        self._sent_first_turns = 0
        self._later_turns = {request.index: request for request in schedule.requests if request.parents}
        """Turns that were neither sent nor given up."""
        self._children: defaultdict[int, list[ScheduledRequest]] = defaultdict(list)
        """Requests that wait for another, by its index."""
        for request in self._later_turns.values():
            for parent in request.parents:
                self._children[parent].append(request)
        self._open_parents = {request.index: len(request.parents) for request in self._later_turns.values()}
        self._ready_ns: dict[int, int] = {}
        """The end of the last answer so far of those that a turn waits for."""
        self._session_of = {r.index: r.session_id for r in schedule.requests if r.index in self._children}
        """Sessions of the requests that others wait for."""
        self._run_id = prepared.run_id
        self._client = client
        self._write = write
        self._write_answer = write_answer
        self._hides_words = not config.keep_bodies
        workloads = {request.workload for request in schedule.requests}
        self._limits_ms = {workload: limits_of(config, workload) for workload in workloads}
        sessions = {r.index: r.session_id for r in schedule.requests if config.otlp and r.session_id is not None}
        tags = {r.index: r.tags for r in schedule.requests if config.otlp and r.tags is not msgspec.UNSET}
        model = prepared.server.model
        self._spans = SpanSender(config.otlp, prepared.run_id, model, sessions, tags) if config.otlp else None
        self.make_message = prepared.message_maker(schedule.seed)
        self._messages: deque[Message] = deque()
        self._bytes_ahead = 0
        """Bytes of the bodies in `_messages`."""
        self._slowest_message_ns = 0
        self._slots = asyncio.Semaphore(config.max_concurrency) if config.max_concurrency else None
        self._in_flight: dict[int, Exchange] = {}
        self._users: set[asyncio.Task[None]] = set()
        """Sessions between two turns."""
        self._sending: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._start_ns = 0

    @property
    def oldest(self) -> list[Waiting]:
        in_order = islice(self._in_flight.values(), MAX_WAITING)  # in which they were sent
        return [
            Waiting(post.index, stream.sent_ns or post.scheduled_ns, bool(stream.chunk_ns))
            for post, stream in ((exchange.post, exchange.stream) for exchange in in_order)
        ]

    async def run(self, start_ns: int) -> SendingCost:
        self._start_ns = start_ns
        self._drained = asyncio.get_running_loop().create_future()
        with ProcessMeter() as meter, no_collections(), self._spans or nullcontext():
            self._sending = asyncio.create_task(self._send_first_turns(start_ns))
            self._sending.add_done_callback(self._task_ended)
            try:
                await self._drained
            finally:
                self._end_tasks()
                self._cancel_requests()
            for request in [*self._first_turns[self._sent_first_turns :], *self._later_turns.values()]:
                self._record_unsent(request, None)
        return meter.cost(self._client.stamped_by, self._spans.report() if self._spans else None)

    def count_overdue(self) -> None:
        now_ns = monotonic_ns()
        self.tallies.overdue = sum(
            is_overdue(
                exchange.stream.sent_ns or exchange.post.scheduled_ns,
                exchange.stream.chunk_ns[0] if exchange.stream.chunk_ns else None,
                now_ns,
                self._limits_ms[exchange.post.workload],
            )
            for exchange in self._in_flight.values()
        )

    def stop(self, reason: str) -> None:
        self.stopped_by = reason
        self._end_tasks()

    def abort(self, reason: str = "aborted") -> None:
        self.stop(reason)
        self._cancel_requests()

    async def _send_first_turns(self, start_ns: int) -> None:
        with Pacer() as pacer:
            for position, request in enumerate(self._first_turns):
                scheduled_ns = start_ns + request.offset_ns
                if self._messages or monotonic_ns() < scheduled_ns:
                    await self._make_messages_ahead(position, scheduled_ns, pacer)
                    message = self._messages.popleft()
                    self._bytes_ahead -= len(message.body)
                else:  # late, or behind a cap: no body is ahead
                    message = self.make_message(request)
                await pacer.until(scheduled_ns)
                if self._slots:
                    await self._slots.acquire()
                self._sent_first_turns += 1
                self.launch(request, message, scheduled_ns)

    async def _make_messages_ahead(self, position: int, scheduled_ns: int, pacer: Pacer) -> None:
        """Make the body of the request at `position`, and those of the next ones while there is time.

        Made before they are due, they cost no lateness, not even when several requests are due at once.
        """
        requests, messages = self._first_turns, self._messages
        while not messages or (
            len(messages) < BODIES_AHEAD
            and self._bytes_ahead < BYTES_AHEAD
            and position + len(messages) < len(requests)
            and scheduled_ns - monotonic_ns() > 2 * self._slowest_message_ns + MARGIN_NS
        ):
            start_ns = monotonic_ns()
            messages.append(self.make_message(requests[position + len(messages)]))
            self._bytes_ahead += len(messages[-1].body)
            self._slowest_message_ns = max(self._slowest_message_ns, monotonic_ns() - start_ns)
            if scheduled_ns > monotonic_ns():
                await asyncio.sleep(0)  # there is time, and responses are coming in
            else:
                await pacer.breathe()

    def launch(self, request: ScheduledRequest, message: Message, scheduled_ns: int) -> None:
        self.tallies.start()
        index, (path, body, headers) = request.index, message
        name = f"{self._run_id}-{index}"
        hides_words = self._hides_words and request.words is not None
        keeps_answer = self._keeps_answer(index)
        post = Post(path, body, index, request.workload, scheduled_ns, name, headers, keeps_answer, hides_words)
        self._in_flight[index] = self._client.send(post, self.on_record)

    def on_record(self, record: RequestRecord) -> None:
        """Take the record of a request that was launched. An exception in here ends the run with that exception."""
        exchange = self._in_flight.pop(record.index)
        if self._slots:
            self._slots.release()
        try:
            self.tallies.add(record, self._limits_ms[record.workload])
            if record.error:
                _log_failure(record)
            self._keep(record)
            if not exchange.post.keeps_answer:
                self._continue_session(record, None)
                return
            answers = exchange.stream.answers(record.index)
            if self._write_answer is not None:
                for answer in answers:
                    self._write_answer(answer)
            answer = answers[0] if answers else Answer(index=record.index)
            self._continue_session(record, LiveHistory(exchange.post.body, answer))
        except BaseException as err:
            self._fail(err)
        finally:
            if not self._in_flight:
                self._end_if_drained()

    def _keeps_answer(self, index: int) -> bool:
        """Return whether the words of the answer to a request are needed: to be written, or for its next turn."""
        if self._write_answer is not None:
            return True
        return any(turn.live is True for turn in self._children.get(index, ()))

    def _keep(self, record: RequestRecord) -> None:
        self._write(record)
        if self._spans:
            self._spans.add(record)

    def _record_unsent(self, request: ScheduledRequest, reason: str | None) -> None:
        """Keep a record of a request that is never sent. `scheduled_ns` of a later turn is then its earliest instant:
        the response that decides when it is due never came."""
        self._keep(RequestRecord.unanswered(request, self._start_ns, "not_sent", reason))

    def _continue_session(self, record: RequestRecord, history: LiveHistory | None) -> None:
        """Let those think that waited for `record` alone; if it failed, give up those of its session that wait for it.

        history: `record`'s own messages and answer, where its answer was kept.
        """
        fault = None if record.ok else f"failed: {record.error}"
        if history and history.answer.cut and any(turn.live is True for turn in self._children.get(record.index, ())):
            fault = "has an answer that is too long to be kept"
        reason = f"turn {record.index} of its session {fault}"
        ended_ns = monotonic_ns() if record.finished_ns is None else record.finished_ns
        over = [(record.index, fault is not None)]
        while over:
            index, failed = over.pop()
            for turn in self._children.pop(index, ()):
                if turn.index not in self._later_turns:
                    continue  # it was given up
                if failed and turn.session_id == self._session_of[index]:
                    self._record_unsent(self._later_turns.pop(turn.index), reason)
                    over.append((turn.index, True))
                    continue
                self._open_parents[turn.index] -= 1
                self._ready_ns[turn.index] = max(ended_ns, self._ready_ns.get(turn.index, 0))
                if self._open_parents[turn.index] == 0 and self.stopped_by == "completed":
                    self._begin_to_think(turn, history if turn.live is True else None)

    def _begin_to_think(self, turn: ScheduledRequest, history: LiveHistory | None) -> None:
        scheduled_ns = max(self._ready_ns.pop(turn.index) + turn.think_ns, self._start_ns + turn.offset_ns)
        user = asyncio.create_task(self._think(turn, scheduled_ns, history))
        self._users.add(user)
        user.add_done_callback(self._task_ended)

    async def _think(self, turn: ScheduledRequest, scheduled_ns: int, history: LiveHistory | None = None) -> None:
        """Send a later turn when it is due. Many users think at once, and a Pacer has one waiter: each has its own."""
        if (far_ns := scheduled_ns - EARLY_NS - monotonic_ns()) > 0:
            await asyncio.sleep(far_ns / NS_PER_S)
        message = self.make_message(turn) if history is None else self.make_message(turn, history)
        if (far_ns := scheduled_ns - NEAR_NS - monotonic_ns()) > 0:
            await asyncio.sleep(far_ns / NS_PER_S)
        with Pacer() as pacer:
            await pacer.until(scheduled_ns)
        if self._slots:
            await self._slots.acquire()
        del self._later_turns[turn.index]
        self.launch(turn, message, scheduled_ns)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Take note that the first turns were sent, or that a user has sent a later one."""
        self._users.discard(task)
        if not task.cancelled() and (err := task.exception()):
            self._fail(err)
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        assert self._sending is not None and self._drained is not None
        busy = self._in_flight or self._users
        if self._sending.done() and not busy and not self._drained.done():
            self._drained.set_result(None)

    def _fail(self, err: BaseException) -> None:
        assert self._drained is not None
        if not self._drained.done():
            self._drained.set_exception(err)

    def _end_tasks(self) -> None:
        if self._sending:
            self._sending.cancel()
        for user in self._users:
            user.cancel()

    def _cancel_requests(self) -> None:
        for exchange in list(self._in_flight.values()):
            self._client.cancel(exchange)


def _log_failure(record: RequestRecord) -> None:
    """Log a request that failed, without its detail: the server's words may quote the prompt."""
    seconds = None
    if record.finished_ns is not None and record.sent_ns is not None:
        seconds = round((record.finished_ns - record.sent_ns) / NS_PER_S, 4)
    failure = {"index": record.index, "error": record.error, "status": record.status, "seconds": seconds}
    _log.info("request %(index)d failed: %(error)s, status %(status)s, after %(seconds)s s", failure)


async def warm_up(
    schedule: Schedule, prepared: PreparedRun, client: Client, announce: Callable[[str, int, int], None]
) -> None:
    """Send the first `--warmup` requests one after another, unrecorded. They get prompts of their own, so that nothing
    of the run is in the server's prefix cache.

    announce: called with the stage, and the requests that are done of all, before each.
    NotReadyError: none of them completed, or one reached its timeout, which may be many minutes.
    """
    make_message = prepared.message_maker(schedule.seed)
    requests = schedule.requests[: prepared.config.warmup]
    failed = 0
    for done, request in enumerate(requests, 1):
        announce(WARMING_UP, done - 1, len(requests))
        index = len(schedule.requests) + request.index
        message = make_message(msgspec.structs.replace(request, index=index, prefix_ids=(), text_id=None))
        record = await client.post(
            message.path,
            message.body,
            workload="warmup",
            headers=message.headers,
            hides_words=request.words is not None,
        )
        failed += record.error is not None
        if record.error == "timeout" or failed == len(requests):
            raise NotReadyError(
                f"{failed} of {done} warm-up requests failed ({record.error}): {record.detail}; --warmup 0 sends none"
            )


async def warm_prefixes(
    schedule: Schedule, prepared: PreparedRun, client: Client, announce: Callable[[str, int, int], None]
) -> None:
    """Send the prompts that are in the server's cache when the run begins, unrecorded, for one token each.

    NotReadyError: one of them failed, so that the session after it would begin without its history.
    """
    make_message = prepared.message_maker(schedule.seed)
    for done, request in enumerate(schedule.warmed):
        announce("filling the prefix cache", done, len(schedule.warmed))
        index = 2 * len(schedule.requests) + done  # those before are of the run and of its warm-up
        message = make_message(msgspec.structs.replace(request, index=index, output_tokens=1, natural=False))
        record = await client.post(
            message.path, message.body, workload="warmup", headers=message.headers, hides_words=False
        )
        if record.error:
            raise NotReadyError(f"a request that fills the prefix cache failed ({record.error}): {record.detail}")
