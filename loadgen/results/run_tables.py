"""The tables of a run: its requests, its energy readings, and the readings of the engine's counters. Pure.

Second 0 is the first scheduled instant, as in the summary; the readings before it have negative instants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.results import request_table
from loadgen.results.summarize import span
from loadgen.results.table import Column, Table
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySample
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import CacheEnergy

_TIME = (
    Column("t_s", "float64", "s", "Instant of the reading; second 0 is the first scheduled instant of the run."),
    Column("unix_s", "float64", "s", "Unix time of the reading."),
)

REQUEST_COLUMNS = tuple(Column(*column[:4]) for column in request_table.COLUMNS)

ENERGY_COLUMNS = (
    *_TIME,
    Column("domain", "string", None, 'Counter that was read, such as "gpu:0".'),
    Column("joules", "float64", "J", "Energy of the domain since the meter was opened, before the run."),
    Column("watts", "float64", "W", "Mean power since the domain's previous reading; null at its first and in a gap."),
    Column("slack_s", "float64", "s", "Uncertainty of the instant: it is right within this time."),
    Column("gap", "bool", None, "True where the energy since the previous reading is not known."),
    Column("capped_s", "float64", "s", "Time in which the power limit held the clocks down; null where not counted."),
    Column("sm_mhz", "float64", "MHz", "Clock of the GPU's multiprocessors; null where not known."),
)
"""Columns of a run's energy readings: one row for each update of each counter."""

ENGINE_COLUMNS = (
    *_TIME,
    Column("running", "float64", "requests", "Requests that the engine runs; like all of these, of all its clients."),
    Column("waiting", "float64", "requests", "Requests in its queue."),
    Column("kv_cache_usage", "float64", None, "Used share of the KV cache, from 0 to 1."),
    Column("preemptions", "float64", None, "Preemptions since the engine started."),
    Column("iterations", "float64", None, "Steps of the engine since it started."),
    Column("prompt_tokens", "float64", "tokens", "Tokens of prompts since it started, cached ones included."),
    Column("cached_tokens", "float64", "tokens", "Those of them that came from a prefix cache."),
    Column("computed_tokens", "float64", "tokens", "Those that were computed, where the engine counts them itself."),
    Column("generation_tokens", "float64", "tokens", "Output tokens since it started."),
    Column("drafts", "float64", None, "Drafts of speculative decoding that it verified since it started."),
    Column("draft_tokens", "float64", "tokens", "Tokens in these drafts."),
    Column("accepted_tokens", "float64", "tokens", "Those of them that were accepted."),
)
"""Columns of the engine's own counters and gauges; null where its page does not have one."""

SESSION_COLUMNS = (
    Column("session", "string", None, "Name of the session in the schedule."),
    Column("workload", "string", None, "Workload or stream of its first request."),
    Column("tasks", "int64", None, "Its main thread and its sub-agents."),
    Column("requests", "int64", None, "Requests of the schedule."),
    Column("completed", "int64", None, "Requests whose whole answer came."),
    Column("within_limits", "bool", None, "True when every request met the limits of its workload; null without any."),
    Column("input_tokens", "int64", "tokens", "Prompt tokens that the server counted."),
    Column("cached_tokens", "int64", "tokens", "Those of them that the server took from its prefix cache."),
    Column("output_tokens", "int64", "tokens", "Output tokens."),
    Column("start_s", "float64", "s", "Instant at which the first request was sent."),
    Column("duration_s", "float64", "s", "Time from then to the end of the last answer."),
    Column("model_s", "float64", "s", "Part of it in which a request was in flight."),
    Column("tool_s", "float64", "s", "Part in which none was, and none was due: tools ran, or a user thought."),
    Column("waiting_s", "float64", "s", "Part in which none was although one was due: the client was late."),
    Column("joules", "float64", "J", "Energy attributed to its requests; null, like all joules, without a meter."),
    Column("se_joules", "float64", "J", "Standard error of joules."),
    Column("prefill_joules", "float64", "J", "Energy of its prefills."),
    Column("decode_joules", "float64", "J", "Energy of its decode steps."),
    Column("saved_joules", "float64", "J", "Energy that its cached tokens would have cost, by the fitted law."),
    Column("recomputed_joules", "float64", "J", "Part of joules for tokens that had been computed before."),
)
"""Columns of a run's sessions."""


def requests_table(result: RunResult) -> Table:
    """Return one row for each request of the schedule, whatever its outcome."""
    return Table(REQUEST_COLUMNS, request_table.request_table(result))


def sessions_table(result: RunResult) -> Table:
    """Return one row for each session, in order of their first request; none where no session has several requests."""
    plain = [msgspec.structs.asdict(account) for account in result.sessions]
    rows = [row | {"tasks": len(row["tasks"])} | _saved(row["cache"]) for row in plain]
    return Table(SESSION_COLUMNS, {column.name: [row[column.name] for row in rows] for column in SESSION_COLUMNS})


def _saved(cache: CacheEnergy | None) -> dict[str, float | None]:
    return {name: getattr(cache, name, None) for name in ("saved_joules", "recomputed_joules")}


def energy_table(result: RunResult) -> Table:
    """Return one row for each energy reading, in the order in which they were recorded; none without a meter."""
    rows: list[dict[str, Any]] = []
    latest: dict[str, EnergySample] = {}
    for sample in result.energy:
        before = latest.get(sample.domain)
        latest[sample.domain] = sample
        reading = {"domain": sample.domain, "joules": sample.joules, "watts": _mean_watts(before, sample)}
        capped_s = None if sample.capped_ns is None else sample.capped_ns / NS_PER_S
        clocks = {"capped_s": capped_s, "sm_mhz": sample.sm_mhz}
        rows.append(reading | {"slack_s": sample.slack_ns / NS_PER_S, "gap": sample.gap} | clocks)
    return _timed(ENERGY_COLUMNS, result, [sample.t_ns for sample in result.energy], rows)


def engine_table(result: RunResult) -> Table:
    """Return one row for each reading of the engine's counters, about two a second; none where it shows none."""
    return _timed(ENGINE_COLUMNS, result, [int(sample["t_ns"]) for sample in result.engine], result.engine)


def _mean_watts(before: EnergySample | None, sample: EnergySample) -> float | None:
    if before is None or sample.gap or sample.t_ns <= before.t_ns:
        return None
    return (sample.joules - before.joules) * NS_PER_S / (sample.t_ns - before.t_ns)


def _timed(
    columns: Sequence[Column], result: RunResult, instants_ns: Sequence[int], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """Return a table of readings at these instants; a field that a reading lacks is unknown."""
    start_ns, _ = span(result)
    wall_offset_ns = result.info.anchor.offset_ns
    values: dict[str, list[Any]] = {column.name: [row.get(column.name) for row in rows] for column in columns}
    values["t_s"] = [(t_ns - start_ns) / NS_PER_S for t_ns in instants_ns]
    values["unix_s"] = [(t_ns + wall_offset_ns) / NS_PER_S for t_ns in instants_ns]
    return Table(columns, values)
