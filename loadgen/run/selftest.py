"""What this client is worth on this machine: the planned run, against a server whose timing is known."""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord, StampedBy
from loadgen.results import metrics, timekeeping
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import load_run
from loadgen.results.summary import Distribution
from loadgen.run.config import RunConfig
from loadgen.run.progress import NullView, View
from loadgen.run.replay import replay
from loadgen.run.timing_server import Written
from loadgen.servers.launcher import answering
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import Schedule, ScheduledRequest
from loadgen.workload.trace import Trace, TraceRequest

START_TIMEOUT_S = 20.0
MAX_BUSY = 0.8
"""Share of a core beyond which a small hitch becomes a queue."""
MIN_REACHED = 0.9
"""Share of the planned streams that the test has to reach to say anything about the plan."""
DEFAULT_RPS, DEFAULT_ITL_S = 4.0, 0.020
INPUT_TOKENS, OUTPUT_TOKENS = 1000, 200
"""Of every request, when no trace says otherwise."""
BULK, BULK_REQUESTS = 64, 2000
"""Requests in flight while capacity is measured, and how many in all."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a second, each streaming how fast. By Little's law streams = rps x time in flight."""

    rps: float
    ttft_s: float
    itl_s: float
    output_tokens: float
    """Mean of a request."""

    @property
    def in_flight_s(self) -> float:
        return self.ttft_s + (self.output_tokens - 1) * self.itl_s

    @property
    def streams(self) -> float:
        return self.rps * self.in_flight_s


def planned_run(
    output_tokens: float, *, rps: float | None, streams: float | None, itl_s: float | None, ttft_s: float
) -> Plan:
    """Any two of rps, streams and itl_s give the third; what is still missing is 20 ms, and 4 requests/s."""
    if rps is not None and streams is not None:
        if itl_s is not None:
            raise LoadgenError("--rps, --streams and --itl are bound by Little's law: say two of them")
        itl_s = (streams / rps - ttft_s) / max(output_tokens - 1, 1)
        if itl_s <= 0:
            raise LoadgenError(
                f"{streams:g} streams at {rps:g} requests/s leave {streams / rps:.3g} s for a request, and its first "
                f"token alone takes {ttft_s:g} s: ask for more --streams, or a lower --rps or --ttft"
            )
    found = Plan(rps=1.0, ttft_s=ttft_s, itl_s=itl_s or DEFAULT_ITL_S, output_tokens=output_tokens)
    rate = rps or (streams / found.in_flight_s if streams else DEFAULT_RPS)
    return msgspec.structs.replace(found, rps=rate)


def even_trace() -> Trace:
    """Requests that are all alike, for a test without a trace."""
    alike = TraceRequest(arrival_s=0.0, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, workload="chat")
    return Trace("even", (alike,), "")


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """This client against the server's stamps, in seconds, over answered requests."""

    ttft_s: Distribution
    """|client's TTFT - (first token written - request arrived)|."""
    itl_s: Distribution
    """|client's gap between two tokens - the server's|."""
    arrival_s: Distribution
    """Request arrived - the client's `sent`: its stamp and the way there."""
    token_s: Distribution
    """Client's stamp of a token - written: the way back, and the wait to be read."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What one core of this machine can do for this client, by the CPU time it used: estimates."""

    requests_per_s: float
    """Of one token each."""
    bulk_events_per_s: float
    """When many events come in one read."""
    events_per_s: float
    """When each comes alone, as in the planned run."""
    streams: float
    """At the plan's time per token."""


class Selftest(msgspec.Struct, frozen=True, kw_only=True):
    safe: bool
    reasons: list[str]
    """Why not; empty when it is."""
    plan: Plan
    processes: int
    requests: int
    completed: int
    duration_s: float
    streams: int
    """Most that were open at once."""
    events_per_s: float
    """Between the first token and the last."""
    lag_s: Distribution
    loop_delay_s: Distribution | None
    stamped_by: StampedBy | None
    compiled: bool | None
    errors: Errors
    server_late_s: Distribution
    """Of the test's own server: written - due. It is in no error."""
    busy: float
    """Share of a core that each process used."""
    waited: float | None
    """Share of the time in which it was ready to run and other processes had the cores."""
    capacity: Capacity


def run_selftest(schedule: Schedule, planned: Plan, processes: int, view: View) -> Selftest | None:
    """Runs the schedule against a timing-true server on this machine, then what shows the client's capacity.

    None when it was interrupted.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loadgen-selftest-")))
        url = stack.enter_context(
            answering([sys.executable, "-m", "loadgen.run.timing_server"], "truth", START_TIMEOUT_S)
        )
        timing = {"ttft_ms": planned.ttft_s * 1000, "itl_ms": planned.itl_s * 1000}
        run = _replayed(schedule, _options(folder / "planned", url, timing, processes), view)
        if not _is_whole(run):
            return None
        truth = written(url)
        lengths = [request.input_tokens for request in schedule.requests]
        requests = _bulk(folder / "requests", url, islice(cycle(lengths), BULK_REQUESTS), 1)
        events = _bulk(folder / "events", url, [16] * (BULK_REQUESTS // 2), 200)
    if not (_is_whole(requests) and _is_whole(events)):
        return None
    per_event_s = _cpu_s(run) / max(_tokens(run), 1)
    capacity = Capacity(
        requests_per_s=len(requests.records) / _cpu_s(requests),
        bulk_events_per_s=_tokens(events) / _cpu_s(events),
        events_per_s=1 / per_event_s,
        streams=planned.itl_s / per_event_s,
    )
    return judged(run, truth, planned, processes, capacity)


def written(url: str) -> dict[str, Written]:
    """The server's own account, by request id."""
    with urlopen(url.removesuffix("/v1") + "/written") as page:
        streams = (msgspec.json.decode(line, type=Written) for line in page)
        return {stream.request_id: stream for stream in streams}


def judged(run: RunResult, truth: dict[str, Written], planned: Plan, processes: int, capacity: Capacity) -> Selftest:
    """What a finished run of the plan says of the client, by the server's account."""
    summary = run.summary
    assert summary is not None
    names = [f"{run.info.run_id}-{record.index}" for record in run.records]
    pairs = [(record, truth[name]) for record, name in zip(run.records, names, strict=True) if record.ok]
    waited_s = summary.instrument.waited_s
    found = Selftest(
        safe=False,
        reasons=[],
        plan=planned,
        processes=processes,
        requests=summary.requests.scheduled,
        completed=summary.requests.completed,
        duration_s=summary.duration_s,
        streams=most_open(run.records),
        events_per_s=events_per_s([true for _, true in pairs]),
        lag_s=summary.schedule_lag_s,
        loop_delay_s=summary.instrument.loop_delay_s,
        stamped_by=summary.instrument.stamped_by,
        compiled=summary.instrument.compiled,
        errors=errors(pairs),
        server_late_s=metrics.distribution_s(late_ns for _, true in pairs for late_ns in _late_ns(true)),
        busy=_cpu_s(run) / summary.duration_s / processes if summary.duration_s else 0.0,
        waited=waited_s / summary.duration_s if waited_s is not None and summary.duration_s else None,
        capacity=capacity,
    )
    reasons = [*_faults(found, run.info.instrument.get("processes") or []), *_not_tested(found)]
    return msgspec.structs.replace(found, safe=not reasons, reasons=reasons)


