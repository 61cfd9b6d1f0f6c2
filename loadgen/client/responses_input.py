"""A chat's messages and fields as the Responses API takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def responses_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Responses request for those of a chat, its `messages` among them.

    Tools lose the object around their function, a response format becomes that of the text, calls and their results
    become items of their own; what both APIs name alike, or only one has, stays as it is.
    """
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        match name, value:
            case "messages", _:
                changed["input"] = list(_items(value))
            case "tools", [*tools]:
                changed["tools"] = [_flat(tool) for tool in tools]
            case "tool_choice", {"function": {"name": function}}:
                changed["tool_choice"] = {"type": "function", "name": function}
            case "response_format", {"type": "json_schema", "json_schema": {**schema}}:
                changed["text"] = {"format": {"type": "json_schema", **schema}}
            case "response_format", {**format}:
                changed["text"] = {"format": format}
            case "reasoning_effort", _:
                changed["reasoning"] = {"effort": value}
            case _:
                changed[name] = value
    return changed


def _flat(tool: Any) -> Any:
    match tool:
        case {"type": "function", "function": {**function}}:
            return {"type": "function", **function}
    return tool


def _items(messages: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the items of messages; a history that was received live is of items already."""
    for message in messages:
        if "role" not in message:
            yield message
            continue
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            yield {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": content}
            continue
        if content:
            yield {"role": role, "content": _parts(content, "output_text" if role == "assistant" else "input_text")}
        calls = message.get("tool_calls") or ()
        for call in calls if isinstance(calls, list | tuple) else (calls,):
            yield _item_of_call(call)


def _item_of_call(call: Any) -> Any:
    """Return the item of a call; one of no known shape stays as it is, for the server to judge."""
    match call:
        case {"function": {**function}}:
            named = {"name": function.get("name"), "arguments": function.get("arguments")}
            return {"type": "function_call", "call_id": call.get("id"), **named}
    return call


def _parts(content: Any, text: str) -> Any:
    """Return the content of a message: a text, or parts of it named as this API names them."""
    if not isinstance(content, list):
        return content
    return [_part(part, text) for part in content]


def _part(part: Any, text: str) -> Any:
    match part:
        case {"type": "text", "text": words}:
            return {"type": text, "text": words}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "input_image", "image_url": url, **rest}
        case {"type": "file", "file": {**file}}:
            return {"type": "input_file", **file}
    return part
