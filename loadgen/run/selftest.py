"""Measure this client's timing error and capacity on this machine: a planned run against a server of known timing."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord, StampedBy
from loadgen.results import metrics, timekeeping
from loadgen.results.summarize import load_run
from loadgen.results.summary import Distribution
from loadgen.run.config import RunConfig
from loadgen.run.interrupts import run_replay
from loadgen.run.progress import NullView, View
from loadgen.run.timing_server import Written
from loadgen.servers.launcher import answering
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult

START_TIMEOUT_S = 20.0
MAX_BUSY = 0.8
"""Share of a core above which a small hitch becomes a queue."""
MIN_REACHED = 0.9
"""Share of the planned streams that the test has to reach to say anything about the plan."""
DEFAULT_RPS, DEFAULT_ITL_S = 4.0, 0.020
BULK_IN_FLIGHT, BULK_REQUESTS = 64, 2000
"""Requests in flight while capacity is measured, and their number."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The load that is planned: requests a second, and the timing of each. By Little's law streams = rps x time in
    flight."""

    rps: float
    ttft_s: float
    itl_s: float
    output_tokens: float
    """Mean per request."""

    @property
    def in_flight_s(self) -> float:
        return self.ttft_s + (self.output_tokens - 1) * self.itl_s

    @property
    def streams(self) -> float:
        return self.rps * self.in_flight_s


_WORDS_TOKENS = 1000
"""Prompt length in a burst of a request whose own words are not counted yet."""


def planned_run(
    output_tokens: float, *, rps: float | None, streams: float | None, itl_s: float | None, ttft_s: float
) -> Plan:
    """Return the plan that any two of rps, streams and itl_s determine; the defaults are 20 ms and 4 requests/s."""
    if rps is not None and streams is not None:
        if itl_s is not None:
            raise LoadgenError("--rps, --streams and --itl are bound by Little's law: give two of them")
        itl_s = (streams / rps - ttft_s) / max(output_tokens - 1, 1)
        if itl_s <= 0:
            raise LoadgenError(
                f"{streams:g} streams at {rps:g} requests/s leave {streams / rps:.3g} s for a request, and its first "
                f"token alone takes {ttft_s:g} s: ask for more --streams, or a lower --rps or --ttft"
            )
    plan = Plan(rps=1.0, ttft_s=ttft_s, itl_s=itl_s or DEFAULT_ITL_S, output_tokens=output_tokens)
    rate = rps or (streams / plan.in_flight_s if streams else DEFAULT_RPS)
    return msgspec.structs.replace(plan, rps=rate)


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """This client's times against the server's stamps, in seconds, over answered requests."""

    ttft_s: Distribution
    """|client's TTFT - (first token written - request arrived)|."""
    itl_s: Distribution
    """|client's gap between two tokens - the server's|."""
    arrival_s: Distribution
    """Request arrived - the client's `sent`: its stamp and the way there."""
    token_s: Distribution
    """Client's stamp of a token - written: the way back, and the wait to be read."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Estimates of the load that one core of this machine carries, from the CPU time that this client used."""

    requests_per_s: float
    """Requests of one token each."""
    bulk_events_per_s: float
    """Events, where many come in one read."""
    events_per_s: float
    """Events, where each comes alone, as in the planned run."""
    streams: float
    """Streams at the plan's time per token."""


class Selftest(msgspec.Struct, frozen=True, kw_only=True):
    safe: bool
    reasons: list[str]
    """Reasons why it is not safe; empty when it is."""
    plan: Plan
    processes: int
    requests: int
    completed: int
    duration_s: float
    streams: int
    """The most that were open at once."""
    events_per_s: float
    """Mean between the first token and the last."""
    lag_s: Distribution
    loop_delay_s: Distribution | None
    stamped_by: StampedBy | None
    compiled: bool | None
    errors: Errors
    server_late_s: Distribution
    """Lateness of the test's own server, written - due. It is in no error."""
    busy: float
    """Share of a core that each process used."""
    waited: float | None
    """Share of the time that it was ready to run while other processes had the cores."""
    capacity: Capacity


