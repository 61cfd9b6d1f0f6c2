"""What every view says about a run, said once."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import get_args

from loadgen.errors import LoadgenError
from loadgen.record import ErrorKind, RequestRecord
from loadgen.report.format import clean, number, seconds, with_unit
from loadgen.results.run_folder import RunInfo, RunResult
from loadgen.results.summary import ArrivalCheck, Distribution, Goodput, Summary, WorkloadSummary
from loadgen.results.timekeeping import MAX_LATE_P99_S

LATENCIES = (
    ("ttft_s", "TTFT", "Time to first token"),
    ("tpot_s", "TPOT", "Time per output token"),
    ("itl_s", "ITL", "Gap between chunks"),
    ("e2e_s", "E2E", "Sent to finished"),
    ("response_s", "Response", "Scheduled to finished"),
)
"""Field of Summary, abbreviation, plain words."""

ERROR_MEANING: dict[str, str] = {
    "connect": "refused, or dead before an answer began",
    "timeout": "no complete answer within --timeout",
    "http": "a status of 400 or more",
    "protocol": "an answer that is not the API",
    "truncated": "the answer began and did not end",
    "server": "an error event inside the stream",
    "cancelled": "in flight when the run was aborted",
    "not_sent": "the run stopped before its turn, or its session broke off",
}
assert set(ERROR_MEANING) == set(get_args(ErrorKind))


def summary_of(result: RunResult) -> Summary:
    if result.summary is None:
        raise LoadgenError(f"run {result.info.run_id} has no summary: it was read but not analysed")
    return result.summary


def is_simulated(info: RunInfo) -> bool:
    return bool(info.server.get("simulated"))


def title(info: RunInfo, summary: Summary) -> str:
    """Like "chat.jsonl at 4 requests/s"."""
    trace = info.config.get("trace")
    name = clean(PurePath(str(trace)).name) if trace else "run"
    rate = summary.rate.requested_rps
    return name if rate is None else f"{name} at {rate:.4g} requests/s"


def server_line(info: RunInfo) -> str:
    """Model, engine and address, as far as they are known."""
    server = info.server
    parts = [clean(server[key]) for key in ("model", "engine", "base_url") if server.get(key)]
    return " · ".join(parts) or "unknown server"


def remarks(summary: Summary) -> list[str]:
    """Everything that a reader must know before believing the numbers. Empty when nothing is wrong."""
    ended = {
        "interrupted": "the run was interrupted: later requests were not sent",
        "aborted": "the run was aborted: requests in flight were cut off",
        None: "the run did not end by itself",
    }
    stopped = [ended[summary.stopped_by]] if summary.stopped_by in ended else []
    if summary.requests.scheduled and not summary.requests.completed:
        stopped.append("no request completed: nothing is known of latency, or of energy per request")
    return stopped + [clean(verdict) for verdict in summary.instrument.verdicts]


def timekeeping(summary: Summary) -> str:
    """Whether the client kept time, and by what measure."""
    told = {True: "kept time", False: "SPOILED the times", None: "not known to have kept time"}
    late, by = summary.instrument.loop_delay_s, summary.instrument.stamped_by
    stamped = {"kernel": "; tokens stamped by the kernel", "reading": "; tokens stamped as read", None: ""}[by]
    measured = "" if late is None else f"; event loop late p50 {seconds(late.p50)}, p99 {seconds(late.p99)}"
    waited = summary.instrument.waited_s
    without = "" if waited is None else f"; waited {seconds(waited)} for a core"
    return f"{told[summary.instrument.kept_time]} (p99 within {seconds(MAX_LATE_P99_S)}){stamped}{measured}{without}"


def energy_reasons(result: RunResult) -> list[str]:
    """Why the energy is missing or not valid; never empty when it is."""
    energy = summary_of(result).energy
    if energy.valid:
        return []
    reasons = dict.fromkeys([*energy.reasons, *result.info.energy_reasons])
    return [clean(reason) for reason in reasons] or ["no reason was recorded"]


def arrival_lines(summary: Summary) -> list[tuple[str, str]]:
    """("" or a stream, how its requests came against how they were to come). Empty where nobody asked."""
    streams = [(name, part.arrivals) for name, part in sorted(summary.by_workload.items()) if part.arrivals]
    found = streams or ([("", summary.arrivals)] if summary.arrivals else [])
    return [(clean(name), _arrivals(check)) for name, check in found]


def _arrivals(check: ArrivalCheck) -> str:
    sent = check.sent
    told = [f"{with_unit(sent.rate, '/s')} of {with_unit(check.asked_rps, '/s')} asked"]
    if sent.dispersion is not None:
        told.append(f"dispersion {number(sent.dispersion)}")
    if sent.gap_cv is not None:
        told.append(f"CV {number(sent.gap_cv)}")
    if sent.ks is not None and sent.ks_critical is not None:
        told.append(f"KS {sent.ks:.3f} ({'below' if sent.ks <= sent.ks_critical else 'above'} {sent.ks_critical:.3f})")
    law = {"trace": "the trace's own"}.get(check.process or "", check.process)
    return f"{clean(check.verdict)}: {law} {check.of}, {', '.join(told)}"


def within(limits: Goodput) -> str:
    """The limits in words."""
    told = ", ".join(f"{clean(name)} ≤ {limit:g} ms" for name, limit in limits.slo_ms.items())
    return told or "their own stream's limits"


def stream_goodputs(summary: Summary) -> list[tuple[str, Goodput]]:
    """Per workload, where they differ in their limits."""
    return [(clean(name), part.goodput) for name, part in sorted(summary.by_workload.items())
            if part.goodput and summary.goodput and not summary.goodput.slo_ms]  # fmt: skip


def parts_of(summary: Summary) -> list[tuple[str, Summary | WorkloadSummary]]:
    """("all", the run), then each workload by name when there are several."""
    several = len(summary.by_workload) > 1
    return [("all", summary), *(sorted(summary.by_workload.items()) if several else ())]


def distribution(summary: Summary | WorkloadSummary, field: str) -> Distribution:
    found = getattr(summary, field)
    assert isinstance(found, Distribution)
    return found


def failures(records: Iterable[RequestRecord]) -> list[tuple[str, int, RequestRecord]]:
    """(kind, how many, an example, one with a detail if there is one), the most frequent first."""
    kinds: dict[str, list[RequestRecord]] = {}
    for record in records:
        if record.error is not None:
            kinds.setdefault(record.error, []).append(record)
    rows = [(kind, len(found), next((r for r in found if r.detail), found[0])) for kind, found in kinds.items()]
    return sorted(rows, key=lambda row: (-row[1], row[0]))
