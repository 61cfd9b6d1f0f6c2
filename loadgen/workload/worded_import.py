"""Import of files with words: what a file or a data set holds becomes lines of a trace."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import replacing
from loadgen.workload.tables import check_columns, dataset_texts
from loadgen.workload.trace import compressed, opened
from loadgen.workload.worded_formats import READERS, file_texts, worded_format, worded_rows
from loadgen.workload.worded_trace import checked_rows, is_worded
from loadgen.workload.words import WordsFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.workload.foreign_rows import LeftOut, Rows
    from loadgen.workload.tables import Texts

LENGTH_FORMATS = ("azure", "burstgpt", "bailian")
"""Formats that never hold words."""


def imported_rows(
    source: str,
    format: str | None,
    columns: Mapping[str, str],
    left_out: LeftOut,
    *,
    replaced: Mapping[str, str] = {},
    subset: str | None = None,
    split: str = "train",
) -> Rows | None:
    """Return the rows of a file with words, or of a data set; None for a trace of lengths.

    `format` is that of the rows, "csv", "parquet" or "dataset"; None: it is detected. Every row gets the fields
    `replaced`; `subset` and `split` are parts of a data set.
    """
    check_columns(columns)
    path = Path(source)
    if format == "dataset":
        texts = dataset_texts(source, subset, split, columns, left_out)
    elif format in LENGTH_FORMATS or (format is None and not path.is_file()):
        return None
    else:
        texts = _texts_of(path, format, columns, left_out)
    first = next(texts, None)
    if first is None:
        raise LoadgenError(f"{source} has no requests in it")
    if format == "jsonl":
        shape = format if is_worded(first[1]) else None
    else:
        shape = format if format in READERS else worded_format(path, first[1])
    return None if shape is None else worded_rows(path, shape, chain([first], texts), left_out, replaced)


def _texts_of(path: Path, format: str | None, columns: Mapping[str, str], left_out: LeftOut) -> Texts:
    with opened(path) as file:
        yield from file_texts(path, file, columns, left_out, format)


def write_rows(path: Path, source: str, rows: Rows, left_out: LeftOut, *, overwrite: bool) -> int:
    """Write rows as a trace, all or nothing, and return their number. LoadgenError: a row cannot be sent.

    The trace is compressed if `path` ends in .gz or .zst.
    """
    encode, written = msgspec.json.Encoder().encode, 0
    with (
        Path(os.devnull).open("wb") as nowhere,
        replacing(path, overwrite=overwrite) as file,
        compressed(path, file) as out,
    ):
        checked = checked_rows(Path(source), rows, WordsFile(nowhere, left_out))
        for written, (fields, _) in enumerate(checked, 1):  # noqa: B007
            out.write(encode(fields) + b"\n")
    return written
