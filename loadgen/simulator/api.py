"""The OpenAI API of the simulated server: bodies in, bodies and events out. No I/O."""

from array import array
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from loadgen.record import UNSTREAMED, Endpoint
from loadgen.simulator.tokens import TokenIds, chat_tokens, tokenize

_MOST_IDS = 2**32
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
    """Body of a request to any endpoint. Sampling options (temperature, top_p, stop, ...) have no effect."""

    model: str | None = None
    messages: list[Message] | None = None
    prompt: Any = None
    input: Any = None
    instructions: str | None = None
    query: str | None = None
    documents: list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
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

    endpoint: Endpoint
    input_ids: TokenIds
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    seed: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    texts: int = 1
    """Texts to embed, or documents to rank."""


def decode_body(raw: bytes) -> GenerateBody:
    """Decode a request body. Raises ApiError."""
    try:
        return msgspec.json.decode(raw, type=GenerateBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise ApiError(400, f"bad request body: {err}") from err


def ask_of(body: GenerateBody, endpoint: Endpoint, model_name: str, max_model_len: int) -> Ask:
    """Check a request. Raises ApiError: 404 for another model, 400 for a request that cannot be served."""
    check_model(body, model_name)
    if (body.n or 1) != 1:
        _refuse(f"n={body.n} is not simulated: ask for one answer a request")
    for name in _NOT_SIMULATED:
        if getattr(body, name):
            _refuse(f"{name} is not simulated")
    if endpoint in UNSTREAMED:
        return _pooled(body, endpoint, max_model_len)
    input_ids = ids_of(body, endpoint)
    limits = (body.max_completion_tokens, body.max_output_tokens, body.max_tokens)
    limit = next((limit for limit in limits if limit is not None), None)
    remaining = max_model_len - len(input_ids)
    if limit is None:
        limit = 16 if endpoint == "completions" else remaining
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
        endpoint=endpoint,
        input_ids=input_ids,
        max_tokens=limit,
        min_tokens=min_tokens,
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed,
        stream=bool(body.stream),
        include_usage=options.include_usage or endpoint == "responses",
        continuous_usage=options.include_usage and options.continuous_usage_stats,
    )


def check_model(body: GenerateBody, model_name: str) -> None:
    if body.model is not None and body.model != model_name:
        message = f"The model `{body.model}` does not exist; this server has `{model_name}`."
        raise ApiError(404, message, "NotFoundError")


def _pooled(body: GenerateBody, endpoint: Endpoint, max_model_len: int) -> Ask:
    """Check a request whose answer has no tokens. All of its texts are computed as one prompt."""
    if endpoint == "rerank":
        if not body.query or not body.documents:
            _refuse("rerank needs a query and documents")
        ids = [tokenize(body.query + document) for document in body.documents]
    else:
        several = isinstance(body.input, list) and body.input and not isinstance(body.input[0], int)
        ids = [prompt_ids(text) for text in (body.input if several else [body.input])]
    if not all(ids) or max(map(len, ids)) >= max_model_len or sum(map(len, ids)) >= max_model_len:
        _refuse(f"the texts must hold from 1 to {max_model_len - 1} tokens, this simulator's limit for all together")
    joined = array("I")
    for text in ids:
        joined += text
    return Ask(endpoint, joined, 1, 1, True, None, False, False, False, len(ids))


def ids_of(body: GenerateBody, endpoint: Endpoint) -> TokenIds:
    """Return the token ids of a prompt, a chat, or the input of a response. Raises ApiError."""
    if endpoint == "completions":
        return prompt_ids(body.prompt)
    if endpoint == "chat":
        return chat_ids(body)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    try:
        messages = msgspec.convert(items, list[_Item])
    except msgspec.ValidationError as err:
        raise ApiError(400, f"input: {err}") from err
    system = [Message("system", body.instructions)] if body.instructions else []
    return chat_ids(msgspec.structs.replace(body, messages=[*system, *(item.message for item in messages)]))


class _Item(msgspec.Struct):
    """A message, a call, or what the call returned."""

    role: str = "tool"
    content: str | list[dict[str, Any]] | None = None
    name: str = ""
    arguments: str = ""
    output: str = ""

    @property
    def message(self) -> Message:
        return Message(self.role, self.content or f"{self.name}{self.arguments}{self.output}")


def chat_ids(body: GenerateBody) -> TokenIds:
    if not body.messages:
        _refuse("messages must be a list of at least one message")
    return chat_tokens([(m.role, m.text) for m in body.messages], body.add_generation_prompt)


def prompt_ids(prompt: Any) -> TokenIds:
    """Return the token ids of a text, of a list of token ids, or of a list of one of those. Raises ApiError."""
    match prompt:
        case str():
            return tokenize(prompt)
        case [str() | list() as only]:
            return prompt_ids(only)
        case [_, *_] if all(type(token) is int and 0 <= token < _MOST_IDS for token in prompt):
            return array("I", prompt)
        case [str() | list(), *_]:
            raise ApiError(400, "several prompts in one request are not simulated")
        case _:
            raise ApiError(400, f"prompt must be a non-empty text or list of token ids below {_MOST_IDS}")


