"""The numbers of a run over time, in bins of equal width. Pure.

Second 0 is the first scheduled instant, as in the summary. What has an instant counts in its bin; what lasts (requests
in flight, the engine's gauges, watts) is averaged over the bin. Sums over the bins are the totals of the run. NaN is
unknown. Requests that were never sent are in no bin but those of `scheduled`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.results.energy_summary import aligned_series, outermost_series
from loadgen.results.metrics import came_in_one_piece, prompts_are_counted, with_uncached_prompts
from loadgen.results.summarize import span
from loadgen.stats.time_bins import Percentiles, TimeBins, bins_between
from loadgen.telemetry.engine_sample import MAX_HOLD_S, EngineSample, counter_growth, sample_times
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySeries
    from loadgen.record import ErrorKind, RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Floats, Ints

PIECE = 1 << 20
"""Chunks that are counted at once at least, to bound the memory."""


@dataclass(frozen=True)
class OverTime:
    """Arrays of one value per bin."""

    bins: TimeBins
    """They begin before 0 where energy was measured before."""
    run_s: Floats
    """Seconds of the bin that are between second 0 and the end of the last request."""
    scheduled: Floats
    """Requests that were due, until the run ended."""
    sent: Floats
    completed: Floats
    failed: dict[ErrorKind, Floats]
    """Requests that were sent and failed, by kind, when they did; without kinds that did not occur."""
    input_tokens: Floats
    """Tokens of prompts, at the first token of the answer; NaN where the server does not count them."""
    output_tokens: Floats
    """Tokens of answers. A request's are spread evenly over its chunks, and the hidden ones over its TTFT."""
    in_flight: Floats
    ttft_s: Percentiles
    """TTFT of the completed requests that were sent in the bin, as for `tpot_s`."""
    tpot_s: Percentiles
    running: Floats
    """Requests that the engine ran, of all its clients, as for the next four."""
    waiting: Floats
    kv_cache_usage: Floats
    preemptions: Floats
    cached_share: Floats
    """Share of the prompt tokens that came from a prefix cache: by the answers' usage where it counts any, else by the
    engine's counters."""
    joules: Floats
    """Energy that was measured in the bin; NaN where none was."""
    watts: Floats
    """Mean power over the measured part of the bin; NaN where that is less than half of it."""

    @property
    def joules_per_output_token(self) -> Floats:
        """Energy of the run, idle included, over its output tokens; NaN in a bin without any."""
        return _ratio(self.watts * self.run_s, self.output_tokens)


def bins_of(result: RunResult) -> TimeBins | None:
    """Return the bins from the first to the last instant of requests and energy; None when there is neither."""
    start_ns, end_ns = span(result)
    instants = [ns for record in result.records if (ns := record.sent_ns) is not None]
    instants += [int(ns) for series in outermost_series(result) for ns in series.t_ns[[0, -1]]]
    if not instants:
        return None
    first_ns, last_ns = min(start_ns, *instants), max(end_ns, *instants)
    return bins_between((first_ns - start_ns) / NS_PER_S, (last_ns - start_ns) / NS_PER_S)


