"""What sends a schedule, in whichever process: requests out, records in, and what that cost."""

import asyncio
import gc
import resource
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen import clock
from loadgen.client.client import Client, Exchange, Post
from loadgen.client.openai_api import PATHS, Endpoint
from loadgen.client.request_body import body_maker
from loadgen.client.server_probe import ServerInfo
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord, StampedBy
from loadgen.run.runner import InFlight, Landed, Runner, Tallies
from loadgen.telemetry.otlp_export import SpanSender
from loadgen.units import NS_PER_S
from loadgen.workload.prompts import PromptKind, Vocabulary
from loadgen.workload.schedule import Schedule, ScheduledRequest

LOOP_PERIOD_S = 0.02


@dataclass(frozen=True)
class Job:
    """All that a process needs to know to send requests. It holds the API key: handed over, never written."""

    run_id: str
    base_url: str
    api_key: str | None
    headers: dict[str, str]
    timeout_s: float | None
    endpoint: Endpoint
    extra_body: dict[str, Any]
    max_concurrency: int | None
    otlp: str | None
    server: ServerInfo
    vocabulary: dict[PromptKind, Vocabulary]


@dataclass(frozen=True)
class Cost:
    """What sending took, and how late the event loop woke up: every 20 ms one value, in nanoseconds."""

    cpu_s: float
    max_rss_bytes: int
    late_ns: "array[int]"
    waited_s: float | None
    """In which the loop was ready to run and others had the cores; None where the system does not say."""
    stamped_by: StampedBy | None
    """What says when tokens came; None when none did."""
    spans: dict[str, Any] | None
    """What became of the spans; None when nobody is told."""


def client_of(job: Job) -> Client:
    return Client(job.base_url, headers=job.headers, api_key=job.api_key, timeout_s=job.timeout_s)


def bodies_of(job: Job, seed: int) -> Callable[[ScheduledRequest], bytes]:
    server = job.server
    return body_maker(seed, job.vocabulary, job.endpoint, server.model, server.dialect, job.extra_body)


@dataclass(frozen=True, slots=True)
class _InFlight:
    client: Client
    exchange: Exchange

    def cancel(self) -> None:
        self.client.cancel(self.exchange)


class Sender:
    """Sends a schedule from this process."""

    def __init__(
        self, schedule: Schedule, job: Job, client: Client, on_record: Callable[[RequestRecord], None]
    ) -> None:
        path = PATHS[job.endpoint]
        self._spans = spans = SpanSender(job.otlp, job.run_id, job.server.model) if job.otlp else None

        def launch(request: ScheduledRequest, body: bytes, scheduled_ns: int, landed: Landed) -> InFlight:
            index = request.index
            post = Post(path, body, index, request.workload, scheduled_ns, f"{job.run_id}-{index}")
            return _InFlight(client, client.send(post, landed))

        def record(one: RequestRecord) -> None:
            on_record(one)
            if spans:
                spans.add(one)

        self._client = client
        self._runner = Runner(schedule, bodies_of(job, schedule.seed), launch, record, job.max_concurrency)
        self.stop = self._runner.stop
        self.abort = self._runner.abort

    processes: list[dict[str, Any]] | None = None
    """This one alone."""

    @property
    def tallies(self) -> Tallies:
        return self._runner.tallies

    @property
    def stopped_by(self) -> str:
        return self._runner.stopped_by

    async def run(self, start_ns: int) -> Cost:
        """Until every request has its record; offsets count from `start_ns`. LoadgenError when one cannot be kept."""
        late_ns: array[int] = array("q")
        cpu_s, waited_s = own_cpu_s(), own_wait_s()
        with _no_collections(), self._spans or nullcontext():
            watcher = asyncio.create_task(_watch_loop(late_ns))
            try:
                await self._runner.run(start_ns)
            except* LoadgenError as failed:
                raise first(failed) from failed
            finally:
                watcher.cancel()
        return Cost(
            cpu_s=own_cpu_s() - cpu_s,
            max_rss_bytes=own_max_rss_bytes(),
            late_ns=late_ns,
            waited_s=None if waited_s is None else (own_wait_s() or 0.0) - waited_s,
            stamped_by=self._client.stamped_by,
            spans=self._spans.report() if self._spans else None,
        )


async def _watch_loop(late_ns: "array[int]") -> None:
    """How late the loop wakes up, every 20 ms: what it keeps waiting, it also stamps late. Timers round up to 1 ms."""
    while True:
        due_ns = clock.monotonic_ns() + round(LOOP_PERIOD_S * NS_PER_S)
        await asyncio.sleep(LOOP_PERIOD_S)
        late_ns.append(max(0, clock.monotonic_ns() - due_ns))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage collection pauses of the whole heap land in timestamps; records form no cycles, so nothing piles up."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def own_wait_s() -> float | None:
    """Time that the main thread was ready to run without a core; Linux counts it."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / NS_PER_S
    except (OSError, IndexError, ValueError):
        return None


def own_max_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def first(group: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner
