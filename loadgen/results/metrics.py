"""Summary statistics of request records. Unknown values are excluded, and `count` is what remains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.results.summary import (
    Distribution,
    Goodput,
    Latency,
    LengthCheck,
    NaturalEndings,
    RequestCounts,
    TokenCounts,
)
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import ErrorKind, RequestRecord
    from loadgen.stats.arrays import Ints
    from loadgen.workload.schedule import ScheduledRequest


CUT_OFF: tuple[ErrorKind, ...] = ("cancelled", "not_sent")
"""Kinds of error that the end of a run makes, not the server."""
PERCENTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
MAX_LENGTH_OFF = 0.01
"""Share by which the length of an answer may differ from the requested one."""
MIN_GAP_NS = NS_PER_MS // 10
"""Smallest mean gap between the chunks of an answer that was streamed."""
MIN_PROMPTS, MAX_ALIKE = 5, 1.5
"""Fewest prompts, and the largest ratio of their lengths, of which one count is plausible."""
MIN_PIECE_TOKENS = 4
"""Shorter answers may come in one chunk from an engine that emits several tokens a step."""


def judged(records: Sequence[RequestRecord], stopped_by: str | None) -> Sequence[RequestRecord]:
    """Return the requests that had the chance to complete: in a run that was stopped, not those that the end cut off or
    left unsent."""
    if stopped_by == "completed":
        return records
    return [record for record in records if record.error not in CUT_OFF]


def distribution(values: Iterable[float | None], scale: float = 1.0) -> Distribution:
    """Return the statistics of the known values times `scale`."""
    return _consume(np.fromiter((value for value in values if value is not None), dtype=np.float64), scale)


def _consume(values: NDArray[np.floating[Any]], scale: float) -> Distribution:
    """Return the distribution of `values` times `scale`. Reorders `values` in place, to save a copy."""
    if not len(values):
        return Distribution(count=0)
    statistics = {
        "mean": values.mean(dtype=np.float64),
        "std": values.std(dtype=np.float64),
        "min": values.min(),
        "max": values.max(),
        **dict(zip(PERCENTILES, np.quantile(values, [*PERCENTILES.values()], overwrite_input=True), strict=True)),
    }
    return Distribution(count=len(values), **{name: float(value * scale) for name, value in statistics.items()})


def distribution_s(values_ns: Iterable[float | None]) -> Distribution:
    """Return the distribution in seconds of durations in nanoseconds."""
    return distribution(values_ns, 1 / NS_PER_S)


def latency_s(values_ns: Iterable[float | None], failed: int) -> Latency:
    """Return the distribution in seconds of the latencies of completed requests, beside `failed` that had none."""
    known = np.fromiter((value for value in values_ns if value is not None), dtype=np.float64)
    ranks = np.sort(known)
    reached: dict[str, Any] = {"left_out": failed}
    for name, share in PERCENTILES.items():
        rank = share * (len(ranks) + failed - 1)
        value = float(np.interp(rank, np.arange(len(ranks)), ranks)) / NS_PER_S if 0 <= rank <= len(ranks) - 1 else None
        reached[f"{name}_with_failures"] = value
    return Latency(**msgspec.structs.asdict(_consume(known, 1 / NS_PER_S)), **reached)


def inter_token_s(records: Sequence[RequestRecord]) -> Distribution:
    """Return the distribution of the gaps between successive content chunks of a request, over all requests."""
    return _consume(token_gaps_ns(records), 1 / NS_PER_S)


def token_gaps_ns(records: Sequence[RequestRecord]) -> NDArray[np.float32]:
    """Return the gaps between successive content chunks of a request, of all requests.

    No other array of an analysis is as long: 4 bytes a gap keep seven digits.
    """
    gaps_ns = np.empty(sum(max(0, len(record.chunk_ns) - 1) for record in records), dtype=np.float32)
    start = 0
    for record in records:
        request_gaps_ns = np.diff(record.chunk_ns)
        gaps_ns[start : start + len(request_gaps_ns)] = request_gaps_ns
        start += len(request_gaps_ns)
    return gaps_ns


def request_counts(records: Sequence[RequestRecord]) -> RequestCounts:
    errors = [record.error for record in records if record.error]
    return RequestCounts(
        scheduled=len(records),
        sent=sum(record.sent_ns is not None for record in records),
        completed=len(records) - len(errors),
        failed=len(errors),
        by_error={kind: errors.count(kind) for kind in sorted(set(errors))},
    )


def token_counts(records: Sequence[RequestRecord], duration_s: float, prompts_counted: bool = True) -> TokenCounts:
    """Sum the tokens of all requests, failed ones too; None when no request has a count.

    prompts_counted: False when the server's counts of prompts are none (see `prompts_are_counted`).
    """
    inputs = [record.input_tokens for record in records if record.input_tokens is not None and prompts_counted]
    outputs = [record.output_tokens for record in records if record.output_tokens is not None]
    unseen = [record.tokens_without_chunk for record in records if record.tokens_without_chunk is not None]
    return TokenCounts(
        input=sum(inputs) if inputs else None,
        output=sum(outputs) if outputs else None,
        input_per_s=sum(inputs) / duration_s if inputs and duration_s > 0 else None,
        output_per_s=sum(outputs) / duration_s if outputs and duration_s > 0 else None,
        output_without_chunk=sum(unseen) if unseen else None,
        cached=sum_known(record.cached_tokens for record in records),
        reasoning=sum_known(record.reasoning_tokens for record in records),
        output_audio=sum_known(record.output_audio_tokens for record in records),
        input_audio=sum_known(record.input_audio_tokens for record in records),
        input_image=sum_known(record.input_image_tokens for record in records),
    )


_Number = TypeVar("_Number", int, float)


def sum_known(counts: Iterable[_Number | None]) -> _Number | None:
    """Return the sum of the known counts; None when none is known."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def length_check(
    requested: Sequence[tuple[int | None, int | None]],
    records: Sequence[RequestRecord],
    accepted: Sequence[str] = (),
) -> LengthCheck | None:
    """Compare the (input, output) tokens requested with the server's `usage`, over completed requests.

    None stands for a length that is not requested, or not known. Return None when the server sent no usage, or nothing
    was requested. accepted: the options sent that fix the length of an answer.
    """
    counted = [
        (asked, record)
        for asked, record in zip(requested, records, strict=True)
        if asked != (None, None) and (has_counted_answer(record) or record.came_whole)
    ]
    if not counted:
        return None
    inputs = np.array(
        [(asked[0], r.input_tokens) for asked, r in counted if asked[0] and r.input_tokens], dtype=np.int64
    )
    answers = [(asked[1], record) for asked, record in counted if asked[1] is not None and not record.came_whole]
    outputs = np.array([(asked, record.output_tokens) for asked, record in answers], dtype=np.int64).reshape(-1, 2)
    off, is_shorter, is_longer = _length_differences(outputs)
    by_model = np.array([record.finish_reason not in (None, "length") for _, record in answers], dtype=bool)
    return LengthCheck(
        count=len(answers) or len(counted),
        input_asked=int(inputs[:, 0].sum()) if len(inputs) else None,
        input_counted=int(inputs[:, 1].sum()) if len(inputs) else None,
        input_max_off=int(np.abs(inputs[:, 1] - inputs[:, 0]).max()) if len(inputs) else None,
        output_asked=int(outputs[:, 0].sum()) if len(outputs) else None,
        output_counted=int(outputs[:, 1].sum()) if len(outputs) else None,
        output_max_off=int(np.abs(off).max()) if len(outputs) else None,
        shorter=int(is_shorter.sum()),
        longer=int(is_longer.sum()),
        stopped=int((is_shorter & by_model).sum()),
        not_honoured=list(accepted) if np.any(is_shorter & by_model) else [],
    )


