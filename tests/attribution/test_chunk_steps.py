"""Steps rebuilt from chunks, on tables computed by hand."""

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import BURST_GAP_NS, MISSED_STEPS, SLICE, SLICED_NS, engine_steps_of
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS


def request(index: int, sent_ns: int, chunk_ns: list[int], prompt: int = 100) -> RequestRecord:
    return RequestRecord(
        index=index,
        workload="chat",
        scheduled_ns=sent_ns,
        sent_ns=sent_ns,
        first_token_ns=chunk_ns[0],
        last_token_ns=chunk_ns[-1],
        finished_ns=chunk_ns[-1],
        chunk_ns=chunk_ns,
        input_tokens=prompt,
        output_tokens=len(chunk_ns),
        cached_tokens=0,
    )


def test_three_requests_by_hand() -> None:
    """Request 1 joins the second step, request 2 is alone after a pause: 5 steps, 7 memberships."""
    ms = NS_PER_MS
    steps = engine_steps_of(
        [
            request(0, 0, [10 * ms, 20 * ms, 30 * ms], prompt=50),
            request(1, 12 * ms, [20 * ms, 30 * ms], prompt=70),
            request(2, 100 * ms, [140 * ms, 150 * ms], prompt=90),
        ]
    )
    assert (steps.start_ns // ms).tolist() == [0, 10, 20, 100, 140]
    assert (steps.end_ns // ms).tolist() == [10, 20, 30, 140, 150]
    assert steps.step.tolist() == [0, 1, 2, 1, 2, 3, 4]
    assert steps.request.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert steps.prefilling.tolist() == [True, False, False, True, False, True, False]
    assert steps.prefill.tolist() == [50, 0, 0, 70, 0, 90, 0]
    assert steps.decode.tolist() == [0, 1, 1, 0, 1, 0, 1]
    assert steps.context.tolist() == [25, 50, 51, 35, 70, 45, 90]
    assert steps.iterations.tolist() == [1] * 5


@pytest.mark.parametrize(("gap_ns", "count"), [(BURST_GAP_NS - 1, 1), (BURST_GAP_NS, 2)])
def test_chunks_less_than_the_burst_gap_apart_are_of_one_step(gap_ns: int, count: int) -> None:
    start = 10 * NS_PER_MS
    assert engine_steps_of([request(0, 0, [start]), request(1, 0, [start + gap_ns])]).count == count


@pytest.mark.parametrize(("streams", "gap_ns", "count"), [
    (SLICE, SLICED_NS - 1, 1),
    (SLICE, SLICED_NS, 2),
    (SLICE - 1, SLICED_NS - 1, 2),
])  # fmt: skip
def test_slices_are_joined_only_after_a_large_burst_and_within_their_time(
    streams: int, gap_ns: int, count: int
) -> None:
    start = 500 * NS_PER_MS
    slices = [request(i, 0, [start]) for i in range(streams)]
    assert engine_steps_of([*slices, request(streams, 0, [start + gap_ns])]).count == count


def test_the_time_of_slices_counts_from_the_first_of_them() -> None:
    """Three slices 60 ms apart: the third is 120 ms after the first, and so of another step."""
    gap = 60 * NS_PER_MS
    records = [request(i, 0, [gap * (1 + i // SLICE)]) for i in range(3 * SLICE)]
    assert np.bincount(engine_steps_of(records).step).tolist() == [2 * SLICE, SLICE]


@pytest.mark.parametrize(("missed", "preempted"), [(MISSED_STEPS - 1, 0), (MISSED_STEPS, 1)])
def test_a_stream_is_preempted_when_it_misses_enough_steps(missed: int, preempted: int) -> None:
    """A step that it misses is one in which another stream gets a chunk."""
    ms = NS_PER_MS
    steady = request(0, 0, [10 * ms * k for k in range(1, 20)])
    paused = request(1, 0, [10 * ms, 20 * ms, (30 + 10 * missed) * ms])
    steps = engine_steps_of([steady, paused])
    assert int(steps.prefilling.sum()) - 2 == preempted


def test_no_record_is_no_step() -> None:
    steps = engine_steps_of([])
    assert steps.count == 0 and len(steps.step) == 0 and steps.unseen_ns.shape == (0, 2)