def run_selftest(schedule: Schedule, planned: Plan, processes: int, view: View) -> Selftest | None:
    """Run the schedule against a timing server on this machine, then two runs that show the client's capacity.

    Return None when it was interrupted.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadgen-selftest-")))
        url = stack.enter_context(
            answering([sys.executable, "-m", "loadgen.run.timing_server"], "timing server", START_TIMEOUT_S)
        )
        config = RunConfig(out=folder / "planned", base_url=url, energy="none", idle_s=0.0)
        timing = {"ttft_ms": planned.ttft_s * 1000, "itl_ms": planned.itl_s * 1000}
        with view:
            run = _replay(schedule, msgspec.structs.replace(config, extra_body=timing, processes=processes), view)
        if run.info.stopped_by != "completed":
            return None
        streams = written(url)
        bulk = msgspec.structs.replace(config, max_concurrency=BULK_IN_FLIGHT)
        lengths = [request.input_tokens or _WORDS_TOKENS for request in schedule.requests]
        single = _burst(islice(cycle(lengths), BULK_REQUESTS), output_tokens=1)
        requests = _replay(single, msgspec.structs.replace(bulk, out=folder / "requests"), NullView())
        many = _burst([16] * (BULK_REQUESTS // 2), output_tokens=200)
        events = _replay(many, msgspec.structs.replace(bulk, out=folder / "events"), NullView())
    if {requests.info.stopped_by, events.info.stopped_by} != {"completed"}:
        return None
    per_event_s = _cpu_s(run) / max(_tokens(run), 1)
    capacity = Capacity(
        requests_per_s=len(requests.records) / _cpu_s(requests),
        bulk_events_per_s=_tokens(events) / _cpu_s(events),
        events_per_s=1 / per_event_s,
        streams=planned.itl_s / per_event_s,
    )
    return judge_run(run, streams, planned, processes, capacity)


def _burst(input_tokens: Iterable[int], output_tokens: int) -> Schedule:
    """Return requests that are all due at once; the server writes each response whole."""
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=0, workload="chat", input_tokens=length, output_tokens=output_tokens)
        for i, length in enumerate(input_tokens)
    )
    return Schedule(requests, "constant", None, 0)


def _replay(schedule: Schedule, config: RunConfig, view: View) -> RunResult:
    run_replay(schedule, config, view)
    return load_run(config.out, schedule.requests)


def _cpu_s(run: RunResult) -> float:
    return float(run.info.instrument["cpu_s"])


def _tokens(run: RunResult) -> int:
    return sum(record.output_tokens or 0 for record in run.records)


def written(url: str) -> dict[str, Written]:
    """Return the server's own account, by request id."""
    with urlopen(url.removesuffix("/v1") + "/written") as page:
        streams = (msgspec.json.decode(line, type=Written) for line in page)
        return {stream.request_id: stream for stream in streams}


def judge_run(
    run: RunResult, streams: dict[str, Written], planned: Plan, processes: int, capacity: Capacity
) -> Selftest:
    """Judge a finished run of the plan by the server's account of its streams."""
    summary = run.summary
    assert summary is not None
    names = [f"{run.info.run_id}-{record.index}" for record in run.records]
    pairs = [(record, streams[name]) for record, name in zip(run.records, names, strict=True) if record.ok]
    waited_s = summary.instrument.waited_s
    result = Selftest(
        safe=False,
        reasons=[],
        plan=planned,
        processes=processes,
        requests=summary.requests.scheduled,
        completed=summary.requests.completed,
        duration_s=summary.duration_s,
        streams=max_open(run.records),
        events_per_s=events_per_s([stream for _, stream in pairs]),
        lag_s=summary.schedule_lag_s,
        loop_delay_s=summary.instrument.loop_delay_s,
        stamped_by=summary.instrument.stamped_by,
        compiled=summary.instrument.compiled,
        errors=timing_errors(pairs),
        server_late_s=metrics.distribution_s(late_ns for _, stream in pairs for late_ns in stream.late_ns()),
        busy=_cpu_s(run) / summary.duration_s / processes if summary.duration_s else 0.0,
        waited=waited_s / summary.duration_s if waited_s is not None and summary.duration_s else None,
        capacity=capacity,
    )
    reasons = list(_reasons(result, run.info.instrument.get("processes") or []))
    return msgspec.structs.replace(result, safe=not reasons, reasons=reasons)


