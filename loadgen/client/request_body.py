"""The message of a scheduled request. It follows from the seed and the request alone, whichever process sends it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from loadgen.client.openai_api import Dialect, prompt_field, request_fields, stream_fields
from loadgen.client.responses_input import responses_fields
from loadgen.record import PATHS
from loadgen.workload.prompts import PromptKind, Vocabulary, draws_of, prompt_kind
from loadgen.workload.words import ROUTING, Fields, WordsReader, decode_fields, decode_list, hide_halves, show_halves

if TYPE_CHECKING:
    from loadgen.client.answer import Answer
    from loadgen.record import Endpoint
    from loadgen.workload.schedule import ScheduledRequest

_PROMPT = "\ue000prompt\ue000"
"""Placeholder for the prompt: characters of private use."""

_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """The part of an HTTP request that differs between the requests of a run."""

    path: str
    body: bytes
    headers: Mapping[str, str] = {}


class LiveHistory(NamedTuple):
    """The turn before: the body that was sent, and the answer that was received."""

    body: bytes
    answer: Answer


class MessageMaker(Protocol):
    def __call__(self, request: ScheduledRequest, history: LiveHistory | None = None) -> Message:
        """Return the message of a request; with `history` its messages follow those of the turn before."""


def message_maker(
    seed: int,
    vocabularies: Mapping[PromptKind, Vocabulary],
    endpoint: Endpoint,
    model: str,
    dialect: Dialect,
    extra_body: dict[str, Any],
    *,
    words: WordsReader | None = None,
    max_tokens: int | None = None,
) -> MessageMaker:
    """Return a function from a request to its message.

    `words` holds the words of the requests that have their own. `max_tokens` limits the answers that end where the
    model ends them and that state no limit of their own.

    Bodies with made-up prompts for the same number of output tokens differ in their prompt alone, so the rest is
    encoded once.
    """

    @cache
    def without_prompt(model: str, output_tokens: int | None, natural: bool) -> tuple[bytes, bytes]:
        limit = max_tokens or output_tokens if natural else output_tokens
        fields = request_fields(model, limit, dialect, extra_body, natural=natural, endpoint=endpoint)
        template = _encode(fields | prompt_field(endpoint, _PROMPT))
        head, _, tail = template.rpartition(_encode(_PROMPT))
        return head, tail

    def message(request: ScheduledRequest, history: LiveHistory | None = None) -> Message:
        if request.words is not None:
            assert words is not None
            fields = words.fields(request.words)
            if history is not None:
                fields = with_history(fields, history, request.words.continues)
            return worded_message(fields, request, endpoint, model, dialect, extra_body, max_tokens)
        assert request.input_tokens is not None
        prompt = vocabularies[prompt_kind(request.workload)].prompt(
            request.input_tokens,
            draws_of(seed, request.index),
            request.prefix_ids,
            seed,
            request.text_id,
            request.text_tokens,
            request.block_tokens,
        )
        head, tail = without_prompt(request.model or model, request.output_tokens, request.natural)
        return Message(PATHS[endpoint], head + _encode(prompt) + tail)

    return message


def worded_message(
    fields: dict[str, msgspec.Raw],
    request: ScheduledRequest,
    endpoint: Endpoint,
    model: str,
    dialect: Dialect,
    extra_body: dict[str, Any],
    max_tokens: int | None,
) -> Message:
    """Return the message of a request that has words of its own.

    A whole body keeps every byte of its fields but for `model`, `stream` and `stream_options`; `extra_body` and
    `max_tokens` are not for it. Messages and prompts are sent with the fields of `payload`, and with the request's own
    beside them; a prompt is the `input` of responses and embeddings, and messages that of responses.
    """
    assert request.words is not None
    own = {name: msgspec.json.decode(fields[name]) for name in ROUTING & fields.keys()}
    headers = own.get("headers") or {}
    endpoint = request.words.endpoint or endpoint
    path = PATHS[endpoint]
    if (given := fields.get("body")) is not None:
        return Message(path, _changed(bytes(given), stream_fields(endpoint, request.model or model, dialect)), headers)
    limit = own.get("max_tokens") or max_tokens if request.natural else request.output_tokens
    generated = request_fields(
        request.model or model, limit, dialect, extra_body, natural=request.natural, endpoint=endpoint
    )
    words: dict[str, Any] = {name: value for name, value in fields.items() if name not in ROUTING and name != "answer"}
    if endpoint not in ("chat", "completions") and "prompt" in words:
        words["input"] = words.pop("prompt")
    elif endpoint == "responses":
        words = responses_fields({name: msgspec.json.decode(hide_halves(value)) for name, value in words.items()})
        return Message(path, show_halves(_encode(generated | words)), headers)
    return Message(path, _encode(generated | words), headers)


def with_history(fields: Fields, history: LiveHistory, continues: bool) -> Fields:
    """Return a turn's fields with the messages of the turn before, the answer that was received, and the turn's new
    messages: those after its last message of the assistant, or all if it `continues`.

    Results of tools belong to the calls of the recorded message: where they follow it, it stays in the answer's place.
    """
    if (body := fields.get("body")) is not None:
        return fields | {"body": msgspec.Raw(_encode(with_history(decode_fields(bytes(body)), history, continues)))}
    messages = decode_list(bytes(fields["messages"]))
    roles = [msgspec.json.decode(decode_fields(bytes(message))["role"]) for message in messages]
    spoken = [] if continues else [i for i, role in enumerate(roles[:-1]) if role == "assistant"]
    if spoken and roles[spoken[-1] + 1] in ("tool", "function"):
        new = messages[spoken[-1] :]
    else:
        first = spoken[-1] + 1 if spoken else next(i for i, role in enumerate([*roles, ""]) if role not in _SYSTEM)
        new = [msgspec.Raw(_encode(history.answer.message)), *messages[0 if continues else first :]]
    sent = decode_fields(history.body)
    before = decode_list(bytes(sent["messages"] if "messages" in sent else sent["input"]))
    return fields | {"messages": msgspec.Raw(_encode([*before, *new]))}


_SYSTEM = ("system", "developer")


def _changed(body: bytes, changes: dict[str, Any]) -> bytes:
    """Return a body with other values in some fields. The remaining ones keep their bytes; a body that has these values
    already keeps all of its bytes."""
    fields = decode_fields(body)
    if all(name in fields and msgspec.json.decode(fields[name]) == value for name, value in changes.items()):
        return body
    return _encode(fields | changes)
