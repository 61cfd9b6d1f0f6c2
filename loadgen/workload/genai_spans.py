"""OpenTelemetry spans of calls to models, with their messages, as rows of the one trace format.

Files are OTLP in JSON, a document or a line each (opentelemetry.io/docs/specs/otel/protocol/file-exporter), single
spans of it, or spans as an SDK prints them (`attributes` an object, `start_time` a date). Messages are read from
* the attributes gen_ai.input.messages, gen_ai.output.messages, gen_ai.system_instructions and gen_ai.tool.definitions,
  of the span or of an event (github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai and model/gen-ai),
* gen_ai.prompt.N.*, gen_ai.completion.N.* and llm.request.functions.N.*, as OpenLLMetry writes them,
* the events gen_ai.user.message etc. and gen_ai.choice, which the conventions had before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.foreign_rows import LeftOut, Rows, TimedRow, in_time_order, stated, unix_ns
from loadgen.workload.json_texts import decoded

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

Attributes = dict[str, Any]

_CALLS = ("chat", "text_completion", "completion", "generate_content")
"""Operations that are requests to a model; an agent's span repeats the messages of those below it."""

_REQUEST = {
    "gen_ai.request.model": "model",
    "gen_ai.request.max_tokens": "max_tokens",
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.top_k": "top_k",
    "gen_ai.request.seed": "seed",
    "gen_ai.request.stop_sequences": "stop",
    "gen_ai.request.presence_penalty": "presence_penalty",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.conversation.id": "session_id",
}
"""Fields of a row by the attribute that states them."""

_WORDS = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.prompt")
_MESSAGE_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")


class _Event(msgspec.Struct):
    name: str = ""
    attributes: Any = None


class _Span(msgspec.Struct, rename={"start_unix": "startTimeUnixNano"}):
    """A span of OTLP, or of an SDK."""

    attributes: Any = None
    events: list[_Event] = []
    status: Any = None
    start_unix: int | str | None = None
    start_time: int | str | None = None


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Resource(msgspec.Struct, rename="camel"):
    scope_spans: list[_Scope] = []


class _Document(_Span, rename={"resource_spans": "resourceSpans", "start_unix": "startTimeUnixNano"}):
    """A document of OTLP, or else a span."""

    resource_spans: list[_Resource] | None = None


class _UnsendableError(Exception):
    """A call has a part that the chat API has no place for."""


def span_rows(path: Path, lines: Lines, left_out: LeftOut) -> Rows:
    """Yield the calls that succeeded, in order of their start, with their parameters, answers and usage."""

    def rows() -> Iterator[TimedRow]:
        for number, document in decoded(path, lines, msgspec.json.Decoder(_Document)):
            for span in _spans(document):
                try:
                    if (fields := _fields(span, left_out)) is not None:
                        yield TimedRow(number, _start_ns(span), fields)
                except _UnsendableError as part:
                    left_out[f"calls with {part}"] += 1
                except ValueError as err:
                    raise LoadgenError(f"{path}:{number}: span: {err}") from err
                except (TypeError, LookupError, AttributeError) as err:
                    fault = "its attributes have another shape than the conventions give them"
                    raise LoadgenError(f"{path}:{number}: span: {fault}") from err

    return in_time_order(path, rows(), from_first=True)


def _spans(document: _Document) -> Iterator[_Span]:
    if document.resource_spans is None:
        yield document
    for resource in document.resource_spans or []:
        for scope in resource.scope_spans:
            yield from scope.spans


