"""Tables whose rows are requests: CSV, Parquet, JSON, and data sets of Hugging Face, as JSON texts of one row each.

A column is a field of a trace if it is called like one, or if `--column FIELD=COLUMN` says so.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.workload.foreign_rows import LeftOut, unix_ns
from loadgen.workload.json_texts import first_bytes
from loadgen.workload.worded_trace import worded_fields
from loadgen.workload.words import MAX_WORDS_BYTES, ROUTING, SAMPLING, WORDS

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

_BY_NAME = frozenset((
    *WORDS, "conversations", "timestamp", "input_length", "output_length", "answer", "max_tokens", "workload",
    "session_id", "tools",
))  # fmt: skip
"""Fields that a column of the same name is."""

FIELDS = _BY_NAME | ROUTING | SAMPLING
"""Fields that a column may be."""

MESSAGES = {"system": "system", "message": "user"}
"""Columns that become a message of the role, in this order: `--column message=question`."""

_LENGTHS = ("input_length", "output_length", "max_tokens")
_TEXTS = ("prompt", "answer", "model", "workload", "session_id")

Texts = Iterator[tuple[int, str]]


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise LoadgenError if `columns`, by field, name a field that there is not."""
    for field in columns:
        if field not in FIELDS and field not in MESSAGES:
            fields = ", ".join(sorted(FIELDS | MESSAGES.keys()))
            raise LoadgenError(f"--column {field}=...: there is no such field; there are {fields}")


def csv_texts(path: Path, file: IO[bytes], columns: Mapping[str, str], left_out: LeftOut) -> Texts:
    """Yield (line at which the row ends, JSON of its fields) of a CSV whose first row names its columns.

    Cells are separated by tabs in a file whose first row has them, and by commas else; an empty cell has no value.
    """
    csv.field_size_limit(MAX_WORDS_BYTES)
    delimiter = "\t" if b"\t" in first_bytes(file).splitlines()[0] else ","
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        pick = _picked(path, header, columns, left_out)
        indexes = {field: header.index(column) for field, column in pick.items()}
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"it has {len(cells)} columns; the header has {len(header)}")
            yield reader.line_num, _json({field: cells[index] for field, index in indexes.items() if cells[index]})
    except UnicodeDecodeError as err:
        raise LoadgenError(f"{path}:{reader.line_num + 1}: it is not UTF-8") from err
    except (csv.Error, ValueError) as err:
        raise LoadgenError(f"{path}:{max(reader.line_num, 1)}: {err}") from err
    finally:
        with suppress(ValueError):  # the file is closed already
            text.detach()  # whoever opened it closes it


def object_texts(path: Path, lines: Lines, columns: Mapping[str, str], left_out: LeftOut) -> Texts:
    """Yield (number, JSON of its fields) of JSON objects, whose fields are columns."""
    pick: dict[str, str] = {}
    for number, row in worded_fields(path, lines):
        pick = pick or _picked(path, list(row), columns, left_out)
        try:
            yield number, _json({field: row[column] for field, column in pick.items() if column in row})
        except ValueError as err:
            raise LoadgenError(f"{path}:{number}: {err}") from err


def parquet_texts(path: Path, columns: Mapping[str, str], left_out: LeftOut) -> Texts:
    """Yield (row from 1, JSON of its fields) of a Parquet file, a batch of rows in memory."""
    with importing("reading Parquet", "parquet"):
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    try:
        with parquet.ParquetFile(path) as file:
            pick = _picked(path, file.schema_arrow.names, columns, left_out)
            batches = file.iter_batches(64, columns=sorted(set(pick.values())))
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from _row_texts(str(path), rows, pick)
    except (arrow.ArrowException, OSError) as err:
        raise LoadgenError(f"cannot read {path}: {err}") from err


