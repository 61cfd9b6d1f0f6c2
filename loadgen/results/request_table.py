"""The requests of a run as a table with documented columns: seconds, tokens and joules. Pure.

This is what `loadgen export --as csv` writes and what a program reads as a data frame. A value is None when it is
unknown. Latencies are those of completed requests only, as in the summary, so that a percentile of a column is the
summary's; the instants of failed requests are in the table too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from loadgen.results.metrics import came_in_one_piece, prompts_are_counted
from loadgen.results.summarize import span
from loadgen.units import NS_PER_S
from loadgen.workload.tags import tags_of

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.workload.schedule import ScheduledRequest

Type = Literal["int64", "float64", "string", "bool"]
"""Type of a column's values, by the name that Arrow and pandas share."""


class RequestRow(NamedTuple):
    """All that is known of one request."""

    request: ScheduledRequest
    record: RequestRecord
    energy: RequestEnergy | None
    """Attributed energy; None without a meter, and where a killed client left open what it sent of the request."""
    model: str | None
    """Model of a request that names none."""
    start_ns: int
    """Instant of second 0: the first scheduled instant, as in the summary."""
    wall_offset_ns: int
    """Unix time less the monotonic clock."""
    prompts_counted: bool
    """False when the server's counts of prompts are none."""

    @property
    def streamed(self) -> bool:
        """Return whether the request completed and its tokens came one after another, so that they have times."""
        return self.record.ok and not came_in_one_piece(self.record)

    def instant_s(self, ns: int | None) -> float | None:
        return None if ns is None else (ns - self.start_ns) / NS_PER_S


class Column(NamedTuple):
    """One column of the table."""

    name: str
    type: Type
    unit: str | None
    """"s", "J", "tokens" or "chunks"; None for a name, a number without a unit, or a flag."""
    meaning: str
    value: Callable[[RequestRow], Any]
    """Returns the value of a row; None is unknown."""


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else ns / NS_PER_S


def _joules_per_output_token(row: RequestRow) -> float | None:
    tokens, joules = row.record.output_tokens, row.energy.joules if row.energy else None
    return joules / tokens if joules is not None and tokens else None


def _tags(row: RequestRow) -> str | None:
    tags = tags_of(row.request)
    return msgspec.json.encode(tags, order="sorted").decode() if tags else None


