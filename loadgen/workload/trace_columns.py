"""A trace as columns, some lines at a time: tens of millions of requests in the memory of one block of lines.

A block whose every line is plain (what the data sets' own files are, but for a few lines) is read as arrays. Any other
block goes line by line through `trace`, which knows every form and says every fault.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.stats.arrays import Floats, Ints
from loadgen.workload.trace import (
    AZURE_COLUMNS,
    BURSTGPT_COLUMNS,
    MAX_TOKENS,
    Format,
    Line,
    TraceRequest,
    check_line_size,
    compressed,
    detect_format,
    in_order,
    lines_of,
    milliseconds,
    no_requests,
    opened,
    replacing,
    rows_of,
    start_of,
)

Bytes = NDArray[np.uint8]
T = TypeVar("T", Floats, Ints)

BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Columns:
    """Some requests of a trace, in order; as long as each other, and None where no request has one."""

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    workload: Sequence[str] | str = "default"
    """One name for all of them, or each one's."""
    session_id: Sequence[str | None] | None = None
    prefix_ids: Sequence[tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)


def iter_columns(
    path: Path,
    dropped: Counter[str],
    *,
    format: Format | None = None,
    workload: str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Columns]:
    """What `trace.iter_import` gives, request by request the same, with the same errors."""
    with opened(path) as file:
        first = next(lines_of(path, file), None)
        if first is None:
            raise no_requests(path)
        kind = format or detect_format(path, first[1])
        is_json = kind not in ("azure", "burstgpt")
        # A JSON file's first line is a request already: it is read again with the block it begins.
        carry = first[1].encode() + b"\n" if is_json else b""
        if not is_json:
            list(rows_of(path, kind, first, [], dropped, workload))  # says what is wrong with the header
        reader = _Reader(path, kind, first, dropped, workload)
        last_s = -math.inf
        for number, block in _blocks(path, file, first[0] + (not is_json), carry, block_bytes):
            columns = reader.read(number, block, last_s)
            if len(columns):
                last_s = float(columns.arrival_s[-1])
                yield columns
    if last_s == -math.inf:
        raise no_requests(path)


def _blocks(path: Path, file: IO[bytes], number: int, carry: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, whole lines, each with its end)."""
    while more := file.read(size):
        carry += more
        end = carry.rfind(b"\n") + 1
        # Only a block's first line can be longer than what was read.
        check_line_size(path, number, (carry.find(b"\n") + 1) or len(carry))
        if end:
            block, carry = carry[:end], carry[end:]
            yield number, block
            number += block.count(b"\n")
    if carry:
        yield number, carry if carry.endswith(b"\n") else carry + b"\n"


class _Reader:
    """One file's header and the instant it counts from."""

    def __init__(
        self, path: Path, kind: Format, first: tuple[int, str], dropped: Counter[str], workload: str | None
    ) -> None:
        self._path = path
        self._kind: Format = kind
        self._first = first
        self._names = [name.strip() for name in first[1].split(",")]
        self._dropped = dropped
        self._workload = workload
        self._start: float | None = None

    def read(self, number: int, block: bytes, last_s: float) -> Columns:
        if self._start is None:
            line = next(lines_of(self._path, io.BytesIO(block), number), None)
            self._start = None if line is None else start_of(self._path, self._kind, self._first, line)
        plain = self._plain(block)
        if plain is None or not _rising(plain[0].arrival_s, last_s):
            return self._line_by_line(number, block, last_s)
        columns, zeros = plain
        self._dropped.update(zeros)
        return columns if self._workload is None else replace(columns, workload=self._workload)

    def _plain(self, block: bytes) -> tuple[Columns, dict[str, int]] | None:
        match self._kind:
            case "azure":
                return _plain_azure(block, self._names, self._start or 0)
            case "burstgpt":
                return _plain_burstgpt(block, self._names, self._start or 0)
            case _:
                return _plain_json(block)

    def _line_by_line(self, number: int, block: bytes, last_s: float) -> Columns:
        lines = lines_of(self._path, io.BytesIO(block), number)
        rows = rows_of(self._path, self._kind, self._first, lines, self._dropped, self._workload, self._start or 0)
        return _columns(list(in_order(self._path, rows, last_s)))


def _rising(arrival_s: Floats, last_s: float) -> bool:
    return not len(arrival_s) or bool(arrival_s[0] >= last_s and np.all(arrival_s[1:] >= arrival_s[:-1]))


def _columns(requests: Sequence[TraceRequest]) -> Columns:
    return Columns(
        np.array([r.arrival_s for r in requests], np.float64),
        np.array([r.input_tokens for r in requests], np.int64),
        np.array([r.output_tokens for r in requests], np.int64),
        [r.workload for r in requests],
        [r.session_id for r in requests] if any(r.session_id is not None for r in requests) else None,
        [r.prefix_ids for r in requests] if any(r.prefix_ids for r in requests) else None,
    )


# -- plain JSON lines -------------------------------------------------------------------------------------------------

_LINES = msgspec.json.Decoder(Line)


