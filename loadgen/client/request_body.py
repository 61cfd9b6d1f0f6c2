"""Body of a scheduled request. It follows from the seed and the request alone, whichever process sends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.client.openai_api import Dialect, Endpoint, payload
from loadgen.workload.prompts import PromptKind, Vocabulary, draws_of, prompt_kind

if TYPE_CHECKING:
    from loadgen.workload.schedule import ScheduledRequest

_PROMPT = "\ue000prompt\ue000"
"""Placeholder for the prompt: characters of private use."""


def body_maker(
    seed: int,
    vocabularies: Mapping[PromptKind, Vocabulary],
    endpoint: Endpoint,
    model: str,
    dialect: Dialect,
    extra_body: dict[str, Any],
) -> Callable[[ScheduledRequest], bytes]:
    """Return a function from a request to its body.

    Bodies for the same number of output tokens differ in their prompt alone, so the rest is encoded once.
    """
    encode = msgspec.json.Encoder().encode

    @cache
    def without_prompt(output_tokens: int) -> tuple[bytes, bytes]:
        template = payload(endpoint, model, _PROMPT, output_tokens, dialect, extra_body)
        head, _, tail = template.rpartition(encode(_PROMPT))
        return head, tail

    def body(request: ScheduledRequest) -> bytes:
        prompt = vocabularies[prompt_kind(request.workload)].prompt(
            request.input_tokens,
            draws_of(seed, request.index),
            request.prefix_ids,
            seed,
            request.text_id,
            request.text_tokens,
            request.block_tokens,
        )
        head, tail = without_prompt(request.output_tokens)
        return head + encode(prompt) + tail

    return body
