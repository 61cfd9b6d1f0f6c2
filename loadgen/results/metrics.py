"""Summary statistics of request records. Unknown values are excluded, and `count` is what remains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loadgen.results.summary import Distribution, Goodput, LengthCheck, RequestCounts, TokenCounts
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord


def distribution(values: Iterable[float | None], scale: float = 1.0) -> Distribution:
    """Return mean, percentiles (linear interpolation between ranks) and maximum of the known values times `scale`."""
    return _consume(np.fromiter((value for value in values if value is not None), dtype=np.float64), scale)


def _consume(values: NDArray[np.floating[Any]], scale: float) -> Distribution:
    """Return the distribution of `values` times `scale`. Reorders `values` in place, to save a copy."""
    if not len(values):
        return Distribution(count=0)
    mean, highest = values.mean(dtype=np.float64), values.max()
    p50, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99], overwrite_input=True)
    mean, p50, p90, p95, p99, highest = (float(value * scale) for value in (mean, p50, p90, p95, p99, highest))
    return Distribution(count=len(values), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=highest)


def distribution_s(values_ns: Iterable[float | None]) -> Distribution:
    """Return the distribution in seconds of durations in nanoseconds."""
    return distribution(values_ns, 1 / NS_PER_S)


def inter_token_s(records: Sequence[RequestRecord]) -> Distribution:
    """Return the distribution of the gaps between successive content chunks of a request, over all requests.

    No other array of an analysis is as long: 4 bytes a gap keep seven digits.
    """
    gaps_ns = np.empty(sum(max(0, len(record.chunk_ns) - 1) for record in records), dtype=np.float32)
    start = 0
    for record in records:
        request_gaps_ns = np.diff(record.chunk_ns)
        gaps_ns[start : start + len(request_gaps_ns)] = request_gaps_ns
        start += len(request_gaps_ns)
    return _consume(gaps_ns, 1 / NS_PER_S)


def request_counts(records: Sequence[RequestRecord]) -> RequestCounts:
    errors = [record.error for record in records if record.error]
    return RequestCounts(
        scheduled=len(records),
        sent=sum(record.sent_ns is not None for record in records),
        completed=len(records) - len(errors),
        failed=len(errors),
        by_error={kind: errors.count(kind) for kind in sorted(set(errors))},
    )


def token_counts(records: Sequence[RequestRecord], duration_s: float) -> TokenCounts:
    """Sum the tokens of all requests, failed ones too; None when no request has a count."""
    inputs = [record.input_tokens for record in records if record.input_tokens is not None]
    outputs = [record.output_tokens for record in records if record.output_tokens is not None]
    return TokenCounts(
        input=sum(inputs) if inputs else None,
        output=sum(outputs) if outputs else None,
        input_per_s=sum(inputs) / duration_s if inputs and duration_s > 0 else None,
        output_per_s=sum(outputs) / duration_s if outputs and duration_s > 0 else None,
    )


def length_check(requested: Sequence[tuple[int, int]], records: Sequence[RequestRecord]) -> LengthCheck | None:
    """Compare the (input, output) tokens requested with the server's `usage`, over completed requests.

    None when the server sent no usage.
    """
    pairs = (
        (input_tokens, record.input_tokens, output_tokens, record.output_tokens)
        for (input_tokens, output_tokens), record in zip(requested, records, strict=True)
        if record.ok
        and record.token_source == "usage"
        and record.input_tokens is not None
        and record.output_tokens is not None
    )
    counts: NDArray[np.int64] = np.fromiter(pairs, dtype=np.dtype((np.int64, 4)))
    if not len(counts):
        return None
    input_requested, input_counted, output_requested, output_counted = counts.sum(axis=0).tolist()
    return LengthCheck(
        count=len(counts),
        input_asked=input_requested,
        input_counted=input_counted,
        input_max_off=int(np.abs(counts[:, 1] - counts[:, 0]).max()),
        output_asked=output_requested,
        output_counted=output_counted,
        output_max_off=int(np.abs(counts[:, 3] - counts[:, 2]).max()),
    )


def goodput(records: Sequence[RequestRecord], slo_ms: dict[str, float], duration_s: float) -> Goodput:
    """Count the requests that met every limit. The ratio is over all scheduled ones.

    A request without a TPOT (one token) meets any TPOT limit.
    """
    good = sum(
        record.ok and all(meets_limit(record, metric, limit) for metric, limit in slo_ms.items()) for record in records
    )
    return Goodput(
        slo_ms=slo_ms,
        good=good,
        ratio=good / len(records) if records else None,
        rps=good / duration_s if duration_s > 0 else None,
    )


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
