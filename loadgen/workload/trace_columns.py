"""Columnar trace reading and writing, a block of lines at a time: traces of tens of millions of requests in the memory
of one block.

A block in which every line has the plain form (nearly all lines of the public data sets have it) is parsed as arrays.
Any other block goes line by line through `trace` and `trace_formats`, which know every form and report every fault.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.files import replacing
from loadgen.stats.arrays import Floats, Ints
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.trace import (
    MAX_TOKENS,
    EarlierRequests,
    Line,
    TraceRequest,
    check_line_size,
    compressed,
    graph_fields,
    in_order,
    milliseconds,
    no_requests,
    numbered_lines,
    opened,
)
from loadgen.workload.trace_formats import (
    AZURE_COLUMNS,
    BURSTGPT_COLUMNS,
    CSV_FORMATS,
    Format,
    detect_format,
    parse_rows,
    time_origin,
)

Bytes = NDArray[np.uint8]
T = TypeVar("T", Floats, Ints)

BLOCK_BYTES = 4 * 2**20
"""Bytes read at a time."""


@dataclass(frozen=True)
class Columns:
    """Consecutive requests of a trace. All columns have the same length; None means that no request has a value."""

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    workload: Sequence[str] | str = "default"
    """One name for all requests, or a name per request."""
    session_id: Sequence[str | None] | None = None
    prefix_ids: Sequence[tuple[int, ...]] | None = None
    block_tokens: Ints | int = BLOCK_TOKENS
    """Tokens of a prefix id: one number for all requests, or one per request."""
    graph: Sequence[dict[str, Any]] | None = None
    """The `graph_fields` of each request."""

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
    """Yield the requests of `trace_formats.iter_import` as columns: the same values in the same order, the same errors.

    `block_bytes` bounds the memory that is used.
    """
    with opened(path) as file:
        header = next(numbered_lines(path, file), None)
        if header is None:
            raise no_requests(path, dropped)
        resolved = format or detect_format(path, header[1])
        is_json = resolved not in CSV_FORMATS
        # The first line of a JSON file is already a request: it is read again with the block that it begins.
        carry = header[1].encode() + b"\n" if is_json else b""
        if not is_json:
            list(parse_rows(path, resolved, header, [], dropped, workload))  # reports a fault of the header
        reader = _BlockReader(path, resolved, header, dropped, workload)
        latest_s = -math.inf
        for number, block in line_blocks(path, file, header[0] + (not is_json), carry, block_bytes):
            columns = reader.read(number, block, latest_s)
            if len(columns):
                latest_s = float(columns.arrival_s[-1])
                yield columns
    if latest_s == -math.inf:
        raise no_requests(path, dropped)


def line_blocks(path: Path, file: IO[bytes], number: int, carry: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines, each with its line end); `carry` precedes what is in the file."""
    while data := file.read(size):
        carry += data
        end = carry.rfind(b"\n") + 1
        # Only a block's first line can be longer than what was read.
        check_line_size(path, number, (carry.find(b"\n") + 1) or len(carry))
        if end:
            block, carry = carry[:end], carry[end:]
            yield number, block
            number += block.count(b"\n")
    if carry:
        yield number, carry if carry.endswith(b"\n") else carry + b"\n"


