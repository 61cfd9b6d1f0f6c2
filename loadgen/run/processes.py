"""One schedule, several processes: each sends its share at the shared instants and writes its own records.

The schedule is shared out, never the rate: the requests of all processes together are the schedule's, at its instants.
Workers are spawned, not forked: this process has threads, an event loop and perhaps a GPU driver open, and none of them
survives a fork. All are ready before the first instant is chosen: none starts late or adds to the idle power.
"""

import asyncio
import multiprocessing
import signal
import sys
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunWriter, merge_parts, recorded_in_part
from loadgen.run.runner import Tallies
from loadgen.run.sender import Cost, Job, Sender, client_of, first, own_cpu_s, own_max_rss_bytes
from loadgen.workload.schedule import Schedule, ScheduledRequest

TICK_S = 0.25
"""Between two reports of a worker."""
STOP_TIMEOUT_S = 10.0
"""For a worker to write what it has, once told that the run is over."""

_spawn = multiprocessing.get_context("spawn")


def shard(requests: Sequence[ScheduledRequest], processes: int) -> list[tuple[ScheduledRequest, ...]]:
    """The i-th request goes to process i mod n; a session stays whole, with its first request."""
    shares: list[list[ScheduledRequest]] = [[] for _ in range(processes)]
    homes: dict[str, int] = {}
    for i, request in enumerate(requests):
        turn = i % processes
        shares[turn if request.session_id is None else homes.setdefault(request.session_id, turn)].append(request)
    return [tuple(share) for share in shares]


