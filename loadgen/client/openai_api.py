"""The OpenAI API as servers implement it: payloads out, stream events in. All their differences are handled here."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

Endpoint = Literal["chat", "completions"]

PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Dialect:
    """Extensions that the server accepts; probed once before the run."""

    ignore_eos: bool = True
    min_tokens: bool = True
    include_usage: bool = True


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """The server's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that the server took from its prefix cache; None if it does not report them."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_content(self) -> bool:
        """True if the choice holds text, reasoning or a part of a tool call."""
        if self.text:
            return True
        delta = self.delta
        return bool(delta and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls))


class _StreamBody(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    message: Any = None
    object: str | None = None


class StreamEvent(NamedTuple):
    """Content of one event of a stream. A role-only, empty or usage event has no content: it is not a token."""

    has_content: bool = False
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    done: bool = False


class ProtocolError(ValueError):
    """An event that does not follow the API."""


TOKEN = StreamEvent(has_content=True)
"""The event that holds text and nothing else."""
_NOTHING = StreamEvent()
_DONE = StreamEvent(done=True)
_decode = msgspec.json.Decoder(_StreamBody | None).decode


def parse_event(data: bytes) -> StreamEvent:
    """Parse the data of one event. Raises ProtocolError when it is not JSON of the API's shape."""
    if data == b"[DONE]" or data.strip() == b"[DONE]":
        return _DONE
    try:
        body = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise ProtocolError(f"{err}: {data[:200]!r}") from err
    if body is None:  # llama.cpp opens a stream with `data: null` when the prompt is a list
        return StreamEvent()
    if body.error is not None or body.object == "error":
        return StreamEvent(error=error_text(body.error if body.error is not None else body.message))
    choices = body.choices
    if not choices:
        return StreamEvent(usage=body.usage)
    if len(choices) == 1:
        choice = choices[0]
        if body.usage is None and not choice.finish_reason:
            return TOKEN if choice.has_content else _NOTHING
        return StreamEvent(choice.has_content, choice.finish_reason or None, body.usage)
    return StreamEvent(
        has_content=any(choice.has_content for choice in choices),
        finish_reason=next((choice.finish_reason for choice in choices if choice.finish_reason), None),
        usage=body.usage,
    )


def error_text(error: Any) -> str:
    """Return the human-readable part of an error in any of the shapes that servers use."""
    if isinstance(error, dict):
        for key in ("message", "detail", "error"):
            if error.get(key):
                return error_text(error[key])
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


def error_of_body(body: bytes) -> str:
    """Return the message inside the body of an HTTP error, or the start of the body itself."""
    try:
        return error_text(msgspec.json.decode(body))[:500]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode(errors="replace").strip()


def payload(
    endpoint: Endpoint, model: str, prompt: str, output_tokens: int, dialect: Dialect, extra: dict[str, Any]
) -> bytes:
    """Return the body of a streaming request for `output_tokens` tokens. `extra` overrides all but the prompt."""
    body: dict[str, Any] = {"model": model, "max_tokens": output_tokens, "stream": True}
    if dialect.include_usage:
        body["stream_options"] = {"include_usage": True}
    if dialect.ignore_eos:
        body["ignore_eos"] = True
    if dialect.min_tokens:
        body["min_tokens"] = output_tokens
    body |= extra
    if endpoint == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    return msgspec.json.encode(body)