class _BlockReader:
    """Parses the blocks of one file in order; holds the file's header and time origin."""

    def __init__(
        self, path: Path, format: Format, header: tuple[int, str], dropped: Counter[str], workload: str | None
    ) -> None:
        self._path = path
        self._format: Format = format
        self._header = header
        self._names = [name.strip() for name in header[1].split(",")]
        self._dropped = dropped
        self._workload = workload
        self._origin: float | None = None
        self._sessions: dict[int | str, str] = {}
        self._earlier: EarlierRequests = {}

    def read(self, number: int, block: bytes, latest_s: float) -> Columns:
        """Parse the block that begins at line `number`, after a request at `latest_s`."""
        if self._origin is None:
            line = next(numbered_lines(self._path, io.BytesIO(block), number), None)
            self._origin = None if line is None else time_origin(self._path, self._format, self._header, line)
        match self._format:
            case "azure":
                plain = _plain_azure(block, self._names, self._origin or 0)
            case "burstgpt":
                plain = _plain_burstgpt(block, self._names, self._origin or 0)
            case "bailian":
                plain = None
            case _:
                plain = _plain_json(block)
        if plain is None or np.any(np.diff(plain[0].arrival_s, prepend=latest_s) < 0):
            return self._line_by_line(number, block, latest_s)
        columns, zeros = plain
        self._dropped.update(zeros)
        return columns if self._workload is None else replace(columns, workload=self._workload)

    def _line_by_line(self, number: int, block: bytes, latest_s: float) -> Columns:
        lines = numbered_lines(self._path, io.BytesIO(block), number)
        origin = self._origin or 0
        rows = parse_rows(
            self._path, self._format, self._header, lines, self._dropped, self._workload, origin, self._sessions,
            self._earlier,
        )  # fmt: skip
        requests = list(in_order(self._path, rows, latest_s))
        return columns_of(requests)


def columns_of(requests: Sequence[TraceRequest]) -> Columns:
    """Return requests whose lengths are known as columns."""
    graph = [graph_fields(request) for request in requests]
    return Columns(
        np.array([r.arrival_s for r in requests], np.float64),
        np.array([r.input_tokens for r in requests], np.int64),
        np.array([r.output_tokens for r in requests], np.int64),
        [r.workload for r in requests],
        [r.session_id for r in requests] if any(r.session_id is not None for r in requests) else None,
        [r.prefix_ids for r in requests] if any(r.prefix_ids for r in requests) else None,
        np.array([r.block_tokens for r in requests], np.int64),
        graph if any(graph) else None,
    )


# -- plain JSON lines -------------------------------------------------------------------------------------------------

_LINES = msgspec.json.Decoder(Line)


def _plain_json(block: bytes) -> tuple[Columns, dict[str, int]] | None:
    """Return the block's columns and an empty count of dropped rows; None unless every line is one JSON object."""
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
    if not all(line.is_filled and line.is_plain for line in lines):
        return None
    sizes = {line.block_size for line in lines}
    return Columns(
        np.array([line.timestamp for line in lines]) / 1000,
        np.array([line.input_length for line in lines], np.int64),
        np.array([line.output_length for line in lines], np.int64),
        (workloads.pop() or "default") if len(workloads) == 1 else [line.workload or "default" for line in lines],
        _unless_all_none([line.session_id for line in lines]),
        None if blocks.count(None) == count else [ids or () for ids in blocks],
        sizes.pop() if len(sizes) == 1 else np.array([line.block_size for line in lines], np.int64),
    ), {}


def _unless_all_none(values: list[str | None]) -> list[str | None] | None:
    return None if values.count(None) == len(values) else values


# -- plain CSV --------------------------------------------------------------------------------------------------------

Field = tuple[Ints, Ints]
"""Byte offsets at which the text of a column begins and ends, on every line."""


def _plain_azure(block: bytes, names: list[str], start_ns: float) -> tuple[Columns, dict[str, int]] | None:
    if (plain := _plain_csv(block, names, AZURE_COLUMNS, parse_timestamps_ns)) is None:
        return None
    t_ns, inputs, outputs, _ = plain
    return _without_zeros((t_ns - int(start_ns)) / 1e6 / 1000, inputs, outputs, None)


def _plain_burstgpt(block: bytes, names: list[str], start_s: float) -> tuple[Columns, dict[str, int]] | None:
    if (plain := _plain_csv(block, names, BURSTGPT_COLUMNS, parse_decimals)) is None:
        return None
    t_s, inputs, outputs, fields = plain
    sessions = None
    if "Session ID" in fields:
        text = block.decode("ascii")
        sessions = [text[a:b] or None for a, b in zip(*(side.tolist() for side in fields["Session ID"]), strict=True)]
    return _without_zeros(t_s - start_s, inputs, outputs, sessions)


