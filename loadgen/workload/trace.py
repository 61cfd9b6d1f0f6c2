"""Who asked for how many tokens, and when: one JSON object a line, and the public formats that become it."""

import filecmp
import gzip
import hashlib
import io
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from itertools import chain, count
from operator import itemgetter
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import msgspec

from loadgen.errors import LoadgenError

MAX_LINE_BYTES = 16 * 2**20
"""Longer lines are an error: nobody's request is 16 MiB of numbers."""

MAX_TOKENS = 2**31 - 1

Format = Literal["jsonl", "mooncake", "azure", "burstgpt"]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a trace. `prefix_ids` name the blocks of its prompt: equal ids, equal text."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    workload: str = "default"
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """A whole trace, sorted by arrival. `sha256` is of the file's bytes as stored (compressed, if it was)."""

    name: str
    requests: tuple[TraceRequest, ...]
    sha256: str

    @property
    def duration_s(self) -> float:
        """Last arrival - first arrival."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def mean_rps(self) -> float | None:
        """Gaps per second of duration; None when there is no gap to measure."""
        return (len(self.requests) - 1) / self.duration_s if self.duration_s > 0 else None


def read_trace(path: Path) -> Trace:
    """The trace in `path`: the project's JSONL (every Mooncake trace is one), plain, .gz or .zst."""
    check_rereadable(path)
    return Trace(path.name.split(".")[0], tuple(iter_trace(path)), file_sha256(path))


def file_sha256(path: Path) -> str:
    """Of the bytes as stored."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_rereadable(path: Path) -> None:
    """A LoadgenError for a pipe, which would hang the second time it is opened."""
    with _reading(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise LoadgenError(f"{path} is not a regular file and has to be read twice; save it to a file first")


def iter_trace(path: Path) -> Iterator[TraceRequest]:
    """The same requests, checked as they pass and not kept: for traces larger than memory."""
    return _sorted(path, _jsonl(path, _lines(path)))


# -- writing ----------------------------------------------------------------------------------------------------------


def write_trace(path: Path, requests: Iterable[TraceRequest], *, overwrite: bool = True) -> int:
    """Write the JSONL (compressed if `path` ends in .gz or .zst), all or nothing; returns how many requests."""
    encode = msgspec.json.Encoder().encode
    written = 0
    with replacing(path, overwrite=overwrite) as file, compressed(path, file) as out:
        for written, request in enumerate(requests, 1):  # noqa: B007
            out.write(encode(_fields(request)) + b"\n")
    return written


def _fields(request: TraceRequest) -> dict[str, Any]:
    fields = {
        "timestamp": milliseconds(request.arrival_s),
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
    }
    rest = {"workload": request.workload, "session_id": request.session_id, "hash_ids": request.prefix_ids}
    return fields | {key: value for key, value in rest.items() if value and value != "default"}


def milliseconds(arrival_s: float) -> float:
    """4.314579 s is 4314.579 ms, not 4314.579000000001: whole nanoseconds if they read back to the same second, else
    the shortest decimal within a picosecond."""
    whole_ns = round(arrival_s * 1e9) / 1e6
    return whole_ns if whole_ns / 1000 == arrival_s else round(arrival_s * 1000, 9)


@contextmanager
def compressed(path: Path, file: IO[bytes]) -> Iterator[Any]:
    if path.suffix == ".gz":  # no name and no time in the header: the same requests are the same bytes
        # Level 6, gzip's own: 9, Python's, is a fifth as fast on such lines for 4 % smaller files.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as out:
            yield out
    elif path.suffix == ".zst":
        from zstandard import ZstdCompressor

        with ZstdCompressor().stream_writer(file, closefd=False) as out:
            yield out
    else:
        yield file


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    Without `overwrite`, an existing file that would change is a LoadgenError; one with the same bytes is left alone.
    """
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise LoadgenError(f"cannot write {path}: it exists and is not a file")
        with draft.open("wb") as file:
            yield file
        if target.exists() and not overwrite and not filecmp.cmp(draft, target, shallow=False):
            raise LoadgenError(f"{path} exists and would change; pass --overwrite to replace it")
        draft.replace(target)
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        with suppress(OSError):  # where no draft could be made, there is none to remove
            draft.unlink()


# -- lines ------------------------------------------------------------------------------------------------------------


