"""The achieved rate and the verdicts on arrivals, each by hand."""

from dataclasses import replace

import pytest

from loadgen.record import RequestRecord
from loadgen.results.arrival_summary import judge_arrivals, sent_rate
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import ArrivalCheck
from loadgen.units import NS_PER_S
from loadgen.workload.arrival_check import RealizedArrivals
from support import sample_runs


def sent_at(*instants_s: float | None) -> RunResult:
    records = [
        RequestRecord(index=i, workload="w", scheduled_ns=0, sent_ns=None if t is None else round(t * NS_PER_S))
        for i, t in enumerate(instants_s)
    ]
    return replace(sample_runs.run(num_requests=1), records=records)


@pytest.mark.parametrize(
    ("instants_s", "rate_rps"),
    [
        ((), None),
        ((3.0,), None),
        ((3.0, 3.0), None),
        ((3.0, 5.0), 0.5),
        ((5.0, None, 3.0, 4.0), 1.0),
    ],
)
def test_the_achieved_rate_is_gaps_over_the_time_from_first_to_last(
    instants_s: tuple[float | None, ...], rate_rps: float | None
) -> None:
    assert sent_rate(sent_at(*instants_s)).achieved_rps == rate_rps


def test_a_dispersion_needs_ten_seconds() -> None:
    assert sent_rate(sent_at(*range(10))).index_of_dispersion is None
    assert sent_rate(sent_at(*range(11))).index_of_dispersion == 0, "one in each second"


GOOD = RealizedArrivals(count=9, rate=4.0)
ONE = RealizedArrivals(count=1)


def at(ratio: float) -> RealizedArrivals:
    return replace(GOOD, rate=4.0 * ratio, rate_ratio=ratio)


def check(scheduled: RealizedArrivals = GOOD, sent: RealizedArrivals = GOOD) -> ArrivalCheck:
    return ArrivalCheck(
        of="requests", process="poisson", asked_rps=4.0, scheduled=scheduled, sent=sent, as_asked=None, verdict=""
    )


def faulty(*faults: str) -> RealizedArrivals:
    return replace(GOOD, faults=list(faults))


@pytest.mark.parametrize(
    ("scheduled", "sent", "as_asked", "verdict"),
    [
        (GOOD, GOOD, True, "as asked"),
        (GOOD, faulty("late", "few"), False, "not as asked, as sent: late; few"),
        (faulty("slow"), faulty("late"), False, "not as asked, as scheduled: slow"),
        (ONE, ONE, None, "too few requests to tell (1)"),
        (GOOD, ONE, False, "not as asked: 1 of 9 requests were sent"),
        (faulty("slow"), ONE, False, "not as asked, as scheduled: slow"),
        (GOOD, at(1.09), True, "as asked"),
        (GOOD, at(0.91), True, "as asked"),
        (GOOD, at(0.81), True, "as asked but for chance: 3.24 requests/s for 4/s, with 9 requests"),
        (GOOD, at(1.57), False, "not as asked: 6.28 requests/s for 4/s, because 9 requests are few for this process"),
        (GOOD, at(2.44), False, "not as asked: 9.76 requests/s for 4/s, because 9 requests are few for this process"),
        (GOOD, at(0.7), False, "not as asked: 2.8 requests/s for 4/s, because 9 requests are few for this process"),
    ],
)
def test_the_earlier_fault_decides_and_too_few_decide_nothing(
    scheduled: RealizedArrivals, sent: RealizedArrivals, as_asked: bool | None, verdict: str
) -> None:
    judged = judge_arrivals(check(scheduled, sent))
    assert (judged.as_asked, judged.verdict) == (as_asked, verdict)