def _plain_csv(
    block: bytes, names: list[str], columns: tuple[str, str, str], parse_times: Callable[[Bytes, Ints, Ints], T | None]
) -> tuple[T, Ints, Ints, dict[str, Field]] | None:
    """Return (times, inputs, outputs, the field of every column); None when a line is not in the plain form."""
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
        if not _all(data[ends], "\r"):
            return None
    between: list[Ints] = [commas[i :: len(names) - 1] for i in range(len(names) - 1)]
    if not (np.all(between[0] >= begins) and np.all(between[-1] < ends)):
        return None
    field_begins, field_ends = [begins, *(comma + 1 for comma in between)], [*between, ends]
    fields = dict(zip(names, zip(field_begins, field_ends, strict=True), strict=True))
    timestamp, prompt, response = (fields[name] for name in columns)
    t = parse_times(data, *timestamp)
    inputs, outputs = _integers(data, *prompt), _integers(data, *response)
    return None if t is None or inputs is None or outputs is None else (t, inputs, outputs, fields)


def _without_zeros(
    arrival_s: Floats, inputs: Ints, outputs: Ints, sessions: list[str | None] | None
) -> tuple[Columns, dict[str, int]]:
    """Return the columns without requests of 0 tokens, and how many were dropped by reason."""
    no_input, no_output = inputs == 0, (outputs == 0) & (inputs > 0)
    zeros = {"0 input tokens": int(no_input.sum()), "0 output tokens": int(no_output.sum())}
    zeros = {reason: count for reason, count in zeros.items() if count}
    if zeros:
        kept = ~(no_input | no_output)
        arrival_s, inputs, outputs = arrival_s[kept], inputs[kept], outputs[kept]
        sessions = None if sessions is None else [s for s, keep in zip(sessions, kept.tolist(), strict=True) if keep]
    return Columns(arrival_s, inputs, outputs, session_id=_unless_all_none(sessions) if sessions else None), zeros


def _digits(data: Bytes, begins: Ints, ends: Ints, max_digits: int) -> Ints | None:
    """Parse non-negative integers of 0 to `max_digits` digits; None if one has other characters, or more digits."""
    width = ends - begins
    if not len(width) or int(width.max()) > max_digits:
        return None
    total = np.zeros(len(begins), np.int64)
    for k in range(int(width.max())):
        digit = data[np.maximum(ends - 1 - k, 0)] - np.uint8(ord("0"))  # other characters wrap around, above 9
        has_digit = width > k
        if np.any(has_digit & (digit > 9)):
            return None
        total += np.where(has_digit, digit, 0) * np.int64(10**k)
    return total


def _integers(data: Bytes, begins: Ints, ends: Ints) -> Ints | None:
    """Parse lengths in tokens; None if one is not in the plain form or too large."""
    total = _digits(data, begins, ends, 10)
    return None if total is None or np.any(ends <= begins) or total.max() > MAX_TOKENS else total


def parse_decimals(data: Bytes, begins: Ints, ends: Ints) -> Floats | None:
    """Parse decimal numbers of at most 15 digits; None if one is not in the plain form.

    Numerator and denominator of digits / 10^k are then exact, so that the quotient is the number that float() returns.
    """
    dots = np.append(np.flatnonzero(data == ord(".")), len(data))
    dot = np.minimum(dots[np.searchsorted(dots, begins)], ends)
    whole, part = _digits(data, begins, dot, 10), _digits(data, np.minimum(dot + 1, ends), ends, 5)
    if whole is None or part is None or np.any(dot <= begins):
        return None
    scale = 10 ** np.maximum(ends - dot - 1, 0)
    return np.asarray((whole * scale + part) / scale)


def parse_timestamps_ns(data: Bytes, begins: Ints, ends: Ints) -> Ints | None:
    """Parse `2023-11-16 18:17:03`, with or without decimals and +00:00, as ns since 1970; None for another form."""
    t_ns = np.empty(len(begins), np.int64)
    widths = ends - begins
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        parsed = _timestamps_of_width(data, begins[rows], width)
        if parsed is None:
            return None
        t_ns[rows] = parsed
    return t_ns


