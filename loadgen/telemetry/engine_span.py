"""The engine's own account of one request: what a sidecar serves, and a line of spans.jsonl. Pure."""

from typing import Annotated

import msgspec

Instant = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]


class EngineSpan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request to the engine that had output tokens, of any client. Instants are in ns of the engine's wall clock.

    It has no words of the request, and no name of who sent it.
    """

    id: str
    """The client's X-Request-Id, where the engine's id contains it; for a request of this run RUN_ID-INDEX."""
    arrival_ns: Instant
    """Instant at which the engine received it."""
    prefill_ns: Instant
    """The beginning of its prefill, as near as the engine says; `arrival_ns` when it does not."""
    first_token_ns: Instant
    """The end of its prefill. Where the engine does not say, the prefill is taken to have lasted as long as one
    token."""
    end_ns: Instant
    """Its last token."""
    input_tokens: Tokens | None
    """Prompt tokens; None when the engine does not say."""
    output_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
    """Output tokens."""
    cached_tokens: Tokens | None = None
    """Prompt tokens that came from the prefix cache; None when the engine does not say."""
    engine: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Name of the engine, where several are watched and it is known."""


class SpanPage(msgspec.Struct, frozen=True):
    """The response to a sidecar's `GET /spans?after=NUMBER`: spans that it received after that one."""

    next: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    """Number of the last span on the page, to ask for those after it."""
    spans: list[EngineSpan]
