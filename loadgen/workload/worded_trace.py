"""Traces whose requests have words of their own: messages, a prompt, or a whole request body on each line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.record import PATHS
from loadgen.workload.tags import tags_fault
from loadgen.workload.trace import MAX_TOKENS, Trace, TraceRequest, check_workload, shortened
from loadgen.workload.words import ROUTING, SAMPLING, WORDS, Fields, WordsFile, decode_fields, hide_halves

if TYPE_CHECKING:
    from loadgen.record import Endpoint
    from loadgen.workload.trace import Lines

LENGTHS = frozenset(("timestamp", "input_length", "output_length", "workload", "session_id", "tags"))
"""Fields that a line has in common with a trace of lengths."""

ANSWER = "answer"
"""The recorded answer. It is never sent: its tokens are what the answer's are held against."""

CONTINUES = "continues"
"""True in a line that has only the new messages of its session: those before them are the ones that were sent, and the
answer that was received."""

_ENDPOINTS = {path: endpoint for endpoint, path in PATHS.items()}
_BODIES: dict[str, Endpoint | None] = {
    "messages": "chat",
    "prompt": "completions",
    "query": "rerank",
    "input": None,  # responses or embeddings
}
"""The field of a body by which its endpoint is known, where no `url` names it."""

_HEADER_NAME = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OWN_HEADERS = {
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "host",
    "expect",
    "accept-encoding",
}


def is_worded(line: str) -> bool:
    """Return whether a line of a JSONL trace holds words."""
    try:
        return not WORDS.keys().isdisjoint(decode_fields(line.encode()))
    except (msgspec.MsgspecError, RecursionError):
        return False


def worded_fields(path: Path, lines: Lines) -> Iterator[tuple[int, Fields]]:
    """Yield (line number, fields) of every line. LoadgenError: it is not a JSON object."""
    for number, text in lines:
        try:
            yield number, decode_fields(text.encode())
        except (msgspec.MsgspecError, RecursionError) as err:
            raise LoadgenError(f"{path}:{number}: not a JSON object: {shortened(text)}") from err


def read_worded(
    path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]], words: WordsFile, limit: int | None = None
) -> Trace:
    """Store the words of the first `limit` rows and return their requests, in order of their timestamps.

    Timestamps are optional, for all rows alike. LoadgenError names the file, the row and the field at fault.
    """
    requests: list[TraceRequest] = []
    timed = False
    for fields, request in checked_rows(path, islice(rows, limit), words):
        timed = "timestamp" in fields
        requests.append(request)
    words.flush()
    return Trace(path.name.split(".")[0], tuple(requests), "", timed)


def checked_rows(
    path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]], words: WordsFile
) -> Iterator[tuple[Mapping[str, Any], TraceRequest]]:
    """Yield the fields and the request of every row, whose words are stored. LoadgenError as for `read_worded`."""
    timed, latest_s = None, 0.0
    for number, fields in rows:
        try:
            request = _request(number, fields, words)
        except ValueError as err:
            raise LoadgenError(f"{path}:{number}: {err}") from err
        except OSError as err:
            raise LoadgenError(f"cannot store the words of {path}: {err.strerror or err}") from err
        has_timestamp = "timestamp" in fields
        timed = has_timestamp if timed is None else timed
        if has_timestamp != timed:
            first = "has one" if timed else "has none"
            raise LoadgenError(f"{path}:{number}: timestamp: the first line {first}; expected the same of every line")
        if request.arrival_s < latest_s:
            raise LoadgenError(
                f"{path}:{number}: arrival at {request.arrival_s:.9g} s comes after one at {latest_s:.9g} s: expected "
                "lines sorted by time"
            )
        latest_s = request.arrival_s
        yield fields, request
    if timed is None:
        left_out = ", ".join(f"{count} {what}" for what, count in words.left_out.items())
        raise LoadgenError(f"{path} has no requests in it" + (f"; left out: {left_out}" if left_out else ""))


def _request(number: int, fields: Mapping[str, Any], words: WordsFile) -> TraceRequest:
    """Return the request of one row, whose words are stored. ValueError: a field is at fault."""
    endpoint = _endpoint(fields)
    _refuse_unknown(fields)
    stored = {name: value for name, value in fields.items() if name not in LENGTHS | {"url", CONTINUES}}
    workload = _value(fields, "workload", str, "a name of 1 to 64 printable characters")
    try:
        check_workload(workload)
    except LoadgenError as err:
        raise ValueError(str(err)) from err
    timestamp = _value(fields, "timestamp", float, "milliseconds from the start, finite and not negative")
    if timestamp is not None and not (math.isfinite(timestamp) and timestamp >= 0):
        raise ValueError(f"timestamp {timestamp}: expected milliseconds from the start, finite and not negative")
    _check_headers(_value(fields, "headers", dict[str, str], "an object of texts") or {})
    model = _value(fields, "model", str, "a name")
    if model is not None and not (model and model.isprintable()):
        raise ValueError(f"model {shortened(model)!r}: expected a name of printable characters")
    _length(fields, "max_tokens")
    _check_type(fields, ANSWER, b'"{', "a text, or a message of the assistant")
    tags = _value(fields, "tags", dict[str, str], "an object of texts") or {}
    if fault := tags_fault(tags):
        raise ValueError(fault)
    session_id = _value(fields, "session_id", str, "a text")
    continues = _value(fields, CONTINUES, bool, "true or false") or False
    if continues and (session_id is None or "messages" not in fields):
        raise ValueError(f"{CONTINUES}: expected messages, and the session_id of the lines before")
    return TraceRequest(
        arrival_s=(timestamp or 0.0) / 1000,
        input_tokens=_length(fields, "input_length"),
        output_tokens=_length(fields, "output_length"),
        workload=intern(workload or "default"),
        session_id=session_id,
        model=model and intern(model),
        tags=tags,
        words=words.add(stored, number, endpoint, continues),
    )


