"""A schedule has the requested rate and lengths, and the same bytes for the same seed."""

import hashlib
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.stats.distributions import index_of_dispersion, ks_exponential
from loadgen.units import NS_PER_S
from loadgen.workload import schedule
from loadgen.workload.arrivals import points_of
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.schedule import (
    Arrival,
    Scale,
    Schedule,
    ScheduledRequest,
    Stop,
    build_schedule,
    encode_schedule,
    ends_naturally,
    merged_schedule,
    stable_hash63,
    truncated,
)
from loadgen.workload.trace import Trace, TraceRequest
from loadgen.workload.words import WordsRef


def trace(arrivals_s: list[float]) -> Trace:
    requests = tuple(
        TraceRequest(arrival_s=at, input_tokens=10 + i, output_tokens=1 + i, workload="chat")
        for i, at in enumerate(arrivals_s)
    )
    return Trace("t", requests, "0" * 64)


BURSTY = trace([5.0, 5.1, 5.2, 9.0, 9.1, 15.0])


def offsets_s(schedule: Schedule) -> list[float]:
    return [request.offset_ns / NS_PER_S for request in schedule.requests]


def test_a_trace_keeps_its_own_instants_from_zero() -> None:
    assert offsets_s(build_schedule(BURSTY, seed=0)) == pytest.approx([0, 0.1, 0.2, 4.0, 4.1, 10.0])
    assert build_schedule(BURSTY, seed=0).rate_rps == pytest.approx(0.5)


def test_rps_is_the_mean_rate_and_the_burst_shape_stays() -> None:
    plan = build_schedule(BURSTY, seed=0, rps=5)
    assert offsets_s(plan) == pytest.approx([0, 0.01, 0.02, 0.4, 0.41, 1.0])
    assert 5 / offsets_s(plan)[-1] == pytest.approx(plan.rate_rps or 0)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"duration_s": 4.0}, 3),
        ({"duration_s": 4.05}, 4),
        ({"num_requests": 2}, 2),
        ({"duration_s": 2.0, "rps": 2.0}, 4),
        ({"duration_s": 0.1, "rps": 2.0}, 1),
        ({"duration_s": 100.0, "rps": 2.0}, 6),
        ({"duration_s": 2.0, "rps": 2.0, "num_requests": 3}, 3),
        ({"arrival": "constant", "rps": 2.0}, 6),
        ({"arrival": "constant", "rps": 2.0, "duration_s": 5.0}, 10),
        ({"arrival": "constant", "rps": 2.0, "num_requests": 13}, 13),
    ],
)
def test_duration_and_number_of_requests_end_a_schedule(options: dict, count: int) -> None:  # type: ignore[type-arg]
    plan = build_schedule(BURSTY, seed=0, **options)
    assert len(plan.requests) == count
    assert [request.index for request in plan.requests] == list(range(count))


@pytest.mark.parametrize("rps", [0.5, 4.0])
def test_a_slice_of_the_trace_has_the_requested_rate_too(rps: float) -> None:
    plan = build_schedule(
        trace(list(np.random.default_rng(0).exponential(1, 500).cumsum())), seed=0, rps=rps, duration_s=30
    )
    assert (len(plan.requests) - 1) / offsets_s(plan)[-1] == pytest.approx(rps)


def test_lengths_follow_the_trace_and_go_round_again() -> None:
    plan = build_schedule(BURSTY, seed=0, arrival="poisson", rps=10, num_requests=14)
    assert [request.input_tokens for request in plan.requests] == [10, 11, 12, 13, 14, 15] * 2 + [10, 11]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_thousand_poisson_arrivals_are_poisson(seed: int) -> None:
    plan = build_schedule(BURSTY, seed=seed, arrival="poisson", rps=4, num_requests=10_000)
    at = np.array(offsets_s(plan))
    assert 0.9 <= (index_of_dispersion(at, 1.0) or 0) <= 1.1
    distance, critical = ks_exponential(np.diff(at))
    assert distance < critical


def test_same_seed_same_bytes() -> None:
    first, repeated, other = (
        build_schedule(BURSTY, seed=s, arrival="poisson", rps=4, num_requests=50) for s in (7, 7, 8)
    )
    assert encode_schedule(first.requests) == encode_schedule(repeated.requests)
    assert first.sha256 == repeated.sha256 != other.sha256


POISSON = trace(list(np.random.default_rng(0).exponential(0.25, 4000).cumsum()))
"""1,000 s at 4/s."""


