"""Numbers about many numbers. Unknown values are left out and the count says so."""

from collections.abc import Iterable, Sequence

import numpy as np

from loadgen.record import RequestRecord
from loadgen.summary import Distribution, Goodput, LengthCheck, RequestCounts, TokenCounts
from loadgen.units import NS_PER_MS, NS_PER_S


def distribution(values: Iterable[float | None], scale: float = 1.0) -> Distribution:
    """Mean, percentiles (linear interpolation between ranks) and maximum of the known values times `scale`."""
    known = np.array([value for value in values if value is not None], dtype=np.float64) * scale
    if not len(known):
        return Distribution(count=0)
    p50, p90, p95, p99 = np.percentile(known, [50, 90, 95, 99]).tolist()
    return Distribution(
        count=len(known), mean=float(known.mean()), p50=p50, p90=p90, p95=p95, p99=p99, max=float(known.max())
    )


def seconds(values_ns: Iterable[float | None]) -> Distribution:
    """A distribution in seconds of durations in nanoseconds."""
    return distribution(values_ns, 1 / NS_PER_S)


def inter_token_ns(records: Iterable[RequestRecord]) -> list[float]:
    """Every gap between successive content chunks of one request, over all requests."""
    return [float(gap) for record in records for gap in np.diff(record.chunk_ns)]


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
    pairs = [
        (want, record.input_tokens, record.output_tokens)
        for want, record in zip(asked, records, strict=True)
        if record.ok and record.token_source == "usage"
    ]
    both = [(want, got_in, got_out) for want, got_in, got_out in pairs if got_in is not None and got_out is not None]
    if not both:
        return None
    return LengthCheck(
        count=len(both),
        input_asked=sum(want[0] for want, _, _ in both),
        input_counted=sum(got for _, got, _ in both),
        input_max_off=max(abs(got - want[0]) for want, got, _ in both),
        output_asked=sum(want[1] for want, _, _ in both),
        output_counted=sum(got for _, _, got in both),
        output_max_off=max(abs(got - want[1]) for want, _, got in both),
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
