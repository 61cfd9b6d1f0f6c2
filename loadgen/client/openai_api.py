"""The OpenAI API as servers implement it: payloads out, stream events in. All their differences are handled here."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import msgspec

from loadgen.client.sse import ErrorEvent
from loadgen.record import PATHS, UNSTREAMED, Endpoint, Kind
from loadgen.workload.words import ESCAPES

MAX_TOKENS = 1 << 32
"""A larger count of one request's tokens is none."""

UNSTREAMED_PATHS = frozenset(PATHS[endpoint] for endpoint in UNSTREAMED)

RERANK_QUERY = "What is this text about?"
"""The query of a rerank request whose document is made up."""


@dataclass(frozen=True)
class Dialect:
    """Fields that the server accepts; probed once before the run."""

    ignore_eos: bool = True
    min_tokens: bool = True
    include_usage: bool = True
    max_completion_tokens: bool = False
    """True for this field in place of max_tokens."""


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """The server's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    reasoning_tokens: int | None = None
    """SGLang's place for this count, where 0 is also written by a server that does not count them."""

    @property
    def input_tokens(self) -> int | None:
        """Prompt tokens; None if the server does not report them. No prompt is empty: zero stands for unknown."""
        count = self.prompt_tokens
        return count if count is not None and 0 < count <= MAX_TOKENS else None

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer; None if the server does not report them, or reports zero: only an answer without
        content has none."""
        count = self.completion_tokens
        return count if count is not None and 0 < count <= MAX_TOKENS else None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that the server took from its prefix cache; None if it does not report them."""
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details and self.input_tokens else None

    @property
    def thought_tokens(self) -> int | None:
        """Tokens of reasoning, among those of the answer; None if the server does not count them."""
        details = self.completion_tokens_details
        reasoning = details.reasoning_tokens if details is not None else self.reasoning_tokens or None
        if reasoning is None or self.output_tokens is None or not 0 <= reasoning <= self.output_tokens:
            return None
        return reasoning

    def hidden_tokens(self, chunks: int, thoughts: int = 0) -> int | None:
        """Return the tokens of reasoning that did not come in one of these chunks with content, `thoughts` of which are
        reasoning; None if the server does not count reasoning. It is all or none: a chunk of reasoning, or more chunks
        than other tokens, means that reasoning was sent."""
        if (reasoning := self.thought_tokens) is None or self.output_tokens is None:
            return None
        return reasoning if not thoughts and chunks <= self.output_tokens - reasoning else 0


Content = str | list[Any] | dict[str, Any] | None
"""Text, or parts: `[{"type": "thinking", "thinking": [{"type": "text", "text": " a"}]}, {"type": "text", ...}]`."""