def _faults(found: Selftest, processes: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield from timekeeping.faults(
        processes,
        found.waited,
        lag=found.lag_s,
        loop_delay=timekeeping.loop_delay_that_tells(found.loop_delay_s, found.stamped_by, found.plan.itl_s),
        ttft_error=found.errors.ttft_s,
        itl_error=found.errors.itl_s,
    )
    if found.busy > MAX_BUSY:
        yield f"this client used {found.busy:.0%} of a core: more than {MAX_BUSY:.0%} leaves no room for a hitch"
    if found.completed < found.requests:
        yield f"{found.requests - found.completed} of {found.requests} requests were not answered"


def _not_tested(found: Selftest) -> Iterable[str]:
    """Where the test was easier than the plan, so that it says nothing of it."""
    planned, late_p99 = found.plan, found.server_late_s.p99
    if found.streams < MIN_REACHED * planned.streams:
        yield (
            f"only {found.streams} of {planned.streams:.0f} streams were ever open at once: a request takes "
            f"{planned.in_flight_s:.3g} s, so ask for a longer --duration"
        )
    if late_p99 is not None and late_p99 > max(planned.itl_s, timekeeping.MAX_LATE_P99_S):
        yield (
            f"the test's own server was late: p99 {late_p99 * 1000:.1f} ms; this machine has no room for a plan "
            "like this and its test at once"
        )


def errors(pairs: Sequence[tuple[RequestRecord, Written]]) -> Errors:
    """Of requests that were answered, each with the server's account of it."""
    ttft, arrival = [], []
    itl, token = [np.zeros(0)], [np.zeros(0)]
    for record, true in pairs:
        assert record.sent_ns is not None
        assert record.ttft_ns is not None
        ttft.append(abs(record.ttft_ns - (true.written_ns[0] - true.arrived_ns)))
        arrival.append(true.arrived_ns - record.sent_ns)
        seen, said = np.array(record.chunk_ns), np.array(true.written_ns)
        if len(seen) == len(said):
            itl.append(np.abs(np.diff(seen) - np.diff(said)))
            token.append(seen - said)
    return Errors(
        ttft_s=metrics.distribution_s(ttft),
        itl_s=metrics.distribution_s(np.concatenate(itl)),
        arrival_s=metrics.distribution_s(arrival),
        token_s=metrics.distribution_s(np.concatenate(token)),
    )


def most_open(records: Iterable[RequestRecord]) -> int:
    """Requests that were in flight at once, at most."""
    spans = [(one.sent_ns, one.finished_ns) for one in records if one.sent_ns and one.finished_ns]
    starts, ends = (np.sort([span[i] for span in spans]) for i in (0, 1))
    return int(np.max(np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right"), initial=0))


def events_per_s(truth: Sequence[Written]) -> float:
    times = [t for one in truth for t in (one.written_ns[0], one.written_ns[-1])]
    spread_ns = max(times, default=0) - min(times, default=0)
    return sum(len(one.written_ns) for one in truth) * NS_PER_S / spread_ns if spread_ns else 0.0


def _late_ns(one: Written) -> Iterable[int]:
    return (at - one.due_ns - i * one.itl_ns for i, at in enumerate(one.written_ns))


def _bulk(folder: Path, url: str, input_tokens: Iterable[int], output_tokens: int) -> RunResult:
    """As fast as it goes, in one process, whole answers at once."""
    requests = tuple(
        ScheduledRequest(index=i, offset_ns=0, workload="chat", input_tokens=length, output_tokens=output_tokens)
        for i, length in enumerate(input_tokens)
    )
    options = msgspec.structs.replace(_options(folder, url, {}, 1), max_concurrency=BULK)
    return _replayed(Schedule(requests, "constant", None, 0), options, NullView())


def _replayed(schedule: Schedule, options: RunConfig, view: View) -> RunResult:
    replay(schedule, options, view)
    return load_run(options.out, schedule.requests)


def _options(folder: Path, url: str, timing: dict[str, Any], processes: int) -> RunConfig:
    return RunConfig(out=folder, base_url=url, extra_body=timing, energy="none", idle_s=0.0, processes=processes)


def _is_whole(run: RunResult) -> bool:
    return run.info.stopped_by == "completed"


def _cpu_s(run: RunResult) -> float:
    return float(run.info.instrument["cpu_s"])


def _tokens(run: RunResult) -> int:
    return sum(record.output_tokens or 0 for record in run.records)
