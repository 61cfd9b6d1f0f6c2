"""Data sets of conversations, and files for OpenAI's Batch API, as rows of the one trace format.

Conversations are ShareGPT's, `{"id", "conversations": [{"from", "value"}]}`, as in ShareGPT_V3_unfiltered_cleaned_split
.json, which FastChat and vLLM read; and those of chat data sets and of OpenAI's files for fine-tuning,
`{"messages": [{"role", "content"}]}`, which end with the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.foreign_rows import NULL, LeftOut, Rows, head, is_text, stated
from loadgen.workload.json_texts import decoded

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

Raw = msgspec.Raw

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Roles of the API by the names that data sets have for them."""

_MAX_NAMES = 10_000_000
"""Sessions whose names are remembered, so that no two conversations share one."""


class _Conversation(msgspec.Struct):
    """A row of a data set; its other fields describe it and are not sent."""

    conversations: list[dict[str, Raw]] | None = None
    messages: list[dict[str, Raw]] | None = None
    id: str | int | None = None
    tools: Raw = NULL
    parallel_tool_calls: Raw = NULL


def conversation_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield a row for each answer of each conversation: the messages before it, and the answer.

    A last message that was not answered is a row too. The rows of a conversation are a session of its id.
    """
    names: set[str] = set()
    for number, row in decoded(path, lines, msgspec.json.Decoder(_Conversation)):
        turns = row.conversations if row.conversations is not None else row.messages
        if turns is None:
            raise LoadgenError(f"{path}:{number}: it has neither conversations nor messages")
        try:
            messages = [_message(i, turn) for i, turn in enumerate(turns)]
        except ValueError as err:
            field = "messages" if row.conversations is None else "conversations"
            raise LoadgenError(f"{path}:{number}: {field}{err}") from err
        requests = list(_requests(messages))
        if not requests:
            left_out["conversations in which nobody asks anything"] += 1
        session = None
        if len(requests) > 1:
            session = str(number if row.id is None else row.id)
            session = session if session not in names else f"{session}#{number}"
            if len(names) < _MAX_NAMES:
                names.add(session)
        for count, answer in requests:
            fields = {"messages": [message for _, message in messages[:count]]}
            yield (
                number,
                fields
                | stated(
                    session_id=session, answer=answer, tools=row.tools, parallel_tool_calls=row.parallel_tool_calls
                ),
            )


def _message(index: int, turn: Mapping[str, Raw]) -> tuple[str, dict[str, Any]]:
    """Return the role and the message of a turn. ValueError: it is not one of the two kinds."""
    if "from" in turn and "value" in turn:
        name, content = _text(turn["from"], f"[{index}].from"), turn["value"]
        if head(content) != b'"':
            raise ValueError(f"[{index}].value: expected a text")
        if (role := _ROLES.get(name.lower())) is None:
            raise ValueError(f"[{index}].from: {name[:40]!r} is not one of {', '.join(_ROLES)}")
        return role, {"role": role, "content": content}
    if "role" not in turn:
        raise ValueError(f"[{index}]: expected from and value, or role and content")
    role = _text(turn["role"], f"[{index}].role")
    # A weight says whether a fine-tuning learns from the message; servers refuse it.
    return role, {name: value for name, value in turn.items() if name != "weight"}


def _text(raw: Raw, field: str) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.MsgspecError as err:
        raise ValueError(f"{field}: expected a text") from err


def _requests(messages: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[int, Any]]:
    """Yield (number of messages, recorded answer) of every request that the conversation was made of."""
    is_asked = False
    for index, (role, message) in enumerate(messages):
        if role == "assistant" and is_asked:
            yield index, _answer(message)
            is_asked = False
        elif role not in ("assistant", "system", "developer"):
            is_asked = True
    if is_asked:
        yield len(messages), None


def _answer(message: dict[str, Any]) -> Any:
    """Return the text of an answer, or the message where it calls tools; None where it is empty."""
    if is_text(message.get("content", NULL)) and "tool_calls" not in message:
        return message["content"]
    return message if head(message.get("tool_calls", NULL)) == b"[" else None


class _BatchLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a file for the Batch API: developers.openai.com/api/reference, "request input object"."""

    body: Raw
    custom_id: str | None = None
    method: Literal["POST"] = "POST"
    url: str | None = None


_NAMED_BY_BODY = ("/v1/chat/completions", "/v1/completions")
"""Endpoints that follow from what a body holds."""


def batch_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the body of every line, and its endpoint where the body alone does not tell it."""
    for number, line in decoded(path, lines, msgspec.json.Decoder(_BatchLine)):
        fields: dict[str, Any] = {"body": line.body}
        yield number, fields if line.url is None or line.url in _NAMED_BY_BODY else fields | {"url": line.url}
