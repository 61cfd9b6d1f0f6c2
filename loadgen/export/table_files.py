"""The table of requests, and any other, as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.results.request_table import COLUMNS, request_rows
from loadgen.results.run_tables import requests_table

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.table import Table

_FORMULA = ("=", "+", "-", "@", "\t")
"""First signs by which a spreadsheet takes a text for a formula."""


def csv_lines(result: RunResult) -> Iterator[bytes]:
    """Yield a line of names, and a line for each request. Empty is unknown.

    A text that a spreadsheet would compute has an apostrophe before it, and characters that a terminal would obey are
    replaced.
    """
    yield _csv_line([column.name for column in COLUMNS])
    for row in request_rows(result):
        yield _csv_line([_cell(column.value(row)) for column in COLUMNS])


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _csv_line(cells: list[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def table_csv(table: Table) -> Iterator[bytes]:
    """Yield a line of names, and a line for each row, as `csv_lines` does."""
    yield _csv_line(list(table.columns))
    for row in table.rows():
        yield _csv_line([_cell(value) for value in row.values()])


def parquet_file(result: RunResult) -> bytes:
    """Return the table of requests as a Parquet file."""
    return parquet_bytes(requests_table(result), "--as parquet")


def parquet_bytes(table: Table, what: str = "--parquet") -> bytes:
    """Return a table as a Parquet file; a field's metadata are its unit and its meaning. what: who needs pyarrow."""
    with importing(what, "parquet"):
        import pyarrow
        from pyarrow import parquet
    sink = pyarrow.BufferOutputStream()
    try:
        parquet.write_table(table.to_arrow(), sink, compression="zstd")
    except OverflowError as err:
        raise LoadgenError(f"{what}: a number of the table has more than 64 bits") from err
    return bytes(sink.getvalue())