Lines = Iterable[tuple[int, str]]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not blank."""
    with opened(path) as file:
        yield from lines_of(path, file)


def lines_of(path: Path, file: IO[bytes], first: int = 1) -> Iterator[tuple[int, str]]:
    """The same of an open file, or of a part of one that begins at line `first`."""
    for number in count(first):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        check_line_size(path, number, len(line))
        if text := _text(path, number, line).strip():
            yield number, text


def check_line_size(path: Path, number: int, size: int) -> None:
    if size > MAX_LINE_BYTES:
        raise LoadgenError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as err:
        raise LoadgenError(f"{path}:{number}: byte {err.object[err.start]:#04x} at {err.start} is not UTF-8") from err


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed if its first bytes say so."""
    with _reading(path), path.open("rb") as file:
        yield _decompressed(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read is a LoadgenError."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as err:  # gzip.BadGzipFile is an OSError
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise LoadgenError(f"cannot read {path}: {reason}") from err


def _decompressed(file: io.BufferedReader) -> IO[bytes]:
    magic = file.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if magic == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(_ZstdReader(file), 2**17)
    return file


class _ZstdReader(io.RawIOBase):
    """zstandard's own stream reader takes a file cut short for a whole one; this one does not."""

    def __init__(self, file: io.BufferedReader) -> None:
        from zstandard import ZstdDecompressor

        self._file = file
        self._new_frame: Callable[[], Any] = ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._plain = memoryview(b"")
        self._started = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if not self._fill():
                return 0
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size

    def _fill(self) -> bool:
        from zstandard import ZstdError

        # 1 KiB of zstd is at most some 30 MiB of text: a hostile file cannot fill the memory.
        packed = (self._frame.unused_data if self._frame.eof else b"") or self._file.read(1024)
        if not packed:
            if self._started and not self._frame.eof:
                raise EOFError("compressed file ended before the end-of-stream marker was reached")
            return False
        if self._frame.eof:
            self._frame = self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(packed))
        except ZstdError as err:
            raise EOFError(str(err)) from err
        self._started = True
        return True


# -- the project's JSONL ----------------------------------------------------------------------------------------------

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]


class Line(msgspec.Struct, gc=False):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: _Tokens
    output_length: _Tokens
    workload: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    session_id: str | None = None
    hash_ids: tuple[int, ...] | None = None


def _jsonl(path: Path, lines: Lines, dropped: Counter[str] | None = None) -> Iterator[tuple[int, TraceRequest]]:
    """A length of 0 is an error, or dropped and counted when there is a `dropped` to count in."""
    decode = msgspec.json.Decoder(Line).decode
    for number, text in lines:
        try:
            line = decode(text)
        except (msgspec.MsgspecError, RecursionError) as err:
            if dropped is not None and (zero := _zero_length(text)):
                dropped[zero] += 1
                continue
            raise LoadgenError(f"{path}:{number}: {_why_not(text, str(err))}") from err
        if line.workload is not None and not line.workload.isprintable():
            raise LoadgenError(f"{path}:{number}: workload {line.workload!r}: expected {_WORKLOAD}")
        yield (
            number,
            TraceRequest(
                arrival_s=line.timestamp / 1000,
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                workload=line.workload or "default",
                session_id=line.session_id,
                prefix_ids=line.hash_ids or (),
            ),
        )


_WORKLOAD = "a name of 1 to 64 printable characters"


def check_workload(name: str | None) -> None:
    """A LoadgenError for a name that no trace may hold: it would be a label on screens and dashboards."""
    if name is not None and not (1 <= len(name) <= 64 and name.isprintable()):
        raise LoadgenError(f"workload {_short(repr(name))}: expected {_WORKLOAD}")


def _zero_length(text: str) -> str | None:
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return None
    reasons = {"input_length": "0 input tokens", "output_length": "0 output tokens"}
    return next((reason for key, reason in reasons.items() if repr(value.get(key)) == "0"), None)


