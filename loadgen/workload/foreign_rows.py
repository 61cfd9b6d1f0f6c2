"""Rows of the one trace format that are made from other tools' files."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.workload.words import Fields

Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""(line or element from 1, fields of the one trace format)."""

LeftOut = Counter[str]
"""Number of rows, or of parts of rows, that have no place in a trace, by what they are."""

NULL = msgspec.Raw(b"null")
"""The value of a field that was not given. (A union with None cannot keep a value's bytes.)"""

MAX_NS = 2**63 - 1
"""Latest time of a row, in the year 2262."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimedRow(NamedTuple):
    """A row whose time is not a timestamp yet."""

    number: int
    time_ns: int | None
    """Is None in a file that has no times."""
    fields: Mapping[str, Any]


def in_time_order(path: Path, rows: Iterable[TimedRow], *, from_first: bool) -> Rows:
    """Yield rows by their time, which becomes their timestamp: counted from the first with `from_first`.

    The rows wait in a temporary file, with 24 bytes of each in memory. Rows without times pass as they come.
    LoadgenError: only some rows have one.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    numbers, times, offsets = array("q"), array("q"), array("q", [0])
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Fields).decode
    with tempfile.TemporaryFile() as spool:
        for number, time_ns, fields in chain([first], rows):
            if (time_ns is None) != (first.time_ns is None):
                expected = "has none" if first.time_ns is None else "has one"
                raise LoadgenError(f"{path}:{number}: time: the first row {expected}; expected the same of every row")
            if time_ns is None:
                yield number, fields
                continue
            if abs(time_ns) > MAX_NS:
                raise LoadgenError(f"{path}:{number}: time: it is out of range")
            numbers.append(number)
            times.append(time_ns)
            data = encode(fields)
            spool.write(data)
            offsets.append(offsets[-1] + len(data))
        order = np.argsort(np.array(times), kind="stable")
        origin_ns = min(times) if from_first and times else 0
        for i in order:
            spool.seek(offsets[i])
            fields = decode(spool.read(offsets[i + 1] - offsets[i]))
            yield numbers[i], {"timestamp": (times[i] - origin_ns) / 1e6, **fields}


def whole_ns(time: float, unit_ns: int) -> int:
    """Return a time in ns, good for microseconds like a float of seconds since 1970; above MAX_NS if it is no time."""
    return round(time * (unit_ns // 1000)) * 1000 if abs(time) < MAX_NS / unit_ns else MAX_NS + 1


def unix_ns(text: str) -> int:
    """Return ns since 1970 of an ISO 8601 date and time; without a zone it is UTC. ValueError: it is none."""
    time = datetime.fromisoformat(text)
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1000


def head(raw: msgspec.Raw, size: int = 1) -> bytes:
    """Return the first bytes of a JSON value."""
    return bytes(memoryview(raw)[:size])


def is_null(raw: msgspec.Raw) -> bool:
    """Return whether a JSON value is null, as it is in a field that was not given."""
    return head(raw, 5) == b"null"


def is_text(raw: msgspec.Raw) -> bool:
    """Return whether a JSON value is a text that is not empty."""
    return head(raw) == b'"' and head(raw, 2) != b'""'


def stated(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not (isinstance(value, msgspec.Raw) and is_null(value))
    }
