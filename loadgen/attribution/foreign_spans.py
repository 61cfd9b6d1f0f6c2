"""Make records of other clients' requests from the engine's spans: the instants of their tokens are estimated.

A span says when a request arrived, when its prefill began, when its first and its last token came, and how many tokens
it had. Every stream that decodes gets a token in every step, so its other tokens came at the ends of the steps between.
While a stream of ours decodes, our own chunks show every step. The other steps are as many as make the numbers of
tokens right, by iterative scaling (Darroch and Ratcliff, Ann. Math. Stat. 43, 1972), spread evenly.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.engine_steps import BURST_GAP_NS
from loadgen.attribution.span_steps import first_token_of
from loadgen.record import RequestRecord
from loadgen.telemetry.engine_span import EngineSpan

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.otlp_parse import RequestSpan

PASSES = 30
"""Passes of the scaling. With 10, one simulated request in 100 is a token off; with 30 none."""


class Lives(NamedTuple):
    """Requests in an engine, on the client's clock: int64[F] each. Of a prefill that is not known, `prefill_ns` is the
    first token."""

    prefill_ns: Ints
    first_ns: Ints
    last_ns: Ints
    tokens: Ints


def engine_spans(requests: Sequence[RequestSpan]) -> list[EngineSpan]:
    """Return what the engine's own spans among these say of requests that had output tokens."""
    return [
        EngineSpan(
            id=request.key, arrival_ns=request.start_ns, prefill_ns=request.prefill_ns,
            first_token_ns=first_token_of(request) or request.end_ns, end_ns=request.end_ns,
            input_tokens=request.input_tokens, output_tokens=request.output_tokens, cached_tokens=request.cached_tokens,
        )
        for request in requests
        if request.output_tokens and not request.client
    ]  # fmt: skip


def foreign_records(
    records: Sequence[RequestRecord],
    spans: Sequence[EngineSpan],
    run_id: str,
    ahead_ns: int = 0,
    tokens_per_step: float = 1.0,
) -> list[RequestRecord]:
    """Return a record for each span that is of no request of ours, numbered after ours.

    run_id: of our run; the id of a request of ours is `RUN_ID-INDEX`. The spans of ours say how the engine's clock
    differs from the client's, with the time that an answer and a request take between them: the medians are taken off
    the spans of others. ahead_ns: how far the engine's clock is ahead of ours, if there is no span of ours.
    tokens_per_step: those that a stream gets from a decode step, several under speculative decoding.
    """
    others = [span for span in spans if not span.id.startswith(f"{run_id}-")]
    if not others:
        return []
    ours = {f"{run_id}-{record.index}": record for record in records if record.chunk_ns}
    pairs = [(ours[span.id], span) for span in spans if span.id in ours]
    later_ns = _median([record.chunk_ns[-1] - span.end_ns for record, span in pairs], -ahead_ns)
    earlier_ns = _median([(record.sent_ns or 0) - span.arrival_ns for record, span in pairs], -ahead_ns)
    prefills = {record.index: span.prefill_ns + later_ns for record, span in pairs}
    own = [
        (prefills.get(r.index, r.chunk_ns[0]), r.chunk_ns[0], r.chunk_ns[-1], len(r.chunk_ns)) for r in ours.values()
    ]
    foreign = [
        (
            s.prefill_ns + later_ns,
            s.first_token_ns + later_ns,
            s.end_ns + later_ns,
            1 + round((s.output_tokens - 1) / tokens_per_step),
        )
        for s in others
    ]
    times = token_times([r.chunk_ns for r in ours.values()], _lives(own), _lives(foreign))
    return [
        RequestRecord(
            index=len(records) + i, workload="", scheduled_ns=span.arrival_ns + earlier_ns,
            sent_ns=span.arrival_ns + earlier_ns, first_token_ns=own_ns[0], last_token_ns=own_ns[-1],
            finished_ns=own_ns[-1], chunk_ns=own_ns, input_tokens=span.input_tokens, output_tokens=span.output_tokens,
            cached_tokens=span.cached_tokens, token_source="usage",
        )
        for i, (span, own_ns) in enumerate(zip(others, times, strict=True))
    ]  # fmt: skip


def _median(differences_ns: list[int], otherwise: int) -> int:
    return int(np.median(differences_ns)) if differences_ns else otherwise


def _lives(rows: Sequence[tuple[int, int, int, int]]) -> Lives:
    return Lives(*np.array(rows, dtype=np.int64).reshape(-1, len(Lives._fields)).T)


