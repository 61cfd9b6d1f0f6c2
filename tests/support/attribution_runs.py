"""Requests, counters and steps that the tests of attribution are made of."""

import msgspec
import numpy as np
from hypothesis import strategies as st

from loadgen.attribution.cost_model import Coefficients
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS, NS_PER_S

MS = NS_PER_MS


def request_ns(index: int, sent_ns: int, chunk_ns: list[int], prompt: int = 100, cached: int = 0) -> RequestRecord:
    """A request with a token in each chunk; one without chunks failed 50 ms after it was sent."""
    return RequestRecord(
        index=index,
        workload="chat",
        scheduled_ns=sent_ns,
        sent_ns=sent_ns,
        first_token_ns=chunk_ns[0] if chunk_ns else None,
        last_token_ns=chunk_ns[-1] if chunk_ns else None,
        finished_ns=chunk_ns[-1] + 1 if chunk_ns else sent_ns + 50 * MS,
        chunk_ns=chunk_ns,
        input_tokens=prompt,
        output_tokens=len(chunk_ns),
        cached_tokens=cached,
        error=None if chunk_ns else "http",
    )


def request(index: int, sent_ms: float, chunk_ms: list[float], prompt: int = 100, cached: int = 0) -> RequestRecord:
    """`request_ns` with its times in milliseconds."""
    return request_ns(index, round(sent_ms * MS), [round(t_ms * MS) for t_ms in chunk_ms], prompt, cached)


def with_tail(record: RequestRecord, tokens: int, tail_ms: float, open_ms: float = 0) -> RequestRecord:
    """The same request with so many tokens more, which had no chunk and came within `tail_ms` after the last one; the
    body ended `open_ms` later."""
    if record.last_token_ns is None:
        return record
    last_ns = record.last_token_ns + round(tail_ms * MS if tokens else 0)
    return msgspec.structs.replace(
        record,
        last_token_ns=last_ns,
        finished_ns=last_ns + round(open_ms * MS) + 1,
        output_tokens=(record.output_tokens or 0) + tokens,
        token_source="usage",
    )


def counter(edges_ms: list[float], joules: list[float], name: str = "gpu:0") -> EnergySeries:
    """The series of a counter that grew by so many joules in each window."""
    cumulative = np.rint(np.concatenate(([0.0], np.cumsum(joules))) * 1000).astype(np.int64)
    return EnergySeries(name, np.rint(np.array(edges_ms) * MS).astype(np.int64), cumulative)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[EnergySeries], list[RequestRecord]]:
    """A few requests at any instants, one or two counters with any energies."""
    records = []
    for index in range(draw(st.integers(0, 6))):
        sent = draw(st.integers(0, 2000))
        gaps = draw(st.lists(st.integers(0, 200), max_size=8))
        chunks = [sent + 1 + sum(gaps[: i + 1]) for i in range(len(gaps))]
        record = request(index, sent, [float(c) for c in chunks], draw(st.integers(1, 5000)))
        records.append(with_tail(record, draw(st.integers(0, 9)), draw(st.integers(0, 300)), draw(st.integers(0, 300))))
    series = []
    for gpu in range(draw(st.integers(1, 2))):
        joules = draw(st.lists(st.floats(0, 70), min_size=2, max_size=40))
        series.append(counter([i * 100.0 for i in range(len(joules) + 1)], joules, f"gpu:{gpu}"))
    return series, records


def engine_samples(*rows: tuple[float, float, float, float]) -> list[dict[str, float]]:
    """Samples as (ms, output tokens, prompt tokens, steps)."""
    names = ("t_ns", "generation_tokens", "prompt_tokens", "iterations")
    return [dict(zip(names, (row[0] * MS, *row[1:]), strict=True)) for row in rows]


def two_steps(foreign: ForeignLoad | None = None) -> EngineSteps:
    """Request 0 prefills 40 tokens after 10 cached ones, then decodes beside request 1; a second each."""
    return EngineSteps(
        start_ns=np.array([0, NS_PER_S]),
        end_ns=np.array([NS_PER_S, 2 * NS_PER_S]),
        iterations=np.array([2.0, 1.0]),
        step=np.array([0, 1, 1], np.int32),
        request=np.array([0, 0, 1], np.int32),
        prefilling=np.array([True, False, True]),
        prefill=np.array([40, 0, 20], np.float32),
        decode=np.array([0, 1, 0], np.float32),
        context=np.array([30, 50, 10], np.float32),
        unseen_ns=np.zeros((0, 2), np.int64),
        foreign=foreign,
    )


def prices(step: float, prefill: float, attention: float, decode: float, read: float) -> Coefficients:
    return Coefficients(
        step_j=step,
        prefill_token_j=prefill,
        prefill_context_j=attention,
        decode_token_j=decode,
        decode_context_j=read,
        idle_w=None,
    )
