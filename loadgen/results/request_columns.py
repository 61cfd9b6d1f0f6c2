"""The completed requests of a run as columns: lengths, times, joules, and the load that each of them met. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.results.metrics import came_in_one_piece, with_planned_prompts
from loadgen.results.summarize import span
from loadgen.telemetry.engine_sample import MAX_HOLD_S, EngineSample, counter_growth, sample_times
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats, Ints


@dataclass(frozen=True)
class RequestColumns:
    """Arrays of one element for each completed request, in the order of their indices. NaN is unknown."""

    index: Ints
    sent_s: Floats
    """Instant at which it was sent; second 0 is the first scheduled instant, as in the summary."""
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    lag_s: Floats
    input_tokens: Floats
    """Tokens of the prompt; the planned ones where the server does not count them."""
    cached_tokens: Floats
    output_tokens: Floats
    in_flight: Floats
    """Number of other requests in flight when it was sent."""
    mean_in_flight: Floats
    """Mean number of requests in flight while it was, itself included: 1 for a request that was alone."""
    waiting: Floats
    """Number of other requests that were sent and had no token when it was sent."""
    queue: Floats
    """Requests in the engine's own queue when it was sent, by the last reading before."""
    preemptions: Floats
    """Preemptions in the engine between the reading before it was sent and the reading after its end."""
    joules: Floats
    se_joules: Floats
    prefill_joules: Floats
    decode_joules: Floats

    @property
    def cached_share(self) -> Floats:
        """Return the share of each prompt that came from the server's prefix cache."""
        return self.cached_tokens / np.where(self.input_tokens > 0, self.input_tokens, np.nan)


def request_columns(result: RunResult) -> RequestColumns:
    """Return the columns of a run's completed requests."""
    start_ns, end_ns = span(result)
    done = [r for r in with_planned_prompts(result.schedule, result.records) if r.ok and r.sent_ns is not None]
    done.sort(key=lambda record: record.index)
    sent_ns = np.array([record.sent_ns for record in done], dtype=np.int64)
    ended_ns = np.array([record.finished_ns or end_ns for record in done], dtype=np.int64)
    streamed = [not came_in_one_piece(record) for record in done]
    shares = result.shares
    energy = [shares.get(record.index) for record in done]
    in_flight, mean_in_flight, waiting = _load_met(result.records, sent_ns, ended_ns, end_ns)
    return RequestColumns(
        index=np.array([record.index for record in done], dtype=np.int64),
        sent_s=(sent_ns - start_ns) / NS_PER_S,
        ttft_s=_column(r.ttft_ns if whole else None for r, whole in zip(done, streamed, strict=True)) / NS_PER_S,
        tpot_s=_column(r.tpot_ns if whole else None for r, whole in zip(done, streamed, strict=True)) / NS_PER_S,
        e2e_s=_column(record.e2e_ns for record in done) / NS_PER_S,
        lag_s=_column(record.lag_ns for record in done) / NS_PER_S,
        input_tokens=_column(record.input_tokens for record in done),
        cached_tokens=_column(record.cached_tokens for record in done),
        output_tokens=_column(record.output_tokens for record in done),
        in_flight=in_flight,
        mean_in_flight=mean_in_flight,
        waiting=waiting,
        queue=queue_at(result.engine, sent_ns),
        preemptions=_preemptions(result.engine, sent_ns, ended_ns),
        joules=_column(share.joules if share else None for share in energy),
        se_joules=_column(share.se_joules if share else None for share in energy),
        prefill_joules=_column(share.prefill_joules if share else None for share in energy),
        decode_joules=_column(share.decode_joules if share else None for share in energy),
    )


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _load_met(
    records: Sequence[RequestRecord], sent_ns: Ints, ended_ns: Ints, end_ns: int
) -> tuple[Floats, Floats, Floats]:
    """Return, for requests sent and ended at these instants, how many others were in flight when each was sent, how
    many were on average while it was in flight, and how many others had no token when it was sent."""
    all_sent = [record for record in records if record.sent_ns is not None]
    begins = np.sort(np.array([record.sent_ns for record in all_sent], dtype=np.int64))
    ends = np.sort(np.array([record.finished_ns or end_ns for record in all_sent], dtype=np.int64))
    begun = np.sort(np.array([r.first_token_ns or r.finished_ns or end_ns for r in all_sent], dtype=np.int64))
    before = np.searchsorted(begins, sent_ns, "left")
    in_flight = (before - np.searchsorted(ends, sent_ns, "right")).astype(np.float64)
    waiting = (before - np.searchsorted(begun, sent_ns, "right")).astype(np.float64)
    t_ns = np.unique(np.concatenate([begins, ends]))
    level = np.searchsorted(begins, t_ns, "right") - np.searchsorted(ends, t_ns, "right")
    area = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(t_ns) / NS_PER_S)])
    spent = np.interp(ended_ns, t_ns, area) - np.interp(sent_ns, t_ns, area) if len(t_ns) else np.zeros(len(sent_ns))
    lasted_s = (ended_ns - sent_ns) / NS_PER_S
    mean = spent / np.where(lasted_s > 0, lasted_s, np.nan)
    return np.maximum(in_flight, 0), mean, np.maximum(waiting, 0)


def queue_at(engine: Sequence[EngineSample], instants_ns: Ints) -> Floats:
    """Return the requests in the engine's queue at these instants, by the last reading before each."""
    samples = [sample for sample in engine if "waiting" in sample]
    if not samples:
        return np.full(len(instants_ns), np.nan)
    t_ns, waiting = sample_times(samples), np.array([sample["waiting"] for sample in samples], dtype=np.float64)
    before = np.searchsorted(t_ns, instants_ns, "right") - 1
    known = (before >= 0) & (instants_ns - t_ns[before] <= MAX_HOLD_S * NS_PER_S)
    return np.where(known, waiting[before], np.nan)


def _preemptions(engine: Sequence[EngineSample], sent_ns: Ints, ended_ns: Ints) -> Floats:
    samples = [sample for sample in engine if "preemptions" in sample]
    if len(samples) < 2:
        return np.full(len(sent_ns), np.nan)
    t_ns = sample_times(samples)
    total = np.concatenate([[0.0], np.cumsum(counter_growth(samples, "preemptions"))])
    before = np.maximum(np.searchsorted(t_ns, sent_ns, "right") - 1, 0)
    after = np.minimum(np.searchsorted(t_ns, ended_ns, "left"), len(t_ns) - 1)
    growth: Floats = total[after] - total[before]
    return growth
