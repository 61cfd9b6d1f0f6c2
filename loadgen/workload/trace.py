"""Traces: when requests arrive and how many tokens they have, read from and written to JSON lines."""

import gzip
import hashlib
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import IO, Annotated, Any, cast

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import replacing
from loadgen.workload.prompts import BLOCK_TOKENS
from loadgen.workload.tags import tags_fault
from loadgen.workload.words import WordsRef

MAX_LINE_BYTES = 16 * 2**20
"""Longest line that is read; a longer one is an error, because no request is 16 MiB of numbers."""

MAX_TOKENS = 2**31 - 1


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a trace. `prefix_ids` name the blocks of its prompt, each of `block_tokens` tokens: equal ids mean
    equal text."""

    arrival_s: float
    """0 where the trace has no arrivals of its own."""
    input_tokens: int | None
    """Unknown, None, until the server counts them: only for a request with words of its own."""
    output_tokens: int | None
    """Tokens that were requested, or that the recorded answer has; None: not known."""
    workload: str = "default"
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    model: str | None = None
    """The model that the request names; None: it names none."""
    words: WordsRef | None = None
    """The request's own words; None: they are made up, `input_tokens` long."""
    request_id: str | None = None
    """Name that the `after` of later requests of its session refers to."""
    after: tuple[str, ...] = ()
    """Names of the requests of its session, all of them earlier in the trace, that have to end before it is sent."""
    think_s: float | None = None
    """Time between the last of their answers and this request: a tool's run, or a person's. None: not known."""
    task: str | None = None
    """Name of the sub-agent of its session that sends it; None: the main thread does."""
    streamed: bool = True
    """False if its answer is sent as a whole."""
    tags: dict[str, str] = {}
    """Names and values that a run is summed up by."""


class Trace(msgspec.Struct, frozen=True):
    """A trace in memory, sorted by arrival. `sha256` is that of the stored, possibly compressed, bytes."""

    name: str
    requests: tuple[TraceRequest, ...]
    sha256: str
    timed: bool = True
    """False if its lines have no timestamps: all arrivals are then 0."""

    @property
    def duration_s(self) -> float:
        """Time from the first arrival to the last."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def mean_rps(self) -> float | None:
        """Gaps per second of duration; None when there is no gap to measure."""
        return (len(self.requests) - 1) / self.duration_s if self.duration_s > 0 else None


def read_trace(path: Path) -> Trace:
    """Read the JSONL trace in `path`, plain, gzip or zstd. Every Mooncake trace is such a file."""
    check_rereadable(path)
    return Trace(path.name.split(".")[0], tuple(iter_trace(path)), file_sha256(path))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as stored."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_rereadable(path: Path) -> None:
    """Raise LoadgenError for a pipe, which would block when it is opened a second time."""
    with _reading(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise LoadgenError(f"{path} is not a regular file and has to be read twice; save it to a file first")


def iter_trace(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests of `read_trace`, each checked as it is read: for traces larger than memory."""
    with opened(path) as file:
        yield from nonempty_in_order(path, parse_jsonl(path, numbered_lines(path, file)))


# -- writing ----------------------------------------------------------------------------------------------------------


def write_trace(path: Path, requests: Iterable[TraceRequest], *, overwrite: bool = True) -> int:
    """Write a JSONL trace, all or nothing, and return the number of requests.

    It is compressed if `path` ends in .gz or .zst. See `replacing` for `overwrite`.
    """
    encode = msgspec.json.Encoder().encode
    written = 0
    with replacing(path, overwrite=overwrite) as file, compressed(path, file) as out:
        for written, request in enumerate(requests, 1):  # noqa: B007
            fields: dict[str, Any] = {
                "timestamp": milliseconds(request.arrival_s),
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
            }
            optional = {"workload": request.workload, "session_id": request.session_id, "hash_ids": request.prefix_ids}
            fields |= {key: value for key, value in optional.items() if value and value != "default"}
            if request.prefix_ids and request.block_tokens != BLOCK_TOKENS:
                fields["block_size"] = request.block_tokens
            fields |= graph_fields(request)
            out.write(encode(fields) + b"\n")
    return written