def dataset_texts(name: str, subset: str | None, split: str, columns: Mapping[str, str], left_out: LeftOut) -> Texts:
    """Yield (row from 1, JSON of its fields) of a data set by its name on Hugging Face, or of a folder with one.

    Its rows are read as they come, so that the first of a large one do not wait for the others.
    """
    with importing("reading a data set", "datasets"):
        from datasets import load_dataset
    try:
        rows = iter(load_dataset(name, subset, split=split, streaming=True))
        first = next(rows, None)
        if first is None:
            return
        pick = _picked(Path(name), list(first), columns, left_out)
        yield from _row_texts(name, chain([first], rows), pick)
    except LoadgenError:
        raise
    except Exception as err:  # the library raises errors of many libraries
        raise LoadgenError(f"cannot read the data set {name}: {' '.join(str(err).split())[:200]}") from err


def _row_texts(name: str, rows: Iterator[Mapping[str, Any]], pick: Mapping[str, str]) -> Texts:
    for number, row in enumerate(rows, 1):
        fields = {field: row[column] for field, column in pick.items() if row[column] is not None}
        try:
            yield number, _json(fields)
        except (ValueError, TypeError) as err:
            raise LoadgenError(f"{name}:{number}: {err}") from err


def _picked(path: Path, header: list[str], columns: Mapping[str, str], left_out: LeftOut) -> dict[str, str]:
    """Return the column of each field of a row. LoadgenError: there is none with words, or no such column."""
    if missing := [column for column in columns.values() if column not in header]:
        raise LoadgenError(f"{path}: no column {', '.join(missing)}; there are {', '.join(header)[:200]}")
    pick = dict(columns) or {name: name for name in header if name in _BY_NAME}
    if not pick.keys() & (*WORDS, "message", "conversations"):
        raise LoadgenError(
            f"{path}: no column of words; say which it is, for instance --column prompt=COLUMN or --column "
            f"message=COLUMN, of {', '.join(header)[:200]}"
        )
    for name in header:
        if name not in pick.values():
            left_out[f"column {name[:40]!r}"] += 1
    return pick


def _json(fields: Mapping[str, Any]) -> str:
    """Return a row as JSON. ValueError: a cell is not of its field's type."""
    row = {name: _cell(name, value) for name, value in fields.items() if name not in MESSAGES}
    spoken = [{"role": role, "content": fields[name]} for name, role in MESSAGES.items() if name in fields]
    if "message" in fields:
        row["messages"] = spoken
    return msgspec.json.encode(row).decode()


def _cell(name: str, value: Any) -> Any:
    """Return a cell as the value of a field: numbers and JSON may be given as text, and times as dates."""
    if isinstance(value, msgspec.Raw):
        if name not in (*_LENGTHS, "timestamp", "session_id"):
            return value
        value = msgspec.json.decode(value)
    if name == "timestamp":
        return _milliseconds(value)
    if name == "session_id" and isinstance(value, int):
        return str(value)
    if name in _TEXTS or not isinstance(value, str):
        return _integer(name, value) if name in _LENGTHS and isinstance(value, float) else value
    try:
        return int(value) if name in _LENGTHS else msgspec.Raw(bytes(msgspec.json.decode(value, type=msgspec.Raw)))
    except (ValueError, msgspec.MsgspecError, RecursionError) as err:
        if name in ("stop", "user", "tool_choice", "reasoning_effort"):
            return value
        expected = "an integer" if name in _LENGTHS else "JSON"
        raise ValueError(f"{name}: {value[:40]!r}: expected {expected}") from err


def _integer(name: str, value: float) -> int:
    """Return a whole number that a table keeps as a float, as it does where rows have none. ValueError: it is none."""
    if not value.is_integer():
        raise ValueError(f"{name}: {value}: expected an integer")
    return int(value)


def _milliseconds(value: Any) -> float:
    """Return a time in ms, from a number of them or from a date. ValueError: it is neither."""
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    try:
        ms = float(value)
    except (TypeError, ValueError):
        ms = math.nan
    if not math.isfinite(ms):
        try:
            return unix_ns(str(value)) / 1e6
        except ValueError as err:
            raise ValueError(f"timestamp: {str(value)[:40]!r}: expected milliseconds, or a date and time") from err
    return ms