def over_time(result: RunResult) -> OverTime | None:
    """Return the numbers of a run over time; None when nothing was sent and no energy was measured."""
    bins = bins_of(result)
    if bins is None:
        return None
    sent = [record for record in result.records if record.sent_ns is not None]
    start_ns, end_ns = span(result)
    end_ns = max([end_ns, *(record.sent_ns or 0 for record in sent)])

    def seconds(instants_ns: Iterable[int | None]) -> Floats:
        """Return instants as seconds; an end that is not known is that of the run."""
        known = (end_ns if ns is None else ns for ns in instants_ns)
        return (np.fromiter(known, dtype=np.int64) - start_ns) / NS_PER_S

    sent_s = seconds(record.sent_ns for record in sent)
    first_token_s = seconds(record.first_token_ns or record.finished_ns for record in sent)
    ended_s = seconds(record.finished_ns for record in sent)
    kinds = sorted({record.error for record in sent if record.error})
    joules, watts = _energy(aligned_series(result), bins, start_ns)
    streamed = np.array([record.ok and not came_in_one_piece(record) for record in sent], dtype=bool)
    prompts_known = prompts_are_counted(result.schedule, result.records)
    input_tokens = bins.sums(first_token_s, np.array([record.input_tokens or 0 for record in sent], dtype=np.float64))
    gauges = _Gauges(result.engine, bins, start_ns)
    return OverTime(
        bins=bins,
        run_s=np.diff(np.clip(bins.edges_s, 0.0, (end_ns - start_ns) / NS_PER_S)),
        scheduled=bins.sums(seconds(r.scheduled_ns for r in result.records if r.scheduled_ns <= end_ns)),
        sent=bins.sums(sent_s),
        completed=bins.sums(ended_s[[record.ok for record in sent]]),
        failed={kind: bins.sums(ended_s[[record.error == kind for record in sent]]) for kind in kinds},
        input_tokens=input_tokens if prompts_known else np.full(bins.count, np.nan),
        output_tokens=_output_tokens(sent, bins, start_ns, sent_s, first_token_s),
        in_flight=bins.integrals(sent_s, ended_s) / bins.width_s,
        ttft_s=_latency(bins, sent_s, streamed, (record.ttft_ns for record in sent)),
        tpot_s=_latency(bins, sent_s, streamed, (record.tpot_ns for record in sent)),
        running=gauges.mean("running"),
        waiting=gauges.mean("waiting"),
        kv_cache_usage=gauges.mean("kv_cache_usage"),
        preemptions=gauges.growth("preemptions"),
        cached_share=_cached_share(sent, first_token_s, bins, gauges),
        joules=joules,
        watts=watts,
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole; NaN where the whole is 0 or unknown."""
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _latency(bins: TimeBins, sent_s: Floats, counted: Ints, values_ns: Iterable[float | None]) -> Percentiles:
    values_s = np.array([np.nan if ns is None else ns for ns in values_ns], dtype=np.float64) / NS_PER_S
    known = counted & np.isfinite(values_s)
    return bins.percentiles(sent_s[known], values_s[known])


def _output_tokens(
    sent: Sequence[RequestRecord], bins: TimeBins, start_ns: int, sent_s: Floats, first_token_s: Floats
) -> Floats:
    """Return the output tokens in each bin. Answers without a chunk count where they end, or the run does."""
    tokens = np.array([record.output_tokens or 0 for record in sent], dtype=np.float64)
    hidden = np.minimum([record.hidden_tokens or 0 for record in sent], tokens)
    at_once = sent_s >= first_token_s
    hidden[at_once] = 0
    length_s = np.where(at_once, 1.0, first_token_s - sent_s)
    total = bins.integrals(sent_s, np.maximum(first_token_s, sent_s), hidden / length_s) if hidden.any() else 0.0
    chunks = np.array([len(record.chunk_ns) for record in sent], dtype=np.int64)
    shown = tokens - hidden
    whole = chunks == 0
    total = total + bins.sums(first_token_s[whole], shown[whole])
    ends = np.cumsum(chunks)
    first = 0
    while first < len(sent):
        # Whole requests, up to the one with which there are PIECE chunks.
        stop = int(np.searchsorted(ends, (ends[first - 1] if first else 0) + PIECE)) + 1
        piece_ns = np.concatenate([np.asarray(record.chunk_ns, dtype=np.int64) for record in sent[first:stop]])
        weights = np.repeat(shown[first:stop] / np.maximum(chunks[first:stop], 1), chunks[first:stop])
        total = total + bins.sums((piece_ns - start_ns) / NS_PER_S, weights)
        first = stop
    return np.asarray(total)


class _Gauges:
    """The engine's readings over time; NaN for what its page does not have."""

    def __init__(self, engine: Sequence[EngineSample], bins: TimeBins, start_ns: int) -> None:
        self.engine, self.bins = engine, bins
        self.read_s = (sample_times(engine) - start_ns) / NS_PER_S

    def mean(self, name: str) -> Floats:
        """Return the mean of a gauge. A reading holds until the next one, for MAX_HOLD_S at most."""
        held = [name in sample for sample in self.engine]
        begins_s = self.read_s[held]
        if len(begins_s) < 2:
            return np.full(self.bins.count, np.nan)
        ends_s = np.minimum(self.read_s[1:][held[:-1]], self.read_s[:-1][held[:-1]] + MAX_HOLD_S)
        begins_s = begins_s[: len(ends_s)]
        values = np.array([sample[name] for sample in self.engine if name in sample], dtype=np.float64)
        total = self.bins.integrals(begins_s, ends_s, values[: len(ends_s)])
        return _ratio(total, np.where((known := self.bins.integrals(begins_s, ends_s)) > 1e-6, known, 0.0))

    def growth(self, name: str) -> Floats:
        """Return how much a counter grew. One that went down began at zero again: the engine restarted."""
        if not any(name in sample for sample in self.engine):
            return np.full(self.bins.count, np.nan)
        return self.bins.growth(self.read_s, counter_growth(self.engine, name))


def _cached_share(sent: Sequence[RequestRecord], first_token_s: Floats, bins: TimeBins, gauges: _Gauges) -> Floats:
    """Return the share of cached prompt tokens. Gateways report 0 of what they do not know, so that a usage without any
    cached token says less than the engine's counters."""
    counted = with_uncached_prompts(sent)
    known = np.array([bool(record.input_tokens) and record.cached_tokens is not None for record in counted], dtype=bool)
    counts = [(record.input_tokens or 0, record.cached_tokens or 0) for record in counted]
    prompts, cached = np.array(counts, dtype=np.float64).reshape(-1, 2)[known].T
    engine = _ratio(gauges.growth("cached_tokens"), gauges.growth("prompt_tokens"))
    if not cached.any() and np.isfinite(engine).any():
        return np.minimum(engine, 1.0)
    usage = _ratio(bins.sums(first_token_s[known], cached), bins.sums(first_token_s[known], prompts))
    return np.minimum(usage, 1.0)


def _energy(energy: Sequence[EnergySeries], bins: TimeBins, start_ns: int) -> tuple[Floats, Floats]:
    """Return the joules that were measured in each bin, and their mean watts; over several domains, their sums."""
    unknown = np.full(bins.count, np.nan)
    if not energy:
        return unknown, unknown
    joules, watts = np.zeros(bins.count), np.zeros(bins.count)
    measured = np.zeros(bins.count, dtype=bool)
    for series in energy:
        read_s, lengths_s = (series.t_ns - start_ns) / NS_PER_S, np.diff(series.t_ns) / NS_PER_S
        known_s = lengths_s if series.gap is None else np.where(series.gap[1:], 0.0, lengths_s)
        own_j = bins.growth(read_s, np.diff(series.mj) / MJ_PER_J)
        own_s = np.nan_to_num(bins.growth(read_s, known_s))
        measured |= own_s > 0
        joules += np.nan_to_num(own_j)
        watts += _ratio(own_j, np.where(own_s >= bins.width_s / 2, own_s, 0.0))
    return np.where(measured, joules, np.nan), watts
