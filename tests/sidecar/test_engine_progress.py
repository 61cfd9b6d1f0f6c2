"""When an engine's iterations ran, by hand, ten seconds at most."""

import numpy as np
import pytest

from loadgen.attribution.span_steps import LONGEST_PREFILL_NS, cadence_of, phases_of
from loadgen.sidecar.engine_progress import Progress, engine_progress, intervals_of, union, within
from loadgen.sidecar.watermark import SpanTimes
from loadgen.units import NS_PER_S, ns_from_s
from sidecar.test_ledger import span

NO_SPANS = SpanTimes.of(())


def progress(iterations: list[float], running: list[float], *spans_s: tuple[float, float, float]) -> Progress:
    """An engine that is looked at every second; spans as (start, first token, end), of six tokens."""
    requests = [
        span(str(k), start, end, 6, first_token_ns=ns_from_s(first)) for k, (start, first, end) in enumerate(spans_s)
    ]
    samples = [
        {"t_ns": second * NS_PER_S, "iterations": count, "running": queue}
        for second, (count, queue) in enumerate(zip(np.cumsum([0, *iterations]).tolist(), running, strict=True))
    ]
    phases = phases_of(requests)
    cadence = cadence_of(phases)._replace(step_ns=NS_PER_S / 10)
    return engine_progress(intervals_of(samples, SpanTimes.of(requests)), phases, cadence)


def at(of: Progress, *times_s: float) -> list[float]:
    return np.round(of.at(np.array([ns_from_s(t_s) for t_s in times_s])), 3).tolist()


def test_iterations_run_where_spans_decode() -> None:
    assert at(progress([20, 20], [0, 0, 0], (0.5, 0.5, 1.5)), 0, 0.5, 0.75, 1, 1.5, 2) == [0, 0, 10, 20, 40, 40]


def test_a_short_prefill_is_one_iteration_and_a_long_one_many() -> None:
    assert at(progress([11], [1, 1], (0, 0.2, 1)), 0.1, 0.2, 0.6, 1) == [0.5, 1, 6, 11]
    edge_s = LONGEST_PREFILL_NS / NS_PER_S
    assert at(progress([11], [1, 1], (0, 0.5, 1)), 0.5, 1) == [1, 11]
    assert at(progress([11, 11], [1, 1, 1], (0, edge_s + 0.5, 2)), 0.5, 1, 1.5, 2) == [5.5, 11, 16.5, 22]
    assert at(progress([0, 11], [0, 1, 1], (1, 1.2, 2)), 1.1, 1.2, 1.6, 2) == [0.5, 1, 6, 11]


@pytest.mark.parametrize(("counted", "half_way"), [(4, 2), (2, 1), (1, 0.5)])
def test_the_engine_knows_best_how_many_iterations_ran_in_the_time_of_prefills(counted: int, half_way: float) -> None:
    """Two prefills, one after the other, are an iteration each unless the engine counted others."""
    assert at(progress([counted], [1, 1], (0, 0.5, 0.5), (0.5, 1, 1)), 0.5, 1) == pytest.approx([half_way, counted])


def test_a_count_that_comes_an_iteration_late_does_not_move_those_between_prefills() -> None:
    """Each second has a prefill of 0.9 s and a step of 0.1 s. The engine counts some of them in the next second."""
    prefills = [(second, second + 0.9, second + 0.9) for second in range(10)]
    of = progress([1, 3] * 5, [1] * 11, (0, 0, 10), *prefills)
    ran = [at(of, second, second + 0.9, second + 1) for second in range(10)]
    assert all(np.diff(part).tolist() == pytest.approx([1, 1], rel=0.1) for part in ran)


@pytest.mark.parametrize(
    ("running", "half_way"), [([0, 0], 10), ([1, 0], 2 / 3 * 10), ([0, 1], 2 / 3 * 10), ([1, 2], 5)]
)
def test_time_without_a_span_counts_as_far_as_other_requests_were_there(running: list[float], half_way: float) -> None:
    """A span decodes in the first half of a second, and ends before the sample at its end."""
    others = [queue + first for queue, first in zip(running, (1, 0), strict=True)]
    assert at(progress([10], others, (0, 0, 0.5)), 0.5, 1) == [pytest.approx(half_way, abs=0.001), 10]