def split_cap(cap: int | None, processes: int) -> list[int | None]:
    """--max-concurrency, one part per process: they sum to it, and no two differ by more than one."""
    if cap is None:
        return [None] * processes
    if cap < processes:
        raise LoadgenError(f"--max-concurrency {cap} cannot be split over --processes {processes}: ask for fewer")
    return [cap // processes + (k < cap % processes) for k in range(processes)]


@dataclass(frozen=True)
class _Share:
    """What a worker is told."""

    schedule: Schedule
    job: Job
    folder: Path
    number: int


class _Worker:
    """This process's end of one worker. `ready` and `over` come true as it says so, or dies."""

    def __init__(self, share: _Share) -> None:
        self.share = share
        self.tallies = Tallies()
        self.start_ns: int | None = None
        self.cost: Cost | None = None
        self.error: LoadgenError | None = None
        self.ready, self.over = asyncio.Event(), asyncio.Event()
        self.pipe, theirs = _spawn.Pipe()
        self.process = _spawn.Process(target=_work, args=(theirs,), name=f"sender-{share.number}", daemon=True)
        self.process.start()
        theirs.close()

    def start(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.tell(start_ns)

    def tell(self, what: Any) -> None:
        with suppress(OSError):  # dead: it is heard of where it is listened to
            self.pipe.send(what)

    def hear(self) -> None:
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            return self._gone()
        match said:
            case Tallies():
                self.tallies = said
            case Cost():
                self.cost = said
            case LoadgenError():
                self.error = said
        self.ready.set()
        return None

    def _gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pipe.fileno())
        if self.cost is None:  # what it had not finished has failed
            done = self.tallies.completed + self.tallies.failed
            self.tallies.failed += len(self.share.schedule.requests) - done
            self.tallies.in_flight = 0
        self.ready.set()
        self.over.set()

    def end(self) -> None:
        """Waits for the process, which ends by itself when its pipe closes."""
        self.pipe.close()
        self.process.join(STOP_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    @property
    def ending(self) -> str:
        """How the process ended, in words; "completed" when it had done its share."""
        self.process.join(STOP_TIMEOUT_S)
        status = self.process.exitcode
        if self.cost is not None:
            return "completed"
        return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"


class Shards:
    """A `Sender` whose requests are sent by other processes."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers
        self.stopped_by = "completed"
        self.processes: list[dict[str, Any]] = []
        """What became of each, once they have run."""

    @property
    def tallies(self) -> Tallies:
        return Tallies(
            **{
                field.name: sum(getattr(worker.tallies, field.name) for worker in self._workers)
                for field in fields(Tallies)
            }
        )

    async def run(self, start_ns: int) -> Cost:
        cpu_s = own_cpu_s()
        for worker in self._workers:
            worker.start(start_ns)
        await asyncio.gather(*(self._until_over(worker) for worker in self._workers))
        for worker in self._workers:
            if worker.error:
                raise worker.error
        self.processes = await asyncio.to_thread(lambda: [_became(worker) for worker in self._workers])
        mine = Cost(own_cpu_s() - cpu_s, own_max_rss_bytes(), array("q"), None, None, None)
        return together([mine, *(worker.cost for worker in self._workers if worker.cost)])

    def stop(self, why: str) -> None:
        self.stopped_by = why
        for worker in self._workers:
            worker.tell(why)

    def abort(self) -> None:
        self.stop("aborted")

    async def _until_over(self, worker: _Worker) -> None:
        await worker.over.wait()
        if worker.error:
            self.abort()


@asynccontextmanager
async def shards(schedule: Schedule, job: Job, writer: RunWriter, processes: int) -> AsyncIterator[Shards]:
    """Workers that wait for the first instant. Afterwards their records are in the run folder's one file."""
    shares = shard(schedule.requests, processes)
    caps = split_cap(job.max_concurrency, processes)
    told = [
        _Share(replace(schedule, requests=share), replace(job, max_concurrency=cap), writer.path, number)
        for number, (share, cap) in enumerate(zip(shares, caps, strict=True), 1)
    ]
    workers: list[_Worker] = []
    try:
        _start(told, workers)
        await _until_ready(workers)
        yield Shards(workers)
    finally:
        for worker in workers:
            if not worker.over.is_set():
                asyncio.get_running_loop().remove_reader(worker.pipe.fileno())
        await asyncio.to_thread(_put_together, workers, writer)


def _start(told: list[_Share], workers: list[_Worker]) -> None:
    """All of them, then each its share: they boot side by side.

    They inherit that SIGINT and SIGTERM wait: a Ctrl-C at the terminal reaches every process, and is ours to handle.
    """
    resource_tracker.ensure_running()  # its own start would let the signals through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        for share in told:
            workers.append(_Worker(share))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    for worker in workers:
        worker.tell(worker.share)
        asyncio.get_running_loop().add_reader(worker.pipe.fileno(), worker.hear)


async def _until_ready(workers: list[_Worker]) -> None:
    await asyncio.gather(*(worker.ready.wait() for worker in workers))
    for worker in workers:
        if worker.error:
            raise worker.error
        if worker.over.is_set():
            raise LoadgenError(f"process {worker.share.number} of {len(workers)} did not start ({worker.ending})")


def _put_together(workers: list[_Worker], writer: RunWriter) -> None:
    for worker in workers:
        worker.end()
    for worker in workers:
        if worker.start_ns is not None and worker.cost is None and worker.error is None:
            for request in _unrecorded(worker):
                writer.record(_lost(request, worker, worker.start_ns, len(workers)))
    writer.flush()
    merge_parts(writer.path)


def _unrecorded(worker: _Worker) -> list[ScheduledRequest]:
    known = recorded_in_part(worker.share.folder, worker.share.number)
    return [request for request in worker.share.schedule.requests if request.index not in known]


def _lost(request: ScheduledRequest, worker: _Worker, start_ns: int, processes: int) -> RequestRecord:
    return RequestRecord(
        index=request.index,
        workload=request.workload,
        scheduled_ns=start_ns + request.offset_ns,
        error="cancelled",
        detail=f"no record: process {worker.share.number} of {processes} ended early ({worker.ending})",
    )


def _became(worker: _Worker) -> dict[str, Any]:
    cost = worker.cost
    return {
        "requests": len(worker.share.schedule.requests),
        "ended": worker.ending,
        "lost": 0 if cost else len(_unrecorded(worker)),
        "cpu_s": cost.cpu_s if cost else None,
        "max_rss_bytes": cost.max_rss_bytes if cost else None,
    }


def together(costs: Iterable[Cost]) -> Cost:
    """Of several processes: sums, but the longest wait and the lesser stamps. Each one's most memory may have been at
    another moment."""
    every = list(costs)
    late_ns: array[int] = array("q")
    for cost in every:
        late_ns.extend(cost.late_ns)
    spans = [cost.spans for cost in every if cost.spans is not None]
    told = {
        "sent": sum(one["sent"] for one in spans),
        "lost": sum(one["lost"] for one in spans),
        "last_error": next((one["last_error"] for one in spans if one["last_error"]), None),
    }
    return Cost(
        cpu_s=sum(cost.cpu_s for cost in every),
        max_rss_bytes=sum(cost.max_rss_bytes for cost in every),
        late_ns=late_ns,
        waited_s=max((cost.waited_s for cost in every if cost.waited_s is not None), default=None),
        stamped_by=next((by for by in ("reading", "kernel") if any(cost.stamped_by == by for cost in every)), None),
        spans=told if spans else None,
    )


# -- in the worker ---------------------------------------------------------------------------------------------------


def _work(pipe: Connection) -> None:
    """A worker's life: ready, told when to start, reports, and at the end what it cost or what went wrong."""
    try:
        share = pipe.recv()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            pipe.send(loop.run(_send_share(pipe, share)))
    except LoadgenError as err:
        with suppress(OSError):
            pipe.send(err)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # whoever asked for this is gone
        sys.exit(1)


async def _send_share(pipe: Connection, share: _Share) -> Cost:
    writer = RunWriter.part(share.folder, share.number)
    try:
        async with client_of(share.job) as client:
            sender = Sender(share.schedule, share.job, client, writer.record)
            pipe.send(sender.tallies)
            start_ns = pipe.recv()
            asyncio.get_running_loop().add_reader(pipe.fileno(), _obey, pipe, sender)
            try:
                async with asyncio.TaskGroup() as group:
                    teller = group.create_task(_tell(pipe, sender, writer))
                    cost = await sender.run(start_ns)
                    teller.cancel()
            except* LoadgenError as failed:
                raise first(failed) from failed
            with suppress(OSError):
                pipe.send(sender.tallies)
            return cost
    finally:
        writer.close()


async def _tell(pipe: Connection, sender: Sender, writer: RunWriter) -> None:
    """Four times a second: hand the lines to the kernel, say where we are."""
    while True:
        await asyncio.sleep(TICK_S)
        writer.flush()
        with suppress(OSError):
            pipe.send(sender.tallies)


def _obey(pipe: Connection, sender: Sender) -> None:
    try:
        why = pipe.recv()
    except (EOFError, OSError):  # whoever asked for this is gone
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        why = "aborted"
    if why == "aborted":
        sender.abort()
    else:
        sender.stop(why)
