"""One schedule, several processes: each sends its share at the shared instants and writes its own records.

The schedule is shared out, never the rate: the requests of all processes together are the schedule's, at its instants.
Workers are spawned, not forked: this process has threads, an event loop and perhaps a GPU driver open, and none of them
survives a fork. All are ready before the first instant is chosen: none starts late or adds to the idle power.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.results.merge import PartWriter, merge_parts, recorded_in_part
from loadgen.run.config import PreparedRun, RunConfig, open_client
from loadgen.run.process_stats import SendingCost, merge_costs, own_cpu_s, own_max_rss_bytes
from loadgen.run.progress import Tallies, Waiting, sum_tallies, ticking
from loadgen.run.sender import MAX_WAITING, ScheduleSender, Sender
from loadgen.telemetry.otlp_export import check_endpoint

if TYPE_CHECKING:
    from loadgen.client.client import Client
    from loadgen.results.run_folder import RunWriter
    from loadgen.workload.schedule import Schedule, ScheduledRequest

_STOP_TIMEOUT_S = 10.0
"""The time a worker has to write its last records once the run is over."""

_COUNT_OVERDUE = "count overdue"
"""Message that has a worker count its requests in flight that have missed a limit; any other is a reason to stop."""

_spawn = multiprocessing.get_context("spawn")


def split_requests(requests: Sequence[ScheduledRequest], processes: int) -> list[tuple[ScheduledRequest, ...]]:
    """Return a share per process: request i goes to process i mod n; a session stays with its first request, and a
    request that waits for others with the first of these."""
    shares: list[list[ScheduledRequest]] = [[] for _ in range(processes)]
    owner: dict[str, int] = {}
    number_of: dict[int, int] = {}
    for i, request in enumerate(requests):
        number = number_of[request.parents[0]] if request.parents else i % processes
        if request.session_id is not None:
            number = owner.setdefault(request.session_id, number)
        number_of[request.index] = number
        shares[number].append(request)
    return [tuple(share) for share in shares]


def split_cap(cap: int | None, processes: int) -> list[int | None]:
    """Split --max-concurrency into a part per process: the parts sum to it, and no two differ by more than one."""
    if cap is None:
        return [None] * processes
    if cap < processes:
        raise LoadgenError(f"--max-concurrency {cap} cannot be split over --processes {processes}: ask for fewer")
    return [cap // processes + (k < cap % processes) for k in range(processes)]


def check_sending(config: RunConfig, requests: int) -> None:
    """Raise a LoadgenError if that many requests cannot be sent as `config` says."""
    split_cap(config.max_concurrency, min(config.processes, requests))
    if config.otlp:
        check_endpoint(config.otlp)


@asynccontextmanager
async def open_sender(
    schedule: Schedule, prepared: PreparedRun, client: Client, writer: RunWriter
) -> AsyncIterator[ScheduleSender]:
    """Yield the sender of a run: this process, with `client`, or as many processes as the options say."""
    processes = min(prepared.config.processes, len(schedule.requests))
    if processes == 1:
        keep_answer = writer.answer if prepared.config.keep_answers else None
        yield Sender(schedule, prepared, client, writer.record, keep_answer)
    else:
        async with _open_processes(schedule, prepared, writer, processes) as sender:
            yield sender


@dataclass(frozen=True)
class _Share:
    """The first message to a worker: all that it has to do."""

    schedule: Schedule
    prepared: PreparedRun
    folder: Path
    number: int
    log_level: int


class _Worker:
    """This process's end of one worker. `ready` and `over` are set by its messages, or by its death."""

    def __init__(self, share: _Share) -> None:
        self.share = share
        self.tallies = Tallies()
        self.oldest: list[Waiting] = []
        self.start_ns: int | None = None
        self.cost: SendingCost | None = None
        self.error: LoadgenError | None = None
        self.ready, self.over = asyncio.Event(), asyncio.Event()
        self.pipe, remote_end = _spawn.Pipe()
        self.process = _spawn.Process(target=_work, args=(remote_end,), name=f"sender-{share.number}", daemon=True)
        self.process.start()
        remote_end.close()

    def send(self, message: Any) -> None:
        """Send the share, then the start instant, then requests to count and the reason to stop."""
        with suppress(OSError):  # it died; `receive` takes note of that
            self.pipe.send(message)

    def receive(self) -> None:
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self.pipe.fileno())
            if self.cost is None:  # the requests that it had not finished have failed
                finished = self.tallies.completed + self.tallies.failed
                unfinished = len(self.share.schedule.requests) - finished
                self.tallies.failed += unfinished
                self.tallies.errors["cancelled"] += unfinished
                self.tallies.in_flight = 0
                self.oldest = []
            self.ready.set()
            self.over.set()
            return
        match message:
            case Tallies():
                self.tallies = message
            case [*oldest]:
                self.oldest = oldest
            case SendingCost():
                self.cost = message
            case LoadgenError():
                self.error = message
            case logging.LogRecord():
                logging.getLogger(message.name).handle(message)
                return
        self.ready.set()

    def end(self) -> None:
        """Wait for the process, which ends by itself when its pipe closes."""
        self.pipe.close()
        self.process.join(_STOP_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    @property
    def ending(self) -> str:
        """The end of the process, in words: "completed" when it has sent its share."""
        self.process.join(_STOP_TIMEOUT_S)
        status = self.process.exitcode
        if self.cost is not None:
            return "completed"
        return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"

    def unrecorded(self) -> list[ScheduledRequest]:
        """Return the requests of its share that it has written no record of."""
        recorded = recorded_in_part(self.share.folder, self.share.number)
        return [request for request in self.share.schedule.requests if request.index not in recorded]

    def outcome(self) -> dict[str, Any]:
        cost = self.cost
        return {
            "requests": len(self.share.schedule.requests),
            "ended": self.ending,
            "lost": 0 if cost else len(self.unrecorded()),
            "cpu_s": cost.cpu_s if cost else None,
            "max_rss_bytes": cost.max_rss_bytes if cost else None,
        }


class SenderProcesses:
    """A `ScheduleSender` whose requests are sent by other processes."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self.stopped_by = "completed"
        self.processes: list[dict[str, Any]] | None = None

    @property
    def tallies(self) -> Tallies:
        return sum_tallies([worker.tallies for worker in self._workers])

    @property
    def oldest(self) -> list[Waiting]:
        waiting = (request for worker in self._workers for request in worker.oldest)
        return sorted(waiting, key=lambda request: request.since_ns)[:MAX_WAITING]

    async def run(self, start_ns: int) -> SendingCost:
        async def until_over(worker: _Worker) -> None:
            await worker.over.wait()
            if worker.error:
                self.abort()

        cpu_s = own_cpu_s()
        for worker in self._workers:
            worker.start_ns = start_ns
            worker.send(start_ns)
        await asyncio.gather(*map(until_over, self._workers))
        for worker in self._workers:
            if worker.error:
                raise worker.error
        self.processes = await asyncio.to_thread(lambda: [worker.outcome() for worker in self._workers])
        own_cost = SendingCost(own_cpu_s() - cpu_s, own_max_rss_bytes())
        return merge_costs([own_cost, *(worker.cost for worker in self._workers if worker.cost)])

    def stop(self, reason: str) -> None:
        self.stopped_by = reason
        for worker in self._workers:
            worker.send(reason)

    def count_overdue(self) -> None:
        """Ask each worker to count its own; its next report has them."""
        for worker in self._workers:
            worker.send(_COUNT_OVERDUE)

    def abort(self, reason: str = "aborted") -> None:
        self.stop("aborted")
        self.stopped_by = reason


@asynccontextmanager
async def _open_processes(
    schedule: Schedule, prepared: PreparedRun, writer: RunWriter, processes: int
) -> AsyncIterator[SenderProcesses]:
    """Yield workers that wait for the first instant. Afterwards their records are in the run folder's one file."""
    config = prepared.config
    caps = split_cap(config.max_concurrency, processes)
    shares = [
        _Share(
            replace(schedule, requests=requests),
            replace(prepared, config=msgspec.structs.replace(config, max_concurrency=cap)),
            writer.path,
            number,
            logging.getLogger("loadgen").level,
        )
        for number, (requests, cap) in enumerate(
            zip(split_requests(schedule.requests, processes), caps, strict=True), 1
        )
    ]
    workers: list[_Worker] = []
    try:
        _start(shares, workers)
        await asyncio.gather(*(worker.ready.wait() for worker in workers))
        for worker in workers:
            if worker.error:
                raise worker.error
            if worker.over.is_set():
                raise LoadgenError(f"process {worker.share.number} of {processes} did not start ({worker.ending})")
        yield SenderProcesses(workers)
    finally:
        for worker in workers:
            if not worker.over.is_set():
                asyncio.get_running_loop().remove_reader(worker.pipe.fileno())
        await asyncio.to_thread(_collect, workers, writer)


def _start(shares: list[_Share], workers: list[_Worker]) -> None:
    """Append a worker for each share to `workers`. All processes are started before any gets its share: they boot side
    by side.

    They inherit that SIGINT and SIGTERM are blocked: a Ctrl-C at the terminal reaches every process, and this one
    handles it for all.
    """
    resource_tracker.ensure_running()  # its own start would unblock the signals again
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        for share in shares:
            workers.append(_Worker(share))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    for worker in workers:
        worker.send(worker.share)
        asyncio.get_running_loop().add_reader(worker.pipe.fileno(), worker.receive)


def _collect(workers: list[_Worker], writer: RunWriter) -> None:
    """End the workers, record what a worker that died has not, and merge their records. Blocks."""
    for worker in workers:
        worker.end()
    for worker in workers:
        if worker.start_ns is not None and worker.cost is None and worker.error is None:
            detail = f"no record: process {worker.share.number} of {len(workers)} ended early ({worker.ending})"
            for request in worker.unrecorded():
                writer.record(RequestRecord.unanswered(request, worker.start_ns, "cancelled", detail))
    writer.flush()
    merge_parts(writer.path)


# -- in the worker ---------------------------------------------------------------------------------------------------


class _PipeHandler(logging.Handler):
    """Hands what a worker logs to the parent, which writes it."""

    def __init__(self, pipe: Pipe[Any, Any]) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._pipe.send(record)


def _work(pipe: Pipe[Any, Any]) -> None:
    """Run a worker: receive a share, report being ready, send the share, report its cost or the error."""
    try:
        share = pipe.recv()
        if share.log_level:
            logging.getLogger("loadgen").setLevel(share.log_level)
            logging.getLogger("loadgen").addHandler(_PipeHandler(pipe))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            pipe.send(loop.run(_send_share(pipe, share)))
    except LoadgenError as err:
        with suppress(OSError):
            pipe.send(err)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        sys.exit(1)


async def _send_share(pipe: Pipe[Any, Any], share: _Share) -> SendingCost:
    keeps_answers = share.prepared.config.keep_answers
    writer = PartWriter(share.folder, share.number, answers=keeps_answers)
    try:
        async with open_client(share.prepared.config) as client:
            keep_answer = writer.answer if keeps_answers else None
            sender = Sender(share.schedule, share.prepared, client, writer.record, keep_answer)

            def report() -> None:
                """Hand the lines written so far to the kernel, and the progress to the parent."""
                writer.flush()
                with suppress(OSError):
                    pipe.send(sender.tallies)
                    pipe.send(sender.oldest)

            def obey() -> None:
                """Count or stop as the parent says; abort when the parent is gone."""
                try:
                    reason = pipe.recv()
                except (EOFError, OSError):
                    asyncio.get_running_loop().remove_reader(pipe.fileno())
                    reason = "aborted"
                if reason == _COUNT_OVERDUE:
                    sender.count_overdue()
                elif reason == "aborted":
                    sender.abort()
                else:
                    sender.stop(reason)

            pipe.send(sender.tallies)
            start_ns = pipe.recv()
            asyncio.get_running_loop().add_reader(pipe.fileno(), obey)
            async with ticking(report):
                cost = await sender.run(start_ns)
            report()
            return cost
    finally:
        writer.close()
