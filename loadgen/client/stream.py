"""Incremental state of one streaming response."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from loadgen.client.http1 import Head, HTTPError
from loadgen.client.openai_api import TOKEN, ProtocolError, StreamEvent, Usage, error_of_body, parse_event
from loadgen.client.sse import SSEDecoder, SSEError
from loadgen.client.token_template import TokenTemplate, learn_template

if TYPE_CHECKING:
    from loadgen.record import ErrorKind

MAX_ERROR_BODY_BYTES = 8192

PROTOCOL_ERRORS = (HTTPError, SSEError, ProtocolError)
"""Exceptions for bytes that are not HTTP, not a stream of events, or not events of the API."""


class RequestError(Exception):
    """The failure of one request; `str()` describes it to people."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = kind


class StreamState:
    """State of one response, fed with its head and its body as they arrive.

    Raises RequestError, SSEError and ProtocolError for a response that is not a stream of the API.
    """

    __slots__ = ("_decoder", "_error_body", "_hits", "_is_done", "_learnt", "_lessons", "_tokens", "chunk_ns",
                 "finish_reason", "finished_ns", "reason", "sent_ns", "status", "template", "usage")  # fmt: skip

    def __init__(self) -> None:
        self.sent_ns: int | None = None
        self.status: int | None = None
        self.reason = ""
        self.chunk_ns: array[int] | None = None
        """Arrival time of each chunk that holds a token; None before the head of a stream."""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.finished_ns: int | None = None
        self.template: TokenTemplate | None = None
        """Recognizes tokens without decoding them. None before it is learnt, and in the middle of an event."""
        self._decoder = SSEDecoder()
        self._is_done = False
        self._error_body: bytearray | None = None
        self._learnt: TokenTemplate | None = None
        self._lessons = self._hits = self._tokens = 0
        """Attempts to learn a template, hits of the earlier templates, and lone tokens decoded in full."""

    def head(self, head: Head) -> None:
        """Take the head of the response, once, before its body."""
        self.status, self.reason = head.status, head.reason
        if head.status >= 400:
            self._error_body = bytearray()
            return
        if head.content_type != "text/event-stream":
            raise RequestError("protocol", f"requested a stream, got {head.content_type or 'no content type'}")
        self.chunk_ns = array("q")

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """Take the next bytes of the body, which arrived at `arrived_ns`."""
        if self._error_body is not None:
            self._error_body += data
            if len(self._error_body) >= MAX_ERROR_BODY_BYTES:
                self._raise_http_error(self._error_body)
            return
        decoder = self._decoder
        if (lone := decoder.lone(data)) is not None:
            event = parse_event(lone)
            self._take_event(event, arrived_ns)
            if event is TOKEN:
                self._learn(data)
        else:
            was_idle = decoder.idle
            events = [parse_event(event) for event in decoder.feed(data)]
            for event in events:
                self._take_event(event, arrived_ns)
            if was_idle and events == [TOKEN] and decoder.idle:
                self._learn(data)
            self.template = self._learnt if decoder.idle else None

    def end(self, arrived_ns: int) -> None:
        """Take the proper end of the body, the last bytes of which arrived at `arrived_ns`."""
        if self._error_body is not None:
            self._raise_http_error(self._error_body)
        for event in self._decoder.flush():
            self._take_event(parse_event(event), arrived_ns)
        self.finished_ns = arrived_ns
        if not self._is_done and self.finish_reason is None:
            chunks = len(self.chunk_ns or ())
            raise RequestError("truncated", f"ended after {chunks} chunks with no finish reason or [DONE]")

    def _take_event(self, event: StreamEvent, arrived_ns: int) -> None:
        assert self.chunk_ns is not None
        if event is TOKEN:
            self.chunk_ns.append(arrived_ns)
            return
        if event.error is not None:
            raise RequestError("server", event.error)
        if event.has_content:
            self.chunk_ns.append(arrived_ns)
        if event.usage is not None:
            self.usage = event.usage
        self.finish_reason = event.finish_reason or self.finish_reason
        self._is_done = self._is_done or event.done

    def _learn(self, token: bytes) -> None:
        """Learn the template of a token that had to be decoded: from the second token on, because the first often
        differs, and only while the templates are of use, because a server may send no two events alike."""
        self._tokens += 1
        hits = self._hits + (self._learnt.hits if self._learnt else 0)
        if self._tokens > 1 and self._lessons <= 4 + hits // 4:
            assert self.chunk_ns is not None
            self._lessons += 1
            self._hits = hits
            self.template = self._learnt = learn_template(token, self.chunk_ns)

    def _raise_http_error(self, body: bytearray) -> None:
        text = error_of_body(bytes(body[:MAX_ERROR_BODY_BYTES]))
        raise RequestError("http", f"{self.status} {self.reason}: {text}")