COLUMNS: tuple[Column, ...] = (
    Column("index", "int64", None, "Number of the request in the schedule.", lambda r: r.request.index),
    Column("workload", "string", None, "Name of its workload or stream.", lambda r: r.request.workload),
    Column("model", "string", None, "Requested model.", lambda r: r.request.model or r.model),
    Column("session", "string", None, "Its session; null outside of sessions.", lambda r: r.request.session_id),
    Column("completed", "bool", None, "True when the whole answer came.", lambda r: r.record.ok),
    Column("error", "string", None, "Kind of failure; null when completed.", lambda r: r.record.error),
    Column("detail", "string", None, "The failure in words; null when completed.", lambda r: r.record.detail),
    Column("status", "int64", None, "HTTP status; null without an answer.", lambda r: r.record.status),
    Column("finish_reason", "string", None, "The server's reason for the end.", lambda r: r.record.finish_reason),
    Column("sent_unix_s", "float64", "s", "Unix time at which it was sent.", lambda r: _seconds(
        None if r.record.sent_ns is None else r.record.sent_ns + r.wall_offset_ns)),
    Column("scheduled_s", "float64", "s", "Instant at which it was due; second 0 is the first such instant of the run.",
           lambda r: r.instant_s(r.record.scheduled_ns)),
    Column("sent_s", "float64", "s", "Instant at which it was sent.", lambda r: r.instant_s(r.record.sent_ns)),
    Column("first_token_s", "float64", "s", "Instant of the first token.",
           lambda r: r.instant_s(r.record.first_token_ns)),
    Column("last_token_s", "float64", "s", "Instant of the last token.", lambda r: r.instant_s(r.record.last_token_ns)),
    Column("finished_s", "float64", "s", "Instant of the answer's end, or of the failure.",
           lambda r: r.instant_s(r.record.finished_ns)),
    Column("lag_s", "float64", "s", "Schedule lag of the client: sent - scheduled.",
           lambda r: _seconds(r.record.lag_ns)),
    Column("ttft_s", "float64", "s", "TTFT: first token - sent. Null, like the latencies below, unless completed.",
           lambda r: _seconds(r.record.ttft_ns) if r.streamed else None),
    Column("ttfa_s", "float64", "s", "Time to the first answer token, which is no reasoning.",
           lambda r: _seconds(r.record.ttfa_ns) if r.streamed else None),
    Column("tpot_s", "float64", "s", "TPOT: (last token - first token) / (output tokens - 1).",
           lambda r: _seconds(r.record.tpot_ns) if r.streamed else None),
    Column("e2e_s", "float64", "s", "E2E latency: finished - sent.",
           lambda r: _seconds(r.record.e2e_ns) if r.record.ok else None),
    Column("response_s", "float64", "s", "Response time: finished - scheduled.",
           lambda r: _seconds(r.record.response_ns) if r.record.ok else None),
    Column("input_tokens", "int64", "tokens", "Prompt tokens that the server counted.",
           lambda r: r.record.input_tokens if r.prompts_counted else None),
    Column("input_tokens_planned", "int64", "tokens", "Prompt tokens that were planned.",
           lambda r: r.request.input_tokens),
    Column("cached_tokens", "int64", "tokens", "Prompt tokens that the server took from its prefix cache.",
           lambda r: r.record.cached_tokens),
    Column("output_tokens", "int64", "tokens", "Output tokens.", lambda r: r.record.output_tokens),
    Column("output_tokens_planned", "int64", "tokens", "Output tokens that were requested, or recorded in the trace "
           "where the model ends its answers itself.", lambda r: r.request.output_tokens),
    Column("reasoning_tokens", "int64", "tokens", "Output tokens of reasoning, by the server's count.",
           lambda r: r.record.reasoning_tokens),
    Column("token_source", "string", None, "Origin of output_tokens: the server's usage, or chunks that were counted.",
           lambda r: r.record.token_source),
    Column("chunks", "int64", "chunks", "Chunks that carried tokens; null when it was not sent.",
           lambda r: None if r.record.sent_ns is None else len(r.record.chunk_ns)),
    Column("joules", "float64", "J", "Energy attributed to the request; null, like all joules, without a meter.",
           lambda r: r.energy and r.energy.joules),
    Column("se_joules", "float64", "J", "Standard error of joules.", lambda r: r.energy and r.energy.se_joules),
    Column("prefill_joules", "float64", "J", "Energy of its prefill.", lambda r: r.energy and r.energy.prefill_joules),
    Column("decode_joules", "float64", "J", "Energy of its decode steps.",
           lambda r: r.energy and r.energy.decode_joules),
    Column("reasoning_joules", "float64", "J", "Part of decode_joules in which reasoning was generated.",
           lambda r: r.energy and r.energy.reasoning_joules),
    Column("tools_joules", "float64", "J", "Part of decode_joules in which calls of tools were generated.",
           lambda r: r.energy and r.energy.tools_joules),
    Column("joules_per_output_token", "float64", "J", "joules / output_tokens.", _joules_per_output_token),
    Column("task", "string", None, "Sub-agent within its session; null for the main thread.", lambda r: r.request.task),
    Column("host_joules", "float64", "J", "Estimate of its part of the host's energy; null unless a meter has the host "
           "beside the GPUs.", lambda r: r.energy and r.energy.host_joules),
    Column("tags", "string", None, "Its tags as a JSON object, such as {\"tenant\":\"a\"}; null without any.", _tags),
    Column("engine", "string", None, "Engine that served it, or generated its answer; null unless several are named.",
           lambda r: r.energy and r.energy.engine),
    Column("prefill_engine", "string", None, "Engine that computed its prompt, where that is another.",
           lambda r: r.energy and r.energy.prefill_engine),
    Column("engine_probability", "float64", None, "Probability that these are its engines: 1 if a header or a span "
           "names them.", lambda r: r.energy and r.energy.engine_probability),
)  # fmt: skip
"""Columns in the order of a file. A name keeps its meaning; new ones are added at the end."""


def request_rows(result: RunResult) -> Iterator[RequestRow]:
    """Yield a row for each request of the schedule, whatever its outcome, in the order of the schedule."""
    start_ns, _ = span(result)
    shares = result.shares
    counted = prompts_are_counted(result.schedule, result.records)
    model = result.info.server.get("model")
    for request, record in zip(result.schedule, result.records, strict=True):
        yield RequestRow(
            request=request,
            record=record,
            energy=None if record.error == "cancelled" and record.sent_ns is None else shares.get(record.index),
            model=model,
            start_ns=start_ns,
            wall_offset_ns=result.info.anchor.offset_ns,
            prompts_counted=counted,
        )


def request_table(result: RunResult) -> dict[str, list[Any]]:
    """Return the values of each column by its name."""
    rows = list(request_rows(result))
    return {column.name: [column.value(row) for row in rows] for column in COLUMNS}
