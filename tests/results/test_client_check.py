"""Lateness of the client touches the figures that it is in, and few late requests are not a slow client."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.results.client_check import check_client
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.verdict import LATENCY_ROWS, Check
from support import sample_runs

MS = 1_000_000


def run_of(lags_ms: list[float], instrument: dict[str, Any] | None = None, **config: object) -> RunResult:
    """Return a run with tokens 20 ms apart whose requests were sent this late."""
    made = sample_runs.run(num_requests=len(lags_ms), failing=0)
    records = []
    for record, lag in zip(made.records, lags_ms, strict=True):
        sent_ns = record.scheduled_ns + round(lag * MS)
        chunks = [sent_ns + (k + 1) * 20 * MS for k in range(10)]
        records.append(
            msgspec.structs.replace(
                record, sent_ns=sent_ns, chunk_ns=chunks, first_token_ns=chunks[0], last_token_ns=chunks[-1],
                finished_ns=chunks[-1], output_tokens=10,
            )
        )  # fmt: skip
    info = msgspec.structs.replace(made.info, instrument=instrument or {}, config=config)
    return replace(made, info=info, records=records, energy=[], attribution=None)


def check_of(result: RunResult) -> Check:
    analysed = analyse_run(result)
    assert analysed.summary is not None
    check = check_client(analysed, analysed.summary)
    assert analysed.summary.verdict.check("client") == check
    assert analysed.summary.instrument.kept_time is (None if check.status is None else check.status != "failed")
    return check


LATE = {"loop_delay_s": {"count": 99, "p90": 0.001, "p99": 0.012}}
OFTEN = {"loop_delay_s": {"count": 99, "p90": 0.012, "p99": 0.030}}
KILLED = {"processes": [{"ended": "completed"}, {"ended": "killed by signal 9", "requests": 30, "lost": 7}]}


@pytest.mark.parametrize(
    ("lags_ms", "instrument", "config", "status", "rows"),
    [
        pytest.param([0.1] * 32, {}, {}, "ok", [], id="on time"),
        pytest.param([0.1] * 31 + [10], {}, {}, "ok", [], id="one of 32 is 10 ms late"),
        pytest.param([0.1] * 31 + [150], {}, {}, "warning", ["response_s"], id="one of 32 is 150 ms late"),
        pytest.param([0.1] * 30 + [10, 10], {}, {}, "ok", [], id="two of 32"),
        pytest.param([0.1] * 29 + [10, 9, 8], {}, {}, "warning", ["response_s"], id="three of 32"),
        pytest.param([9] * 32, {}, {}, "warning", ["response_s"], id="each, by 4 % of its response"),
        pytest.param([15] * 32, {}, {}, "failed", ["response_s"], id="each, by 7 % of its response"),
        pytest.param([0.1] * 396 + [9] * 4, {}, {}, "ok", [], id="one percent"),
        pytest.param([0.1] * 395 + [9] * 5, {}, {}, "warning", ["response_s"], id="more than one percent"),
        pytest.param([5.0] * 32, {}, {}, "ok", [], id="each at the limit"),
        pytest.param([900.0] * 32, {}, {"max_concurrency": 1}, "ok", [], id="a limit of one's own"),
        pytest.param([0.1] * 32, LATE, {}, "warning", list(LATENCY_ROWS), id="loop late"),
        pytest.param([0.1] * 32, OFTEN, {}, "failed", list(LATENCY_ROWS), id="loop often late"),
        pytest.param([0.1] * 32, LATE | {"stamped_by": "kernel"}, {}, "ok", [], id="loop late, kernel stamps"),
        pytest.param(
            [0.1] * 32, OFTEN | {"stamped_by": "kernel"}, {}, "failed", list(LATENCY_ROWS), id="later than a token"
        ),
        pytest.param([0.1] * 32, KILLED, {}, "failed", ["rate", "requests"], id="a process was killed"),
        pytest.param([], {}, {}, None, [], id="nothing sent"),
    ],
)
def test_lateness_touches_the_rows_that_it_is_in(
    lags_ms: list[float], instrument: dict[str, Any], config: dict[str, Any], status: str | None, rows: list[str]
) -> None:
    check = check_of(run_of(lags_ms, instrument, **config))
    assert (check.status, list(check.rows)) == (status, rows), check.reason
    assert (check.reason is None) == (status in ("ok", None))


def test_the_reason_says_how_many_were_late_and_how_much() -> None:
    reason = check_of(run_of([0.1] * 29 + [10.24, 9, 8])).reason
    assert reason is not None
    assert reason.startswith("this client sent 3 of 32 requests more than 5 ms late, at most 10.2 ms: Response ")


@pytest.mark.parametrize(("waited_s", "said"), [(0.0, False), (100.0, True)])
def test_a_busy_machine_explains_lateness_and_is_no_fault_by_itself(waited_s: float, said: bool) -> None:
    assert check_of(run_of([0.1] * 32, {"waited_s": waited_s})).status == "ok"
    reason = check_of(run_of([0.1] * 29 + [9] * 3, {"waited_s": waited_s})).reason or ""
    assert ("waited for a core" in reason) is said


def test_lateness_of_requests_that_were_cut_off_is_held_against_no_response_of_others() -> None:
    made = run_of([9] * 64)
    cut = [
        msgspec.structs.replace(record, error="cancelled") if record.index >= 2 else record for record in made.records
    ]
    assert check_of(replace(made, records=cut)).status == "warning"
