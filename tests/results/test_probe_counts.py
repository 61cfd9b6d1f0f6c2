import pytest

from loadgen.record import RequestRecord
from loadgen.results.probe_counts import BLOCKS, Outcome, count, outcome_of
from loadgen.results.search_result import Stage

GOOD = frozenset({"ttft", "tpot"})


def outcome(sent_s: float, decision_s: float = 1.0, met: frozenset[str] = GOOD, failed: bool = False) -> Outcome:
    return Outcome(sent_s, met, met == GOOD and not failed, failed, decision_s)


def sent(seconds: int, rate: int = 10, **changes: float) -> list[Outcome]:
    return [outcome(i / rate, **changes) for i in range(seconds * rate)]


@pytest.mark.parametrize(
    ("stage", "sending_s", "takes_s", "from_s", "until_s"),
    [
        ("refine", 100, 2.0, 16.0, 98.0),  # eight fills, less what may end after the sending
        ("bracket", 100, 2.0, 2.0, 98.0),
        ("refine", 100, 30.0, 40.0, 70.0),  # at most 40 % of it
        ("refine", 100, 90.0, 40.0, 70.0),  # half of the rest stays
        ("bracket", 10, 0.0, 0.0, 10.0),
    ],
)
def test_the_counted_time_begins_full_and_ends_before_the_drain(
    stage: Stage, sending_s: int, takes_s: float, from_s: float, until_s: float
) -> None:
    counts = count(sent(sending_s, decision_s=takes_s), sending_s, stage)
    assert (counts.from_s, counts.until_s, counts.decision_s) == pytest.approx((from_s, until_s, takes_s))
    assert counts.requests == pytest.approx(10 * (until_s - from_s), abs=1)


def test_a_probe_that_was_ended_early_counts_up_to_its_last_request() -> None:
    """Requests take four of ten seconds, and after the sixth they miss."""
    outcomes = [outcome(i / 10, decision_s=4.0, met=GOOD if i < 60 else frozenset()) for i in range(100)]
    whole, ended = (count(outcomes, 10, "bracket", stopped_early=early) for early in (False, True))
    assert (whole.until_s, ended.until_s, ended.from_s) == (7.0, 10.0, whole.from_s)
    assert (ended.requests - ended.good, whole.requests - whole.good) == (40, 10)


def test_the_time_that_a_request_takes_is_that_of_nine_in_ten() -> None:
    outcomes = [outcome(i / 10, decision_s=50.0 if i % 20 == 0 else 2.0) for i in range(1000)]
    assert count(outcomes, 100, "refine").decision_s == 2.0


@pytest.mark.parametrize(
    ("decided", "waited_s", "takes_s"),
    [
        (0, [20.0] * 10, 20.0),  # nothing is known but that they take longer
        (100, [20.0] * 5, 2.0),
        (100, [20.0] * 20, 20.0),
        (100, [0.1] * 900, 2.0),  # sent just before the end
    ],
)
def test_requests_that_are_undecided_at_the_end_take_longer_than_they_waited(
    decided: int, waited_s: list[float], takes_s: float
) -> None:
    counts = count(sent(10, decision_s=2.0)[:decided], 10, "bracket", waited_s=waited_s)
    assert (counts.decision_s, counts.unfinished) == (pytest.approx(takes_s), len(waited_s))


def test_the_blocks_hold_the_counted_requests_in_the_order_of_sending() -> None:
    outcomes = [outcome(i / 10, met=GOOD if i < 500 else frozenset({"ttft"})) for i in range(1000)]
    counts = count(outcomes[::-1], 100, "refine")
    assert len(counts.blocks) == BLOCKS
    assert sum(block.requests for block in counts.blocks) == counts.requests
    assert sum(block.missed for block in counts.blocks) == counts.requests - counts.good
    shares = [block.missed / block.requests for block in counts.blocks]
    assert shares == sorted(shares)
    assert max(block.requests for block in counts.blocks) - min(block.requests for block in counts.blocks) <= 1


def test_a_request_that_failed_missed_its_limits_and_is_counted() -> None:
    outcomes = [outcome(i / 10, met=frozenset(), failed=True) for i in range(1000)]
    counts = count(outcomes, 100, "bracket")
    assert counts.good == 0
    assert counts.failed == counts.requests > 0


def test_met_counts_each_limit_by_itself() -> None:
    outcomes = [outcome(i / 10, met=GOOD if i % 2 else frozenset({"tpot"})) for i in range(1000)]
    counts = count(outcomes, 100, "bracket")
    assert counts.met["tpot"] == counts.requests
    assert counts.met["ttft"] == counts.good == pytest.approx(counts.requests / 2, abs=1)


def test_a_probe_without_requests_has_no_blocks() -> None:
    counts = count([], 10, "bracket")
    assert (counts.requests, counts.blocks, counts.decision_s) == (0, (), 0.0)


def record(ttft_ms: int, e2e_ms: int, ok: bool = True) -> RequestRecord:
    unit = 1_000_000
    return RequestRecord(
        index=0,
        workload="chat",
        scheduled_ns=0,
        sent_ns=0,
        first_token_ns=ttft_ms * unit,
        last_token_ns=e2e_ms * unit,
        finished_ns=e2e_ms * unit,
        output_tokens=11,
        error=None if ok else "timeout",
    )


@pytest.mark.parametrize(
    ("ttft_ms", "e2e_ms", "limits_ms", "good", "decision_s"),
    [
        (100, 2000, {"ttft": 200}, True, 2.0),
        (300, 2000, {"ttft": 200}, False, 0.2),  # known as soon as the limit passed
        (300, 2000, {"ttft": 200, "e2el": 100}, False, 0.1),
        (100, 2000, {"tpot": 100}, False, 2.0),  # known at the end
        (100, 2000, {}, True, 2.0),
    ],
)
def test_a_request_is_decided_when_it_ends_or_misses_a_limit_of_time(
    ttft_ms: int, e2e_ms: int, limits_ms: dict[str, float], good: bool, decision_s: float
) -> None:
    outcome = outcome_of(record(ttft_ms, e2e_ms), limits_ms, 0)
    assert (outcome.is_good, outcome.decision_s) == (good, pytest.approx(decision_s))