def _fields(span: _Span, left_out: LeftOut) -> dict[str, Any] | None:
    """Return the fields of a row; None for a span that is no call, or a call without words."""
    attributes = _attributes(span.attributes)
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type") or "chat"
    if operation not in _CALLS:
        left_out[f"spans of {str(operation)[:40]!r}"] += 1
        return None
    status = span.status if isinstance(span.status, dict) else {}
    if status.get("code", status.get("status_code")) in (2, "STATUS_CODE_ERROR", "ERROR"):
        left_out["calls that failed"] += 1
        return None
    events = [(event.name, _attributes(event.attributes)) for event in span.events]
    for _, event in events:
        attributes |= {name: event[name] for name in _WORDS if name in event}
    messages = _messages(attributes, events)
    if not messages:
        left_out["spans without messages"] += 1
        return None
    words: dict[str, Any] = {"messages": messages}
    if operation in ("text_completion", "completion"):
        words = {"prompt": "\n".join(str(message["content"]) for message in messages)}
    fields = {field: attributes.get(name) for name, field in _REQUEST.items()}
    if fields["session_id"] is not None:
        fields["session_id"] = str(fields["session_id"])
    return words | stated(
        **fields,
        tools=_tools(attributes) if "messages" in words else None,
        answer=_answer(attributes, events) or None,
        input_length=_usage(attributes, "input_tokens", "prompt_tokens"),
        output_length=_usage(attributes, "output_tokens", "completion_tokens"),
    )


# -- OTLP -------------------------------------------------------------------------------------------------------------


def _attributes(listed: Any) -> Attributes:
    """Return attributes by name, from OTLP's list or an SDK's object."""
    if isinstance(listed, list):
        return {entry["key"]: _value(entry.get("value")) for entry in listed}
    return dict(listed or {})


def _value(wrapped: Any) -> Any:
    """Return an AnyValue of OTLP's JSON as the value that it holds."""
    match wrapped:
        case {"stringValue": value} | {"boolValue": value} | {"bytesValue": value}:
            return value
        case {"intValue": value}:
            return int(value)
        case {"doubleValue": value}:
            return float(value)
        case {"arrayValue": value}:
            return [_value(item) for item in value.get("values", [])]
        case {"kvlistValue": value}:
            return _attributes(value.get("values", []))
    return None


def _start_ns(span: _Span) -> int:
    """Return ns since 1970. ValueError: the span has no start."""
    start = span.start_unix if span.start_unix is not None else span.start_time
    if isinstance(start, str) and not start.isdecimal():
        return unix_ns(start)
    if start is None:
        raise ValueError("expected startTimeUnixNano or start_time")
    return int(start)


# -- messages ---------------------------------------------------------------------------------------------------------


def _messages(attributes: Attributes, events: list[tuple[str, Attributes]]) -> list[dict[str, Any]]:
    """Return the messages that were sent, from whichever convention the span follows."""
    if recorded := _structured(attributes.get("gen_ai.input.messages") or attributes.get("gen_ai.prompt")):
        system = _structured(attributes.get("gen_ai.system_instructions"))
        spoken = [{"role": "system", "parts": system}] if system else []
        if isinstance(recorded, str):
            if recorded.startswith("["):  # SDKs cut attributes at a length
                raise _UnsendableError("messages that are not whole")
            recorded = [{"role": "user", "content": recorded}]
        return [message for entry in [*spoken, *recorded] for message in _chat_messages(entry)]
    if any(name.startswith("gen_ai.prompt.") for name in attributes):
        return [_indexed_message(entry) for entry in _indexed(attributes, "gen_ai.prompt.")]
    matches = ((_MESSAGE_EVENT.fullmatch(name), event) for name, event in events)
    return [_event_message(match[1], attributes) for match, attributes in matches if match is not None]


def _structured(value: Any) -> Any:
    """Return a value that may be given as the text of its JSON."""
    if not isinstance(value, str) or not value.startswith(("[", "{")):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError):
        return value


