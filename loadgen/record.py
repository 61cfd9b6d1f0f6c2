"""What happened to one scheduled request."""

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import msgspec

ErrorKind = Literal["connect", "timeout", "http", "protocol", "truncated", "server", "cancelled", "not_sent"]
"""connect: refused, or dead before an answer began. timeout: --timeout passed. http: a status of 400 or more. protocol:
bytes that are not the API. truncated: the answer began and did not end. server: an error event inside the stream.
cancelled: in flight when the run was aborted. not_sent: the run stopped before its turn came, or
the turn before it in its session failed."""

TokenSource = Literal["usage", "chunks"]
"""Who counted the output tokens: the server, or we did, by content chunks (which can hold several tokens or none)."""

StampedBy = Literal["kernel", "reading"]
"""What says when a token came: the kernel, as the segment that held it came in, or this client, as it read it."""


class _Scheduled(Protocol):
    """The parts of a scheduled request that its record repeats."""

    @property
    def index(self) -> int: ...

    @property
    def workload(self) -> str: ...

    @property
    def offset_ns(self) -> int: ...


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One per scheduled request, whatever became of it. Instants are monotonic ns; None is unknown."""

    index: int
    workload: str
    scheduled_ns: int
    sent_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    finished_ns: int | None = None
    chunk_ns: Sequence[int] = []
    """When each content chunk arrived. A role-only, empty or usage chunk is not one."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    token_source: TokenSource | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: ErrorKind | None = None
    detail: str | None = None

    @classmethod
    def unanswered(cls, request: _Scheduled, start_ns: int, error: ErrorKind, detail: str | None) -> Self:
        """Return the record of a request of which no response is known. Its offset counts from `start_ns`."""
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
        """How late the client was: sent - scheduled."""
        return None if self.sent_ns is None else self.sent_ns - self.scheduled_ns

    @property
    def ttft_ns(self) -> int | None:
        """Time to first token: first chunk with content - sent."""
        if self.sent_ns is None or self.first_token_ns is None:
            return None
        return self.first_token_ns - self.sent_ns

    @property
    def tpot_ns(self) -> float | None:
        """Time per output token after the first: (last token - first token) / (output tokens - 1)."""
        if self.first_token_ns is None or self.last_token_ns is None or (self.output_tokens or 0) < 2:
            return None
        assert self.output_tokens is not None
        return (self.last_token_ns - self.first_token_ns) / (self.output_tokens - 1)

    @property
    def e2e_ns(self) -> int | None:
        """finished - sent."""
        return None if self.sent_ns is None or self.finished_ns is None else self.finished_ns - self.sent_ns

    @property
    def response_ns(self) -> int | None:
        """finished - scheduled: what a user who arrived on schedule waited, however late the client was."""
        return None if self.finished_ns is None else self.finished_ns - self.scheduled_ns


SLO_METRICS = ("ttft", "tpot", "e2el")
