"""Import of public trace formats: Azure LLM inference CSV, BurstGPT CSV, Mooncake JSONL and Bailian JSONL."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.trace import (
    MAX_TOKENS,
    EarlierRequests,
    Lines,
    TraceRequest,
    blocks_fault,
    fills,
    no_requests,
    nonempty_in_order,
    numbered_lines,
    opened,
    parse_jsonl,
    shortened,
    unknown_field,
)

Format = Literal["jsonl", "mooncake", "bailian", "azure", "burstgpt"]
CSV_FORMATS = ("azure", "burstgpt")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def iter_import(
    path: Path, dropped: Counter[str], *, format: Format | None = None, workload: str | None = None
) -> Iterator[TraceRequest]:
    """Yield the requests of a trace in any known format, all named `workload` if that is given.

    The format is detected from the first line unless it is given. Rows of 0 tokens (failed requests, in BurstGPT) are
    left out and counted in `dropped`, by reason.
    """
    with opened(path) as file:
        lines = numbered_lines(path, file)
        header = next(lines, None)
        if header is None:
            raise no_requests(path, dropped)
        rows = parse_rows(path, format or detect_format(path, header[1]), header, lines, dropped, workload)
        yield from nonempty_in_order(path, rows, dropped)


def parse_rows(
    path: Path,
    format: Format,
    header: tuple[int, str],
    lines: Lines,
    dropped: Counter[str],
    workload: str | None,
    origin: float | None = None,
    sessions: dict[int | str, str] | None = None,
    earlier: EarlierRequests | None = None,
) -> Iterator[tuple[int, TraceRequest]]:
    """Yield (line number, request) of `lines`, which follow `header`: the header of a CSV, or the first JSON request.

    `origin` is that of `time_origin`; give it for lines that do not directly follow `header`. `sessions` are those of
    the chats in earlier lines, `earlier` their named requests; both get these lines' ones.
    """
    match format:
        case "azure":
            yield from _azure_rows(path, header, lines, dropped, workload or "default", origin)
        case "burstgpt":
            yield from _burstgpt_rows(path, header, lines, dropped, workload or "default", origin)
        case _:
            requests = lines if origin is not None else chain([header], lines)
            if format == "bailian":
                rows = _bailian_rows(path, requests, dropped, {} if sessions is None else sessions)
            else:
                rows = parse_jsonl(path, requests, dropped, earlier)
            for number, request in rows:
                yield number, msgspec.structs.replace(request, workload=workload) if workload else request


def time_origin(path: Path, format: Format, header: tuple[int, str], line: tuple[int, str]) -> float:
    """Return the instant from which a file whose first row is `line` counts.

    It is in ns since 1970 for Azure, in seconds for BurstGPT, and 0 for JSON.
    """
    match format:
        case "azure":
            ((number, (timestamp, *_)),) = _csv_cells(path, header, [line], AZURE_COLUMNS)
            return _timestamp_ns(path, number, timestamp)
        case "burstgpt":
            ((number, (timestamp, *_)),) = _csv_cells(path, header, [line], BURSTGPT_COLUMNS)
            return _seconds(path, number, timestamp)
        case _:
            return 0


def detect_format(path: Path, first_line: str) -> Format:
    """Return the format that a file's first line indicates: a known CSV header, or JSON."""
    if first_line.startswith("{"):
        return "bailian" if '"chat_id"' in first_line else "jsonl"
    if "ContextTokens" in first_line:
        return "azure"
    if "Request tokens" in first_line:
        return "burstgpt"
    raise LoadgenError(
        f"{path}:1: {shortened(first_line)}: expected JSON lines, or the CSV header of an Azure "
        "(TIMESTAMP,ContextTokens,GeneratedTokens) or BurstGPT (Timestamp,Model,Request tokens,...) trace"
    )


