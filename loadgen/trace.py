"""Who asked for how many tokens, and when: one JSON object a line, and the public formats that become it."""

import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import msgspec

from loadgen.errors import LoadgenError

MAX_LINE_BYTES = 16 * 2**20
"""Longer lines are an error: nobody's request is 16 MiB of numbers."""

MAX_TOKENS = 2**31 - 1

Format = Literal["jsonl", "mooncake", "azure", "burstgpt"]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
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
    requests = tuple(iter_trace(path))
    with path.open("rb") as file:
        return Trace(path.name.split(".")[0], requests, hashlib.file_digest(file, "sha256").hexdigest())


def iter_trace(path: Path) -> Iterator[TraceRequest]:
    """The same requests, checked as they pass and not kept: for traces larger than memory."""
    return _sorted(path, _jsonl(path, _lines(path)))


# -- lines ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not blank."""
    with _opened(path) as file:
        for number in _count():
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise LoadgenError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if text := _text(path, number, line).strip():
                yield number, text


def _count() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def _text(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as err:
        raise LoadgenError(f"{path}:{number}: byte {err.object[err.start]:#04x} at {err.start} is not UTF-8") from err


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase | IO[bytes]]:
    """The file's bytes, decompressed if its first bytes say so; what goes wrong while reading is a LoadgenError."""
    try:
        with path.open("rb") as file:
            yield _decompressed(file)
    except (OSError, EOFError, zlib.error) as err:  # gzip.BadGzipFile is an OSError
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise LoadgenError(f"cannot read {path}: {reason}") from err


def _decompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    magic = file.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
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


class _Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: _Tokens
    output_length: _Tokens
    workload: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    session_id: str | None = None
    hash_ids: tuple[int, ...] | None = None


def _jsonl(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, TraceRequest]]:
    decode = msgspec.json.Decoder(_Line).decode
    for number, text in lines:
        try:
            line = decode(text)
        except (msgspec.MsgspecError, RecursionError) as err:
            raise LoadgenError(f"{path}:{number}: {_why_not(text, str(err))}") from err
        if line.workload is not None and not line.workload.isprintable():
            raise LoadgenError(f"{path}:{number}: workload {line.workload!r}: expected a name of printable characters")
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
        ("output_length", "an integer of at least 1 (servers refuse to make 0 tokens)", _is_length),
    ):
        if key not in value:
            return f"no {key}: expected {expected}"
        if not fits(value[key]):
            return f"{key} {_short(json.dumps(value[key]))}: expected {expected}"
    return otherwise


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _sorted(path: Path, rows: Iterable[tuple[int, TraceRequest]]) -> Iterator[TraceRequest]:
    """The requests, seen to be in order and at least one."""
    last_s = -math.inf
    for number, request in rows:
        if request.arrival_s < last_s:
            raise LoadgenError(
                f"{path}:{number}: arrival at {request.arrival_s:.9g} s comes after one at {last_s:.9g} s: "
                "expected lines sorted by time"
            )
        last_s = request.arrival_s
        yield request
    if last_s == -math.inf:
        raise LoadgenError(f"{path} has no requests in it")