def test_a_request_without_a_span_is_counted_in_the_intervals_before_and_after_its_sample() -> None:
    """It is there at 1 s. In the second interval a span decodes for 0.25 s of the 0.625 s that count."""
    assert at(progress([10, 10], [0, 1, 0], (1.25, 1.25, 1.5)), 0.5, 1, 1.25, 1.5, 2) == [5, 10, 12, 16, 20]


def test_without_a_count_an_iteration_lasts_a_slot() -> None:
    assert at(progress([0, 0], [0, 0, 0], (0, 0.1, 0.6)), 0.1, 0.35, 0.6, 1) == [1, 3.5, 6, 6]


def test_iterations_outside_the_samples_ran_at_the_mean_speed() -> None:
    assert at(progress([10, 30], [1, 1, 1], (-1, -1, 3)), -1, 0, 1, 2, 3) == [0, 20, 30, 60, 80]


def test_progress_always_grows() -> None:
    assert (np.diff(progress([0, 5], [0, 0, 0], (0.5, 0.5, 0.7)).iterations) > 0).all()


def test_each_counter_has_its_meaning() -> None:
    samples = [
        {"t_ns": 0, "generation_tokens": 5.0, "prompt_tokens": 10.0, "cached_tokens": 4.0, "iterations": 1.0,
         "running": 1.0, "waiting": 2.0},
        {"t_ns": 1, "generation_tokens": 9.0, "prompt_tokens": 30.0, "cached_tokens": 9.0, "iterations": 3.0,
         "running": 0.0, "waiting": 0.0},
        {"t_ns": 2, "generation_tokens": 3.0, "prompt_tokens": 2.0, "cached_tokens": 0.0, "iterations": 1.0,
         "running": 1.0, "waiting": 0.0},
    ]  # fmt: skip
    intervals = intervals_of(samples, SpanTimes(np.array([0]), np.array([1])))
    assert (intervals.generated.tolist(), intervals.prompts.tolist()) == ([4, 3], [15, 2]), "the second is a restart"
    assert (intervals.iterations.tolist(), intervals.missing.tolist()) == ([2, 1], [2, 0, 1])
    assert intervals.announced and intervals.size == 2
    for name in ("running", "prompt_tokens"):
        assert not intervals_of([{k: v for k, v in s.items() if k != name} for s in samples], NO_SPANS).announced
    computed = [sample | {"computed_tokens": 7.0 * k} for k, sample in enumerate(samples)]
    assert intervals_of(computed, NO_SPANS).prompts.tolist() == [7, 7]
    part = intervals.part(1, 5)
    assert (part.edges_ns.tolist(), part.generated.tolist(), part.missing.tolist()) == ([1, 2], [3], [0, 1])
    part = intervals.part(0, 1)
    assert (part.edges_ns.tolist(), part.generated.tolist(), part.missing.tolist()) == ([0, 1], [4], [2, 0])


@pytest.mark.parametrize(
    ("intervals", "covered"),
    [
        ([], []),
        ([(0, 2), (3, 4)], [(0, 2), (3, 4)]),
        ([(3, 4), (0, 2)], [(0, 2), (3, 4)]),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(0, 9), (1, 2), (4, 5)], [(0, 9)]),
        ([(0, 2), (3, 6), (5, 7)], [(0, 2), (3, 7)]),
        ([(1, 1), (2, 3)], [(2, 3)]),
    ],
)
def test_the_union_of_intervals_is_in_order_and_apart(
    intervals: list[tuple[int, int]], covered: list[tuple[int, int]]
) -> None:
    table = np.array(intervals, dtype=np.int64).reshape(-1, 2)
    starts, ends = union(table[:, 0], table[:, 1])
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == covered
    instants = np.arange(10)
    assert within(instants, (starts, ends)).tolist() == [any(a <= t < b for a, b in covered) for t in range(10)]
