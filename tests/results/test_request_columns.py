"""Columns of the completed requests: what each was, and the load that it met."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.results.request_columns import queue_at, request_columns
from loadgen.results.run_folder import RunResult
from loadgen.units import NS_PER_S
from support import sample_runs


def run_of(*spans: tuple[float, float, float], **changes: object) -> RunResult:
    """A run of requests (sent, first token, finished), in seconds."""
    made = sample_runs.run(num_requests=len(spans), failing=0)
    start = sample_runs.START_NS
    records = [
        msgspec.structs.replace(
            record, scheduled_ns=start + int(sent * NS_PER_S), sent_ns=start + int(sent * NS_PER_S),
            first_token_ns=start + int(first * NS_PER_S), last_token_ns=start + int(end * NS_PER_S),
            finished_ns=start + int(end * NS_PER_S),
            chunk_ns=[start + int(first * NS_PER_S), start + int(end * NS_PER_S)],
        )
        for record, (sent, first, end) in zip(made.records, spans, strict=True)
    ]  # fmt: skip
    return replace(made, records=records, **changes)


def test_a_request_meets_the_others_that_are_in_flight_when_it_is_sent() -> None:
    columns = request_columns(run_of((0, 1, 4), (2, 3, 6), (3.5, 5, 6), (8, 9, 10)))
    assert columns.sent_s.tolist() == [0, 2, 3.5, 8]
    assert columns.ttft_s.tolist() == [1, 1, 1.5, 1]
    assert columns.in_flight.tolist() == [0, 1, 2, 0]
    assert columns.waiting.tolist() == [0, 0, 0, 0]
    assert request_columns(run_of((0, 5, 6), (1, 5, 6), (2, 5, 6))).waiting.tolist() == [0, 1, 2]


def test_the_mean_in_flight_counts_the_request_itself_and_is_weighted_by_time() -> None:
    columns = request_columns(run_of((0, 1, 4), (2, 3, 6), (8, 9, 10)))
    assert columns.mean_in_flight == pytest.approx([1.5, 1.5, 1.0])
    whole = request_columns(sample_runs.run())
    lasted = whole.e2e_s
    assert float(np.sum(whole.mean_in_flight * lasted)) >= float(lasted.sum())


def test_failed_requests_are_in_no_row_and_load_the_server_all_the_same() -> None:
    made = run_of((0, 1, 4), (2, 3, 6))
    failed = msgspec.structs.replace(made.records[0], error="timeout")
    columns = request_columns(replace(made, records=[failed, made.records[1]]))
    assert columns.index.tolist() == [1] and columns.in_flight.tolist() == [1]
    assert len(request_columns(sample_runs.without_completions()).index) == 0


def test_the_queue_is_that_of_the_last_reading_before_and_unknown_without_one() -> None:
    engine = [{"t_ns": 10 * NS_PER_S, "waiting": 3.0}, {"t_ns": 11 * NS_PER_S}, {"t_ns": 12 * NS_PER_S, "waiting": 7.0}]
    instants = np.array([9, 10, 11.9, 12, 17, 17.1]) * NS_PER_S
    assert np.array_equal(queue_at(engine, instants.astype(np.int64)), [np.nan, 3, 3, 7, 7, np.nan], equal_nan=True)
    assert np.isnan(queue_at([], np.array([1]))).all()


def test_preemptions_are_counted_from_the_reading_before_to_the_reading_after() -> None:
    start = sample_runs.START_NS
    engine = [{"t_ns": start + k * NS_PER_S, "preemptions": float(n)} for k, n in enumerate((5, 5, 7, 8, 8, 1))]
    columns = request_columns(run_of((0, 0.5, 1), (1.5, 2, 2.5), (4, 4.5, 5), engine=engine))
    assert columns.preemptions.tolist() == [0, 3, 1]  # the engine restarted: it counts from 0 again
    assert np.isnan(request_columns(run_of((0, 1, 2))).preemptions).all()


def test_joules_are_those_of_the_attribution_and_unknown_without_energy() -> None:
    made = sample_runs.run(num_requests=30, failing=0.2)
    assert made.attribution is not None
    columns = request_columns(made)
    assert dict(zip(columns.index.tolist(), columns.joules.tolist(), strict=True)) == {
        share.index: share.joules for share in made.attribution.requests
    }
    assert np.isnan(request_columns(sample_runs.without_energy()).joules).all()