def graph_fields(request: TraceRequest) -> dict[str, Any]:
    """Return the fields of a line that say what a request waits for, and how it is sent, where they are not usual."""
    fields = {
        "request_id": request.request_id,
        "after": request.after or None,
        "think_time": request.think_s,
        "task": request.task,
        "model": request.model,
        "stream": None if request.streamed else False,
        "tags": request.tags or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def milliseconds(arrival_s: float) -> float:
    """Return seconds in milliseconds without digits that only rounding makes.

    4.314579 s is 4314.579 ms, not 4314.579000000001: whole nanoseconds if they read back as the same number of seconds,
    else the shortest decimal within a picosecond.
    """
    whole_ns = round(arrival_s * 1e9) / 1e6
    return whole_ns if whole_ns / 1000 == arrival_s else round(arrival_s * 1000, 9)


@contextmanager
def compressed(path: Path, file: IO[bytes]) -> Iterator[Any]:
    """Yield a writer that compresses into `file` as the suffix of `path` asks: .gz, .zst, or not at all."""
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


# -- lines ------------------------------------------------------------------------------------------------------------


Lines = Iterable[tuple[int, str]]
"""(line number from 1, stripped text) of every line that is not blank."""


def numbered_lines(
    path: Path, file: IO[bytes], start: int = 1, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, str]]:
    """Yield `Lines` of an open file, or of a part of one that begins at line `start`. `path` is for error messages."""
    for number in count(start):
        line = file.readline(max_bytes + 1)
        if not line:
            return
        check_line_size(path, number, len(line), max_bytes)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as err:
            byte = f"{err.object[err.start]:#04x} at {err.start}"
            raise LoadgenError(f"{path}:{number}: byte {byte} is not UTF-8") from err
        if text:
            yield number, text