class _FunctionCall(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Delta(msgspec.Struct, frozen=True):
    role: Any = None
    content: Content = None
    reasoning_content: Content = None
    reasoning: Content = None
    thinking: Content = None
    refusal: Content = None
    tool_calls: list[Any] | None = None
    function_call: _FunctionCall | None = None

    @property
    def kind(self) -> Kind | None:
        """Kind of the content: text or a refusal, a part of a call of a tool, or reasoning. None without content."""
        content, call = self.content, self.function_call
        if content and type(content) is str:
            return "answer"
        if not (content or self.refusal or self.tool_calls or call or self.reasoning_content or self.reasoning
                or self.thinking):  # fmt: skip
            return None  # the first event of most streams
        parts = _kind_of_parts(content) if content else None
        if parts == "answer" or _holds_text(self.refusal):
            return "answer"
        if self.tool_calls or (call is not None and (call.name or call.arguments)):
            return "tools"
        thoughts = (self.reasoning_content, self.reasoning, self.thinking)
        return "reasoning" if parts or any(_holds_text(thought) for thought in thoughts) else None


def _kind_of_parts(content: Any) -> Kind | None:
    """Return the kind of content in parts: reasoning if none of them is the answer's text, None without a text."""
    if isinstance(content, list):
        kinds = {_kind_of_parts(part) for part in content}
        return "answer" if "answer" in kinds else "reasoning" if "reasoning" in kinds else None
    if isinstance(content, dict):
        thinks = content.get("type") in _THOUGHTS or any(_holds_text(content.get(name)) for name in _THOUGHTS)
        return ("reasoning" if thinks else "answer") if _holds_text(content) else None
    return "answer" if _holds_text(content) else None


_THOUGHTS = ("thinking", "reasoning")


def _holds_text(content: Any) -> bool:
    """Return whether there is a text that is not empty: `content` itself, or one of its parts."""
    if isinstance(content, list):
        return any(_holds_text(part) for part in content)
    if isinstance(content, dict):
        return any(_holds_text(content.get(name)) for name in _PART_FIELDS)
    return isinstance(content, str) and content != ""


_PART_FIELDS = ("text", "thinking", "reasoning", "content", "refusal")


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta | None = None
    text: Content = None
    finish_reason: str | dict[str, Any] | None = None
    error: Any = None

    @property
    def kind(self) -> Kind | None:
        """Kind of the choice's content; None without text, reasoning or a part of a tool call."""
        delta, text = self.delta, self.text
        if delta is not None and (kind := delta.kind):
            return kind
        return "answer" if text is not None and _holds_text(text) else None

    @property
    def finish(self) -> str | None:
        """The finish reason, which SGLang once gave as an object with a type; None before there is one."""
        reason = self.finish_reason
        if isinstance(reason, dict):
            reason = reason.get("type")
            return reason if isinstance(reason, str) else "unknown"
        return None if reason in _NO_REASON else reason


_NO_REASON = (None, "", "null", "None")
"""Finish reasons of a choice that goes on: TGI's completions say "", others a null in quotes."""

_is_failure = re.compile(
    r"abort|cancel|crash|deadline|disconnect|error|fail|insufficient|interrupt|kill|overload|shutdown|time[d _-]*out"
    r"|unavailable",
    re.IGNORECASE,
).search


@lru_cache(maxsize=64)  # a server has few
def is_failure(finish_reason: str | None) -> bool:
    """Return whether a finish reason says that the server gave the answer up: abort, error, cancelled, timeout,
    parse_error and their like. Any other one, known or not, is an end of the answer."""
    return finish_reason is not None and _is_failure(finish_reason) is not None


class _ResponseDetails(msgspec.Struct, frozen=True):
    reason: str | None = None


class _ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Response(msgspec.Struct, frozen=True):
    """The object that the last event of a stream of the Responses API holds."""

    usage: _ResponseUsage | None = None
    error: Any = None
    incomplete_details: _ResponseDetails | None = None


class _StreamBody(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    message: Any = None
    detail: Any = None
    code: Any = None
    object: str | None = None
    type: Any = None
    """Names an event of the Responses API, which has the fields below."""
    delta: Any = None
    item: Any = None
    response: Any = None


class StreamEvent(NamedTuple):
    """Content of one event of a stream. A role-only, empty or usage event has no content."""

    kind: Kind | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    done: bool = False
    textless: bool = False
    """True for a choice without content: a token without text, if the server's usage counts it."""
    opens: bool = False
    """True if a textless choice names its role, as the first event of most servers does: then it is no token."""

    @property
    def has_content(self) -> bool:
        return self.kind is not None


PRECEDENCE: tuple[Kind, ...] = ("answer", "tools", "reasoning")
"""Kinds in the order in which the first that a chunk carries is the chunk's."""


class ProtocolError(ValueError):
    """An event that does not follow the API."""


TOKENS: dict[Kind, StreamEvent] = {kind: StreamEvent(kind) for kind in get_args(Kind)}
"""The events that hold content of one kind and nothing else."""
TEXTLESS = StreamEvent(textless=True)
"""The event of a choice without content, role, usage or finish reason."""
ROLE = StreamEvent(textless=True, opens=True)
"""The same with a role."""
_DONE = StreamEvent(done=True)
_decode = msgspec.json.Decoder(_StreamBody | None).decode


def parse_event(data: bytes) -> StreamEvent:
    """Parse the data of one event. Raises ProtocolError when it is not JSON of the API's shape."""
    if type(data) is ErrorEvent:
        return StreamEvent(error=error_of_body(data) or "an error event without a text")
    if not data.startswith(b"{") and data.strip() == b"[DONE]":
        return _DONE
    try:
        try:
            body = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = _decode(_with_whole_characters(data))
        return StreamEvent() if body is None else _event_of(body)  # llama.cpp opens a stream with `data: null`
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"an event of {len(data)} bytes is not of the API: {err}") from err


def _event_of(body: _StreamBody) -> StreamEvent:
    choices = body.choices
    if body.error or body.object == "error":
        return StreamEvent(error=error_text(body.error if body.error is not None else body.message))
    if not choices:
        return _event_without_choices(body)
    if len(choices) == 1:
        choice = choices[0]
        if choice.error:
            return StreamEvent(error=_coded_text(choice.error))
        content = choice.text if choice.delta is None else choice.delta.content
        kind = "answer" if content and type(content) is str else choice.kind
        if kind is not None and choice.finish_reason is None and body.usage is None:
            return TOKENS[kind]  # most events
        finish = choice.finish
        opens = kind is None and bool(choice.delta and choice.delta.role)
        if body.usage is None and finish is None:
            return TOKENS[kind] if kind is not None else ROLE if opens else TEXTLESS
        return StreamEvent(kind, finish, body.usage, textless=kind is None, opens=opens)
    if failed := next((choice.error for choice in choices if choice.error), None):
        return StreamEvent(error=_coded_text(failed))
    reasons = [choice.finish for choice in choices if choice.finish]
    kinds = {choice.kind for choice in choices}
    return StreamEvent(
        kind=next((kind for kind in PRECEDENCE if kind in kinds), None),
        finish_reason=next((reason for reason in reasons if is_failure(reason)), reasons[0] if reasons else None),
        usage=body.usage,
    )


def _event_without_choices(body: _StreamBody) -> StreamEvent:
    if body.choices is None:
        if type(body.type) is str and body.type.startswith("response."):
            return _event_of_response(body.type, body)
        if body.type == "error":
            return StreamEvent(error=error_text(body.message or "an error event without a text"))
        if body.usage is None:  # some servers leave out the word error
            words = body.error if body.error is not None else body.detail or (body.message if body.code else None)
            return StreamEvent(error=None if words is None else error_text(words))
    return StreamEvent(usage=body.usage)


def _event_of_response(kind: str, body: _StreamBody) -> StreamEvent:
    """Return what an event of the Responses API says. A `delta` is text, reasoning, audio or a part of a tool's call.

    The finish reasons are those of chat: `stop`, and `length` for an answer that its limit cut.
    """
    if kind.endswith(".delta"):
        return TOKENS[_kind_of_event(kind)] if body.delta else TEXTLESS
    if kind == "response.output_item.added":  # it names the tool that is called
        item = body.item if isinstance(body.item, dict) else {}
        is_call = str(item.get("type")).endswith("_call")
        return TOKENS["tools"] if is_call and item.get("name") else StreamEvent()
    if kind not in _LAST_EVENTS:
        return StreamEvent()
    response = msgspec.convert(body.response, _Response | None) or _Response()
    if kind in ("response.failed", "response.cancelled"):
        reason = _coded_text(response.error) if response.error else kind.replace(".", " ")
        return StreamEvent(error=reason, done=True)
    usage = None
    if counted := response.usage:
        usage = Usage(
            prompt_tokens=counted.input_tokens,
            completion_tokens=counted.output_tokens,
            prompt_tokens_details=counted.input_tokens_details,
            completion_tokens_details=counted.output_tokens_details,
        )
    reason = (response.incomplete_details and response.incomplete_details.reason) or "incomplete"
    reason = "stop" if kind == "response.completed" else "length" if reason == "max_output_tokens" else reason
    return StreamEvent(finish_reason=reason, usage=usage, done=True)


def _kind_of_event(kind: str) -> Kind:
    """Return the kind of content of a `delta`."""
    if "reasoning" in kind:
        return "reasoning"
    return "tools" if "_call" in kind else "answer"


_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def _with_whole_characters(data: bytes) -> bytes:
    """Return JSON with a replacement character for each half of one: a server may cut a token inside a character.

    The half is an escape (a lone surrogate) or some of the character's bytes.
    """
    whole = data.decode(errors="replace").encode()
    return ESCAPES.sub(lambda match: b"\\ufffd" if match[1] else match[0], whole)


def error_text(error: Any) -> str:
    """Return the human-readable part of an error in any of the shapes that servers use."""
    if isinstance(error, dict):
        for key in ("message", "detail", "error"):
            if error.get(key):
                return error_text(error[key])
    return error if isinstance(error, str) else msgspec.json.encode(error).decode()


def _coded_text(error: Any) -> str:
    """Return the text of an error with its code, for an error that no status goes with."""
    code, text = error.get("code") if isinstance(error, dict) else None, error_text(error)
    return f"{code} {text}" if isinstance(code, int | str) and str(code) not in text else text


def error_of_body(body: bytes) -> str:
    """Return the message inside the body of an HTTP error, or the start of the body itself."""
    try:
        return error_text(msgspec.json.decode(body))[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:200].decode(errors="replace").strip()


class _Answer(msgspec.Struct, frozen=True):
    """An answer that is one object: embeddings, or ranks."""

    data: list[msgspec.Raw] | None = None
    results: list[msgspec.Raw] | None = None
    usage: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None


_decode_answer = msgspec.json.Decoder(_Answer | list[msgspec.Raw]).decode


def parse_answer(body: bytes) -> Usage:
    """Return the counts of an answer of embeddings or rerank. ProtocolError: it is neither.

    A server may count the prompt as prompt_tokens, as total_tokens (there are no others), in `meta.tokens` (Cohere), or
    not at all (Text Embeddings Inference ranks in a bare list).
    """
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"an answer of {len(body)} bytes is not of the API: {err}") from err
    if isinstance(answer, list):
        answer = _Answer(results=answer)
    if not answer.data and not answer.results:
        raise ProtocolError("an answer without data and without results")
    tokens = (answer.meta or {}).get("tokens")
    cohere = tokens.get("input_tokens") if isinstance(tokens, dict) else None
    usage = answer.usage or {}
    counts = (usage.get("prompt_tokens"), usage.get("total_tokens"), cohere)
    return Usage(prompt_tokens=next((int(count) for count in counts if isinstance(count, int | float) and count), None))


