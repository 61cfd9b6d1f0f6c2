"""The OpenAI API of the simulated server: bodies in, bodies and events out. No I/O."""

from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from loadgen.simulator.tokens import chat_tokens, tokenize

_NOT_SIMULATED = ("echo", "best_of", "tools", "suffix", "logprobs", "top_logprobs")


class ApiError(Exception):
    """A response with another status than 200, in OpenAI's JSON."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.status}
        return msgspec.json.encode({"error": error})


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerateBody(msgspec.Struct):
    """Body of chat or completions. Sampling options (temperature, top_p, stop, ...) are accepted and have no effect."""

    model: str | None = None
    messages: list[Message] | None = None
    prompt: Any = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = 0
    ignore_eos: bool | None = False
    seed: int | None = None
    n: int | None = 1
    add_generation_prompt: bool = True
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, checked against the model."""

    chat: bool
    input_ids: list[int]
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    seed: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool


def decode_body(raw: bytes) -> GenerateBody:
    """Decode a request body. Raises ApiError."""
    try:
        return msgspec.json.decode(raw, type=GenerateBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise ApiError(400, f"bad request body: {err}") from err


def ask_of(body: GenerateBody, chat: bool, model_name: str, max_model_len: int) -> Ask:
    """Check a request. Raises ApiError: 404 for another model, 400 for a request that cannot be served."""
    check_model(body, model_name)
    if (body.n or 1) != 1:
        _refuse(f"n={body.n} is not simulated: ask for one answer a request")
    for name in _NOT_SIMULATED:
        if getattr(body, name):
            _refuse(f"{name} is not simulated")
    input_ids = chat_ids(body) if chat else prompt_ids(body.prompt)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    remaining = max_model_len - len(input_ids)
    if limit is None:
        limit = remaining if chat else 16
    min_tokens = body.min_tokens or 0
    if limit < 1 and remaining >= 1:
        _refuse(f"max_tokens must be at least 1, got {limit}")
    if not 0 <= min_tokens <= limit and remaining >= 1:
        _refuse(f"min_tokens must be from 0 to max_tokens={limit}, got {min_tokens}")
    if not input_ids:
        _refuse("the prompt must hold at least one token")
    if limit > remaining or remaining < 1:
        _refuse(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{max(limit, 1)} output tokens and your prompt contains {len(input_ids)} input tokens."
        )
    options = body.stream_options or StreamOptions()
    return Ask(
        chat=chat,
        input_ids=input_ids,
        max_tokens=limit,
        min_tokens=min_tokens,
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed,
        stream=bool(body.stream),
        include_usage=options.include_usage,
        continuous_usage=options.include_usage and options.continuous_usage_stats,
    )


def check_model(body: GenerateBody, model_name: str) -> None:
    if body.model is not None and body.model != model_name:
        message = f"The model `{body.model}` does not exist; this server has `{model_name}`."
        raise ApiError(404, message, "NotFoundError")


def chat_ids(body: GenerateBody) -> list[int]:
    if not body.messages:
        _refuse("messages must be a list of at least one message")
    return chat_tokens([(m.role, m.text) for m in body.messages], body.add_generation_prompt)


def prompt_ids(prompt: Any) -> list[int]:
    """Return the token ids of a text, of a list of token ids, or of a list of one of those. Raises ApiError."""
    match prompt:
        case str():
            return tokenize(prompt)
        case [str() | list() as only]:
            return prompt_ids(only)
        case [_, *_] if all(type(token) is int and token >= 0 for token in prompt):
            return list(prompt)
        case [str() | list(), *_]:
            raise ApiError(400, "several prompts in one request are not simulated")
        case _:
            raise ApiError(400, "prompt must be a non-empty text or list of token ids")


def _refuse(message: str) -> NoReturn:
    raise ApiError(400, message)


_USAGE = b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'


def usage_json(input_tokens: int, output_tokens: int, cached_tokens: int) -> bytes:
    return _USAGE % (input_tokens, output_tokens, input_tokens + output_tokens, cached_tokens)


class Events:
    """Server-sent events of one response. The constant parts are encoded once; words need no escaping."""

    def __init__(self, chat: bool, response_id: str, model_name: str, created_s: int) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": response_id, "object": kind, "created": created_s, "model": model_name}
        head["system_fingerprint"] = "simulated"
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
        open_text = b'{"index":0,"delta":{"content":"' if chat else b'{"index":0,"text":"'
        self._start = self._head + open_text
        close_text = b'"},"logprobs":null,"finish_reason":' if chat else b'","logprobs":null,"finish_reason":'
        self._unfinished = close_text + b"null}]"
        self._finished = {reason: close_text + b'"%s"}]' % reason.encode() for reason in ("stop", "length", "abort")}
        self._role = (
            self._head
            + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
            if chat
            else b""
        )

    @property
    def role(self) -> bytes:
        """The event before the tokens of a chat; empty for a completion."""
        return self._role

    def token(self, word: str, finish_reason: str | None, usage: bytes | None) -> bytes:
        end = self._finished[finish_reason] if finish_reason else self._unfinished
        tail = b"}\n\n" if usage is None else b',"usage":' + usage + b"}\n\n"
        return self._start + word.encode() + end + tail

    def usage(self, usage: bytes) -> bytes:
        return self._head + b'],"usage":' + usage + b"}\n\n"

    def broken(self) -> bytes:
        """Return an event that is not JSON."""
        return self._start + b"\n\n"


DONE = b"data: [DONE]\n\n"
EVENT_ERROR = b"event: error\n: simulated fault: event_error\n\n"
ERROR_EVENT = b"data: " + ApiError(500, "simulated fault: error_event", "InternalServerError").body() + b"\n\n"


def whole_answer(
    chat: bool, response_id: str, model_name: str, created_s: int, text: str, finish_reason: str, usage: bytes | None
) -> bytes:
    """Return the body of a response that is not streamed."""
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    body = {
        "id": response_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created_s,
        "model": model_name,
        "system_fingerprint": "simulated",
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}],
    }
    return msgspec.json.encode(body if usage is None else body | {"usage": msgspec.Raw(usage)})
