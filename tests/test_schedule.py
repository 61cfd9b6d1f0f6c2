"""The plan: right rate, right lengths, same seed same bytes."""

import numpy as np
import pytest

from loadgen.arrivals import index_of_dispersion, ks_exponential
from loadgen.errors import LoadgenError
from loadgen.schedule import Schedule, build, encode
from loadgen.trace import Trace, TraceRequest
from loadgen.units import NS_PER_S


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
    assert offsets_s(build(BURSTY, seed=0)) == pytest.approx([0, 0.1, 0.2, 4.0, 4.1, 10.0])
    assert build(BURSTY, seed=0).rate_rps == pytest.approx(0.5)


def test_rps_is_the_mean_rate_and_the_burst_shape_stays() -> None:
    plan = build(BURSTY, seed=0, rps=5)
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
def test_how_many(options: dict, count: int) -> None:  # type: ignore[type-arg]
    plan = build(BURSTY, seed=0, **options)
    assert len(plan.requests) == count
    assert [request.index for request in plan.requests] == list(range(count))


@pytest.mark.parametrize("rps", [0.5, 4.0])
def test_a_slice_of_the_trace_has_the_rate_asked_too(rps: float) -> None:
    plan = build(trace(list(np.random.default_rng(0).exponential(1, 500).cumsum())), seed=0, rps=rps, duration_s=30)
    assert (len(plan.requests) - 1) / offsets_s(plan)[-1] == pytest.approx(rps)


def test_lengths_follow_the_trace_and_go_round_again() -> None:
    plan = build(BURSTY, seed=0, arrival="poisson", rps=10, num_requests=14)
    assert [request.input_tokens for request in plan.requests] == [10, 11, 12, 13, 14, 15] * 2 + [10, 11]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ten_thousand_poisson_arrivals_are_poisson(seed: int) -> None:
    plan = build(BURSTY, seed=seed, arrival="poisson", rps=4, num_requests=10_000)
    at = np.array(offsets_s(plan))
    assert 0.9 <= (index_of_dispersion(at, 1.0) or 0) <= 1.1
    distance, critical = ks_exponential(np.diff(at))
    assert distance < critical


def test_same_seed_same_bytes() -> None:
    first, again, other = (build(BURSTY, seed=s, arrival="poisson", rps=4, num_requests=50) for s in (7, 7, 8))
    assert encode(first.requests) == encode(again.requests)
    assert first.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize(
    ("which", "options", "says"),
    [
        (BURSTY, {"num_requests": 7}, "--num-requests 7, but trace t has 6"),
        (trace([0.0]), {"arrival": "poisson"}, "no mean rate"),
        (trace([3.0, 3.0]), {"rps": 2.0}, "same instant"),
        (BURSTY, {"arrival": "poisson", "rps": 1e-6, "duration_s": 0.001}, "no request falls"),
    ],
)
def test_what_cannot_be_planned_is_said(which: Trace, options: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(LoadgenError, match=says):
        build(which, seed=0, **options)


def test_one_request_has_no_rate() -> None:
    assert build(trace([3.0]), seed=0).rate_rps is None
    assert offsets_s(build(trace([3.0]), seed=0, rps=2)) == [0.0]
