"""Steps rebuilt from chunks, on tables computed by hand."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given

from loadgen.attribution.chunk_steps import BURST_GAP_NS, MISSED_STEPS, SLICE, SLICED_NS, engine_steps_of
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS
from support.attribution_runs import MS, engine_samples, request, request_ns, runs, with_tail


def test_three_requests_by_hand() -> None:
    """Request 1 joins the second step, request 2 is alone after a pause: 5 steps, 7 memberships."""
    ms = NS_PER_MS
    steps = engine_steps_of(
        [
            request_ns(0, 0, [10 * ms, 20 * ms, 30 * ms], prompt=50),
            request_ns(1, 12 * ms, [20 * ms, 30 * ms], prompt=70),
            request_ns(2, 100 * ms, [140 * ms, 150 * ms], prompt=90),
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


def test_an_answer_that_came_whole_is_one_prefill_that_ends_with_it() -> None:
    """Requests 0 and 1 end together; request 2 waits for them; request 3 failed and is in no step."""
    rows = [(0, 10, 50, None), (4, 10, 70, None), (5, 30, 90, None), (40, 50, 9, "http")]
    whole = [
        msgspec.structs.replace(
            request(i, sent_ms, [], prompt=prompt), finished_ns=end_ms * MS, output_tokens=None, error=error
        )
        for i, (sent_ms, end_ms, prompt, error) in enumerate(rows)
    ]
    steps = engine_steps_of(whole)
    assert (steps.start_ns // MS).tolist() == [0, 10]
    assert (steps.end_ns // MS).tolist() == [10, 30]
    assert (steps.step.tolist(), steps.request.tolist()) == ([0, 0, 1], [0, 1, 2])
    assert (steps.prefill.tolist(), steps.decode.tolist()) == ([50, 70, 90], [0, 0, 0])
    assert steps.prefilling.all()


@pytest.mark.parametrize(("gap_ns", "count"), [(BURST_GAP_NS - 1, 1), (BURST_GAP_NS, 2)])
def test_chunks_less_than_the_burst_gap_apart_are_of_one_step(gap_ns: int, count: int) -> None:
    start = 10 * NS_PER_MS
    assert engine_steps_of([request_ns(0, 0, [start]), request_ns(1, 0, [start + gap_ns])]).count == count


@pytest.mark.parametrize(("streams", "gap_ns", "count"), [
    (SLICE, SLICED_NS - 1, 1),
    (SLICE, SLICED_NS, 2),
    (SLICE - 1, SLICED_NS - 1, 2),
])  # fmt: skip
def test_slices_are_joined_only_after_a_large_burst_and_within_their_time(
    streams: int, gap_ns: int, count: int
) -> None:
    start = 500 * NS_PER_MS
    slices = [request_ns(i, 0, [start]) for i in range(streams)]
    assert engine_steps_of([*slices, request_ns(streams, 0, [start + gap_ns])]).count == count


def test_the_time_of_slices_counts_from_the_first_of_them() -> None:
    """Three slices 60 ms apart: the third is 120 ms after the first, and so of another step."""
    gap = 60 * NS_PER_MS
    records = [request_ns(i, 0, [gap * (1 + i // SLICE)]) for i in range(3 * SLICE)]
    assert np.bincount(engine_steps_of(records).step).tolist() == [2 * SLICE, SLICE]


@pytest.mark.parametrize(("again", "sizes"), [(SLICE // 2, [1, 2 * SLICE, 2]), (None, [1, 2 * SLICE + 1])])
def test_a_slice_with_a_stream_of_the_step_is_of_the_next(again: int | None, sizes: list[int]) -> None:
    """A stream alone, then two slices of SLICE streams, then a new stream: beside one of the first slice, or not."""
    alone, newcomer = request_ns(0, 0, [10 * MS], prompt=1), request_ns(1 + 2 * SLICE, 0, [520 * MS], prompt=1)
    slices = [
        request_ns(1 + i, 0, [500 * MS + i // SLICE * 10 * MS, 520 * MS][: 1 + (i == again)], prompt=1)
        for i in range(2 * SLICE)
    ]
    assert np.bincount(engine_steps_of([alone, *slices, newcomer]).step).tolist() == sizes


@pytest.mark.parametrize(("missed", "preempted"), [(MISSED_STEPS - 1, 0), (MISSED_STEPS, 1)])
def test_a_stream_is_preempted_when_it_misses_enough_steps(missed: int, preempted: int) -> None:
    """A step that it misses is one in which another stream gets a chunk."""
    ms = NS_PER_MS
    steady = request_ns(0, 0, [10 * ms * k for k in range(1, 20)])
    paused = request_ns(1, 0, [10 * ms, 20 * ms, (30 + 10 * missed) * ms])
    steps = engine_steps_of([steady, paused])
    assert int(steps.prefilling.sum()) - 2 == preempted


def test_no_record_is_no_step() -> None:
    steps = engine_steps_of([])
    assert steps.count == 0 and len(steps.step) == 0 and steps.unseen_ns.shape == (0, 2)


@pytest.mark.parametrize("jitter_ms", [0.0, 0.2])
def test_steps_are_found_from_the_chunks(jitter_ms: float) -> None:
    """Three streams in lockstep every 6 ms, a fourth joins; each step has every stream that was in it."""
    streams = [request(i, 0, [10 + 6 * k + jitter_ms * i for k in range(20)]) for i in range(3)]
    joined = request(3, 50, [10 + 6 * k + jitter_ms * 3 for k in range(10, 20)])
    work = engine_steps_of([*streams, joined])
    assert work.count == 20
    assert np.bincount(work.step).tolist() == [3] * 10 + [4] * 10
    assert work.prefilling.sum() == 4


def test_a_late_reader_sees_several_steps_at_once() -> None:
    """The client slept for four steps: each stream's chunks come with one time stamp, and are still four steps."""
    streams = [
        request(i, 0, [10, 16, 40 + 0.03 * i, 40 + 0.03 * i, 40 + 0.03 * i, 40 + 0.03 * i, 46]) for i in range(3)
    ]
    assert np.bincount(engine_steps_of(streams).step).tolist() == [3] * 7