def token_times(chunks_ns: Sequence[Sequence[int]], own: Lives, foreign: Lives) -> list[array[int]]:
    """Return when the tokens of each foreign request came: at the ends of all steps from its first token to its last.

    Where these are not as many as its tokens, each after the first stands for several tokens, or for part of one.
    chunks_ns: of each request of `own`.
    """
    t_ns = np.concatenate([*(np.array(ns, dtype=np.int64) for ns in chunks_ns), foreign.first_ns, foreign.last_ns])
    t_ns = np.sort(t_ns)
    ends_ns = t_ns[np.diff(t_ns, prepend=t_ns[:1] - BURST_GAP_NS) >= BURST_GAP_NS]
    hidden, free_ns = hidden_steps(ends_ns, own, foreign)
    gap = np.repeat(np.arange(len(hidden)), hidden)
    nth = np.arange(len(gap)) - np.repeat(np.cumsum(hidden) - hidden, hidden) + 1
    parts = hidden + (free_ns == np.diff(ends_ns))  # without a prefill, the step that ends the gap has a part as well
    all_ns = np.sort(np.concatenate((ends_ns, ends_ns[gap] + nth * free_ns[gap] // parts[gap])))
    begin, end = (ends_ns[_step_at(ends_ns, t)] for t in (foreign.first_ns, foreign.last_ns))
    rows = zip(np.searchsorted(all_ns, begin).tolist(), np.searchsorted(all_ns, end).tolist(), strict=True)
    return [array("q", all_ns[start : stop + 1].tobytes()) for start, stop in rows]


def hidden_steps(ends_ns: Ints, own: Lives, foreign: Lives) -> tuple[Ints, Ints]:
    """Return int64[E-1] twice: the steps without a known end in each gap between two known ones, and the time for them.

    ends_ns: int64[E]. Through a gap in which a stream of ours decodes there is none. A prefill that ends a gap leaves
    the time before it.
    """
    length_ns = np.diff(ends_ns)
    free_ns = length_ns.copy()
    for lives in (own, foreign):
        step = _step_at(ends_ns, lives.first_ns)
        known = (step > 0) & (lives.prefill_ns < lives.first_ns)
        np.minimum.at(free_ns, step[known] - 1, lives.prefill_ns[known] - ends_ns[step[known] - 1])
    free_ns = np.maximum(free_ns, 0)
    started = np.searchsorted(np.sort(own.first_ns), ends_ns[:-1] + BURST_GAP_NS)
    seen = started > np.searchsorted(np.sort(own.last_ns), ends_ns[1:])
    first, last = _step_at(ends_ns, foreign.first_ns), _step_at(ends_ns, foreign.last_ns)
    later = foreign.tokens > 1
    between_ns = (foreign.last_ns - foreign.first_ns)[later] / (foreign.tokens[later] - 1)
    step_ns = max(float(np.median(between_ns)) if later.any() else 0.0, float(BURST_GAP_NS))
    expected = np.where(seen, 0.0, np.maximum(free_ns / step_ns - (free_ns == length_ns), 0.0))
    missing = np.maximum(foreign.tokens - 1 - (last - first), 0).astype(np.float64)
    fitted = np.minimum(scaled_to_sums(expected, first, last, missing), free_ns / BURST_GAP_NS)
    return np.diff(np.rint(np.cumsum(fitted)), prepend=0.0).astype(np.int64), free_ns


def _step_at(ends_ns: Ints, t_ns: Ints) -> Ints:
    """Return the number of the step that ended at, or a little before, each instant."""
    return np.searchsorted(ends_ns, t_ns, side="right") - 1


def scaled_to_sums(values: Floats, first: Ints, last: Ints, sums: Floats) -> Floats:
    """Scale `values` until they add up to sums[i] over [first[i], last[i]), as nearly as the sums agree."""
    size = len(values) + 1
    requests = np.maximum(np.cumsum(np.bincount(first, minlength=size) - np.bincount(last, minlength=size))[:-1], 1)
    for _pass in range(PASSES):
        total = np.concatenate(([0.0], np.cumsum(values)))
        factor = np.log(np.maximum(sums, 0.01) / np.maximum(total[last] - total[first], 0.01))
        change = np.bincount(first, factor, minlength=size) - np.bincount(last, factor, minlength=size)
        values = values * np.exp(np.cumsum(change)[:-1] / requests)
    return values
