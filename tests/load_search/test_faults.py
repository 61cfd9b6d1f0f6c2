"""Runs that say nothing about how much a server can take are told from those in which it was too slow."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.errors import LoadgenError
from loadgen.load_search import faults
from loadgen.load_search.faults import ClientLimitError, ServerLostError, check_run, client_limit_rps
from loadgen.record import ErrorKind, RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.units import NS_PER_S
from support import sample_runs

Change = Callable[[RequestRecord], RequestRecord]


def run(change: Change = lambda record: record, **instrument: Any) -> RunResult:
    whole = sample_runs.run(200, failing=0.0)
    records = [change(record) for record in whole.records]
    stopped_by = "decided" if records[-1].error == "cancelled" else "completed"
    info = msgspec.structs.replace(
        whole.info, stopped_by=stopped_by, config={}, instrument=whole.info.instrument | instrument
    )
    return analyse_run(replace(whole, info=info, records=records))


def failed(error: ErrorKind, from_index: int = 0) -> Change:
    def change(record: RequestRecord) -> RequestRecord:
        if record.index < from_index:
            return record
        sent_ns = None if error == "connect" else record.sent_ns
        return msgspec.structs.replace(
            record,
            sent_ns=sent_ns,
            error=error,
            finish_reason=None,
            first_token_ns=None,
            last_token_ns=None,
            chunk_ns=[],
        )

    return change


def late(by_s: Callable[[float], float]) -> Change:
    """Every request is sent late, by so much at each share of the run."""

    def change(record: RequestRecord) -> RequestRecord:
        return msgspec.structs.replace(
            record, scheduled_ns=(record.sent_ns or 0) - round(by_s(record.index / 200) * NS_PER_S)
        )

    return change


@pytest.mark.parametrize(
    ("change", "answers", "fault"),
    [
        (failed("connect"), True, ServerLostError),
        (failed("http"), True, ServerLostError),
        (failed("truncated", 150), False, ServerLostError),
        (failed("connect", 190), True, ServerLostError),
        (failed("truncated", 150), True, None),
        (failed("timeout"), True, None),
        (failed("http", 100), True, None),
        (failed("cancelled", 100), True, None),
        (late(lambda share: 30.0 * share), True, ClientLimitError),
        (late(lambda share: 0.02), True, None),
        (late(lambda share: 3.0 * (0.5 < share < 0.55)), True, None),
        (lambda record: record, True, None),
    ],
)
def test_a_lost_server_and_a_slow_client_are_no_slow_server(
    change: Change, answers: bool, fault: type[LoadgenError] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "answers", lambda url: answers)
    made = run(change)
    if fault is None:
        check_run(made, "http://server/v1")
    else:
        with pytest.raises(fault) as raised:
            check_run(made, "http://server/v1")
        assert "\n" not in str(raised.value)


def test_the_rate_at_which_this_client_has_no_room_follows_from_its_use_of_a_core() -> None:
    made = run()
    assert made.summary is not None
    duration_s = made.summary.duration_s

    def limit_rps(busy: float) -> float:
        info = msgspec.structs.replace(made.info, instrument={"cpu_s": busy * duration_s})
        return client_limit_rps(10.0, replace(made, info=info))

    assert [limit_rps(busy) for busy in (0.1, 0.5, 0.8, 0.95)] == pytest.approx([float("inf"), 16.0, 10.0, 10.0])


def test_a_client_that_lost_a_process_or_read_tokens_too_late_for_the_limits_is_too_slow() -> None:
    lost = run(processes=[{"ended": "completed"}, {"ended": "killed by signal 9", "requests": 9, "lost": 3}])
    with pytest.raises(ClientLimitError, match="process 2 of this client ended early"):
        check_run(lost, "http://server/v1")
    slow = run(loop_delay_s={"count": 99, "p90": 0.03, "p99": 0.05}, stamped_by="reading")
    check_run(slow, "http://server/v1")
    tight = replace(slow, info=msgspec.structs.replace(slow.info, config={"goodput": {"ttft": 200.0}}))
    with pytest.raises(ClientLimitError, match=r"a tenth of the tokens 30 ms late or later$"):
        check_run(tight, "http://server/v1")
    assert slow.summary is not None
    instrument = tight.info.instrument | {"waited_s": 0.3 * slow.summary.duration_s}
    crowded = replace(tight, info=msgspec.structs.replace(tight.info, instrument=instrument))
    with pytest.raises(ClientLimitError, match="late or later, and waited for a core that others had for 30% of the"):
        check_run(crowded, "http://server/v1")
