"""The part of a request's body that a tokenizer can count: a chat, a text, or the ids of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.record import Endpoint

Countable = Mapping[str, Any] | str | int
"""Fields of a chat that its template reads, a text, or a number of tokens that needs no tokenizer."""

_TEMPLATE_FIELDS = (
    "messages", "tools", "tool_choice", "documents", "chat_template", "chat_template_kwargs", "add_generation_prompt",
    "continue_final_message", "reasoning_effort",
)  # fmt: skip


def countable(endpoint: Endpoint, body: Mapping[str, Any]) -> Countable | None:
    """Return what can be counted of a body; None where a text or a chat is not all of its prompt.

    Images and sounds are tokens that no text has, a rerank's prompts are the server's own, and so is what it makes of a
    response's tools.
    """
    match endpoint, body:
        case "chat", {"messages": [*messages]} if all(_is_text(message) for message in messages):
            return {name: body[name] for name in _TEMPLATE_FIELDS if name in body}
        case "completions", {"prompt": prompt}:
            return _text_or_ids(prompt)
        case "embeddings", {"input": [str(text)]}:
            return text
        case "embeddings", {"input": text}:
            return _text_or_ids(text)
        case "responses", {"input": words} if not body.keys() & {"tools", "prompt", "previous_response_id"}:
            messages = _messages(words)
            if messages and (instructions := body.get("instructions")):
                messages.insert(0, {"role": "system", "content": instructions})
            return {"messages": messages} if messages else None
    return None


def answer_text(answer: Any) -> str | None:
    """Return the text of a recorded answer; None where that is not all of it."""
    match answer:
        case str():
            return answer
        case {"content": str(content), **rest} if not any(
            rest.get(name) for name in ("tool_calls", "function_call", "audio")
        ):
            thoughts = rest.get("reasoning_content") or rest.get("reasoning") or ""
            return thoughts + content if isinstance(thoughts, str) else None
    return None


def _text_or_ids(prompt: Any) -> str | int | None:
    match prompt:
        case str():
            return prompt
        case [*ids] if ids and all(type(token) is int for token in ids):
            return len(ids)
    return None


def _is_text(message: Any) -> bool:
    """Return whether the content of a message is text alone, or nothing beside a call."""
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    return not isinstance(content, list) or all(
        isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text") for part in content
    )


def _messages(words: Any) -> list[dict[str, Any]]:
    """Return the messages of a chat for the input of a response; none where there is more than messages of text."""
    if isinstance(words, str):
        return [{"role": "user", "content": words}]
    messages: list[dict[str, Any]] = []
    for item in words if isinstance(words, list) else ():
        if not (_is_text(item) and item.get("type", "message") == "message" and "role" in item):
            return []
        content = item.get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content)
        messages.append({"role": item["role"], "content": content})
    return messages
