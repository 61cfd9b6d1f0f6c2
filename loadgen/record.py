"""The record of one scheduled request: when it was sent and answered, how many tokens, and what went wrong."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import msgspec

Endpoint = Literal["chat", "completions", "responses", "embeddings", "rerank"]
"""An API of the server that takes requests."""

PATHS: dict[Endpoint, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "embeddings": "/embeddings",
    "rerank": "/rerank",
}

UNSTREAMED: frozenset[Endpoint] = frozenset(("embeddings", "rerank"))
"""Endpoints whose answer is one JSON object: it has no tokens, and only its end has an instant."""

ErrorKind = Literal["connect", "timeout", "http", "protocol", "truncated", "server", "cancelled", "not_sent"]
"""connect: refused, or closed before an answer began. timeout: --timeout passed. http: a status of 400 or more.
protocol: bytes that are not the API. truncated: the answer began and did not end. server: the server gave up after a
good status: an error in the stream, a finish reason that is a failure, or an answer without a token. cancelled: in
flight when the run was aborted or killed. not_sent: the run ended before its turn came, or the turn before it in its
session failed."""

TokenSource = Literal["usage", "chunks"]
"""Origin of the output token count: the server's usage, or content chunks counted by the client (a chunk can hold
several tokens or none)."""

StampedBy = Literal["kernel", "reading"]
"""Origin of a token's instant: the kernel, when the segment that held it arrived, or this client, when it read it."""


Kind = Literal["reasoning", "answer", "tools"]
"""Part of an answer that a chunk carries: what the model thinks, what it says (a refusal too), its calls of tools. A
chunk with several of them is of the first of: answer, tools, reasoning."""


class Scheduled(Protocol):
    """The part of a scheduled request that its record repeats."""

    @property
    def index(self) -> int: ...

    @property
    def workload(self) -> str: ...

    @property
    def offset_ns(self) -> int: ...


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One record per scheduled request, whatever its outcome. Instants are monotonic ns; None is unknown."""

    index: int
    """Number of the request in the schedule."""
    workload: str
    """Name of its workload or stream."""
    scheduled_ns: int
    """Instant at which it was due."""
    sent_ns: int | None = None
    """Instant at which it was sent; None when it was not."""
    first_token_ns: int | None = None
    """Arrival of the first token; None when none came."""
    last_token_ns: int | None = None
    """The last chunk; where tokens remain without a chunk, the chunk with the finish reason."""
    finished_ns: int | None = None
    """The arrival of [DONE], or else of the last byte; for a request that failed, when it did."""
    chunk_ns: Sequence[int] = []
    """Arrival of each chunk that is a token: of each chunk with content, and of each without where the server's usage
    counts it (a special token has no text). Role-only and usage chunks are none."""
    kinds: Sequence[tuple[Kind, int]] | None = None
    """Kinds of these chunks in order: (kind, number of chunks) of each run of one kind. A chunk without content is of
    the kind before it, or else after it. None in the folder of an older version."""
    input_tokens: int | None = None
    """Prompt tokens by the server's count; None when it does not count them."""
    output_tokens: int | None = None
    """Unknown when the server reports zero beside content."""
    cached_tokens: int | None = None
    """Prompt tokens that the server took from its prefix cache; None when it does not count them."""
    hidden_tokens: int | None = None
    """Output tokens of reasoning that the server counts and does not send. None if it does not count reasoning."""
    reasoning_tokens: int | None = None
    """Output tokens of reasoning by the server's count, sent or not; None if it does not count them, as for the next
    three."""
    output_audio_tokens: int | None = None
    """Output tokens of audio."""
    input_audio_tokens: int | None = None
    """Prompt tokens of audio."""
    input_image_tokens: int | None = None
    """Prompt tokens of images."""
    token_source: TokenSource | None = None
    """Origin of output_tokens: the server's usage, or chunks that this client counted."""
    status: int | None = None
    """HTTP status; None without an answer."""
    finish_reason: str | None = None
    """The server's word for why the answer ended; of a failed request perhaps `abort` and the like."""
    error: ErrorKind | None = None
    """Kind of failure; None when the request completed."""
    detail: str | None = None
    """The failure in words; None when the request completed."""
    engines: list[str] | None = None
    """Engines that served it, of those that --engine names, as the response's headers say: none if they name others.
    None without such a header."""

    @classmethod
    def unanswered(cls, request: Scheduled, start_ns: int, error: ErrorKind, detail: str | None = None) -> Self:
        """Make the record of a request without an answer, in a run whose offsets count from `start_ns`.

        Nothing is known but its schedule. For a later turn of a session `scheduled_ns` is the earliest that it could
        have been due: when it would have been due depends on answers that never came.
        """
        return cls(
            index=request.index,
            workload=request.workload,
            scheduled_ns=start_ns + request.offset_ns,
            error=error,
            detail=detail,
        )

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def came_whole(self) -> bool:
        """True for an answer that is one object, of embeddings or rerank: it has no tokens, and none has an instant."""
        return not (self.error or self.chunk_ns or self.output_tokens is not None or self.finished_ns is None)

    @property
    def lag_ns(self) -> int | None:
        """Schedule lag, the lateness of the client: sent - scheduled."""
        return None if self.sent_ns is None else self.sent_ns - self.scheduled_ns

    @property
    def tokens_without_chunk(self) -> int | None:
        """Output tokens without a chunk of their own: of several tokens in one chunk all but one, and those for which
        the server sent nothing. None if the server does not count its tokens."""
        if self.token_source != "usage" or self.output_tokens is None:
            return None
        return max(0, self.output_tokens - len(self.chunk_ns))

    @property
    def ttft_ns(self) -> int | None:
        """Time to first token: first chunk that is a token - sent."""
        if self.sent_ns is None or self.first_token_ns is None:
            return None
        return self.first_token_ns - self.sent_ns

    @property
    def ttfa_ns(self) -> int | None:
        """Time to first answer token: first chunk of the answer or of a call of a tool - sent. None when all of it was
        reasoning, or when the kinds of the chunks are not known."""
        start = 0
        for kind, chunks in self.kinds or ():
            if kind != "reasoning":
                return None if self.sent_ns is None else self.chunk_ns[start] - self.sent_ns
            start += chunks
        return None

    @property
    def tpot_ns(self) -> float | None:
        """Time per output token after the first: (last token - first token) / (output tokens - 1).

        Hidden tokens came before the first and do not count. None below two tokens.
        """
        tokens = (self.output_tokens or 0) - (self.hidden_tokens or 0)
        if self.first_token_ns is None or self.last_token_ns is None or tokens < 2:
            return None
        return (self.last_token_ns - self.first_token_ns) / (tokens - 1)

    @property
    def e2e_ns(self) -> int | None:
        """End-to-end latency: finished - sent."""
        return None if self.sent_ns is None or self.finished_ns is None else self.finished_ns - self.sent_ns

    @property
    def response_ns(self) -> int | None:
        """Response time: finished - scheduled, the wait of a user who arrived on time, however late the client was."""
        return None if self.finished_ns is None else self.finished_ns - self.scheduled_ns


SLO_METRICS = ("ttft", "tpot", "e2el")
"""Metrics that a goodput objective may bound."""
