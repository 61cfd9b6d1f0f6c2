"""The bytes of a scheduled request. The same for the same seed and request, whoever sends it."""

from collections.abc import Mapping
from typing import Any

from loadgen.openai_api import Dialect, Endpoint, payload
from loadgen.prompts import Kind, Vocabulary, draws_of, kind_of
from loadgen.schedule import ScheduledRequest


def body(
    request: ScheduledRequest,
    seed: int,
    vocabularies: Mapping[Kind, Vocabulary],
    endpoint: Endpoint,
    model: str,
    dialect: Dialect,
    extra_body: dict[str, Any],
) -> bytes:
    prompt = vocabularies[kind_of(request.workload)].prompt(
        request.input_tokens,
        draws_of(seed, request.index),
        request.prefix_ids,
        seed,
        request.text_id,
        request.text_tokens,
    )
    return payload(endpoint, model, prompt, request.output_tokens, dialect, extra_body)
