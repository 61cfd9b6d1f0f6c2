"""The watermark: which spans cover an instant, and how long is waited for those that are missing."""

import numpy as np
import pytest
from msgspec.structs import replace as changed

from loadgen.sidecar.watermark import (
    EDGE_NS,
    AllowedLateness,
    SpanTimes,
    complete_until,
    give_up_ns,
    queue_length,
)
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.units import NS_PER_S, ns_from_s
from sidecar.test_accounts import REQUEST


def spans(*times_s: tuple[float, float]) -> SpanTimes:
    starts, ends = zip(*times_s, strict=True) if times_s else ((), ())
    return SpanTimes(np.sort(np.array([ns_from_s(t) for t in starts], np.int64)),
                     np.sort(np.array([ns_from_s(t) for t in ends], np.int64)))  # fmt: skip


def sample(t_s: float, running: float = 0.0, waiting: float = 0.0) -> EngineSample:
    return {"t_ns": ns_from_s(t_s), "running": running, "waiting": waiting}


@pytest.mark.parametrize(
    ("t_ns", "covered"),
    [
        (10 * NS_PER_S - EDGE_NS - 1, 0),
        (10 * NS_PER_S - EDGE_NS, 1),
        (15 * NS_PER_S, 1),
        (20 * NS_PER_S + EDGE_NS, 1),
        (20 * NS_PER_S + EDGE_NS + 1, 0),
    ],
)
def test_a_span_covers_its_time_and_an_edge_on_either_side(t_ns: int, covered: int) -> None:
    instant = np.array([t_ns])
    assert spans((10, 20)).covering(instant, instant).tolist() == [covered]


def test_an_interval_is_covered_by_every_span_that_touches_it() -> None:
    times = spans((0, 1), (2, 3), (2.5, 8), (9, 10))
    assert times.covering(np.array([ns_from_s(2.8)]), np.array([ns_from_s(8.5)])).tolist() == [2]
    assert times.covering(np.array([ns_from_s(5)]), np.array([ns_from_s(6)])).tolist() == [1]


@pytest.mark.parametrize(
    ("t_s", "most"),
    [(0.5, 1), (0.95, 2), (1.05, 2), (1.2, 1), (2.0, 1), (2.95, 2), (3.05, 2), (3.15, 1), (5.05, 1), (5.11, 0)],
)
def test_requests_one_after_the_other_are_not_there_at_once(t_s: float, most: int) -> None:
    """One begins at 1 s as another ends; at 3 s one begins 20 ms after the end of another, beside a third."""
    times = spans((0, 1), (1, 2.98), (2.5, 3.0), (3.0, 5))
    assert times.most_around(np.array([ns_from_s(t_s)])).tolist() == [most]


def test_starts_and_ends_of_requests_are_each_in_order() -> None:
    times = SpanTimes.of([changed(REQUEST, start_ns=start, end_ns=end) for start, end in ((3, 4), (1, 9), (2, 5))])
    assert (times.start_ns.tolist(), times.end_ns.tolist()) == ([1, 2, 3], [4, 5, 9])


def test_energy_waits_as_long_as_the_command_line_says_by_default() -> None:
    assert AllowedLateness() == AllowedLateness(min_s=6.0, blind_s=30.0, max_s=600.0)
    assert EDGE_NS == NS_PER_S // 10


def test_without_spans_nothing_is_covered() -> None:
    assert SpanTimes.of(()).covering(np.array([5]), np.array([5])).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "length"),
    [({"running": 2.0, "waiting": 3.0}, 5.0), ({"running": 2.0}, 2.0), ({"waiting": 3.0}, None), ({}, None)],
)
def test_the_queue_is_what_runs_and_what_waits_and_unknown_without_what_runs(
    values: dict[str, float], length: float | None
) -> None:
    assert queue_length({"t_ns": 0, **values}) == length


@pytest.mark.parametrize(
    ("samples", "complete_s"),
    [
        ([], 0),
        ([sample(11, 1), sample(12, 1)], 12),  # as many spans as requests is enough
        ([sample(11, 1), sample(12, 2), sample(13, 1)], 11),  # a later one does not mend the break
        ([sample(11, 0, 2)], 0),  # waiting requests count
        ([sample(11), sample(30), sample(31, 1)], 30),  # an idle engine needs no span
    ],
)
def test_energy_is_complete_up_to_the_first_sample_that_lacks_a_span(
    samples: list[EngineSample], complete_s: float
) -> None:
    assert complete_until(samples, spans((10, 20))) == ns_from_s(complete_s)


@pytest.mark.parametrize("shown", [{}, {"waiting": 0.0}, {"generation_tokens": 100.0}])
def test_energy_under_a_queue_that_is_not_shown_is_not_complete(shown: dict[str, float]) -> None:
    silent: EngineSample = {"t_ns": ns_from_s(12), **shown}
    assert complete_until([sample(11), silent, sample(13)], spans((10, 20))) == ns_from_s(11)


@pytest.mark.parametrize(
    ("longest_s", "waited_s"),
    [(0, 30), (15, 30), (15.5, 31), (40, 80), (50, 100), (51, 100)],
)
def test_missing_spans_are_waited_for_twice_the_longest_request_within_limits(
    longest_s: float, waited_s: float
) -> None:
    lateness = AllowedLateness(min_s=6, blind_s=30, max_s=100)
    now_ns = 1000 * NS_PER_S
    assert now_ns - give_up_ns(now_ns, lateness, ns_from_s(longest_s)) == ns_from_s(waited_s)