def _plain_json(block: bytes) -> tuple[Columns, dict[str, int]] | None:
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    count = len(ends)
    begins = np.concatenate(([0], ends[:-1] + 1))
    if not (_all(data[begins], "{") and _all(data[ends - 1], "}")):
        return None
    try:
        if not block.isascii():
            block.decode()
        lines = _LINES.decode_lines(block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    workloads = {line.workload for line in lines}
    blocks = [line.hash_ids for line in lines]
    if len(lines) != count or not all(name is None or name.isprintable() for name in workloads):
        return None
    return Columns(
        np.array([line.timestamp for line in lines]) / 1000,
        np.array([line.input_length for line in lines], np.int64),
        np.array([line.output_length for line in lines], np.int64),
        (workloads.pop() or "default") if len(workloads) == 1 else [line.workload or "default" for line in lines],
        _unless_all_none([line.session_id for line in lines]),
        None if blocks.count(None) == count else [ids or () for ids in blocks],
    ), {}


def _unless_all_none(values: list[str | None]) -> list[str | None] | None:
    return None if values.count(None) == len(values) else values


# -- plain CSV --------------------------------------------------------------------------------------------------------


def _plain_azure(block: bytes, names: list[str], start_ns: float) -> tuple[Columns, dict[str, int]] | None:
    if (plain := _plain(block, names, AZURE_COLUMNS, _stamps_ns)) is None:
        return None
    t_ns, inputs, outputs, _ = plain
    return _without_zeros((t_ns - int(start_ns)) / 1e6 / 1000, inputs, outputs, None)


def _plain_burstgpt(block: bytes, names: list[str], start_s: float) -> tuple[Columns, dict[str, int]] | None:
    if (plain := _plain(block, names, BURSTGPT_COLUMNS, _decimals)) is None:
        return None
    t_s, inputs, outputs, fields = plain
    sessions = None
    if "Session ID" in fields:
        text = block.decode("ascii")
        sessions = [text[a:b] or None for a, b in zip(*(side.tolist() for side in fields["Session ID"]), strict=True)]
    return _without_zeros(t_s - start_s, inputs, outputs, sessions)


def _plain(
    block: bytes, names: list[str], columns: tuple[str, str, str], times: Callable[[Bytes, Ints, Ints], T | None]
) -> "tuple[T, Ints, Ints, dict[str, Field]] | None":
    """(times, inputs, outputs, where every column lies); None when a line of the block is not written plainly."""
    cells = _cells(block, names)
    if cells is None:
        return None
    data, fields = cells
    stamp, asked, answered = (fields[name] for name in columns)
    t = times(data, *stamp)
    inputs, outputs = _integers(data, *asked), _integers(data, *answered)
    return None if t is None or inputs is None or outputs is None else (t, inputs, outputs, fields)


def _without_zeros(
    arrival_s: Floats, inputs: Ints, outputs: Ints, sessions: list[str | None] | None
) -> tuple[Columns, dict[str, int]]:
    no_input, no_output = inputs == 0, (outputs == 0) & (inputs > 0)
    zeros = {"0 input tokens": int(no_input.sum()), "0 output tokens": int(no_output.sum())}
    zeros = {reason: count for reason, count in zeros.items() if count}
    if zeros:
        kept = ~(no_input | no_output)
        arrival_s, inputs, outputs = arrival_s[kept], inputs[kept], outputs[kept]
        sessions = None if sessions is None else [s for s, keep in zip(sessions, kept.tolist(), strict=True) if keep]
    return Columns(arrival_s, inputs, outputs, session_id=_unless_all_none(sessions) if sessions else None), zeros


Field = tuple[Ints, Ints]
"""Where a column's text begins and ends, on every line."""


def _cells(block: bytes, names: list[str]) -> tuple[Bytes, dict[str, Field]] | None:
    if not block.isascii():
        return None
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    commas = np.flatnonzero(data == ord(","))
    if len(commas) != len(ends) * (len(names) - 1):
        return None
    begins = np.concatenate(([0], ends[:-1] + 1))
    if len(data) > 1 and data[ends[0] - 1] == ord("\r"):
        ends = ends - 1
        if not np.all(data[ends] == ord("\r")):
            return None
    between = [commas[i :: len(names) - 1] for i in range(len(names) - 1)]
    if not (np.all(between[0] >= begins) and np.all(between[-1] < ends)):
        return None
    left, right = [begins, *(comma + 1 for comma in between)], [*between, ends]
    return data, dict(zip(names, zip(left, right, strict=True), strict=True))


def _digits(data: Bytes, begins: Ints, ends: Ints, most: int) -> Ints | None:
    """The whole numbers written there in 0 to `most` digits; None if one has other characters, or more of them."""
    width = ends - begins
    if not len(width) or int(width.max()) > most:
        return None
    total = np.zeros(len(begins), np.int64)
    for k in range(int(width.max())):
        digit = data[np.maximum(ends - 1 - k, 0)] - np.uint8(ord("0"))  # other characters wrap around, above 9
        there = width > k
        if np.any(there & (digit > 9)):
            return None
        total += np.where(there, digit, 0) * np.int64(10**k)
    return total


def _integers(data: Bytes, begins: Ints, ends: Ints) -> Ints | None:
    """Lengths in tokens; None if one is not written plainly or too large."""
    total = _digits(data, begins, ends, 10)
    return None if total is None or np.any(ends <= begins) or total.max() > MAX_TOKENS else total


def _decimals(data: Bytes, begins: Ints, ends: Ints) -> Floats | None:
    """Numbers of at most 15 digits: both halves of digits / 10^k are exact, so the quotient is what float() gives."""
    dots = np.append(np.flatnonzero(data == ord(".")), len(data))
    dot = np.minimum(dots[np.searchsorted(dots, begins)], ends)
    whole, part = _digits(data, begins, dot, 10), _digits(data, np.minimum(dot + 1, ends), ends, 5)
    if whole is None or part is None or np.any(dot <= begins):
        return None
    scale = 10 ** np.maximum(ends - dot - 1, 0)
    return np.asarray((whole * scale + part) / scale)


def _stamps_ns(data: Bytes, begins: Ints, ends: Ints) -> Ints | None:
    """Of `2023-11-16 18:17:03`, with or without decimals and +00:00."""
    t_ns = np.empty(len(begins), np.int64)
    width = ends - begins
    for one in np.unique(width).tolist():
        rows = np.flatnonzero(width == one)
        found = _stamps_of_width(data, begins[rows], one)
        if found is None:
            return None
        t_ns[rows] = found
    return t_ns


_SHAPE = "0000-00-00 00:00:00"


def _stamps_of_width(data: Bytes, begins: Ints, width: int) -> Ints | None:
    if width < len(_SHAPE):
        return None
    text = [data[begins + k] for k in range(width)]  # one array a character
    decimals = width - len(_SHAPE)
    if decimals >= 6 and all(_all(t, c) for t, c in zip(text[-6:], "+00:00", strict=True)):
        decimals -= 6
    shape = _SHAPE + ("." + "0" * (decimals - 1) if decimals else "")
    if decimals == 1 or decimals > 10:
        return None
    for column, expected in zip(text, shape, strict=False):
        if not (np.all(column - np.uint8(48) <= 9) if expected == "0" else _all(column, expected)):
            return None
    day_s = _days_s(np.column_stack(text[:10]))
    hour, minute, second = ((text[k] - np.int64(48)) * 10 + (text[k + 1] - np.int64(48)) for k in (11, 14, 17))
    if day_s is None or hour.max() > 23 or minute.max() > 59 or second.max() > 59:
        return None
    t_ns = (day_s + hour * 3600 + minute * 60 + second) * 10**9
    for k in range(decimals - 1):
        t_ns += (text[20 + k] - np.int64(48)) * 10 ** (8 - k)
    return np.asarray(t_ns)


def _all(column: Bytes, character: str) -> bool:
    return bool(np.all(column == ord(character)))


def _days_s(dates: Bytes) -> Ints | None:
    """Seconds since 1970 at the start of each day; a block of lines holds one or two days."""
    changes = np.flatnonzero(np.any(dates[1:] != dates[:-1], axis=1)) + 1
    firsts = np.concatenate(([0], changes))
    try:
        days = np.array([dates[i].tobytes().decode() for i in firsts.tolist()], dtype="M8[s]")
    except ValueError:
        return None
    return np.repeat(days.astype(np.int64), np.diff(np.append(firsts, len(dates))))


# -- writing ----------------------------------------------------------------------------------------------------------


class _Written(msgspec.Struct, omit_defaults=True, gc=False):
    timestamp: float
    input_length: int
    output_length: int
    workload: str = "default"
    session_id: str | None = None
    hash_ids: tuple[int, ...] = ()


def write_columns(path: Path, chunks: Iterable[Columns], *, overwrite: bool = True) -> int:
    """The bytes that `trace.write_trace` writes for the same requests; returns how many."""
    encode = msgspec.json.Encoder().encode_lines
    written = 0
    with replacing(path, overwrite=overwrite) as file, compressed(path, file) as out:
        for chunk in chunks:
            out.write(encode(_lines(chunk)))
            written += len(chunk)
    return written


def _lines(chunk: Columns) -> list[_Written]:
    fields = [_milliseconds(chunk.arrival_s), chunk.input_tokens.tolist(), chunk.output_tokens.tolist()]
    if chunk.session_id is None and chunk.prefix_ids is None and chunk.workload == "default":
        return list(map(_Written, *fields))
    count = len(chunk)
    names = [chunk.workload] * count if isinstance(chunk.workload, str) else chunk.workload
    sessions = [s or None for s in chunk.session_id] if chunk.session_id is not None else [None] * count
    return list(map(_Written, *fields, names, sessions, chunk.prefix_ids or [()] * count))


def _milliseconds(arrival_s: Floats) -> list[float]:
    """`trace.milliseconds` of each."""
    whole_ns = np.rint(arrival_s * 1e9) / 1e6
    found: list[float] = whole_ns.tolist()
    for i in np.flatnonzero(whole_ns / 1000 != arrival_s).tolist():
        found[i] = milliseconds(float(arrival_s[i]))
    return found