def _why_not(text: str, otherwise: str) -> str:
    """What is wrong with a line of a trace, in words: the value, and what was expected in its place."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        is_csv = "," in text and '"' not in text
        hint = " (a CSV file? `loadgen trace import` reads Azure and BurstGPT)" if is_csv else ""
        return f"not a JSON object: {_short(text)}{hint}"
    if not isinstance(value, dict):
        return f"{_short(text)}: expected a JSON object"
    for key, expected, fits in (
        ("timestamp", "milliseconds from the start, finite and not negative", _is_time),
        ("input_length", "an integer of at least 1", _is_length),
        (
            "output_length",
            "an integer of at least 1 (servers refuse to make 0 tokens; `loadgen trace import` drops such lines)",
            _is_length,
        ),
    ):
        if key not in value:
            return f"no {key}: expected {expected}"
        if not fits(value[key]):
            return f"{key} {_short(json.dumps(value[key]))}: expected {expected}"
    return f"{otherwise} in {_short(text)}"


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS


def _short(text: str) -> str:
    """Fit for one line of a terminal, whatever a file holds."""
    text = text if len(text) <= 60 else text[:57] + "..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _sorted(path: Path, rows: Iterable[tuple[int, TraceRequest]]) -> Iterator[TraceRequest]:
    """The requests, seen to be in order and at least one."""
    request = None
    for request in in_order(path, rows):
        yield request
    if request is None:
        raise no_requests(path)


def in_order(path: Path, rows: Iterable[tuple[int, TraceRequest]], last_s: float = -math.inf) -> Iterator[TraceRequest]:
    """The requests; LoadgenError at the first that arrives before the one before it, or before `last_s`."""
    for number, request in rows:
        if request.arrival_s < last_s:
            raise LoadgenError(
                f"{path}:{number}: arrival at {request.arrival_s:.9g} s comes after one at {last_s:.9g} s: "
                "expected lines sorted by time"
            )
        last_s = request.arrival_s
        yield request


def no_requests(path: Path) -> LoadgenError:
    return LoadgenError(f"{path} has no requests in it")


# -- public formats ---------------------------------------------------------------------------------------------------


def iter_import(
    path: Path, dropped: Counter[str], *, format: Format | None = None, workload: str | None = None
) -> Iterator[TraceRequest]:
    """The requests of a trace in any known format (by default what its first line says), named `workload` if given.

    Rows of 0 tokens (failed requests, in BurstGPT) are left out and counted in `dropped`, by reason.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise no_requests(path)
    return _sorted(path, rows_of(path, format or detect_format(path, first[1]), first, lines, dropped, workload))


def rows_of(
    path: Path,
    format: Format,
    first: tuple[int, str],
    lines: Lines,
    dropped: Counter[str],
    workload: str | None,
    start: float | None = None,
) -> Iterator[tuple[int, TraceRequest]]:
    """(line number, request) of `lines` after the file's first, which is a CSV's header or a JSON request itself.

    `start`: see `start_of`, for lines that are not the first of their file.
    """
    match format:
        case "azure":
            return _azure(path, first, lines, dropped, workload or "default", start)
        case "burstgpt":
            return _burstgpt(path, first, lines, dropped, workload or "default", start)
        case _:
            return _named(_jsonl(path, lines if start is not None else chain([first], lines), dropped), workload)


def start_of(path: Path, format: Format, header: tuple[int, str], line: tuple[int, str]) -> float:
    """The instant that a file whose first row is `line` counts from: ns since 1970, or seconds; 0 for JSON."""
    match format:
        case "azure":
            ((number, (stamp, *_)),) = _cells(path, header, [line], AZURE_COLUMNS)
            return _stamp_ns(path, number, stamp)
        case "burstgpt":
            ((number, (stamp, *_)),) = _cells(path, header, [line], BURSTGPT_COLUMNS)
            return _seconds(path, number, stamp)
        case _:
            return 0


AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def detect_format(path: Path, first_line: str) -> Format:
    """What a file's first line says it is: a CSV header we know, or JSON."""
    if first_line.startswith("{"):
        return "jsonl"
    if "ContextTokens" in first_line:
        return "azure"
    if "Request tokens" in first_line:
        return "burstgpt"
    raise LoadgenError(
        f"{path}:1: {_short(first_line)}: expected JSON lines, or the CSV header of an Azure "
        "(TIMESTAMP,ContextTokens,GeneratedTokens) or BurstGPT (Timestamp,Model,Request tokens,...) trace"
    )


def _named(rows: Iterable[tuple[int, TraceRequest]], workload: str | None) -> Iterator[tuple[int, TraceRequest]]:
    for number, request in rows:
        yield number, msgspec.structs.replace(request, workload=workload) if workload else request


