"""Rows of a log are brought into the order of their times without being held in memory."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loadgen.workload.foreign_rows import TimedRow, in_time_order

PATH = Path("log.jsonl")


@given(st.lists(st.tuples(st.integers(0, 10**18), st.text(max_size=5)), min_size=1, max_size=20), st.booleans())
def test_no_row_is_lost_and_equal_times_keep_their_order(rows: list[tuple[int, str]], from_first: bool) -> None:
    timed = [TimedRow(number, time_ns, {"prompt": prompt}) for number, (time_ns, prompt) in enumerate(rows, 1)]
    origin = min(time_ns for time_ns, _ in rows) if from_first else 0
    expected = sorted(timed, key=lambda row: row[1])  # type: ignore[arg-type,return-value]
    ordered = list(in_time_order(PATH, timed, from_first=from_first))
    assert [number for number, _ in ordered] == [row.number for row in expected]
    assert [fields["timestamp"] for _, fields in ordered] == [((row.time_ns or 0) - origin) / 1e6 for row in expected]


def test_rows_without_times_pass_as_they_come() -> None:
    taken: list[int] = []

    def rows() -> Any:
        for number in range(1, 4):
            taken.append(number)
            yield TimedRow(number, None, {"prompt": str(number)})

    passing = in_time_order(PATH, rows(), from_first=True)
    assert next(passing) == (1, {"prompt": "1"})
    assert taken == [1]
    assert list(in_time_order(PATH, [], from_first=True)) == []
