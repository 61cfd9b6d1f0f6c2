"""Progress of a run: what it is doing, the counts so far, the numbers derived from them, and the view of them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import add
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from loadgen.errors import LoadgenError, NotReadyError
from loadgen.results.metrics import meets_limit
from loadgen.stats.log_histogram import LogHistogram
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord

_log = logging.getLogger(__name__)

_TICK_S = 0.25


@dataclass
class Tallies:
    """Counts of a run in progress."""

    sent: int = 0
    in_flight: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    limited: int = 0
    """Requests that ended and have latency limits."""
    good: int = 0
    """Completed requests that met all of their limits."""
    overdue: int = 0
    """Requests in flight that have missed a limit already, when they were last counted."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed requests by kind of error."""
    ttft_s: LogHistogram = field(default_factory=LogHistogram)
    tpot_s: LogHistogram = field(default_factory=LogHistogram)
    e2e_s: LogHistogram = field(default_factory=LogHistogram)

    def start(self) -> None:
        """Count one request that is being sent."""
        self.sent += 1
        self.in_flight += 1

    def add(self, record: RequestRecord, limits_ms: Mapping[str, float]) -> None:
        """Count one request that ended, and whether it met its latency limits, if it has any."""
        self.in_flight -= 1
        self.input_tokens += record.input_tokens or 0
        self.output_tokens += record.output_tokens or 0
        self.limited += bool(limits_ms)
        if record.error is not None:
            self.failed += 1
            self.errors[record.error] += 1
            return
        self.completed += 1
        if limits_ms:
            self.good += all(meets_limit(record, metric, limit) for metric, limit in limits_ms.items())
        latencies = ((self.ttft_s, record.ttft_ns), (self.tpot_s, record.tpot_ns), (self.e2e_s, record.e2e_ns))
        for histogram, ns in latencies:
            if ns is not None:
                histogram.add(ns / NS_PER_S)


def sum_tallies(parts: Sequence[Tallies]) -> Tallies:
    sums = Tallies()
    for name in [column.name for column in fields(Tallies)]:
        setattr(sums, name, reduce(add, (getattr(part, name) for part in parts), getattr(sums, name)))
    return sums


class Waiting(NamedTuple):
    """A request in flight."""

    request: int
    since_ns: int
    has_token: bool
    """True once its first token has arrived. The later ones are not counted before the response ends."""


@dataclass(frozen=True)
class Stage:
    """Step of a run, and how far it is."""

    name: str
    done: float | None = None
    total: float | None = None
    unit: str = ""
    waited_s: float = 0.0
    """Seconds that it has taken."""
    hint: str = ""
    """Action that the user can take."""
    detail: str = ""
    """The last line of a server that is starting."""


@dataclass(frozen=True)
class Percentiles:
    """The median and the 99th percentile so far, in seconds, within 1 %; None while no request has the latency."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Progress:
    """A moment of a run."""

    target: str
    """The model and its server."""
    limits_ms: Mapping[str, float]
    """Latency limits, where all requests have the same."""
    scheduled: int
    sent: int
    in_flight: int
    completed: int
    failed: int
    output_tokens: int
    tokens_per_s: float | None
    watts: float | None
    joules_per_token: float | None
    elapsed_s: float
    total_s: float
    """Time from the first instant to the last; responses may take longer."""
    errors: Mapping[str, int]
    """Failed requests by kind of error."""
    goodput: float | None
    """Share of the requests that ended which met their limits; None without limits."""
    ttft_s: Percentiles
    tpot_s: Percentiles
    e2e_s: Percentiles
    oldest: tuple[tuple[Waiting, float], ...]
    """The requests in flight for the longest time, the oldest first, each with its age in seconds."""


@dataclass(frozen=True)
class Plan:
    """The part of a run's progress that is settled before its first request."""

    target: str
    limits_ms: Mapping[str, float]
    scheduled: int
    total_s: float
    idle_s: float
    """Time before the first instant in which the idle power is measured."""


def progress_at(
    now_ns: int,
    start_ns: int,
    plan: Plan,
    tallies: Tallies,
    oldest: Sequence[Waiting],
    *,
    watts: float | None,
    joules: float | None,
) -> Progress:
    """Return the progress at `now_ns` of a run whose first instant is `start_ns`, which may be yet to come.

    joules: measured since the first instant; None when that, or the present power, is unknown.
    """
    elapsed_s = (now_ns - start_ns) / NS_PER_S
    knows_tokens = elapsed_s > 0 and tallies.completed + tallies.failed > 0
    histograms = (tallies.ttft_s, tallies.tpot_s, tallies.e2e_s)
    ttft_s, tpot_s, e2e_s = (Percentiles(h.quantile(0.5), h.quantile(0.99)) for h in histograms)
    return Progress(
        target=plan.target,
        limits_ms=plan.limits_ms,
        scheduled=plan.scheduled,
        sent=tallies.sent,
        in_flight=tallies.in_flight,
        completed=tallies.completed,
        failed=tallies.failed,
        output_tokens=tallies.output_tokens,
        tokens_per_s=tallies.output_tokens / elapsed_s if knows_tokens else None,
        watts=watts,
        joules_per_token=joules / tallies.output_tokens if joules and tallies.output_tokens else None,
        elapsed_s=max(elapsed_s, 0.0),
        total_s=plan.total_s,
        errors=dict(tallies.errors),
        goodput=tallies.good / tallies.limited if tallies.limited else None,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        oldest=tuple((waiting, (now_ns - waiting.since_ns) / NS_PER_S) for waiting in oldest),
    )