def _length_differences(lengths: Ints) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return counted - planned of (planned, counted) rows, and whether that is so far below or above 0 as to matter."""
    off: Ints = lengths[:, 1] - lengths[:, 0]
    slack = np.maximum(1, MAX_LENGTH_OFF * lengths[:, 0])
    return off, -off > slack, off > slack


def has_counted_answer(record: RequestRecord) -> bool:
    """Return whether the server's usage counts the tokens of the answer."""
    return record.ok and record.token_source == "usage" and record.output_tokens is not None


def natural_endings(schedule: Sequence[ScheduledRequest], records: Sequence[RequestRecord]) -> NaturalEndings | None:
    """Return the lengths of the answers that end where the model ends them, beside those of the recorded answers."""
    answers = [
        (request.output_tokens, record)
        for request, record in zip(schedule, records, strict=True)
        if request.natural and has_counted_answer(record)
    ]
    if not answers:
        return None
    rows = [(planned, record.output_tokens) for planned, record in answers if planned is not None]
    lengths = np.array(rows, dtype=np.int64).reshape(-1, 2)
    _, is_shorter, is_longer = _length_differences(lengths)
    return NaturalEndings(
        tokens=distribution(record.output_tokens for _, record in answers),
        limited=sum(record.finish_reason == "length" for _, record in answers),
        recorded=len(rows),
        recorded_tokens=int(lengths[:, 0].sum()) if rows else None,
        counted_tokens=int(lengths[:, 1].sum()) if rows else None,
        shorter=int(is_shorter.sum()),
        longer=int(is_longer.sum()),
    )


