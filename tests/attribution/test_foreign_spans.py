"""Other clients' requests are as good as ours when the engine's spans tell of them."""

from typing import Any

import msgspec
import numpy as np
import pytest

from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.foreign_spans import engine_spans, foreign_records, scaled_to_sums
from loadgen.attribution.shapley import attribute_energy
from loadgen.record import RequestRecord
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.telemetry.otlp_parse import RequestSpan
from support.attribution_runs import MS, counter, request

HOUR_MS = 3_600_000


def span(id: str, start_ms: float, first_ms: float, end_ms: float, tokens: int, prefill_ms: float = 0) -> EngineSpan:
    """The engine's span of a request with a prompt of 100 tokens; its prefill took `prefill_ms`."""
    start_ns, prefill_ns, first_ns, end_ns = (
        round(t_ms * MS) for t_ms in (start_ms, first_ms - prefill_ms, first_ms, end_ms)
    )
    return EngineSpan(
        id=id, arrival_ns=start_ns, prefill_ns=prefill_ns, first_token_ns=first_ns, end_ns=end_ns, input_tokens=100,
        output_tokens=tokens,
    )  # fmt: skip


def times_ms(record: RequestRecord) -> list[float]:
    return [t_ns / MS for t_ns in record.chunk_ns]


OURS = request(0, 0, [10.0 * k for k in range(1, 21)])
"""A token every 10 ms until 200."""


def test_a_stranger_beside_us_has_a_token_at_each_of_our_chunks() -> None:
    [record] = foreign_records([OURS], [span("x", 25, 40, 90, 6)], "run")
    assert times_ms(record) == [40, 50, 60, 70, 80, 90]
    assert (record.index, record.sent_ns, record.input_tokens, record.output_tokens) == (1, 25 * MS, 100, 6)


def test_steps_without_us_are_as_many_as_a_stranger_has_tokens() -> None:
    """Four tokens after our last one, at 200."""
    [record] = foreign_records([OURS], [span("x", 170, 180, 260, 7)], "run")
    assert times_ms(record) == [180, 190, 200, 215, 230, 245, 260]


def test_a_stranger_whose_steps_have_several_tokens_was_in_fewer_of_them() -> None:
    """The 12 tokens after the first came in four steps: one at our last token, and three without us."""
    [record] = foreign_records([OURS], [span("x", 170, 190, 260, 13)], "run", tokens_per_step=3.0)
    assert times_ms(record) == [190, 200, 220, 240, 260]
    assert record.output_tokens == 13


def test_no_step_ends_inside_a_prefill() -> None:
    """Two of three tokens come before the prefill of another stranger, which ends the gap."""
    spans = [span("x", 170, 180, 260, 5), span("y", 210, 260, 260, 1, prefill_ms=40)]
    record, alone = foreign_records([OURS], spans, "run")
    assert times_ms(record) == [180, 190, 200, 220, 260]
    assert times_ms(alone) == [260]


def test_two_strangers_share_the_steps_without_us() -> None:
    spans = [span("x", 0, 200, 300, 11), span("y", 0, 250, 300, 6)]
    x, y = foreign_records([OURS], spans, "run")
    assert times_ms(x) == [200, 210, 220, 230, 240, 250, 260, 270, 280, 290, 300]
    assert times_ms(y) == [250, 260, 270, 280, 290, 300]


def test_the_spans_of_our_own_requests_set_the_clock() -> None:
    """An engine's clock is an hour ahead, and an answer takes 2 ms to the client, a request 1 ms to the engine."""
    ours = span("run-0", HOUR_MS + 1, HOUR_MS + 8, HOUR_MS + 198, 20)
    spans = [ours, span("x", HOUR_MS + 25, HOUR_MS + 38, HOUR_MS + 88, 6)]
    [record] = foreign_records([OURS], spans, "run")
    assert times_ms(record) == [40, 50, 60, 70, 80, 90]
    assert record.sent_ns == 24 * MS