def check_line_size(path: Path, number: int, size: int, max_bytes: int = MAX_LINE_BYTES) -> None:
    """Raise LoadgenError if line `number` is longer than `max_bytes`."""
    if size > max_bytes:
        raise LoadgenError(f"{path}:{number}: the line is longer than {max_bytes >> 20} MiB")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed if it starts with the magic bytes of gzip or zstd."""
    with _reading(path), path.open("rb") as file:
        magic = file.peek(4)[:4]
        if magic[:2] == b"\x1f\x8b":
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file))
        elif magic == b"\x28\xb5\x2f\xfd":
            yield io.BufferedReader(_ZstdReader(file), 2**17)
        else:
            yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error while a file is read into a LoadgenError."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as err:  # gzip.BadGzipFile is an OSError
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise LoadgenError(f"cannot read {path}: {reason}") from err


class _ZstdReader(io.RawIOBase):
    """Reads zstd frames, of which the file holds one or more. zstandard's own stream reader accepts a truncated file as
    complete; this one does not."""

    def __init__(self, file: io.BufferedReader) -> None:
        from zstandard import ZstdDecompressor

        self._file = file
        self._new_frame: Callable[[], Any] = ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._plain = memoryview(b"")

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
            if not self._frame.eof:
                raise EOFError("compressed file ended before the end-of-stream marker was reached")
            return False
        if self._frame.eof:
            self._frame = self._new_frame()
        try:
            self._plain = memoryview(self._frame.decompress(packed))
        except ZstdError as err:
            raise EOFError(str(err)) from err
        return True


# -- the project's JSONL ----------------------------------------------------------------------------------------------

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

MAX_THINK_S = 1e7
"""Longest think time that is read: 115 days. The nanoseconds of a session of 900 such turns fit into 64 bits."""

EarlierRequests = dict[tuple[str | None, str], int]
"""The line of each named request of a trace, by its session and its name."""


class Line(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One line of a JSONL trace; `timestamp` is in ms, and a hash id stands for `block_size` tokens of the prompt."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: _Tokens
    output_length: _Tokens
    workload: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    session_id: str | None = None
    hash_ids: tuple[int, ...] | None = None
    block_size: _Tokens = BLOCK_TOKENS
    request_id: _Name | None = None
    after: tuple[_Name, ...] = ()
    think_time: Annotated[float, msgspec.Meta(ge=0, le=MAX_THINK_S)] | None = None
    task: _Name | None = None
    model: _Name | None = None
    stream: bool = True
    tags: dict[str, str] = {}

    @property
    def is_plain(self) -> bool:
        """True if it has none of the fields that say what it waits for, and how it is sent."""
        return self.stream and not (
            self.request_id or self.after or self.think_time is not None or self.task or self.model or self.tags
        )

    @property
    def is_filled(self) -> bool:
        """True if the ids stand for the prompt, and for no more."""
        return not self.hash_ids or fills(self.input_length, len(self.hash_ids), self.block_size)


def parse_jsonl(
    path: Path, lines: Lines, dropped: Counter[str] | None = None, earlier: EarlierRequests | None = None
) -> Iterator[tuple[int, TraceRequest]]:
    """Yield (line number, request). A length of 0 is an error, or with `dropped` it is left out and counted there.

    `earlier` are the named requests of earlier lines, and get these lines' ones.
    """
    earlier = {} if earlier is None else earlier
    decode = msgspec.json.Decoder(Line).decode
    for number, text in lines:
        try:
            line = decode(text)
        except (msgspec.MsgspecError, RecursionError) as err:
            if dropped is not None and (reason := _zero_length(text)):
                dropped[reason] += 1
                continue
            raise LoadgenError(f"{path}:{number}: {line_fault(text, str(err))}") from err
        if line.workload is not None and not line.workload.isprintable():
            raise LoadgenError(f"{path}:{number}: workload {line.workload!r}: expected {_WORKLOAD}")
        if fault := tags_fault(line.tags):
            raise LoadgenError(f"{path}:{number}: {fault}")
        if not line.is_filled:
            raise LoadgenError(f"{path}:{number}: {blocks_fault(line.input_length, line.hash_ids, line.block_size)}")
        if fault := graph_fault(line, number, earlier):
            raise LoadgenError(f"{path}:{number}: {fault}")
        yield (
            number,
            TraceRequest(
                arrival_s=line.timestamp / 1000,
                input_tokens=line.input_length,
                output_tokens=line.output_length,
                workload=line.workload or "default",
                session_id=line.session_id,
                prefix_ids=line.hash_ids or (),
                block_tokens=line.block_size,
                model=line.model,
                request_id=line.request_id,
                after=line.after,
                think_s=line.think_time,
                task=line.task,
                streamed=line.stream,
                tags=line.tags,
            ),
        )


def graph_fault(line: Line, number: int, earlier: EarlierRequests) -> str | None:
    """Return what is wrong with the names that line `number` has or refers to, None if nothing is; note its name.

    A request waits for earlier lines only, so that no requests can wait for each other.
    """
    for name, value in (("task", line.task), ("model", line.model)):
        if value is not None and not value.isprintable():
            return f"{name} {shortened(repr(value))}: expected a name of printable characters"
    if line.session_id is None and (line.after or line.task is not None):
        return f"{'after' if line.after else 'task'} without a session_id: expected the session of the requests"
    for parent in line.after:
        if (line.session_id, parent) not in earlier:
            session = shortened(repr(line.session_id))
            return f"after {shortened(repr(parent))}: no earlier line of session {session} has that request_id"
    if line.request_id is not None:
        first = earlier.setdefault((line.session_id, line.request_id), number)
        if first != number:
            return f"request_id {shortened(repr(line.request_id))} is that of line {first} of its session already"
    return None


_WORKLOAD = "a name of 1 to 64 printable characters"


def check_workload(name: str | None) -> None:
    """Raise LoadgenError for a name that no trace may hold, because it becomes a label on screens and dashboards."""
    if name is not None and not (1 <= len(name) <= 64 and name.isprintable()):
        raise LoadgenError(f"workload {shortened(repr(name))}: expected {_WORKLOAD}")


def fills(input_tokens: int, ids: int, block_tokens: int) -> bool:
    """Return whether so many ids name the blocks of a prompt: all of its whole ones, and perhaps a last that is not."""
    return input_tokens // block_tokens <= ids <= -(-input_tokens // block_tokens)


def blocks_fault(input_tokens: int, ids: Sized | None, block_tokens: int) -> str:
    """Describe that a prompt has another number of blocks than of ids."""
    whole, needed = input_tokens // block_tokens, -(-input_tokens // block_tokens)
    expected = f"{needed}" if whole in (0, needed) else f"{whole} or {needed}"
    needs = f"input_length {input_tokens} needs {expected}"
    return f"hash_ids has {len(ids or ())} ids; {needs}, for {block_tokens} tokens each"


WORDS = ("messages", "prompt", "prompts", "text", "text_input", "texts", "body", "content", "conversations", "tools")
"""Fields of other tools' traces that hold the words of a request."""