@pytest.mark.parametrize("slice_of", [100, 128, 300])
def test_a_server_hands_on_the_outputs_of_a_step_in_slices(slice_of: int) -> None:
    """300 streams, 4 ms between the slices of a step."""
    work = engine_steps_of([request(i, 0, [10 + 40 * k + 4 * (i // slice_of) for k in range(12)]) for i in range(300)])
    assert np.bincount(work.step).tolist() == [300] * 12


def test_small_bursts_are_steps_of_their_own() -> None:
    assert (
        engine_steps_of([request(i, 0, [10 + 80 * k + 4 * (i // 20) for k in range(12)]) for i in range(300)]).count
        == 180
    )


def test_a_step_starts_when_the_one_before_ends_or_when_its_first_newcomer_came() -> None:
    work = engine_steps_of([request(0, 5, [30, 36]), request(1, 100, [120, 126])])
    assert (work.start_ns / MS).tolist() == [5, 30, 100, 120]
    assert (work.end_ns / MS).tolist() == [30, 36, 120, 126]


@pytest.mark.parametrize(("open_ns", "unseen"), [(BURST_GAP_NS - 1, 0), (BURST_GAP_NS, 1)])
def test_a_moment_in_flight_is_unseen_from_the_burst_gap_on(open_ns: int, unseen: int) -> None:
    record = msgspec.structs.replace(request(0, 0, [10, 20]), finished_ns=20 * MS + open_ns)
    assert engine_steps_of([record]).unseen_ns.tolist() == [[20 * MS, 20 * MS + open_ns]][:unseen]


@pytest.mark.parametrize("unknown", ["sent_ns", "finished_ns"])
def test_a_request_that_was_not_sent_or_not_finished_has_no_unseen_time(unknown: str) -> None:
    record = msgspec.structs.replace(request(0, 100, []), **{unknown: None})
    assert engine_steps_of([record]).unseen_ns.tolist() == []


def test_cached_prompt_tokens_are_no_prefill_work() -> None:
    work = engine_steps_of([request(0, 0, [10, 16], prompt=1000, cached=960)])
    assert work.prefill.tolist() == [40, 0]
    assert work.context.tolist() == [980, 1000]


@pytest.mark.parametrize(
    ("prompts", "first_tokens_ms", "counted"),
    [
        ([None, None], [30, 60], [30, 60]),
        ([100, None], [50, 30], [100, 60]),
        ([100, 300, None], [50, 50, 10], [100, 300, 40]),
        ([7, 9], [10, 30], [7, 9]),
        ([0, None], [10, 30], [0, 0]),
    ],
)
def test_a_prompt_of_unknown_length_counts_by_the_time_to_its_first_token(
    prompts: list[int | None], first_tokens_ms: list[float], counted: list[float]
) -> None:
    records = [
        msgspec.structs.replace(request(i, 1000 * i, [1000 * i + first, 1000 * i + 500]), input_tokens=prompt)
        for i, (prompt, first) in enumerate(zip(prompts, first_tokens_ms, strict=True))
    ]
    steps = engine_steps_of(records)
    assert steps.prefill[steps.prefilling].tolist() == pytest.approx(counted)
    assert steps.context[steps.decode > 0].tolist() == pytest.approx(counted)


def test_several_tokens_in_a_chunk() -> None:
    """Speculative decoding: 4 chunks after the first for 12 tokens are 3 tokens each."""
    record = request(0, 0, [10, 16, 22, 28, 34])
    many = RequestRecord(**{f: getattr(record, f) for f in record.__struct_fields__} | {"output_tokens": 13})
    assert engine_steps_of([many]).decode.tolist() == [0, 3, 3, 3, 3]


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_a_chunk_is_a_token_where_none_are_counted_after_the_first(tokens: int | None) -> None:
    record = msgspec.structs.replace(request(0, 0, [10, 16, 22]), output_tokens=tokens)
    assert engine_steps_of([record]).decode.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("chunks", "tokens", "tail_ms", "ends"),
    [
        ([10, 20, 30], 3, 30, [10, 20, 30, 40, 50, 60]),
        ([10, 20, 30], 1, 30, [10, 20, 30, 60]),
        ([10, 20, 30], 9, 21, [10, 20, 30, 40.5, 51]),
        ([10, 20, 30], 9, 0.5, [10, 20, 30]),
        ([10, 20, 30], 9, 1, [10, 20, 30, 31]),
        ([10, 20, 30], 0, 30, [10, 20, 30]),
        ([10], 2, 20, [10, 20, 30]),
        ([10], 1 << 30, 20, [10 + k for k in range(21)]),
        ([10, 10], 3, 3, [10, 10, 11, 12, 13]),
    ],
)
def test_tokens_after_the_last_chunk_are_steps_at_the_pace_of_those_before_it(
    chunks: list[float], tokens: int, tail_ms: float, ends: list[float]
) -> None:
    record = with_tail(request(0, 0, chunks), tokens, tail_ms)
    steps = engine_steps_of([record])
    assert (steps.end_ns / MS).tolist() == ends
    assert steps.decode.sum() == pytest.approx(len(chunks) + tokens - 1)


def test_a_tail_shares_the_steps_of_the_streams_beside_it() -> None:
    beside = request(0, 0, [12 + 10 * k for k in range(9)])
    steps = engine_steps_of([beside, with_tail(request(1, 0, [12, 22, 32]), tokens=3, tail_ms=27)])
    assert (steps.end_ns / MS).tolist() == [12 + 10 * k for k in range(9)]
    assert np.bincount(steps.step).tolist() == [2, 2, 2, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("others", "ends"),
    [
        ([38, 47], [38, 47, 60]),
        ([42, 53], [42, 53, 60]),
        ([45, 48], [40, 45, 48, 60]),  # 45 is half the pace from 40 and from 50: it may be either
        ([34, 64.9], [34, 40, 50, 64.9]),
        ([1, 90], [1, 40, 50, 60, 90]),
    ],
)
def test_a_token_of_a_tail_is_of_the_nearest_step_within_half_its_pace(others: list[float], ends: list[float]) -> None:
    tail = with_tail(request(0, 0, [10, 20, 30]), tokens=3, tail_ms=30)
    steps = engine_steps_of([tail, request(1, 0, others)])
    assert sorted({*(steps.end_ns / MS).tolist()} - {10, 20, 30}) == ends


def test_a_tail_of_two_tokens_shares_steps_too() -> None:
    tail = with_tail(request(0, 0, [10, 20, 30]), tokens=2, tail_ms=20)
    steps = engine_steps_of([tail, request(1, 0, [41, 52])])
    assert (steps.end_ns / MS).tolist() == [10, 20, 30, 41, 52]


@pytest.mark.parametrize(("unknown", "steps"), [({"last_token_ns": None}, 2), ({"chunk_ns": []}, 0)])
def test_a_tail_without_a_beginning_or_an_end_is_left_out(unknown: dict[str, object], steps: int) -> None:
    record = with_tail(request(0, 0, [10, 20]), tokens=3, tail_ms=30)
    assert engine_steps_of([msgspec.structs.replace(record, **unknown)]).count == steps


@given(runs())
def test_every_moment_of_a_request_in_flight_is_in_a_step_or_unseen(
    run: tuple[list[EnergySeries], list[RequestRecord]],
) -> None:
    records = run[1]
    steps = engine_steps_of(records)
    known = [*zip(steps.start_ns.tolist(), steps.end_ns.tolist(), strict=True), *map(tuple, steps.unseen_ns.tolist())]
    for record in records:
        for instant in range(record.sent_ns or 0, record.finished_ns or 0, 7 * MS):
            assert any(a - BURST_GAP_NS <= instant <= b + BURST_GAP_NS for a, b in known)
    edges = sorted(known)
    assert all(end <= start for (_, end), (start, _) in pairwise(edges))
    in_flight = [(record.sent_ns or 0, record.finished_ns or 0) for record in records]
    middles = steps.unseen_ns.mean(axis=1)
    assert all(any(sent <= middle <= finished for sent, finished in in_flight) for middle in middles)


def test_a_stream_left_out_of_many_steps_was_preempted_and_computes_its_context_again() -> None:
    steady = request(0, 0, [10 + 6 * k for k in range(30)], prompt=50)
    paused = request(1, 0, [10, 16, 22, *(22 + 6 * k for k in range(10, 14))], prompt=500)
    work = engine_steps_of([steady, paused])
    again = work.prefilling & (work.request == 1) & (work.step > 0)
    assert work.prefill[again].tolist() == [502]
    assert work.decode[again].tolist() == [0]
    says_none = [{"t_ns": 0.0, "preemptions": 3.0}, {"t_ns": 1e9, "preemptions": 3.0}]
    assert engine_steps_of([steady, paused], says_none).prefilling.sum() == 2
    says_late = [{"t_ns": t_ns, "preemptions": count} for t_ns, count in ((0.0, 3.0), (1e8, 3.0), (1e9, 4.0))]
    assert engine_steps_of([steady, paused], says_late).prefilling.sum() == 3


def test_the_engine_says_how_much_of_the_prompts_was_cached() -> None:
    record = request(0, 0, [10, 16], prompt=1000)
    unsaid = RequestRecord(**{f: getattr(record, f) for f in record.__struct_fields__} | {"cached_tokens": None})
    counters = engine_samples((-1, 0, 0, 0), (100, 2, 1000, 2))
    counters = [sample | {"cached_tokens": cached} for sample, cached in zip(counters, (0.0, 800.0), strict=True)]
    assert engine_steps_of([unsaid], counters).prefill.tolist() == [200, 0]
    for outside in ([4, 16], [100, 116]):  # before the first sample, at the last
        record = msgspec.structs.replace(request(0, 0, outside, prompt=1000), cached_tokens=None)
        late = [sample | {"t_ns": sample["t_ns"] + 6 * MS} for sample in counters]
        late[1]["t_ns"] = 100 * MS
        assert engine_steps_of([record], late).prefill.tolist() == [1000, 0]
    still = [sample | {"cached_tokens": 0.0, "prompt_tokens": 0.0} for sample in counters]
    assert engine_steps_of([unsaid], still).prefill.tolist() == [1000, 0]
    for missing in ("cached_tokens", "prompt_tokens"):
        some = [{name: value for name, value in sample.items() if name != missing} for sample in counters]
        assert engine_steps_of([unsaid], some).prefill.tolist() == [1000, 0]