def _refuse(message: str) -> NoReturn:
    raise ApiError(400, message)


_RESPONSE_USAGE = (
    b'{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d,"input_tokens_details":{"cached_tokens":%d},'
    b'"output_tokens_details":{"reasoning_tokens":0}}'
)
_USAGE = b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'


def usage_json(endpoint: Endpoint, input_tokens: int, output_tokens: int, cached_tokens: int) -> bytes:
    if endpoint in UNSTREAMED:
        return b'{"prompt_tokens":%d,"total_tokens":%d}' % (input_tokens, input_tokens)
    usage = _RESPONSE_USAGE if endpoint == "responses" else _USAGE
    return usage % (input_tokens, output_tokens, input_tokens + output_tokens, cached_tokens)


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
    def opening(self) -> bytes:
        """The event before the tokens of a chat; empty for a completion."""
        return self._role

    def token(self, word: str, finish_reason: str | None, usage: bytes | None) -> bytes:
        end = self._finished[finish_reason] if finish_reason else self._unfinished
        tail = b"}\n\n" if usage is None else b',"usage":' + usage + b"}\n\n"
        return self._start + word.encode() + end + tail

    def closing(self, finish_reason: str, usage: bytes | None) -> bytes:
        """Return the event after the tokens."""
        return b"" if usage is None else self._head + b'],"usage":' + usage + b"}\n\n"

    def broken(self) -> bytes:
        """Return an event that is not JSON."""
        return self._start + b"\n\n"


class ResponseEvents:
    """Server-sent events of the Responses API, which ends its streams without [DONE]."""

    def __init__(self, response_id: str, model_name: str, created_s: int) -> None:
        self._response = {"id": response_id, "object": "response", "created_at": created_s, "model": model_name}
        self._item_id = f"msg_{response_id}"
        self._number = -1

    @property
    def opening(self) -> bytes:
        """The events before the tokens."""
        item = {"type": "message", "id": self._item_id, "role": "assistant", "status": "in_progress", "content": []}
        return self._event("response.created", response=self._response | {"status": "in_progress"}) + self._event(
            "response.output_item.added", output_index=0, item=item
        )

    def token(self, word: str, finish_reason: str | None, usage: bytes | None) -> bytes:
        if finish_reason == "abort":
            return self.closing("abort", None)
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event("response.output_text.delta", **place, delta=word, logprobs=[])

    def closing(self, finish_reason: str, usage: bytes | None) -> bytes:
        """Return the event after the tokens."""
        status = {"length": "incomplete", "abort": "failed"}.get(finish_reason, "completed")
        fields: dict[str, Any] = {"status": status, "usage": None if usage is None else msgspec.Raw(usage)}
        if status == "incomplete":
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            fields["error"] = {"code": "server_error", "message": "aborted"}
        return self._event(f"response.{status}", response=self._response | fields)

    def broken(self) -> bytes:
        """Return an event that is not JSON."""
        return b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta\n\n'

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


DONE = b"data: [DONE]\n\n"
EVENT_ERROR = b"event: error\n: simulated fault: event_error\n\n"
ERROR_EVENT = b"data: " + ApiError(500, "simulated fault: error_event", "InternalServerError").body() + b"\n\n"


def whole_answer(
    ask: Ask, response_id: str, model_name: str, created_s: int, text: str, finish_reason: str, usage: bytes | None
) -> bytes:
    """Return the body of a response that is not streamed."""
    counted = {} if usage is None else {"usage": msgspec.Raw(usage)}
    if ask.endpoint == "embeddings":
        vectors = [{"object": "embedding", "index": i, "embedding": [1.0, 0.0]} for i in range(ask.texts)]
        return msgspec.json.encode({"object": "list", "data": vectors, "model": model_name} | counted)
    if ask.endpoint == "rerank":
        ranks = [{"index": i, "relevance_score": 1 / (i + 1)} for i in range(ask.texts)]
        return msgspec.json.encode({"id": response_id, "model": model_name, "results": ranks} | counted)
    if ask.endpoint == "responses":
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"type": "message", "id": f"msg_{response_id}", "role": "assistant", "content": [part]}
        whole = {"id": response_id, "object": "response", "created_at": created_s, "model": model_name}
        status = "incomplete" if finish_reason == "length" else "completed"
        return msgspec.json.encode(whole | {"status": status, "output": [item]} | counted)
    chat = ask.endpoint == "chat"
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    body = {
        "id": response_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created_s,
        "model": model_name,
        "system_fingerprint": "simulated",
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}],
    }
    return msgspec.json.encode(body | counted)
