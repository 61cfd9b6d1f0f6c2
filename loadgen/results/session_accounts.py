"""Accounts of sessions: what each session of a run, and each task within it, took in time, tokens and joules. Pure.

A task is the main thread of a session or one of its sub-agents. Every request of a session is in exactly one task, so
that whole millijoules of tasks add up to those of their session, and those of sessions to the run's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import msgspec

from loadgen.results import metrics
from loadgen.results.energy_summary import cache_energy, sum_joules
from loadgen.results.summary import CacheEnergy
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy, SumErrors
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.workload.schedule import ScheduledRequest

PhaseKind = Literal["model", "tool", "waiting"]
"""model: a request of the session is in flight. tool: none is, and none is due: tools run, or a user thinks. waiting:
a request is due and was not sent yet, because the client was late or limits the requests in flight."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Requests, tokens, time and energy of several requests together."""

    requests: int
    """Requests of the schedule."""
    sent: int
    """Requests that were sent."""
    completed: int
    """Requests whose whole answer came."""
    input_tokens: int | None
    """Prompt tokens by the server's count; None when it counts none."""
    cached_tokens: int | None
    """Part of them that the server took from its prefix cache; None when it does not count them."""
    output_tokens: int | None
    """Output tokens; None when none are known."""
    cached_share: float | None
    """Cached share of the prompts whose cached tokens are counted."""
    start_s: float | None
    """Instant at which the first request was sent, counted from the run's first scheduled instant. None when none was
    sent and ended."""
    duration_s: float | None
    """Time to the last answer: from then to the end of the last answer. It is model_s + tool_s + waiting_s."""
    model_s: float | None
    """Time in which at least one request was in flight."""
    tool_s: float | None
    """Time in which no request was in flight and none was due: the time of tools, or of a user who thinks."""
    waiting_s: float | None
    """Time in which no request was in flight although one was due: the client was late, or held it back."""
    within_limits: bool | None
    """True when every request completed within the limits of its workload; None without limits."""
    joules: float | None = None
    """Energy attributed to the requests; None without a meter, like all below."""
    se_joules: float | None = None
    """Standard error of joules. It is not the sum of those of the requests: what one gains another loses."""
    prefill_joules: float | None = None
    """Part that prefills used."""
    prefill_se_joules: float | None = None
    """Standard error of prefill_joules."""
    decode_joules: float | None = None
    """Part that decode steps used."""
    decode_se_joules: float | None = None
    """Standard error of decode_joules."""
    cache: CacheEnergy | None = None
    """Energy that the prefix cache saved; None where it is not known."""


class TaskAccount(Account, frozen=True, kw_only=True):
    """Account of one task of a session."""

    task: str | None
    """Name of the sub-agent; None for the main thread."""


class SessionAccount(Account, frozen=True, kw_only=True):
    """One line of sessions.jsonl: the account of a session, and of each task within it."""

    session: str
    """Name of the session in the schedule."""
    workload: str
    """Workload or stream of its first request."""
    tasks: list[TaskAccount]
    """Its tasks in order of their first request; most often the main thread alone."""


@dataclass(frozen=True)
class SessionRows:
    """The requests of one session, as rows of the schedule in its order, by task."""

    session: str
    workload: str
    tasks: dict[str | None, list[int]] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        return [row for rows in self.tasks.values() for row in rows]


def session_rows(schedule: Sequence[ScheduledRequest]) -> list[SessionRows]:
    """Return the requests of each session, in order of their first; empty where no session has several requests."""
    sessions: dict[str, SessionRows] = {}
    for row, request in enumerate(schedule):
        if request.session_id is not None:
            session = sessions.setdefault(request.session_id, SessionRows(request.session_id, request.workload))
            session.tasks.setdefault(request.task, []).append(row)
    several = any(len(session.rows) > 1 for session in sessions.values())
    return list(sessions.values()) if several else []


def depth_rows(sessions: Sequence[SessionRows]) -> dict[int, list[int]]:
    """Return rows by the first turn of their bin: 1, 2 (and 3), 4 (to 7), 8 and so on. Turns are counted by task."""
    bins: dict[int, list[int]] = {}
    for session in sessions:
        for rows in session.tasks.values():
            for turn, row in enumerate(rows, 1):
                bins.setdefault(1 << turn.bit_length() - 1, []).append(row)
    return dict(sorted(bins.items()))


def rows_of_sums(sessions: Sequence[SessionRows]) -> dict[str, list[int]]:
    """Return the rows of each sum of joules whose error is wanted, by the names that `session_accounts` looks up."""
    sums = {f"session {i}": session.rows for i, session in enumerate(sessions)}
    for i, session in enumerate(sessions):
        if len(session.tasks) > 1:
            sums |= {f"session {i} task {j}": rows for j, rows in enumerate(session.tasks.values())}
    sums |= {"sessions": [row for session in sessions for row in session.rows]} if sessions else {}
    return sums | {f"turns from {first}": rows for first, rows in depth_rows(sessions).items()}


