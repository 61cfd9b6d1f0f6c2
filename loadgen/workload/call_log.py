"""A gateway's log of chat completions, with requests and responses, as rows of the one trace format.

The entries are LiteLLM's: StandardLoggingPayload (docs.litellm.ai/docs/proxy/logging_spec), as its callbacks write it,
by itself or below `standard_logging_object`; times are seconds since 1970 or, in files, ISO 8601. The rows of its table
of spend logs, whose messages and responses are JSON in a text, differ in nothing that matters here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.foreign_rows import (
    NULL,
    LeftOut,
    Rows,
    TimedRow,
    head,
    in_time_order,
    is_null,
    stated,
    unix_ns,
    whole_ns,
)
from loadgen.workload.json_texts import decoded
from loadgen.workload.words import SAMPLING, Fields

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

Raw = msgspec.Raw

_CHAT = ("completion", "acompletion")
_TEXT = ("text_completion", "atext_completion")
_OWN = ("stream", "stream_options")
"""Parameters that loadgen sets itself."""
_REDACTED = "redacted-by-litellm"
"""Text that LiteLLM logs in place of words, where it is told to log none."""


class _Call(msgspec.Struct):
    """An entry of the log; fields that describe a cost, a key or a cache are not read."""

    startTime: float | str | None = None  # noqa: N815 (LiteLLM's name)
    messages: Raw = NULL
    response: Raw = NULL
    call_type: str = "completion"
    status: str = "success"
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model_parameters: Fields | None = None
    standard_logging_object: _Call | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    role: str = "assistant"
    tool_calls: list[Raw] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None


class _Response(msgspec.Struct):
    choices: list[_Choice] = []


def call_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the calls that succeeded, in order of their start, with their parameters, answers and usage."""

    def rows() -> Iterator[TimedRow]:
        for number, entry in decoded(path, lines, msgspec.json.Decoder(_Call)):
            call = entry.standard_logging_object or entry
            try:
                if (fields := _fields(call, left_out)) is not None:
                    yield TimedRow(number, _start_ns(call.startTime), fields)
            except ValueError as err:
                raise LoadgenError(f"{path}:{number}: {err}") from err

    return in_time_order(path, rows(), from_first=True)


def _fields(call: _Call, left_out: LeftOut) -> dict[str, Any] | None:
    """Return the fields of a row; None for a call that has no place in a trace. ValueError: a field is at fault."""
    if call.status != "success":
        left_out["calls that failed"] += 1
        return None
    if call.call_type not in _CHAT + _TEXT:
        left_out[f"calls of {call.call_type[:40]!r}"] += 1
        return None
    messages = _embedded(call.messages)
    if is_null(messages) or head(messages, 2) in (b"[]", b"{}") or f'"{_REDACTED}"'.encode() in bytes(messages):
        left_out["calls whose messages were not logged"] += 1
        return None
    words: dict[str, Any] = {"messages": messages}
    if call.call_type in _TEXT:
        words = {"prompt": _prompt(messages)}
    elif head(messages) == b'"':
        words = {"messages": [{"role": "user", "content": messages}]}
    for name, value in (call.model_parameters or {}).items():
        if name in _OWN or is_null(value) or head(value, 3) == b"{}":
            continue
        if name in SAMPLING:
            words[name] = value
        elif name in ("max_tokens", "max_completion_tokens"):
            words["max_tokens"] = value
        else:
            left_out[f"parameters {name[:40]!r}"] += 1
    return words | stated(
        model=call.model or None,
        answer=_answer(call.response) or None,
        input_length=call.prompt_tokens or None,
        output_length=call.completion_tokens or None,
    )


def _embedded(raw: Raw) -> Raw:
    """Return a JSON value, or the one in it if it is a text that holds one."""
    if head(raw, 2) in (b'"[', b'"{'):
        inner = msgspec.json.decode(raw, type=str)
        try:
            return Raw(bytes(msgspec.json.decode(inner, type=Raw)))
        except (msgspec.MsgspecError, RecursionError):
            return raw
    return raw


def _prompt(messages: Raw) -> Any:
    """Return the prompt of a text completion, which the log has as a text or as the content of one message."""
    if head(messages) == b'"':
        return messages
    try:
        (message,) = msgspec.json.decode(messages, type=list[Fields])
        return message["content"]
    except (msgspec.MsgspecError, ValueError, KeyError) as err:
        raise ValueError("messages: expected the one prompt of a text completion") from err


def _answer(response: Raw) -> Any:
    """Return the text of the first choice, or its message where it calls tools; None where there is neither."""
    try:
        choices = msgspec.json.decode(_embedded(response), type=_Response).choices
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not choices:
        return None
    message = choices[0].message
    if message is not None and message.tool_calls:
        return {"role": message.role, "content": message.content, "tool_calls": message.tool_calls}
    text = message.content if message else choices[0].text
    return None if text == _REDACTED else text


def _start_ns(time: float | str | None) -> int:
    """Return ns since 1970. ValueError: it is neither seconds nor a date and time."""
    if isinstance(time, str):
        try:
            return unix_ns(time)
        except ValueError as err:
            raise ValueError(f"startTime: {time[:40]!r}: expected seconds since 1970, or a date and time") from err
    if time is None:
        raise ValueError("startTime: expected seconds since 1970, or a date and time")
    return whole_ns(time, 10**9)
