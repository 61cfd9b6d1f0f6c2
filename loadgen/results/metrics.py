"""Numbers about many numbers. Unknown values are left out and the count says so."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.record import RequestRecord
from loadgen.results.summary import Distribution, Goodput, LengthCheck, RequestCounts, TokenCounts
from loadgen.units import NS_PER_MS, NS_PER_S


def distribution(values: Iterable[float | None], scale: float = 1.0) -> Distribution:
    """Mean, percentiles (linear interpolation between ranks) and maximum of the known values times `scale`."""
    return _distribution(np.fromiter((value for value in values if value is not None), dtype=np.float64), scale)


def _distribution(known: NDArray[np.floating[Any]], scale: float) -> Distribution:
    """Scrambles `known`."""
    if not len(known):
        return Distribution(count=0)
    mean, highest = known.mean(dtype=np.float64), known.max()
    p50, p90, p95, p99 = np.percentile(known, [50, 90, 95, 99], overwrite_input=True)
    mean, p50, p90, p95, p99, highest = (float(value * scale) for value in (mean, p50, p90, p95, p99, highest))
    return Distribution(count=len(known), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=highest)


def distribution_s(values_ns: Iterable[float | None]) -> Distribution:
    """A distribution in seconds of durations in nanoseconds."""
    return distribution(values_ns, 1 / NS_PER_S)


def inter_token_s(records: Sequence[RequestRecord]) -> Distribution:
    """Of every gap between successive content chunks of one request, over all requests.

    Of all that an analysis holds, these are the most: 4 bytes each keep seven digits.
    """
    gaps, at = np.empty(sum(max(0, len(record.chunk_ns) - 1) for record in records), dtype=np.float32), 0
    for record in records:
        own = np.diff(record.chunk_ns)
        gaps[at : at + len(own)] = own
        at += len(own)
    return _distribution(gaps, 1 / NS_PER_S)


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
    """Tokens of all requests, failed ones too; None when no request has a count."""
    inputs = [record.input_tokens for record in records if record.input_tokens is not None]
    outputs = [record.output_tokens for record in records if record.output_tokens is not None]
    return TokenCounts(
        input=sum(inputs) if inputs else None,
        output=sum(outputs) if outputs else None,
        input_per_s=sum(inputs) / duration_s if inputs and duration_s > 0 else None,
        output_per_s=sum(outputs) / duration_s if outputs and duration_s > 0 else None,
    )


def length_check(asked: Sequence[tuple[int, int]], records: Sequence[RequestRecord]) -> LengthCheck | None:
    """(input, output) asked against the server's `usage`, over completed requests; None when it sent no usage."""
    pairs = (
        (want[0], record.input_tokens, want[1], record.output_tokens)
        for want, record in zip(asked, records, strict=True)
        if record.ok
        and record.token_source == "usage"
        and record.input_tokens is not None
        and record.output_tokens is not None
    )
    counts: NDArray[np.int64] = np.fromiter(pairs, dtype=np.dtype((np.int64, 4)))
    if not len(counts):
        return None
    input_asked, input_counted, output_asked, output_counted = counts.sum(axis=0).tolist()
    return LengthCheck(
        count=len(counts),
        input_asked=input_asked,
        input_counted=input_counted,
        input_max_off=int(np.abs(counts[:, 1] - counts[:, 0]).max()),
        output_asked=output_asked,
        output_counted=output_counted,
        output_max_off=int(np.abs(counts[:, 3] - counts[:, 2]).max()),
    )


def goodput(records: Sequence[RequestRecord], slo_ms: dict[str, float], duration_s: float) -> Goodput:
    """Requests that met every limit, over all scheduled. A request without a TPOT (one token) meets any TPOT limit."""
    good = sum(
        record.ok and all(_meets(record, metric, limit) for metric, limit in slo_ms.items()) for record in records
    )
    return Goodput(
        slo_ms=slo_ms,
        good=good,
        ratio=good / len(records) if records else None,
        rps=good / duration_s if duration_s > 0 else None,
    )


def _meets(record: RequestRecord, metric: str, limit_ms: float) -> bool:
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