def unknown_field(value: dict[str, Any], known: Sequence[str]) -> str | None:
    """Describe the fields of a trace line that are not understood, with the remedy; None when there are none."""
    unknown = [key for key in value if key not in known]
    if not unknown:
        return None
    if words := [key for key in unknown if key in WORDS]:
        return (
            f"{', '.join(words)}: a trace has lengths, and its words would not be sent: remove the fields of text, or "
            "replay a file that has words in every line"
        )
    if "chat_id" in unknown:
        return "chat_id: this is a Bailian trace, with times in seconds: convert it with `loadgen trace import`"
    near = get_close_matches(unknown[0], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
    return f"unknown field {shortened(unknown[0])}: {hint}"


def _zero_length(text: str) -> str | None:
    """Return which length of the JSON object is 0, in the words that `dropped` counts; None if neither is."""
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return None
    if unknown_field(value, Line.__struct_fields__):
        return None
    reasons = {"input_length": "0 input tokens", "output_length": "0 output tokens"}
    return next((reason for key, reason in reasons.items() if repr(value.get(key)) == "0"), None)


def line_fault(text: str, decoder_message: str) -> str:
    """Describe the fault of a trace line: the value and what was expected instead, or else the decoder's message."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        is_csv = "," in text and '"' not in text
        hint = " (a CSV file? `loadgen trace import` reads Azure and BurstGPT)" if is_csv else ""
        return f"not a JSON object: {shortened(text)}{hint}"
    if not isinstance(value, dict):
        return f"{shortened(text)}: expected a JSON object"
    if unknown := unknown_field(value, Line.__struct_fields__):
        return unknown
    for key, expected, fits in (
        (
            "timestamp",
            "milliseconds from the start, finite and not negative",
            lambda t: isinstance(t, int | float) and not isinstance(t, bool) and math.isfinite(t) and t >= 0,
        ),
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
            return f"{key} {shortened(json.dumps(value[key]))}: expected {expected}"
    return f"{decoder_message} in {shortened(text)}"


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS


def shortened(text: str) -> str:
    """Return at most 60 printable characters of `text`: safe on one line of a terminal, whatever a file holds."""
    text = text if len(text) <= 60 else text[:57] + "..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def nonempty_in_order(
    path: Path, rows: Iterable[tuple[int, TraceRequest]], dropped: Mapping[str, int] | None = None
) -> Iterator[TraceRequest]:
    """Yield the requests of (line number, request) rows. LoadgenError if they are out of order, or there are none.

    `dropped` counts the rows that were left out, by reason.
    """
    request = None
    for request in in_order(path, rows):
        yield request
    if request is None:
        raise no_requests(path, dropped)


def in_order(
    path: Path, rows: Iterable[tuple[int, TraceRequest]], latest_s: float = -math.inf
) -> Iterator[TraceRequest]:
    """Yield the requests. LoadgenError at one that arrives before its predecessor; for the first that is `latest_s`."""
    for number, request in rows:
        if request.arrival_s < latest_s:
            raise LoadgenError(
                f"{path}:{number}: arrival at {request.arrival_s:.9g} s comes after one at {latest_s:.9g} s: "
                "expected lines sorted by time"
            )
        latest_s = request.arrival_s
        yield request


def no_requests(path: Path, dropped: Mapping[str, int] | None) -> LoadgenError:
    """Return the error for a file without requests, or with none but the `dropped` ones."""
    if not dropped:
        return LoadgenError(f"{path} has no requests in it")
    if sum(dropped.values()) == 1:
        rows = f"its only row has {next(iter(dropped))}"
    else:
        reasons = ", ".join(f"{count:,} have {reason}" for reason, count in sorted(dropped.items()))
        rows = f"all {sum(dropped.values()):,} of its rows were dropped: {reasons}"
    return LoadgenError(f"{path} has no requests to replay: {rows}")
