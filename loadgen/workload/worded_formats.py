"""Formats of files with words: which a file has, and its rows in the one trace format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.aiperf_formats import AIPERF_READERS
from loadgen.workload.call_log import call_rows
from loadgen.workload.conversation_formats import batch_rows, conversation_rows
from loadgen.workload.foreign_rows import head
from loadgen.workload.genai_spans import span_rows
from loadgen.workload.json_texts import first_bytes, json_texts
from loadgen.workload.tables import csv_texts, object_texts, parquet_texts
from loadgen.workload.trace import shortened
from loadgen.workload.trace_formats import AZURE_COLUMNS, BURSTGPT_COLUMNS
from loadgen.workload.worded_trace import ANSWER, LENGTHS, worded_fields
from loadgen.workload.words import HIDDEN, SAMPLING, WORDS, Fields, decode_fields, hide_halves, show_halves

if TYPE_CHECKING:
    from loadgen.workload.foreign_rows import LeftOut, Rows
    from loadgen.workload.tables import Texts
    from loadgen.workload.trace import Lines

WordedFormat = Literal[
    "conversations", "openai-batch", "aiperf-single-turn", "aiperf-multi-turn", "aiperf-raw-payload", "aiperf-inputs",
    "aiperf-mooncake", "litellm", "otel",
]  # fmt: skip
"""Formats of JSON values, beside the one trace format."""


def _trace_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the rows of the one trace format as they are."""
    return worded_fields(path, lines)


READERS: Mapping[str, Callable[[Path, Lines, LeftOut], Rows]] = {
    "jsonl": _trace_rows,
    "conversations": conversation_rows,
    "openai-batch": batch_rows,
    **AIPERF_READERS,
    "litellm": call_rows,
    "otel": span_rows,
}

_HIDDEN_TEXT = HIDDEN.decode()
_HIDDEN_ESCAPE = f"\\u{ord(_HIDDEN_TEXT):04x}"

LOGS = ("litellm", "otel")
"""Formats that record which model answered."""

_MEDIA = frozenset(("text", "texts", "image", "images", "audio", "audios", "video", "videos"))
_BODY = frozenset((
    "max_completion_tokens", "stream", "stream_options", "n", "store", "metadata", "service_tier", "modalities",
    "audio", "functions", "function_call", "prediction", "echo", "best_of", "suffix", "ignore_eos", "min_tokens",
))  # fmt: skip
"""Fields of a request body that no line of a trace has."""

_TRACE = LENGTHS | {ANSWER, "headers", "continues"}
"""Fields of a line of a trace that no data set of conversations has."""


def worded_format(path: Path, text: str) -> str | None:
    """Return the format of a file by its first JSON value; None for a trace of lengths. LoadgenError: it may be of two.

    The fields that decide:
    resourceSpans, or attributes with a start: otel; standard_logging_object, or startTime and messages: litellm;
    custom_id and body: openai-batch; conversations: conversations; turns: aiperf-multi-turn;
    text_input, payload, message_mode: aiperf-mooncake; data with payloads: aiperf-inputs;
    text, image, ...: aiperf-single-turn; messages or prompt beside fields of a body: aiperf-raw-payload;
    messages, prompt or body: jsonl. Messages that end with an answer, and fields that describe them: conversations.
    """
    try:
        fields = decode_fields(text.encode())
    except (msgspec.MsgspecError, RecursionError):
        return None
    names = fields.keys()
    if "resourceSpans" in names or ("attributes" in names and names & {"startTimeUnixNano", "start_time"}):
        return "otel"
    if "standard_logging_object" in names or {"startTime", "messages"} <= names:
        return "litellm"
    if {"custom_id", "body"} <= names:
        return "openai-batch"
    if "conversations" in names:
        return "conversations"
    if "turns" in names:
        return "aiperf-multi-turn"
    if names & {"text_input", "payload", "message_mode"} or ({"messages", "delay"} <= names):
        return "aiperf-mooncake"
    if "data" in names and b'"payloads"' in head(fields["data"], 2**16):
        return "aiperf-inputs"
    if names & _MEDIA and not names & WORDS.keys():
        return "aiperf-single-turn"
    if "body" not in names and names & {"messages", "prompt"} and names & _BODY:
        return "aiperf-raw-payload"
    if "messages" in names and not names & _TRACE and _ends_with_answer(fields["messages"]):
        if names - SAMPLING - {"messages", "model", "max_tokens"}:
            return "conversations"
        raise LoadgenError(
            f"{path}:1: its messages end with an answer, so that it may be of two formats: `loadgen trace import` with "
            "--format conversations asks what the user asked and keeps the answers; --format jsonl sends all messages"
        )
    if names and not names & (WORDS.keys() | LENGTHS | {"chat_id"}):
        raise LoadgenError(
            f"{path}:1: no format has the fields {shortened(', '.join(names))}; `loadgen trace import` with --column "
            "prompt=FIELD or --column message=FIELD says which of them has the words"
        )
    return "jsonl" if names & WORDS.keys() else None


def _ends_with_answer(messages: msgspec.Raw) -> bool:
    try:
        last: Any = msgspec.json.decode(hide_halves(bytes(messages)), type=list[Fields])[-1]
        return msgspec.json.decode(last["role"], type=str) == "assistant"
    except (msgspec.MsgspecError, RecursionError, IndexError, KeyError):
        return False


def worded_rows(
    path: Path, format: str, lines: Lines, left_out: LeftOut, replaced: Mapping[str, str] | None = None
) -> Rows:
    """Yield the rows of a file in the one trace format, with the fields `replaced` instead of their own.

    Halves of surrogate pairs, which readers' decoders refuse, are hidden from them.
    """
    has_halves = False

    def texts() -> Texts:
        nonlocal has_halves
        for number, text in lines:
            if "\\u" not in text:
                yield number, text
                continue
            hidden = hide_halves(text.replace(_HIDDEN_TEXT, _HIDDEN_ESCAPE).encode()).decode()
            has_halves = has_halves or _HIDDEN_TEXT in hidden
            yield number, hidden

    encode = msgspec.json.Encoder().encode
    for number, fields in READERS[format](path, texts(), left_out):
        if has_halves:
            fields = decode_fields(show_halves(encode(fields)))
        yield number, {**fields, **replaced} if replaced else fields


def file_texts(
    path: Path, file: IO[bytes], columns: Mapping[str, str], left_out: LeftOut, format: str | None = None
) -> Texts:
    """Yield the JSON texts of an open file, which has not been read: of JSON, of a CSV with words, or of Parquet.

    A CSV has the suffix .csv or .tsv, or `columns` are named, or `format` says so.
    """
    head = first_bytes(file)
    if format == "parquet" or head.startswith(b"PAR1"):
        return parquet_texts(path, columns, left_out)
    is_json = head[:1] in (b"{", b"[", b"")
    is_lengths = any(name.encode() in head for name in (AZURE_COLUMNS[1], BURSTGPT_COLUMNS[1]))
    is_named = bool({".csv", ".tsv"} & set(path.suffixes)) and not is_lengths
    if format == "csv" or (not is_json and (columns or is_named)):
        return csv_texts(path, file, columns, left_out)
    texts = json_texts(path, file)
    return object_texts(path, texts, columns, left_out) if columns else texts