def prompts_are_counted(schedule: Sequence[ScheduledRequest], records: Sequence[RequestRecord]) -> bool:
    """Return whether the server counts the tokens of prompts: one count for prompts of several lengths is none.

    True when there is no completed request to tell by.
    """
    lengths = [
        (request.input_tokens, record.input_tokens)
        for request, record in zip(schedule, records, strict=True)
        if record.ok and record.token_source is not None
    ]
    if not lengths or all(counted is None for _, counted in lengths):
        return not lengths
    asked, counts = {asked for asked, _ in lengths if asked is not None}, {counted for _, counted in lengths}
    differ = len(asked) > 1 and max(asked) > MAX_ALIKE * min(asked)
    return not (len(lengths) >= MIN_PROMPTS and len(counts) == 1 and differ)


def with_planned_prompts(schedule: Sequence[ScheduledRequest], records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return the records with the planned length of each prompt that the server did not count."""
    return [
        record
        if record.input_tokens is not None
        else msgspec.structs.replace(record, input_tokens=request.input_tokens)
        for request, record in zip(schedule, with_counted_prompts(schedule, records), strict=True)
    ]


def with_counted_prompts(
    schedule: Sequence[ScheduledRequest], records: Sequence[RequestRecord]
) -> Sequence[RequestRecord]:
    """Return the records with all cached tokens that are known; without the lengths of prompts where the server's
    counts of them are none."""
    if prompts_are_counted(schedule, records):
        return with_uncached_prompts(records)
    return [msgspec.structs.replace(record, input_tokens=None) for record in records]


def with_uncached_prompts(records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
    """Return the records with 0 cached tokens for counted prompts without a count of them, if others have such a count:
    vLLM leaves it out where it is 0."""
    if not any(record.cached_tokens for record in records):
        return records
    return [
        msgspec.structs.replace(record, cached_tokens=0)
        if record.cached_tokens is None and record.input_tokens is not None
        else record
        for record in records
    ]


def came_in_one_piece(record: RequestRecord) -> bool:
    """Return whether an answer of several tokens came all at once: its chunks are no times of tokens.

    No engine generates a stream of tokens as fast as MIN_GAP_NS apart.
    """
    chunks = record.chunk_ns
    if not chunks or max(len(chunks), (record.output_tokens or 0) - (record.hidden_tokens or 0)) < MIN_PIECE_TOKENS:
        return False
    return len(chunks) == 1 or chunks[-1] - chunks[0] < MIN_GAP_NS * (len(chunks) - 1)


def goodput(records: Sequence[RequestRecord], slo_ms: dict[str, float], duration_s: float) -> Goodput:
    """Count the requests that met every limit. The ratio is over all scheduled ones.

    A request without a TPOT (one token) meets any TPOT limit.
    """
    met = [
        [metric for metric, limit in slo_ms.items() if meets_limit(record, metric, limit)]
        for record in records
        if record.ok
    ]
    good = sum(len(metrics) == len(slo_ms) for metrics in met)
    return Goodput(
        slo_ms=slo_ms,
        good=good,
        ratio=good / len(records) if records else None,
        rps=good / duration_s if duration_s > 0 else None,
        met={metric: sum(metric in metrics for metrics in met) for metric in slo_ms},
    )


def slo_of(config: Mapping[str, Any], workload: str) -> dict[str, float]:
    """Return the limits in ms for a workload: its stream's own, or the run's."""
    stream_slo: dict[str, float] = config.get("streams", {}).get(workload, {}).get("goodput") or {}
    return stream_slo or config.get("goodput") or {}


def meets_limit(record: RequestRecord, metric: str, limit_ms: float) -> bool:
    """Return whether a completed request met one limit: "ttft", "tpot" or "e2el", at most `limit_ms`."""
    match metric:
        case "ttft":
            value: float | None = record.ttft_ns
        case "tpot":
            value = record.tpot_ns
            if value is None:
                return True
        case _:
            value = record.e2e_ns
    return value is not None and value <= limit_ms * NS_PER_MS


def is_overdue(sent_ns: int, first_token_ns: int | None, now_ns: int, limits_ms: Mapping[str, float]) -> bool:
    """Return whether a request that has not ended by now has missed its limit of TTFT or of E2E latency."""
    ttft_ns, e2e_ns = (limits_ms.get(metric, math.inf) * NS_PER_MS for metric in ("ttft", "e2el"))
    return (first_token_ns or now_ns) - sent_ns > ttft_ns or now_ns - sent_ns > e2e_ns