@pytest.mark.parametrize("index", [0, 7])
def test_spans_of_our_own_requests_are_no_strangers(index: int) -> None:
    """Request 7 has no record with a chunk."""
    assert foreign_records([OURS], [span(f"run-{index}", 0, 10, 200, 20)], "run") == []


def test_without_a_span_of_ours_the_wall_clock_sets_the_time() -> None:
    spans = [span("x", HOUR_MS + 25, HOUR_MS + 40, HOUR_MS + 90, 6)]
    [record] = foreign_records([OURS], spans, "run", HOUR_MS * MS)
    assert times_ms(record) == [40, 50, 60, 70, 80, 90]
    assert record.sent_ns == 25 * MS


REQUEST = RequestSpan(
    key="x", request_id="chatcmpl-x", client=False, start_ns=5, prefill_ns=10, first_token_ns=30, end_ns=90,
    input_tokens=7, output_tokens=4, cached_tokens=2, model="m", workload="chat", ok=True,
)  # fmt: skip


def test_a_span_of_the_engine_says_when_a_request_ran_and_nothing_of_who_sent_it() -> None:
    assert engine_spans([REQUEST]) == [
        EngineSpan(
            id="x", arrival_ns=5, prefill_ns=10, first_token_ns=30, end_ns=90, input_tokens=7, output_tokens=4,
            cached_tokens=2,
        )
    ]  # fmt: skip
    [untold] = engine_spans([msgspec.structs.replace(REQUEST, first_token_ns=None)])
    assert untold.first_token_ns == 10 + 80 // 4


@pytest.mark.parametrize("change", [{"client": True}, {"output_tokens": None}, {"output_tokens": 0}])
def test_spans_of_clients_and_without_tokens_are_left_out(change: dict[str, Any]) -> None:
    assert engine_spans([msgspec.structs.replace(REQUEST, **change)]) == []


def test_a_span_with_more_tokens_than_its_time_holds_has_a_step_a_millisecond() -> None:
    [record] = foreign_records([OURS], [span("x", 200, 300, 400, 100_000_000)], "run")
    assert 50 <= len(record.chunk_ns) <= 102


def test_strangers_without_a_run_of_ours_have_records() -> None:
    [record] = foreign_records([], [span("x", 0, 10, 40, 4)], "run")
    assert times_ms(record) == [10, 20, 30, 40]


def test_the_energy_of_a_stranger_is_unattributed_and_what_it_would_be_if_it_were_ours() -> None:
    spans = [span("x", 25, 40, 300, 27)]
    series = [counter([0, 100, 200, 300, 400], [30, 40, 20, 5])]
    strangers = foreign_records([OURS], spans, "run")
    shared = steps_beside_others([OURS], (), spans, "run")
    alone = attribute_energy(series, [OURS], 0, 400 * MS, shared=shared)
    both = attribute_energy(series, [OURS, *strangers], 0, 400 * MS)
    assert alone.attributed_mj + alone.unattributed_mj + alone.idle_mj == alone.measured_mj == 95_000
    assert alone.requests == both.requests[:1]
    assert alone.unattributed_mj - both.unattributed_mj == round(both.requests[1].joules * 1000)
    assert both.requests[1].joules > 10


def test_values_are_scaled_to_sums_that_agree() -> None:
    truth = np.array([3.0, 0.0, 5.0, 2.0])
    first, last = np.array([0, 2, 0]), np.array([3, 4, 4])
    sums = np.array([truth[a:b].sum() for a, b in zip(first, last, strict=True)])
    scaled = scaled_to_sums(np.array([1.0, 0.0, 1.0, 1.0]), first, last, sums)
    assert [scaled[a:b].sum() for a, b in zip(first, last, strict=True)] == pytest.approx(sums.tolist(), rel=5e-2)
    assert scaled[1] == 0