@pytest.mark.parametrize(("scale", "rps"), [("compress", 2.0), ("thin", 2.0), ("superpose", 9.0), ("superpose", 2.0)])
def test_a_trace_gets_another_rate_three_ways(scale: Scale, rps: float) -> None:
    plan = build_schedule(POISSON, seed=1, rps=rps, scale=scale)
    at = np.array(offsets_s(plan))
    assert np.all(np.diff(at) >= 0)
    assert len(at) / at[-1] == pytest.approx(rps, rel=0.06)
    assert at[-1] == pytest.approx(2000 if scale == "compress" else 1000, rel=0.02)
    short = build_schedule(POISSON, seed=1, rps=rps, scale=scale, duration_s=100)
    assert len(short.requests) == pytest.approx(100 * rps, rel=0.25)
    assert offsets_s(short)[-1] < 101


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=50).filter(lambda t: max(t) - min(t) > 1e-3),
    st.floats(0.01, 1e3),
)
def test_compression_gives_the_requested_rate_and_keeps_the_shape(times: list[float], rps: float) -> None:
    own = np.sort(np.array(times)) - min(times)
    at = np.array(offsets_s(build_schedule(trace(sorted(times)), seed=0, rps=rps)))
    assert (len(at) - 1) / at[-1] == pytest.approx(rps, rel=1e-3)
    np.testing.assert_allclose(at / at[-1], own / own[-1], atol=1e-5)


def test_copies_of_a_trace_share_nothing_but_with_themselves() -> None:
    rows = [
        TraceRequest(arrival_s=i, input_tokens=600, output_tokens=1, session_id="s", prefix_ids=(7,)) for i in range(20)
    ]
    plan = build_schedule(Trace("t", tuple(rows), ""), seed=1, rps=3, scale="superpose")
    groups = {(r.session_id, r.prefix_ids) for r in plan.requests}
    assert len(plan.requests) == pytest.approx(60, abs=20)
    assert len({session for session, _ in groups}) == len({ids for _, ids in groups}) == len(groups) > 2
    repeated = build_schedule(Trace("t", tuple(rows), ""), seed=1, rps=3, arrival="poisson", num_requests=40)
    assert [r.session_id for r in repeated.requests] == ["s"] * 20 + ["s+1"] * 20
    assert repeated.requests[0].prefix_ids == (7,) != repeated.requests[20].prefix_ids


def test_thinning_keeps_or_drops_a_session_whole() -> None:
    rows = [TraceRequest(arrival_s=i, input_tokens=1, output_tokens=1, session_id=f"s{i % 200}") for i in range(1000)]
    kept = build_schedule(Trace("t", tuple(rows), ""), seed=1, rps=0.5, scale="thin").requests
    assert set(Counter(r.session_id for r in kept).values()) == {5}
    assert len(kept) == pytest.approx(500, abs=110)


