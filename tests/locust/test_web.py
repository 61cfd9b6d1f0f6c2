"""The rows that a record adds to locust's table, and the numbers that the page derives from the table."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("flask")

from loadgen.locust.web import (
    ANSWER,
    FIRST_TOKEN,
    LATE,
    NEXT_TOKENS,
    UNSCHEDULED,
    FailedError,
    TableReading,
    Watch,
    log_record,
    reason,
)
from loadgen.record import RequestRecord
from loadgen.units import NS_PER_MS, NS_PER_S


@dataclass
class Entry:
    """One row of locust's table: the (milliseconds, size) of each logged request."""

    logged: list[tuple[float, int]] = field(default_factory=list)

    def log(self, ms: float, size: int) -> None:
        self.logged.append((ms, size))


class Stats:
    """Locust's table."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}

    def get(self, name: str, method: str) -> Entry:
        return self.entries.setdefault((name, method), Entry())


def logged(record: RequestRecord) -> tuple[dict[str, Any], dict[tuple[str, str], list[tuple[float, int]]]]:
    """Return the arguments of locust's event, and the further rows."""
    fired: list[dict[str, Any]] = []
    events = SimpleNamespace(request=SimpleNamespace(fire=lambda **arguments: fired.append(arguments)))
    stats = Stats()
    log_record(SimpleNamespace(events=events, stats=stats), record)
    (arguments,) = fired
    return arguments, {key: entry.logged for key, entry in stats.entries.items()}


def record(**changed: Any) -> RequestRecord:
    """A request scheduled at 1 ms and sent at 3 ms, whose tokens come at 13, 15, 17 and 23 ms."""
    chunk_ns = [ms * NS_PER_MS for ms in (13, 15, 17, 23)]
    fields = {
        "index": 0, "workload": "chat", "scheduled_ns": NS_PER_MS, "sent_ns": 3 * NS_PER_MS, "chunk_ns": chunk_ns,
        "first_token_ns": chunk_ns[0], "last_token_ns": chunk_ns[-1], "finished_ns": 24 * NS_PER_MS,
        "input_tokens": 50, "output_tokens": 6,
    }  # fmt: skip
    return RequestRecord(**{**fields, **changed})


def test_an_answer_is_one_request_of_locust_with_its_tokens_as_size() -> None:
    done = record()
    fired, _ = logged(done)
    assert done.e2e_ns is not None
    assert fired == {
        "request_type": "chat", "name": ANSWER, "response_time": done.e2e_ns / NS_PER_MS, "response_length": 6,
        "exception": None, "context": {}, "response": done,
    }  # fmt: skip


def test_first_token_next_tokens_and_lag_are_rows_of_their_own() -> None:
    _, rows = logged(record())
    assert rows == {
        (FIRST_TOKEN, "chat"): [(10.0, 50)],
        (NEXT_TOKENS, "chat"): [(2.0, 5)],  # 10 ms after the first token, for five tokens
        (LATE, "chat"): [(2.0, 0)],
    }


def test_an_unscheduled_request_is_never_late_and_a_single_token_has_no_next() -> None:
    _, rows = logged(record(scheduled_ns=UNSCHEDULED, output_tokens=1, chunk_ns=[13 * NS_PER_MS],
                            last_token_ns=13 * NS_PER_MS))  # fmt: skip
    assert set(rows) == {(FIRST_TOKEN, "chat")}


def test_a_failed_request_counts_as_a_failure_and_in_no_other_row() -> None:
    fired, rows = logged(record(error="http", detail="503 Service\n  Unavailable"))
    assert isinstance(fired["exception"], FailedError)
    assert repr(fired["exception"]) == "http: 503 Service Unavailable"
    assert rows == {}


@pytest.mark.parametrize(
    ("error", "detail", "line"),
    [
        ("truncated", "ended after 17 chunks of 120", "truncated: ended after N chunks of N"),
        ("http", "503 Service Unavailable", "http: 503 Service Unavailable"),  # a status is no count
        ("connect", None, "connect: "),
        ("server", "x" * 300, "server: " + "x" * 200),
    ],
)
def test_like_failures_have_one_reason(error: Any, detail: str | None, line: str) -> None:
    assert reason(record(error=error, detail=detail)) == line


# -- rates over the window -------------------------------------------------------------------------------------------


def watch(*readings: TableReading) -> Watch:
    made = Watch(SimpleNamespace(stats=Stats()))
    made._readings.extend(readings)
    return made


def reading(second: float, chat: int, code: int = 0, first_tokens: int = 0, first_tokens_ms: float = 0) -> TableReading:
    return TableReading(round(second * NS_PER_S), {"chat": chat, "code": code}, first_tokens, first_tokens_ms)


def test_the_token_rate_is_the_growth_over_the_window_by_workload_and_of_all() -> None:
    window = watch(reading(10, 100, 40), reading(12, 130, 45), reading(14, 180, 60))
    assert window._tokens_per_s("chat") == 20
    assert window._tokens_per_s("code") == 5
    assert window._tokens_per_s(None) == 25
    assert window._tokens_per_s("other") == 0


@pytest.mark.parametrize("readings", [[reading(1, 5)], [reading(1, 5), reading(1, 9)], [reading(1, 5), reading(3, 4)]])
def test_one_reading_or_a_table_that_was_reset_has_no_rate(readings: list[TableReading]) -> None:
    assert watch(*readings)._tokens_per_s(None) is None


def test_the_recent_time_to_first_token_is_the_mean_of_the_window_alone() -> None:
    start, end = reading(0, 0, 0, 10, 5000.0), reading(2, 0, 0, 14, 5100.0)
    assert watch(start, end)._recent_ttft_ms() == 25.0
    assert watch(start, start)._recent_ttft_ms() is None
    assert watch(end, start)._recent_ttft_ms() is None, "the table was reset"