def session_accounts(result: RunResult, start_ns: int) -> list[SessionAccount]:
    """Return the account of each session, in order of its first request; empty where no session has several requests.

    start_ns: the instant that `start_s` counts from.
    """
    sessions = session_rows(result.schedule)
    if not sessions:
        return []
    records = metrics.with_counted_prompts(result.schedule, result.records)
    shares, errors = result.shares, result.attribution.sums if result.attribution else {}

    def account(rows: Sequence[int], name: str) -> dict[str, Any]:
        part = [records[row] for row in rows]
        made = account_of(part, shares, errors.get(name), result.info.config, start_ns)
        return msgspec.structs.asdict(made)

    accounts = []
    for i, session in enumerate(sessions):
        whole = account(session.rows, f"session {i}")
        tasks = [
            TaskAccount(task=task, **(whole if len(session.tasks) == 1 else account(rows, f"session {i} task {j}")))
            for j, (task, rows) in enumerate(session.tasks.items())
        ]
        accounts.append(SessionAccount(session=session.session, workload=session.workload, tasks=tasks, **whole))
    return accounts


def account_of(
    records: Sequence[RequestRecord],
    shares: Mapping[int, RequestEnergy],
    errors: SumErrors | None,
    config: Mapping[str, Any],
    start_ns: int,
) -> Account:
    """Return the account of these requests. shares: by index; empty without energy. errors: of their sums."""
    phases = phases_of(records)
    lasted_ns = dict.fromkeys(get_args(PhaseKind), 0)
    for phase in phases:
        lasted_ns[phase.kind] += phase.end_ns - phase.start_ns
    prompts = [(r.cached_tokens, r.input_tokens) for r in records if r.cached_tokens is not None and r.input_tokens]
    energy = [share for record in records if (share := shares.get(record.index))]
    return Account(
        requests=len(records),
        sent=sum(record.sent_ns is not None for record in records),
        completed=sum(record.ok for record in records),
        input_tokens=metrics.sum_known(record.input_tokens for record in records),
        cached_tokens=metrics.sum_known(record.cached_tokens for record in records),
        output_tokens=metrics.sum_known(record.output_tokens for record in records),
        cached_share=sum(cached for cached, _ in prompts) / sum(whole for _, whole in prompts) if prompts else None,
        start_s=(phases[0].start_ns - start_ns) / NS_PER_S if phases else None,
        duration_s=(phases[-1].end_ns - phases[0].start_ns) / NS_PER_S if phases else None,
        model_s=lasted_ns["model"] / NS_PER_S if phases else None,
        tool_s=lasted_ns["tool"] / NS_PER_S if phases else None,
        waiting_s=lasted_ns["waiting"] / NS_PER_S if phases else None,
        within_limits=within_limits(records, config),
        joules=sum_joules(share.joules for share in energy),
        prefill_joules=sum_joules(share.prefill_joules for share in energy),
        decode_joules=sum_joules(share.decode_joules for share in energy),
        se_joules=round(errors.attributed_se_joules, 6) if errors else None,
        prefill_se_joules=round(errors.prefill_se_joules, 6) if errors else None,
        decode_se_joules=round(errors.decode_se_joules, 6) if errors else None,
        cache=cache_energy(energy, errors),
    )


def within_limits(records: Sequence[RequestRecord], config: Mapping[str, Any]) -> bool | None:
    """Return whether every request completed within the limits of its workload; None where none of them has limits."""
    limited = [(record, slo) for record in records if (slo := metrics.slo_of(config, record.workload))]
    if not limited:
        return None
    return all(
        record.ok and all(metrics.meets_limit(record, metric, limit) for metric, limit in slo.items())
        for record, slo in limited
    )


class Phase(NamedTuple):
    """A stretch of a session's time."""

    kind: PhaseKind
    start_ns: int
    end_ns: int


def phases_of(records: Iterable[RequestRecord]) -> list[Phase]:
    """Return the phases of a session from its first request to its last answer, one after another without gaps.

    Requests that were not sent, or whose end is not known, are left out.
    """
    flights = sorted(
        (record.sent_ns, record.finished_ns, record.scheduled_ns)
        for record in records
        if record.sent_ns is not None and record.finished_ns is not None
    )
    # The earliest instant at which one of the requests from the i-th on was due.
    due_ns = list(accumulate((scheduled_ns for _, _, scheduled_ns in reversed(flights)), min))[::-1]
    phases: list[Phase] = []
    for (sent_ns, finished_ns, _), pending_ns in zip(flights, due_ns, strict=True):
        end_ns = phases[-1].end_ns if phases else None
        if end_ns is None:
            phases.append(Phase("model", sent_ns, finished_ns))
        elif sent_ns <= end_ns:
            phases[-1] = phases[-1]._replace(end_ns=max(end_ns, finished_ns))
        else:
            begun_ns = min(max(pending_ns, end_ns), sent_ns)
            gaps = (Phase("tool", end_ns, begun_ns), Phase("waiting", begun_ns, sent_ns))
            phases += [gap for gap in gaps if gap.start_ns < gap.end_ns]
            phases.append(Phase("model", sent_ns, finished_ns))
    return phases