@pytest.mark.parametrize("arrival", ["trace", "poisson", "gamma", "constant"])
def test_a_shape_sets_the_rate_of_every_moment_of_any_process(arrival: Arrival) -> None:
    plan = build_schedule(POISSON, seed=1, arrival=arrival, shape=points_of("step:2:8:0:100"))
    at = np.array(offsets_s(plan))
    counts = [int(((at >= k * 100) & (at < (k + 1) * 100)).sum()) for k in range(3)]
    assert counts[0] == pytest.approx(200, rel=0.25) and counts[1] == pytest.approx(800, rel=0.15) and counts[2] == 0
    assert plan.rate_rps == pytest.approx(10 / 3)
    longer = build_schedule(POISSON, seed=1, arrival=arrival, shape=points_of("ramp:2:4:10"), duration_s=110)
    assert len(longer.requests) == pytest.approx(30 + 400, rel=0.2)


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        (BURSTY, {"num_requests": 7}, "--num-requests 7, but trace t has 6"),
        (trace([0.0]), {"arrival": "poisson"}, "no mean rate"),
        (trace([3.0, 3.0]), {"rps": 2.0}, "same instant"),
        (BURSTY, {"shape": [(0, 1), (5, 2)], "rps": 2.0}, "leave out --rps"),
        (BURSTY, {"scale": "thin"}, "needs --rps"),
        (BURSTY, {"scale": "thin", "rps": 1.0, "arrival": "poisson"}, "no --arrival"),
        (BURSTY, {"scale": "thin", "rps": 5.0}, r"trace t has 0\.5 requests/s and cannot be thinned to 5"),
        (trace([3.0, 3.0]), {"rps": 2.0, "scale": "superpose"}, "same instant"),
        (BURSTY, {"shape": [(0, 0), (5, 0), (5, 3), (9, 3)], "duration_s": 4.0}, "falls into 4 s of this shape"),
        (BURSTY, {"arrival": "poisson", "rps": 1e-6, "duration_s": 0.001}, "no request falls"),
    ],
)
def test_a_schedule_that_cannot_be_planned_is_an_error(trace: Trace, options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(LoadgenError, match=message):
        build_schedule(trace, seed=0, **options)


@pytest.mark.parametrize("rps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_and_finite_is_an_error(rps: float) -> None:
    with pytest.raises(LoadgenError, match="finite and above 0"):
        build_schedule(BURSTY, seed=0, rps=rps)


def test_one_request_has_no_rate() -> None:
    assert build_schedule(trace([3.0]), seed=0).rate_rps is None
    assert offsets_s(build_schedule(trace([3.0]), seed=0, rps=2)) == [0.0]


def test_passes_through_a_trace_are_numbered_and_relabeled() -> None:
    rows = tuple(
        TraceRequest(arrival_s=i, input_tokens=1 + i, output_tokens=1, session_id=session, prefix_ids=ids)
        for i, (session, ids) in enumerate([("s", ()), (None, (7,)), (None, ())])
    )
    plan = build_schedule(Trace("t", rows, ""), seed=0, rps=1, arrival="constant", num_requests=7).requests
    assert [r.input_tokens for r in plan] == [1, 2, 3, 1, 2, 3, 1]
    assert [r.session_id for r in plan] == ["s", None, None, "s+1", None, None, "s+2"]
    assert [r.prefix_ids for r in plan] == [(), (7,), (), (), (stable_hash63("1/7"),), (), ()]


def test_a_stable_hash_is_63_bits_of_blake2b() -> None:
    assert stable_hash63("") == 0xE4A6A0577479B2B4 >> 1
    assert all(0 <= stable_hash63(str(i)) < 2**63 for i in range(200))


@pytest.mark.parametrize(("duration_s", "count"), [(0.09, 1), (0.11, 2), (4.0, 3), (10.0, 5), (10.0000001, 6)])
def test_an_own_arrival_at_the_very_end_is_left_out(duration_s: float, count: int) -> None:
    assert len(build_schedule(BURSTY, seed=0, duration_s=duration_s).requests) == count


def test_all_requests_of_a_trace_may_be_requested_and_a_rate_equal_to_its_own_thins_nothing() -> None:
    assert len(build_schedule(BURSTY, seed=0, num_requests=6).requests) == 6
    assert len(build_schedule(BURSTY, seed=0, rps=0.5, scale="thin").requests) == 6


def test_a_merge_orders_by_instant_then_part_and_keeps_turns_behind_their_predecessors() -> None:
    def part(*rows: tuple[int, int | None]) -> Schedule:
        requests = tuple(
            ScheduledRequest(index=i, offset_ns=ns, workload="w", input_tokens=1, output_tokens=1, after=after)
            for i, (ns, after) in enumerate(rows)
        )
        return Schedule(requests, "trace", 1.5, 0)

    merged = merged_schedule([part((5, None), (9, 0), (7, None)), part((5, None), (6, 0))], 3)
    assert [(r.index, r.offset_ns, r.after) for r in merged.requests] == [
        (0, 5, None), (1, 5, None), (2, 6, 1), (3, 7, None), (4, 9, 0),
    ]  # fmt: skip
    assert (merged.arrival, merged.rate_rps, merged.seed) == (None, 3.0, 3)
    assert [r.index for r in truncated(merged, 2).requests] == [0, 1]


def test_the_kinds_of_prompts_are_those_that_some_request_needs() -> None:
    def kinds(*workloads: str) -> set[str]:
        requests = [
            ScheduledRequest(index=i, offset_ns=0, workload=workload, input_tokens=1, output_tokens=1)
            for i, workload in enumerate(workloads)
        ]
        return set(Schedule(tuple(requests), "trace", None, 0).prompt_kinds)

    assert kinds() == set()
    assert kinds("chat", "summaries") == {"chat"}
    assert kinds("chat", "Code review", "code") == {"chat", "code"}


def test_gamma_arrivals_are_poisson_unless_a_burstiness_is_requested() -> None:
    plans = [
        build_schedule(BURSTY, seed=3, arrival="gamma", rps=4, num_requests=50, **options)  # type: ignore[arg-type]
        for options in ({}, {"burstiness": 1.0}, {"burstiness": 0.5})
    ]
    assert plans[0].requests == plans[1].requests != plans[2].requests
    assert [plan.requested_arrivals[0].burstiness for plan in plans] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_truncated_schedule_has_the_first_requests(count: int) -> None:
    plan = build_schedule(BURSTY, seed=0)
    assert truncated(plan, count).requests == plan.requests[:count]


def test_a_schedule_of_one_part_keeps_its_process_and_an_unknown_rate_makes_the_sum_unknown() -> None:
    one = build_schedule(BURSTY, seed=0, rps=2)
    assert merged_schedule([one], 5).arrival == "trace" and merged_schedule([one], 5).rate_rps == 2
    assert merged_schedule([one, one], 5).rate_rps == 4 and merged_schedule([one, one], 5).arrival is None
    assert merged_schedule([one, build_schedule(trace([3.0]), seed=0)], 5).rate_rps is None
    assert merged_schedule([one, one], 5).requested_arrivals == one.requested_arrivals * 2


@pytest.mark.parametrize(
    ("times_s", "rate"),
    [([1.0, 1.25, 1.5], 4.0), ([1.0, 1.5], 2.0), ([1.0, 1.0, 1.5], 4.0), ([1.0, 1.0], None), ([1.0], None)],
)
def test_a_trace_has_a_rate_of_its_own_if_its_arrivals_are_apart(times_s: list[float], rate: float | None) -> None:
    assert build_schedule(trace(times_s), seed=0).rate_rps == rate


def test_requests_of_one_instant_are_in_order_of_their_parts_and_of_their_index_in_them() -> None:
    def part(workload: str, count: int) -> Schedule:
        requests = tuple(
            ScheduledRequest(index=i, offset_ns=7, workload=workload, input_tokens=9 - i, output_tokens=1)
            for i in range(count)
        )
        return Schedule(requests, "trace", 1.0, 0)

    merged = merged_schedule([part("b", 2), part("a", 2), part("c", 1)], 0)
    assert [(r.workload, r.input_tokens) for r in merged.requests] == [("b", 9), ("b", 8), ("a", 9), ("a", 8), ("c", 9)]


def test_a_schedule_in_parts_is_the_whole_and_has_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "LINES_OF_PART", 3)
    made = build_schedule(Trace("t", trace([float(i) for i in range(7)]).requests, ""), seed=0)
    parts = list(schedule.schedule_lines(made.requests))
    assert len(parts) == 3 and b"".join(parts) == encode_schedule(made.requests)
    assert made.sha256 == hashlib.sha256(encode_schedule(made.requests)).hexdigest()


WORDS = WordsRef(line=7, sha256="", offset=0, size=1)
BODY = msgspec.structs.replace(WORDS, is_body=True)


@pytest.mark.parametrize(
    ("words", "output_tokens", "stop", "natural"),
    [
        (None, 5, "auto", False),
        (None, 5, "length", False),
        (None, 5, "natural", True),
        (WORDS, 5, "auto", False),
        (WORDS, None, "auto", True),
        (WORDS, None, "natural", True),
        (WORDS, None, "length", r"a request \(line 7\) has no output_length"),
        (None, None, "length", "a request has no output_length"),
        (BODY, 5, "auto", True),
        (BODY, None, "natural", True),
        (BODY, 5, "length", "the request of line 7 has a body of its own"),
    ],
)
def test_an_answer_ends_where_the_options_or_its_body_say(
    words: WordsRef | None, output_tokens: int | None, stop: Stop, natural: bool | str
) -> None:
    request = TraceRequest(arrival_s=0, input_tokens=1, output_tokens=output_tokens, words=words)
    if isinstance(natural, bool):
        assert ends_naturally(request, stop) is natural
        plan = build_schedule(Trace("t", (request,), ""), seed=0, stop=stop)
        assert plan.requests[0].natural is natural
    else:
        with pytest.raises(LoadgenError, match=f"--stop length: {natural}"):
            ends_naturally(request, stop)


@pytest.mark.parametrize(("timed", "arrival"), [(True, "trace"), (False, "poisson")])
def test_a_trace_without_times_gets_poisson_arrivals_unless_others_are_requested(timed: bool, arrival: Arrival) -> None:
    source = Trace("t", trace([0.0, 0.0, 1.0]).requests, "", timed)
    assert build_schedule(source, seed=0, rps=2).arrival == arrival
    assert build_schedule(source, seed=0, rps=2, arrival="constant").arrival == "constant"


@pytest.mark.parametrize(
    ("prefix_ids", "block_tokens", "field"),
    [((), 16, msgspec.UNSET), ((1,), BLOCK_TOKENS, msgspec.UNSET), ((1,), 16, 16)],
)
def test_a_block_size_is_written_only_where_blocks_have_an_unusual_one(
    prefix_ids: tuple[int, ...], block_tokens: int, field: int | msgspec.UnsetType
) -> None:
    request = TraceRequest(
        arrival_s=0, input_tokens=1, output_tokens=1, prefix_ids=prefix_ids, block_tokens=block_tokens
    )
    (planned,) = build_schedule(Trace("t", (request,), ""), seed=0).requests
    assert planned.block_size == field
    assert planned.block_tokens == (block_tokens if prefix_ids else BLOCK_TOKENS)