def _endpoint(fields: Mapping[str, Any]) -> Endpoint | None:
    """Return the API that takes the row's words; None for a body that more than one takes.

    ValueError: they are not of one kind, or not of their type.
    """
    kinds = [name for name in WORDS if name in fields]
    if len(kinds) != 1:
        raise ValueError(f"expected one of {', '.join(WORDS)}" + (f", got {' and '.join(kinds)}" if kinds else ""))
    (kind,) = kinds
    match kind:
        case "messages":
            _check_messages(fields)
            return "chat"
        case "prompt":
            _check_type(fields, "prompt", b'"[', "a text, or a list of token ids")
            if _raw(fields["prompt"])[:1] == b"[":
                _value(fields, "prompt", list[int], "a text, or a list of token ids")
            if _raw(fields["prompt"]) in (b'""', b"[]"):
                raise ValueError("prompt: it is empty")
            return "completions"
    body = _value(fields, "body", Fields, "a request body: a JSON object") or {}
    endpoint = _body_endpoint(body, _value(fields, "url", str, "the path of an API"))
    if endpoint == "chat" and "session_id" in fields:  # an answer may have to be put between its messages
        _check_messages(body)
    return endpoint


def _check_messages(fields: Mapping[str, Any]) -> None:
    messages = _value(fields, "messages", list[dict[str, msgspec.Raw]], "a list of objects")
    if not messages or any("role" not in message for message in messages):
        raise ValueError("messages: expected at least one, each with a role")


def _body_endpoint(body: Mapping[str, Any], url: str | None) -> Endpoint | None:
    """Return the API that takes a body; None where more than one does. ValueError: none does."""
    if url is not None:
        if (named := _ENDPOINTS.get(re.sub(r"^/v\d+", "", url))) is None:
            expected = ", ".join(f"/v1{path}" for path in PATHS.values())
            raise ValueError(f"url {shortened(url)!r}: expected {expected} or /rerank")
        return named
    for name, endpoint in _BODIES.items():
        if name in body:
            return endpoint
    raise ValueError(f"body: it has none of {', '.join(_BODIES)}")


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that would have no effect."""
    known = LENGTHS | ROUTING | WORDS.keys() | {ANSWER, CONTINUES}
    known = known - {"max_tokens"} | {"url"} if "body" in fields else known | SAMPLING
    for name in fields:
        if name not in known:
            if "body" in fields and (name in SAMPLING or name == "max_tokens"):
                raise ValueError(f"{name}: it belongs into the body")
            if name == "url":
                raise ValueError("url: only a body has one; messages and prompts go to --endpoint")
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else "; put fields of the API's own into a body"
            raise ValueError(f"field {shortened(name)!r} is not known{hint}")


def _raw(value: Any) -> bytes:
    """Return a field's value as JSON, in its own bytes if it was read as such."""
    return bytes(value) if isinstance(value, msgspec.Raw) else msgspec.json.encode(value)


def _check_type(fields: Mapping[str, Any], name: str, first_bytes: bytes, expected: str) -> None:
    """Raise ValueError for a value that does not begin with one of these bytes of JSON.

    The text itself is not decoded: it may hold half a surrogate pair, as answers of models do, and be long.
    """
    if name in fields and _raw(fields[name])[0] not in first_bytes:
        raise ValueError(f"{name}: expected {expected}")


def _value(fields: Mapping[str, Any], name: str, kind: Any, expected: str) -> Any:
    """Return the value of a field, None where it is absent or null. ValueError: it is of another type."""
    if name not in fields:
        return None
    raw = _raw(fields[name])
    try:
        return msgspec.json.decode(hide_halves(raw) if b"\\u" in raw else raw, type=kind | None)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise ValueError(f"{name}: expected {expected}") from err


def _length(fields: Mapping[str, Any], name: str) -> int | None:
    """Return a number of tokens. ValueError: it is none."""
    expected = "an integer of at least 1"
    value: int | None = _value(fields, name, int, expected)
    if value is not None and not 1 <= value <= MAX_TOKENS:
        raise ValueError(f"{name} {value}: expected {expected}" + (", and below 2**31" if value > 1 else ""))
    return value


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"headers: {shortened(name)!r} is not a header that can be sent"
            )  # its value may be secret
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"headers: {name} is set by the client itself")