_SHAPE = "0000-00-00 00:00:00"


def _timestamps_of_width(data: Bytes, begins: Ints, width: int) -> Ints | None:
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
    day_s = _midnights_s(np.column_stack(text[:10]))
    hour, minute, second = ((text[k] - np.int64(48)) * 10 + (text[k + 1] - np.int64(48)) for k in (11, 14, 17))
    if day_s is None or hour.max() > 23 or minute.max() > 59 or second.max() > 59:
        return None
    t_ns = (day_s + hour * 3600 + minute * 60 + second) * 10**9
    for k in range(decimals - 1):
        t_ns += (text[20 + k] - np.int64(48)) * 10 ** (8 - k)
    return np.asarray(t_ns)


def _all(column: Bytes, character: str) -> bool:
    return bool(np.all(column == ord(character)))


def _midnights_s(dates: Bytes) -> Ints | None:
    """Return seconds since 1970 at the start of each row's day, None for an invalid date.

    Only rows that differ from their predecessor are parsed: a block of lines holds one or two days.
    """
    changes = np.flatnonzero(np.any(dates[1:] != dates[:-1], axis=1)) + 1
    begins = np.concatenate(([0], changes))
    try:
        days = np.array([dates[i].tobytes().decode() for i in begins.tolist()], dtype="M8[s]")
    except ValueError:
        return None
    return np.repeat(days.astype(np.int64), np.diff(np.append(begins, len(dates))))


# -- writing ----------------------------------------------------------------------------------------------------------


class _OutputLine(msgspec.Struct, omit_defaults=True, gc=False):
    timestamp: float
    input_length: int
    output_length: int
    workload: str = "default"
    session_id: str | None = None
    hash_ids: tuple[int, ...] = ()
    block_size: int | msgspec.UnsetType = msgspec.UNSET
    request_id: str | None = None
    after: tuple[str, ...] = ()
    think_time: float | None = None
    task: str | None = None
    model: str | None = None
    stream: bool = True
    tags: dict[str, str] = {}


def write_columns(path: Path, chunks: Iterable[Columns], *, overwrite: bool = True) -> int:
    """Write the bytes that `trace.write_trace` writes for the same requests, and return the number of requests."""
    encode = msgspec.json.Encoder().encode_lines
    written = 0
    with replacing(path, overwrite=overwrite) as file, compressed(path, file) as out:
        for chunk in chunks:
            out.write(encode(_output_lines(chunk)))
            written += len(chunk)
    return written


def _output_lines(chunk: Columns) -> list[_OutputLine]:
    whole_ns = np.rint(chunk.arrival_s * 1e9) / 1e6
    timestamps: list[float] = whole_ns.tolist()
    for i in np.flatnonzero(whole_ns / 1000 != chunk.arrival_s).tolist():
        timestamps[i] = milliseconds(float(chunk.arrival_s[i]))
    fields = [timestamps, chunk.input_tokens.tolist(), chunk.output_tokens.tolist()]
    if chunk.session_id is None and chunk.prefix_ids is None and chunk.graph is None and chunk.workload == "default":
        return list(map(_OutputLine, *fields))
    count = len(chunk)
    names = [chunk.workload] * count if isinstance(chunk.workload, str) else chunk.workload
    sessions = [s or None for s in chunk.session_id] if chunk.session_id is not None else [None] * count
    ids = chunk.prefix_ids or [()] * count
    sizes = [
        size if blocks and size != BLOCK_TOKENS else msgspec.UNSET
        for size, blocks in zip(np.broadcast_to(chunk.block_tokens, count).tolist(), ids, strict=True)
    ]
    if chunk.graph is None:
        return list(map(_OutputLine, *fields, names, sessions, ids, sizes))
    rows = zip(*fields, names, sessions, ids, sizes, chunk.graph, strict=True)
    return [_OutputLine(*row[:-1], **row[-1]) for row in rows]
