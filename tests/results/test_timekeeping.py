"""A client that was late says so; one that was not, or of which nothing is known, says no more than that."""

import pytest

from loadgen.record import StampedBy
from loadgen.results.summary import Distribution
from loadgen.results.timekeeping import FAULTS, MAX_LATE_P99_S, faults, kept_time, loop_delay_that_tells

NOTHING = Distribution(count=0)
WELL = Distribution(count=100, p50=0.0001, p99=MAX_LATE_P99_S)
LATE = Distribution(count=100, p50=0.0001, p99=MAX_LATE_P99_S * 1.5)

WHOLE = {"ended": "completed", "requests": 30, "lost": 0}
KILLED = {"ended": "killed by signal 9", "requests": 30, "lost": 7}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize(
    ("late", "kept"), [(None, None), (NOTHING, None), (WELL, True), (LATE, False)], ids=["-", "empty", "well", "late"]
)
def test_the_99th_percentile_of_each_lateness_decides(name: str, late: Distribution | None, kept: bool | None) -> None:
    assert kept_time(**{name: late}) is kept
    found = faults(**{name: late})
    assert bool(found) is (kept is False)
    assert all("p99 7.5 ms" in one for one in found)


def test_one_bad_measure_is_enough_and_each_is_said() -> None:
    assert kept_time(lag=WELL, loop_delay=LATE, ttft_error=None) is False
    assert len(faults(lag=LATE, loop_delay=LATE, ttft_error=LATE, itl_error=WELL)) == 3


@pytest.mark.parametrize(("waited", "said"), [(None, 1), (0.001, 1), (0.4, 2)])
def test_a_busy_machine_is_a_reason_for_being_late_and_no_fault(waited: float | None, said: int) -> None:
    assert faults(waited=waited, lag=WELL) == []
    found = faults(waited=waited, lag=LATE)
    assert len(found) == said
    assert said == 1 or "for 40% of the run this client waited for a core" in found[1]


def test_a_process_that_ended_early_spoils_the_run() -> None:
    assert kept_time([WHOLE, WHOLE], lag=WELL) is True
    assert kept_time([WHOLE, KILLED], lag=WELL) is False
    (said,) = faults([WHOLE, KILLED], lag=WELL)
    assert said.startswith("process 2 of 2 ended early (killed by signal 9): 7 of its 30 requests")


@pytest.mark.parametrize(
    ("stamped_by", "itl_s", "tells"),
    [
        ("kernel", 0.020, False),
        ("kernel", LATE.p99, True),  # two tokens in one read have one stamp
        ("kernel", None, True),
        ("reading", 0.020, True),
        (None, 0.020, True),
    ],
)
def test_a_late_loop_is_no_fault_where_the_kernel_stamps_and_tokens_come_further_apart(
    stamped_by: StampedBy | None, itl_s: float | None, tells: bool
) -> None:
    assert loop_delay_that_tells(LATE, stamped_by, itl_s) is (LATE if tells else None)