def is_error_body(body: bytes) -> bool:
    """Return whether a body of JSON is an error and not an answer."""
    try:
        return parse_event(body).error is not None
    except ProtocolError:
        return False


def stream_fields(endpoint: Endpoint, model: str, dialect: Dialect) -> dict[str, Any]:
    """Return the fields without which a request cannot be measured, whatever else its body holds."""
    body: dict[str, Any] = {"model": model}
    if endpoint not in UNSTREAMED:
        body["stream"] = True
    if dialect.include_usage and endpoint in ("chat", "completions"):  # the others always tell it
        body["stream_options"] = {"include_usage": True}
    return body


def request_fields(
    model: str,
    max_tokens: int | None,
    dialect: Dialect,
    extra: dict[str, Any],
    *,
    natural: bool = False,
    endpoint: Endpoint = "chat",
) -> dict[str, Any]:
    """Return the fields of a request, all but its words. `extra` overrides them; its null removes a field.

    The answer is `max_tokens` long; with `natural` it ends where the model ends it, and there at the latest.
    """
    if endpoint in UNSTREAMED:
        return {name: value for name, value in ({"model": model} | extra).items() if value is not None}
    limit = "max_completion_tokens" if dialect.max_completion_tokens else "max_tokens"
    body = stream_fields(endpoint, model, dialect)
    body["max_output_tokens" if endpoint == "responses" else limit] = max_tokens
    if dialect.ignore_eos and not natural:
        body["ignore_eos"] = True
    if dialect.min_tokens and not natural:
        body["min_tokens"] = max_tokens
    return {name: value for name, value in (body | extra).items() if value is not None}


def payload(
    endpoint: Endpoint, model: str, prompt: str, output_tokens: int, dialect: Dialect, extra: dict[str, Any]
) -> bytes:
    """Return the body of a request for `output_tokens` tokens. `extra` overrides all but the prompt."""
    fields = request_fields(model, output_tokens, dialect, extra, endpoint=endpoint)
    return msgspec.json.encode(fields | prompt_field(endpoint, prompt))


def prompt_field(endpoint: Endpoint, prompt: str) -> dict[str, Any]:
    """Return the field that holds a prompt of one text."""
    match endpoint:
        case "chat":
            return {"messages": [{"role": "user", "content": prompt}]}
        case "completions":
            return {"prompt": prompt}
        case "rerank":
            return {"query": RERANK_QUERY, "documents": [prompt]}
        case _:
            return {"input": prompt}
