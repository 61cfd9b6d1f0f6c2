"""Requests as CSV and Parquet: each value comes back, and what is not known stays so."""

import csv
import io
from dataclasses import replace

import msgspec
import pyarrow.parquet as parquet
import pytest

from loadgen.errors import LoadgenError
from loadgen.export.table_files import csv_lines, parquet_bytes, parquet_file
from loadgen.results.request_table import COLUMNS, request_table
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.table import Column, Table
from support import sample_runs


@pytest.fixture(scope="module")
def made() -> RunResult:
    return analyse_run(sample_runs.run(num_requests=60, failing=0.2))


def rows_of(made: RunResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(b"".join(csv_lines(made)).decode())))


def test_csv_has_the_values_of_the_table_and_nothing_for_unknown_ones(made: RunResult) -> None:
    rows, table = rows_of(made), request_table(made)
    assert len(rows) == len(made.schedule)
    for column in COLUMNS:
        read = [row[column.name] for row in rows]
        match column.type:
            case "string":
                assert read == [value or "" for value in table[column.name]]
            case "bool":
                assert read == ["true" if value else "false" for value in table[column.name]]
            case _:
                assert [float(cell) if cell else None for cell in read] == table[column.name]


def test_a_number_that_parquet_cannot_hold_is_an_error() -> None:
    with pytest.raises(LoadgenError, match="--parquet: a number of the table has more than 64 bits"):
        parquet_bytes(Table([Column("n", "int64", None, "A number.")], {"n": [2**63]}))


@pytest.mark.parametrize("detail", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", 'a "quoted", b\nline two', "<b>"])
def test_no_text_is_a_formula(made: RunResult, detail: str) -> None:
    failed = msgspec.structs.replace(made.records[0], error="server", detail=detail)
    rows = rows_of(replace(made, records=[failed, *made.records[1:]]))
    assert rows[0]["detail"] == (f"'{detail}" if detail[0] in "=+-@\t" else detail)


def test_no_text_is_an_order_to_a_terminal(made: RunResult) -> None:
    failed = msgspec.structs.replace(made.records[0], error="server", detail="\x1b[31mred\r\x9b\u202ea\tb\n")
    rows = rows_of(replace(made, records=[failed, *made.records[1:]]))
    assert rows[0]["detail"] == "\ufffd[31mred\ufffd\ufffd\ufffda\tb\n"


def test_parquet_has_the_table_with_its_types_units_and_meanings(made: RunResult) -> None:
    read = parquet.read_table(io.BytesIO(parquet_file(made)))
    assert {name: read[name].to_pylist() for name in read.column_names} == request_table(made)
    for column in COLUMNS:
        field = read.schema.field(column.name)
        assert field.metadata == {b"unit": (column.unit or "").encode(), b"description": column.meaning.encode()}