def _chat_messages(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the API's messages for one of the conventions': results of tools are messages of their own."""
    if "parts" not in entry:
        yield dict(entry)
        return
    content: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in entry["parts"]:
        match part.get("type"):
            case "text":
                content.append({"type": "text", "text": part["content"]})
            case "tool_call":
                calls.append(_tool_call(part.get("id"), part["name"], part.get("arguments")))
            case "tool_call_response":
                result = part.get("response", part.get("result"))
                yield {"role": "tool", "tool_call_id": part.get("id"), "content": _as_text(result)}
            case "blob" | "uri" if part.get("modality") in ("image", "video"):
                url = part.get("uri") or f"data:{part.get('mime_type') or part['modality']};base64,{part['content']}"
                kind = f"{part['modality']}_url"
                content.append({"type": kind, kind: {"url": url}})
            case "reasoning":
                thoughts.append(part["content"])
            case kind:
                raise _UnsendableError(f"a part of type {str(kind)[:40]!r}")
    if content or calls or thoughts:
        is_text = len(content) == 1 and content[0]["type"] == "text"
        message = {"role": entry["role"], "content": (content[0]["text"] if is_text else content) if content else None}
        yield message | stated(tool_calls=calls or None, reasoning_content="".join(thoughts) or None)


def _tool_call(call_id: Any, name: str, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": _as_text({} if arguments is None else arguments)}
    return stated(id=call_id, type="function", function=function)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _indexed(attributes: Attributes, prefix: str) -> list[Attributes]:
    """Return the attributes `PREFIX.N.NAME` by name, in order of N."""
    entries: dict[int, Attributes] = {}
    for name, value in attributes.items():
        index, _, rest = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and index.isdecimal() and len(index) <= 9:
            entries.setdefault(int(index), {})[rest] = value
    return [entries[index] for index in sorted(entries)]


def _indexed_message(entry: Attributes) -> dict[str, Any]:
    """Return the message of one gen_ai.prompt.N; a content that is a JSON list of parts is one."""
    called = [
        {name.removeprefix("function."): value for name, value in call.items()}
        for call in _indexed(entry, "tool_calls.")
    ]
    calls = [_tool_call(call.get("id"), call["name"], call.get("arguments")) for call in called]
    message = {"role": entry.get("role", "user"), "content": _content(entry.get("content"))}
    return message | stated(tool_call_id=entry.get("tool_call_id"), tool_calls=calls or None)


def _content(value: Any) -> Any:
    """Return the content of a message, which may be a list of parts as JSON in a text."""
    parts = _structured(value)
    is_parts = isinstance(parts, list) and all(isinstance(part, dict) and "type" in part for part in parts)
    return parts if is_parts else value


def _event_message(role: str, event: Attributes) -> dict[str, Any]:
    """Return the message of an event; its body is its attributes, or JSON in one of them."""
    body = event | (_structured(event.get("gen_ai.event.content")) or {})
    message = {"role": body.get("role", role), "content": _content(body.get("content"))}
    return message | stated(tool_calls=_structured(body.get("tool_calls")), tool_call_id=body.get("id"))


def _answer(attributes: Attributes, events: list[tuple[str, Attributes]]) -> Any:
    """Return the text of the first answer, or its message where it calls tools; None where there is neither."""
    if output := _structured(attributes.get("gen_ai.output.messages")):
        message = next(_chat_messages(output[0]), {})
        content = message.get("content")
        if message.get("tool_calls"):
            return message
        return content if isinstance(content, str) else None
    if isinstance(content := attributes.get("gen_ai.completion.0.content"), str):
        return content
    for name, event in events:
        if name == "gen_ai.choice":
            body = event | (_structured(event.get("gen_ai.event.content")) or {})
            message = _structured(body.get("message"))
            content = message.get("content") if isinstance(message, dict) else message or body.get("content")
            return content if isinstance(content, str) else None
    return None


def _tools(attributes: Attributes) -> list[Any] | None:
    """Return the tools that the model was offered."""
    if definitions := _structured(attributes.get("gen_ai.tool.definitions")):
        return [tool if "function" in tool else _tool(tool) for tool in definitions]
    functions = _indexed(attributes, "llm.request.functions.")
    for function in functions:
        function["parameters"] = _structured(function.get("parameters"))
    return [_tool(function) for function in functions] or None


def _tool(function: Attributes) -> dict[str, Any]:
    described = {name: value for name, value in function.items() if name != "type" and value is not None}
    return {"type": "function", "function": described}


def _usage(attributes: Attributes, *names: str) -> int | None:
    """Return tokens, by the attribute's name in this and in the earlier conventions; None if unknown or 0."""
    for name in names:
        if (value := attributes.get(f"gen_ai.usage.{name}")) is not None:
            return int(value) or None
    return None