class _BailianLine(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One line of a trace of Alibaba Cloud's Bailian: github.com/alibaba-edu/qwen-bailian-usagetraces-anon.

    `timestamp` is in seconds. Every turn has a `chat_id` of its own and names the turn before it, -1 for none.
    """

    chat_id: int | str
    parent_chat_id: int | str | None
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
    output_length: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    turn: int = 1
    hash_ids: tuple[int, ...] = ()


BAILIAN_BLOCK_TOKENS = 16
"""Tokens of a hash id in these traces."""


def _bailian_rows(
    path: Path, lines: Lines, dropped: Counter[str], sessions: dict[int | str, str]
) -> Iterator[tuple[int, TraceRequest]]:
    """Parse Bailian's lines: a session is a chain of chats, named by the first of them that the file has or names."""
    decode = msgspec.json.Decoder(_BailianLine).decode
    for number, text in lines:
        try:
            line = decode(text)
        except (msgspec.MsgspecError, RecursionError) as err:
            raise LoadgenError(f"{path}:{number}: {_bailian_fault(text, str(err))}") from err
        if not line.type.isprintable():
            raise LoadgenError(f"{path}:{number}: type {shortened(repr(line.type))}: expected printable characters")
        parent = line.parent_chat_id
        if parent is None or parent in (-1, "-1", "", line.chat_id):
            session = str(line.chat_id)
        else:
            session = sessions.get(parent, str(parent))
        sessions[line.chat_id] = session
        if 0 in (line.input_length, line.output_length):
            dropped["0 input tokens" if line.input_length == 0 else "0 output tokens"] += 1
            continue
        if line.hash_ids and not fills(line.input_length, len(line.hash_ids), BAILIAN_BLOCK_TOKENS):
            fault = blocks_fault(line.input_length, line.hash_ids, BAILIAN_BLOCK_TOKENS)
            raise LoadgenError(f"{path}:{number}: {fault}")
        request = _request(line.timestamp, (line.input_length, line.output_length), line.type, session)
        yield (
            number,
            msgspec.structs.replace(request, prefix_ids=line.hash_ids, block_tokens=BAILIAN_BLOCK_TOKENS),
        )


def _bailian_fault(text: str, decoder_message: str) -> str:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return f"not a JSON object: {shortened(text)}"
    if isinstance(value, dict) and (unknown := unknown_field(value, _BailianLine.__struct_fields__)):
        return unknown
    return f"{decoder_message} in {shortened(text)}"


def _azure_rows(
    path: Path, header: tuple[int, str], lines: Lines, dropped: Counter[str], workload: str, start_ns: float | None
) -> Iterator[tuple[int, TraceRequest]]:
    """Parse TIMESTAMP,ContextTokens,GeneratedTokens.

    Timestamps have no zone and 7 decimals in the data of 2023, +00:00 and 6 or no decimals in that of 2024.
    """
    for number, (timestamp, context, generated) in _csv_cells(path, header, lines, AZURE_COLUMNS):
        t_ns = _timestamp_ns(path, number, timestamp)
        start_ns = t_ns if start_ns is None else start_ns
        lengths = _lengths(path, number, context, generated, dropped)
        if lengths:
            yield number, _request((t_ns - start_ns) / 1e6 / 1000, lengths, workload)  # as it is read back: ms / 1000


def _burstgpt_rows(
    path: Path, header: tuple[int, str], lines: Lines, dropped: Counter[str], workload: str, start_s: float | None
) -> Iterator[tuple[int, TraceRequest]]:
    """Parse Timestamp, Request tokens, Response tokens (0: the request failed) and, in later files, Session ID.

    Timestamp counts seconds from the first midnight of the whole data set, so a later file starts months in.
    """
    names = BURSTGPT_COLUMNS + (("Session ID",) if "Session ID" in header[1].split(",") else ())
    for number, (timestamp, prompt, response, *session) in _csv_cells(path, header, lines, names):
        t_s = _seconds(path, number, timestamp)
        start_s = t_s if start_s is None else start_s
        lengths = _lengths(path, number, prompt, response, dropped)
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


def _csv_cells(
    path: Path, header: tuple[int, str], lines: Lines, names: tuple[str, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line number, cells of the named columns) of a CSV without quotes; none of these formats has any."""
    columns = [name.strip() for name in header[1].split(",")]
    if missing := [name for name in names if name not in columns]:
        raise LoadgenError(f"{path}:{header[0]}: no column {', '.join(missing)} in {shortened(header[1])}")
    pick = itemgetter(*(columns.index(name) for name in names))
    for number, text in lines:
        cells = text.split(",")
        if len(cells) != len(columns):
            raise LoadgenError(f"{path}:{number}: {shortened(text)}: expected {len(columns)} columns, as in the header")
        yield number, pick(cells)


def _lengths(path: Path, number: int, prompt: str, response: str, dropped: Counter[str]) -> tuple[int, int] | None:
    """Return (input, output) tokens, or None when one of them is 0, which is counted in `dropped`."""
    for text in (prompt, response):
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_TOKENS):
            raise LoadgenError(f"{path}:{number}: {shortened(text)!r} tokens: expected an integer, 0 to {MAX_TOKENS}")
    lengths = int(prompt), int(response)
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
        raise LoadgenError(f"{path}:{number}: time {shortened(text)!r}: expected seconds, finite and not negative")
    return seconds


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def _timestamp_ns(path: Path, number: int, text: str) -> int:
    """Return ns since 1970 of a date and time with up to 9 decimals (`datetime` keeps 6); without a zone it is UTC."""
    try:
        second, decimals, zone = _TIMESTAMP.fullmatch(text).groups()  # type: ignore[union-attr]
        return _unix_s(second, zone) * 10**9 + int((decimals or "").ljust(9, "0"))
    except (AttributeError, ValueError) as err:
        raise LoadgenError(
            f"{path}:{number}: time {shortened(text)!r}: expected a date and time such as 2023-11-16 18:17:03.9799600"
        ) from err


@lru_cache(maxsize=4)  # rows are in order of time: thousands in a row share their second
def _unix_s(text: str, zone: str | None) -> int:
    return int(datetime.fromisoformat(text + ("+00:00" if zone in (None, "Z") else str(zone))).timestamp())