def stage_at(elapsed_s: float, plan: Plan, tallies: Tallies, stopped_by: str) -> Stage:
    """Return what the sender does `elapsed_s` after the first instant; a negative value is the time before it."""
    if stopped_by == "aborted":
        return Stage("aborting")
    if stopped_by != "completed":
        return Stage("draining", hint="Ctrl-C again to abort") if tallies.in_flight else Stage("stopping")
    if elapsed_s < 0 and plan.idle_s > 0:
        return Stage("measuring idle", done=max(plan.idle_s + elapsed_s, 0.0), total=plan.idle_s, unit="s")
    if elapsed_s > plan.total_s and tallies.sent == plan.scheduled:
        return Stage("draining")
    return Stage("sending")


class View(Protocol):
    """A context in which `update` may be called at any rate; a view limits what it draws, and shows each new
    stage at once. A line that it is given by `say` stays.

    progress: None before and after the time in which requests are sent.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def update(self, stage: Stage, progress: Progress | None = None) -> None: ...

    def say(self, line: str) -> None: ...


class NullView:
    """A view that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        pass

    def say(self, line: str) -> None:
        _log.info("%s", line)


def announcer(view: View) -> Callable[[str], None]:
    """Return a function that shows in `view` the name of what begins now."""
    return lambda name: view.update(Stage(name))


def server_start(view: View, name: str) -> Callable[[float, str], None]:
    """Return a function that shows how long the server `name` has been starting, and the last line of its log."""

    def show(waited_s: float, text: str) -> None:
        stage = f"waiting for {name} to load the model" if text else f"starting {name}"
        view.update(Stage(stage, waited_s=waited_s, detail=text.removeprefix(f"[{name}] ")))

    return show


class StageLog(NullView):
    """Logs each stage as it begins, and passes everything on to another view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._name = ""

    def update(self, stage: Stage, progress: Progress | None = None) -> None:
        if stage.name != self._name:
            self._name = stage.name
            _log.info("stage: %(stage)s", {"stage": stage.name})
        self._view.update(stage, progress)

    def say(self, line: str) -> None:
        self._view.say(line)


WARMING_UP = "warming up"
"""Stage of a run in which its warm-up requests are sent."""


class StageTimer:
    """Shows in a view what a run is doing while no request is sent yet, and how long that has taken."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._stage: Stage | None = None
        self._start_s = 0.0

    def begin(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Take note of the next stage, or of how far the present one is."""
        if self._stage is None or self._stage.name != name:
            self._start_s = monotonic()
        self._stage = Stage(name, done, total)
        if not done:
            self.show()

    def wait(self, line: str) -> None:
        """Show what the present stage waits for, until it ends."""
        if self._stage is not None:
            self._stage = replace(self._stage, hint=line)
            self.show()

    def show(self) -> None:
        if self._stage is not None:
            self._view.update(replace(self._stage, waited_s=monotonic() - self._start_s))

    @asynccontextmanager
    async def within(self, limit_s: float | None) -> AsyncIterator[None]:
        """Raise NotReadyError with the present stage when the block has taken `limit_s`; None is no limit."""
        timeout = asyncio.timeout(limit_s)
        try:
            async with timeout:
                yield
        except (TimeoutError, LoadgenError):  # a step that is cancelled may say that it has failed
            if not timeout.expired():
                raise
            name = self._stage.name if self._stage else "preparing"
            hint = "; --warmup 0 sends no such requests" if name == WARMING_UP else ""
            raise NotReadyError(f"no request was sent within {limit_s:.1f} s: still {name}{hint}") from None


@asynccontextmanager
async def ticking(*updates: Callable[[], None]) -> AsyncIterator[None]:
    """Call each of `updates` four times a second while the block runs. A LoadgenError of one ends the block."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for update in updates:
                update()

    try:
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(tick())
            yield
            ticker.cancel()
    except BaseExceptionGroup as raised:  # not except*: that of Debian 12 (3.11.2) makes a group of what it raises
        errors, bugs = raised.split(LoadgenError)
        if errors is None or bugs is not None:
            raise
        raise _first_error(errors) from None


def _first_error(errors: BaseExceptionGroup[LoadgenError]) -> LoadgenError:
    error = errors.exceptions[0]
    return _first_error(error) if isinstance(error, BaseExceptionGroup) else error
