"""The bytes of a scheduled request. The same for the same seed and request, whoever sends it."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec

from loadgen.client.openai_api import Dialect, Endpoint, payload
from loadgen.workload.prompts import PromptKind, Vocabulary, draws_of, prompt_kind
from loadgen.workload.schedule import ScheduledRequest

_PROMPT = "\ue000prompt\ue000"
"""Stands where the prompt goes: characters of private use."""


def body_maker(
    seed: int,
    vocabularies: Mapping[PromptKind, Vocabulary],
    endpoint: Endpoint,
    model: str,
    dialect: Dialect,
    extra_body: dict[str, Any],
) -> Callable[[ScheduledRequest], bytes]:
    """Bodies of equally long answers differ in nothing but their prompt: what is around it is made once."""
    encode = msgspec.json.Encoder().encode

    @cache
    def around(output_tokens: int) -> tuple[bytes, bytes]:
        whole = payload(endpoint, model, _PROMPT, output_tokens, dialect, extra_body)
        before, _, after = whole.rpartition(encode(_PROMPT))
        return before, after

    def body(request: ScheduledRequest) -> bytes:
        prompt = vocabularies[prompt_kind(request.workload)].prompt(
            request.input_tokens,
            draws_of(seed, request.index),
            request.prefix_ids,
            seed,
            request.text_id,
            request.text_tokens,
        )
        before, after = around(request.output_tokens)
        return before + encode(prompt) + after

    return body
