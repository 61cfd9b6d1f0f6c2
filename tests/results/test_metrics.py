"""Statistics of request records, with every value computed by hand."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.record import RequestRecord
from loadgen.results import metrics
from loadgen.results.summary import Distribution
from loadgen.workload.schedule import ScheduledRequest

MS = 1_000_000


def answered(ttft_ms: float = 100, tpot_ms: float = 10, tokens: int = 11, tail_ms: float = 0) -> RequestRecord:
    """Return a completed request: sent at 1 s, its first token after `ttft_ms`, finished `tail_ms` after its last."""
    first = 1000 * MS + round(ttft_ms * MS)
    last = first + round(tpot_ms * MS) * (tokens - 1)
    return RequestRecord(
        index=0, workload="w", scheduled_ns=990 * MS, sent_ns=1000 * MS, first_token_ns=first, last_token_ns=last,
        finished_ns=last + round(tail_ms * MS), chunk_ns=[first, last], input_tokens=5, output_tokens=tokens,
        token_source="usage",
    )  # fmt: skip


FAILED = RequestRecord(index=0, workload="w", scheduled_ns=0, sent_ns=0, error="timeout")
UNSENT = RequestRecord(index=0, workload="w", scheduled_ns=0, error="not_sent")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, *[None] * 10)),
        ([7.0], (1, 7, 0, 7, 7, 7, 7, 7, 7, 7, 7)),
        ([1.0, 2.0], (2, 1.5, 0.5, 1, 1.5, 1.75, 1.9, 1.95, 1.99, 1.999, 2)),
        ([*range(1001)], (1001, 500, (1001**2 / 12 - 1 / 12) ** 0.5, 0, 500, 750, 900, 950, 990, 999, 1000)),
        ([3.0, None, 1.0, None], (2, 2, 1, 1, 2, 2.5, 2.8, 2.9, 2.98, 2.998, 3)),
    ],
)
def test_percentiles_interpolate_between_ranks(values: list[float | None], expected: tuple[float | None, ...]) -> None:
    spread = metrics.distribution(values)
    fields = msgspec.structs.astuple(spread)
    assert Distribution.__struct_fields__[:4] == ("count", "mean", "std", "min")
    assert fields == tuple(pytest.approx(value) for value in expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_do_not_depend_on_the_order_of_values(values: list[float]) -> None:
    spread = metrics.distribution(values)
    ranks = [spread.min, *(getattr(spread, name) for name in metrics.PERCENTILES), spread.max]
    assert ranks == sorted(ranks)  # type: ignore[type-var]
    backwards = metrics.distribution(values[::-1])
    assert (backwards.p50, backwards.p99, backwards.max) == (spread.p50, spread.p99, spread.max)


def test_a_distribution_in_seconds_divides_nanoseconds() -> None:
    assert metrics.distribution_s([500 * MS, 1500 * MS]).mean == pytest.approx(1.0)


def test_inter_token_gaps_do_not_join_two_requests() -> None:
    def chunks(*at_ms: int) -> RequestRecord:
        return RequestRecord(index=0, workload="w", scheduled_ns=0, chunk_ns=[t * MS for t in at_ms])

    spread = metrics.inter_token_s([chunks(0, 10, 30), chunks(1000), chunks(), chunks(5000, 5040)])
    assert (spread.count, spread.max) == (3, pytest.approx(0.04))
    assert spread.mean == pytest.approx(0.07 / 3)
    assert metrics.inter_token_s([chunks(1), chunks()]) == Distribution(count=0)


def test_requests_are_counted_by_what_became_of_them() -> None:
    counts = metrics.request_counts([answered(), FAILED, UNSENT, answered(), FAILED])
    assert (counts.scheduled, counts.sent, counts.completed, counts.failed) == (5, 4, 2, 3)
    assert counts.by_error == {"not_sent": 1, "timeout": 2}


@pytest.mark.parametrize(
    ("records", "duration_s", "expected"),
    [
        ([answered(tokens=11), answered(tokens=4), FAILED], 5.0, (10, 15, 2.0, 3.0)),
        ([FAILED], 5.0, (None, None, None, None)),
        ([answered(tokens=11)], 0.0, (5, 11, None, None)),
        ([], 5.0, (None, None, None, None)),
    ],
)
def test_tokens_of_requests_without_a_count_are_unknown_not_zero(
    records: list[RequestRecord], duration_s: float, expected: tuple[float | None, ...]
) -> None:
    tokens = metrics.token_counts(records, duration_s)
    assert (tokens.input, tokens.output, tokens.input_per_s, tokens.output_per_s) == expected


def test_lengths_are_checked_over_completed_requests_that_the_server_counted() -> None:
    by_chunks = RequestRecord(
        index=0, workload="w", scheduled_ns=0, input_tokens=9, output_tokens=9, token_source="chunks"
    )
    check = metrics.length_check(
        [(4, 11), (7, 20), (1, 1), (1, 1)], [answered(tokens=11), answered(tokens=17), by_chunks, FAILED]
    )
    assert check is not None
    assert (check.count, check.input_asked, check.input_counted, check.input_max_off) == (2, 11, 10, 2)
    assert (check.output_asked, check.output_counted, check.output_max_off) == (31, 28, 3)
    assert metrics.length_check([(1, 1), (1, 1)], [by_chunks, FAILED]) is None


def test_prompts_are_checked_where_the_answer_came_whole() -> None:
    whole = RequestRecord(
        index=0, workload="w", scheduled_ns=0, sent_ns=0, finished_ns=9 * MS, input_tokens=8, status=200
    )
    checked = metrics.length_check([(5, None), (7, None)], [whole, FAILED])
    assert checked is not None
    assert (checked.count, checked.input_asked, checked.input_counted, checked.output_asked) == (1, 5, 8, None)


def test_prompts_are_checked_where_no_length_of_the_answer_was_requested() -> None:
    check = metrics.length_check([(4, None), (None, None), (7, 20)], [answered(), answered(), answered(tokens=17)])
    assert check is not None
    assert (check.count, check.input_asked, check.output_asked, check.output_counted) == (1, 11, 20, 17)
    natural = metrics.length_check([(4, None)], [answered()])
    assert natural is not None
    assert (natural.count, natural.input_asked) == (1, 4)
    assert natural.output_asked is natural.output_counted is natural.output_max_off is None
    assert metrics.length_check([(None, None)], [answered()]) is None


def natural(planned: int | None) -> ScheduledRequest:
    return ScheduledRequest(index=0, offset_ns=0, workload="w", input_tokens=None, output_tokens=planned, natural=True)


def test_natural_endings_are_held_against_the_recorded_answers_that_there_are() -> None:
    requested = msgspec.structs.replace(natural(50), natural=False)
    limited = msgspec.structs.replace(answered(tokens=30), finish_reason="length")
    endings = metrics.natural_endings(
        [natural(20), natural(20), natural(20), natural(None), requested, natural(9)],
        [answered(tokens=20), answered(tokens=10), limited, answered(tokens=7), answered(tokens=50), FAILED],
    )
    assert endings is not None
    assert (endings.tokens.count, endings.tokens.max, endings.limited) == (4, 30, 1)
    assert (endings.recorded, endings.recorded_tokens, endings.counted_tokens) == (3, 60, 60)
    assert (endings.shorter, endings.longer) == (1, 1)


def test_natural_endings_without_recorded_answers_are_only_counted_and_without_counts_unknown() -> None:
    endings = metrics.natural_endings([natural(None)], [answered(tokens=7)])
    assert endings is not None
    assert (endings.recorded, endings.recorded_tokens, endings.counted_tokens) == (0, None, None)
    assert metrics.natural_endings([natural(5)], [FAILED]) is None


@pytest.mark.parametrize(
    ("record", "slo_ms", "good"),
    [
        (answered(ttft_ms=100), {"ttft": 100}, 1),
        (answered(ttft_ms=100.001), {"ttft": 100}, 0),
        (answered(tpot_ms=10), {"tpot": 10}, 1),
        (answered(tpot_ms=10.001), {"tpot": 10}, 0),
        (answered(tokens=1), {"tpot": 0.001}, 1),
        (answered(ttft_ms=100, tpot_ms=10, tokens=11), {"e2el": 200}, 1),
        (answered(ttft_ms=100, tpot_ms=10, tokens=11, tail_ms=1), {"e2el": 200}, 0),
        (answered(ttft_ms=100, tpot_ms=20), {"ttft": 100, "tpot": 10}, 0),
        (answered(ttft_ms=200, tpot_ms=10), {"ttft": 100, "tpot": 10}, 0),
        (FAILED, {"ttft": 1e9}, 0),
        (UNSENT, {"tpot": 1e9}, 0),
    ],
)
def test_a_limit_that_is_met_exactly_is_met(record: RequestRecord, slo_ms: dict[str, float], good: int) -> None:
    assert metrics.goodput([record], slo_ms, 1.0).good == good


def test_each_limit_counts_the_completed_requests_that_met_it() -> None:
    records = [answered(ttft_ms=100, tpot_ms=20), answered(ttft_ms=200, tpot_ms=10), FAILED]
    goodput = metrics.goodput(records, {"ttft": 150, "tpot": 30}, 1.0)
    assert (goodput.good, goodput.met) == (1, {"ttft": 1, "tpot": 2})


def test_goodput_is_over_all_scheduled_requests() -> None:
    good = metrics.goodput([answered(), answered(), FAILED, UNSENT], {"ttft": 100}, 4.0)
    assert (good.good, good.ratio, good.rps) == (2, 0.5, 0.5)
    empty = metrics.goodput([], {"ttft": 100}, 0.0)
    assert (empty.good, empty.ratio, empty.rps) == (0, None, None)


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_longer_limit_never_loses_a_request(ttft_ms: float, limit_ms: float) -> None:
    record = answered(ttft_ms=ttft_ms)
    tight = metrics.goodput([record], {"ttft": limit_ms}, 1.0).good
    assert tight <= metrics.goodput([record], {"ttft": 2 * limit_ms}, 1.0).good
    assert tight == (np.round(ttft_ms * MS) <= limit_ms * MS)


@pytest.mark.parametrize(
    ("metric", "limit_ms", "met"),
    [
        ("ttft", 100, True),
        ("ttft", 99.999, False),
        ("tpot", 10, True),
        ("tpot", 9.999, False),
        ("e2el", 203, True),
        ("e2el", 202.999, False),
    ],
)
def test_a_limit_holds_its_own_metric_up_to_the_limit(metric: str, limit_ms: float, met: bool) -> None:
    """100 ms to the first token, ten gaps of 10 ms, and 3 ms until the stream ends."""
    assert metrics.meets_limit(answered(ttft_ms=100, tpot_ms=10, tokens=11, tail_ms=3), metric, limit_ms) is met


def test_a_request_without_a_first_token_meets_no_limit_but_that_between_tokens() -> None:
    assert [metrics.meets_limit(UNSENT, metric, 1e9) for metric in ("ttft", "tpot", "e2el")] == [False, True, False]


@pytest.mark.parametrize(
    ("values_s", "failed", "with_failures"),
    [
        ([1.0, 2.0, 3.0], 0, (2.0, 2.5, 2.8, 2.9, 2.98, 2.998)),
        ([1.0, 2.0, 3.0], 1, (2.5, None, None, None, None, None)),
        ([1.0, 2.0, 3.0], 2, (3.0, None, None, None, None, None)),
        ([1.0, 2.0, 3.0], 3, (None, None, None, None, None, None)),
        (list(range(1, 100)), 2, (51.0, 76.0, 91.0, 96.0, None, None)),
        ([], 4, (None, None, None, None, None, None)),
        ([], 0, (None, None, None, None, None, None)),
    ],
)
def test_percentiles_with_failures_are_those_of_a_sample_whose_failures_are_infinite(
    values_s: list[float], failed: int, with_failures: tuple[float | None, ...]
) -> None:
    made = metrics.latency_s([value * 1e9 for value in values_s], failed)
    plain = metrics.distribution(values_s)
    assert (made.count, made.p99) == (plain.count, plain.p99 and pytest.approx(plain.p99))
    assert made.left_out == failed
    found = [getattr(made, f"{name}_with_failures") for name in metrics.PERCENTILES]
    assert found == [value if value is None else pytest.approx(value) for value in with_failures]


@given(values=st.lists(st.floats(0, 1e12), min_size=1, max_size=60), failed=st.integers(0, 20))
def test_failures_never_make_a_percentile_smaller(values: list[float], failed: int) -> None:
    made = metrics.latency_s(values, failed)
    for name in metrics.PERCENTILES:
        worse = getattr(made, f"{name}_with_failures")
        assert worse is None or worse >= getattr(made, name) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("first_ms", "now_ms", "limits_ms", "overdue"),
    [
        (None, 200, {"ttft": 200}, False),
        (None, 201, {"ttft": 200}, True),  # no token yet
        (150, 900, {"ttft": 200}, False),
        (250, 900, {"ttft": 200}, True),
        (150, 900, {"ttft": 200, "e2el": 800}, True),
        (None, 900, {"tpot": 1}, False),  # known at the end
        (None, 900, {}, False),
    ],
)
def test_a_request_in_flight_is_overdue_once_a_limit_has_passed(
    first_ms: int | None, now_ms: int, limits_ms: dict[str, float], overdue: bool
) -> None:
    sent_ns, unit = 5_000, 1_000_000
    first_ns = None if first_ms is None else sent_ns + first_ms * unit
    assert metrics.is_overdue(sent_ns, first_ns, sent_ns + now_ms * unit, limits_ms) is overdue