def _azure(
    path: Path, header: tuple[int, str], lines: Lines, dropped: Counter[str], workload: str, start_ns: float | None
) -> Iterator[tuple[int, TraceRequest]]:
    """TIMESTAMP,ContextTokens,GeneratedTokens of 2023 (no zone, 7 decimals) and 2024 (+00:00, 6 or no decimals)."""
    for number, (stamp, context, generated) in _cells(path, header, lines, AZURE_COLUMNS):
        t_ns = _stamp_ns(path, number, stamp)
        start_ns = t_ns if start_ns is None else start_ns
        lengths = _lengths(path, number, context, generated, dropped)
        if lengths:
            yield number, _request((t_ns - start_ns) / 1e6 / 1000, lengths, workload)  # as it is read back: ms / 1000


def _burstgpt(
    path: Path, header: tuple[int, str], lines: Lines, dropped: Counter[str], workload: str, start_s: float | None
) -> Iterator[tuple[int, TraceRequest]]:
    """Timestamp, Request tokens, Response tokens (0: the request failed) and, in later files, Session ID.

    Timestamp counts seconds from the first midnight of the whole data set: a later file starts months in.
    """
    names = BURSTGPT_COLUMNS + (("Session ID",) if "Session ID" in header[1].split(",") else ())
    for number, (stamp, asked, answered, *session) in _cells(path, header, lines, names):
        t_s = _seconds(path, number, stamp)
        start_s = t_s if start_s is None else start_s
        lengths = _lengths(path, number, asked, answered, dropped)
        if lengths:
            session_id = session[0] if session and session[0] else None
            yield number, _request(t_s - start_s, lengths, workload, session_id)


def _request(arrival_s: float, lengths: tuple[int, int], workload: str, session_id: str | None = None) -> TraceRequest:
    return TraceRequest(
        arrival_s=arrival_s,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        workload=workload,
        session_id=session_id,
    )


def _cells(
    path: Path, header: tuple[int, str], lines: Lines, names: tuple[str, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The named columns of a CSV without quotes (none of these formats has any)."""
    columns = [name.strip() for name in header[1].split(",")]
    if missing := [name for name in names if name not in columns]:
        raise LoadgenError(f"{path}:{header[0]}: no column {', '.join(missing)} in {_short(header[1])}")
    pick = itemgetter(*(columns.index(name) for name in names))
    for number, text in lines:
        cells = text.split(",")
        if len(cells) != len(columns):
            raise LoadgenError(f"{path}:{number}: {_short(text)}: expected {len(columns)} columns, as in the header")
        yield number, pick(cells)


def _lengths(path: Path, number: int, asked: str, answered: str, dropped: Counter[str]) -> tuple[int, int] | None:
    """(input, output) tokens; None, and counted, when one of them is 0."""
    for text in (asked, answered):
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_TOKENS):
            raise LoadgenError(f"{path}:{number}: {_short(text)!r} tokens: expected an integer, 0 to {MAX_TOKENS}")
    lengths = int(asked), int(answered)
    if 0 in lengths:
        dropped["0 input tokens" if lengths[0] == 0 else "0 output tokens"] += 1
        return None
    return lengths


def _seconds(path: Path, number: int, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise LoadgenError(f"{path}:{number}: time {_short(text)!r}: expected seconds, finite and not negative")
    return seconds


_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def _stamp_ns(path: Path, number: int, text: str) -> int:
    """Nanoseconds since 1970 of a date and time with up to 9 decimals (`datetime` keeps 6); without a zone, UTC."""
    try:
        second, decimals, zone = _STAMP.fullmatch(text).groups()  # type: ignore[union-attr]
        return _second(second, zone) * 10**9 + int((decimals or "").ljust(9, "0"))
    except (AttributeError, ValueError) as err:
        raise LoadgenError(
            f"{path}:{number}: time {_short(text)!r}: expected a date and time such as 2023-11-16 18:17:03.9799600"
        ) from err


@lru_cache(maxsize=4)  # rows are in order of time: thousands in a row share their second
def _second(text: str, zone: str | None) -> int:
    return int(datetime.fromisoformat(text + ("+00:00" if zone in (None, "Z") else str(zone))).timestamp())
