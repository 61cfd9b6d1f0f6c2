"""The record of one scheduled request: when it was sent and answered, how many tokens, and what went wrong."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import msgspec

ErrorKind = Literal["connect", "timeout", "http", "protocol", "truncated", "server", "cancelled", "not_sent"]
"""connect: refused, or closed before an answer began. timeout: --timeout passed. http: a status of 400 or more.
protocol: bytes that are not the API. truncated: the answer began and did not end. server: an error event inside the
stream. cancelled: in flight when the run was aborted. not_sent: the run stopped before its turn came, or the turn
before it in its session failed."""

TokenSource = Literal["usage", "chunks"]
"""Origin of the output token count: the server's usage, or content chunks counted by the client (a chunk can hold
several tokens or none)."""

StampedBy = Literal["kernel", "reading"]
"""Origin of a token's instant: the kernel, when the segment that held it arrived, or this client, when it read it."""


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
    workload: str
    scheduled_ns: int
    sent_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    finished_ns: int | None = None
    chunk_ns: Sequence[int] = []
    """Arrival of each content chunk. Role-only, empty and usage chunks are not content."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    token_source: TokenSource | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: ErrorKind | None = None
    detail: str | None = None

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
    def lag_ns(self) -> int | None:
        """Schedule lag, the lateness of the client: sent - scheduled."""
        return None if self.sent_ns is None else self.sent_ns - self.scheduled_ns

    @property
    def ttft_ns(self) -> int | None:
        """Time to first token: first content chunk - sent."""
        if self.sent_ns is None or self.first_token_ns is None:
            return None
        return self.first_token_ns - self.sent_ns

    @property
    def tpot_ns(self) -> float | None:
        """Time per output token after the first: (last token - first token) / (output tokens - 1).

        None below two tokens.
        """
        if self.first_token_ns is None or self.last_token_ns is None or (self.output_tokens or 0) < 2:
            return None
        assert self.output_tokens is not None
        return (self.last_token_ns - self.first_token_ns) / (self.output_tokens - 1)

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