def _reasons(result: Selftest, processes: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Yield the faults of the client, then the ways in which the test was easier than the plan: it then tells nothing
    about the plan."""
    yield from timekeeping.faults(
        processes,
        result.waited,
        lag=result.lag_s,
        loop_delay=timekeeping.loop_delay_that_tells(result.loop_delay_s, result.stamped_by, result.plan.itl_s),
        ttft_error=result.errors.ttft_s,
        itl_error=result.errors.itl_s,
    )
    if result.busy > MAX_BUSY:
        yield f"this client used {result.busy:.0%} of a core: more than {MAX_BUSY:.0%} leaves no room for a hitch"
    if result.completed < result.requests:
        yield f"{result.requests - result.completed} of {result.requests} requests were not answered"
    planned, late_p99 = result.plan, result.server_late_s.p99
    if result.streams < MIN_REACHED * planned.streams:
        yield (
            f"only {result.streams} of {planned.streams:.0f} streams were ever open at once: a request takes "
            f"{planned.in_flight_s:.3g} s, so ask for a longer --duration"
        )
    if late_p99 is not None and late_p99 > max(planned.itl_s, timekeeping.MAX_LATE_P99_S):
        yield (
            f"the test's own server was late: p99 {late_p99 * 1000:.1f} ms; this machine has no room for a plan "
            "like this and its test at once"
        )


def timing_errors(pairs: Sequence[tuple[RequestRecord, Written]]) -> Errors:
    """Return the errors over answered requests, each with the server's account of it."""
    ttft, arrival = [], []
    itl, token = [np.zeros(0)], [np.zeros(0)]
    for record, stream in pairs:
        assert record.sent_ns is not None
        assert record.ttft_ns is not None
        ttft.append(abs(record.ttft_ns - (stream.written_ns[0] - stream.arrived_ns)))
        arrival.append(stream.arrived_ns - record.sent_ns)
        received, sent = np.array(record.chunk_ns), np.array(stream.written_ns)
        if len(received) == len(sent):
            itl.append(np.abs(np.diff(received) - np.diff(sent)))
            token.append(received - sent)
    return Errors(
        ttft_s=metrics.distribution_s(ttft),
        itl_s=metrics.distribution_s(np.concatenate(itl)),
        arrival_s=metrics.distribution_s(arrival),
        token_s=metrics.distribution_s(np.concatenate(token)),
    )


def max_open(records: Iterable[RequestRecord]) -> int:
    """Return the most requests that were in flight at once."""
    spans = [(record.sent_ns, record.finished_ns) for record in records if record.sent_ns and record.finished_ns]
    starts, ends = (np.sort([span[i] for span in spans]) for i in (0, 1))
    return int(np.max(np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right"), initial=0))


def events_per_s(streams: Sequence[Written]) -> float:
    """Return the mean rate of tokens from the first to the last; 0 where all came at one instant."""
    times = [t_ns for stream in streams for t_ns in (stream.written_ns[0], stream.written_ns[-1])]
    spread_ns = max(times, default=0) - min(times, default=0)
    return sum(len(stream.written_ns) for stream in streams) * NS_PER_S / spread_ns if spread_ns else 0.0
