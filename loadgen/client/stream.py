"""Incremental state of one streaming response."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from contextlib import suppress
from typing import TYPE_CHECKING

from loadgen.client.answer import AnswerReader
from loadgen.client.http1 import Head, HTTPError
from loadgen.client.openai_api import (
    TOKENS,
    ProtocolError,
    StreamEvent,
    Usage,
    error_of_body,
    is_error_body,
    is_failure,
    parse_answer,
    parse_event,
)
from loadgen.client.sse import SSEDecoder, SSEError
from loadgen.client.token_template import TokenTemplate, learn_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.client.answer import Answer
    from loadgen.record import ErrorKind, Kind

MAX_ERROR_BODY_BYTES = 8192
MAX_ANSWER_BYTES = 256 << 20
"""Largest answer that is one object: 2,000 embeddings of 8,192 numbers."""

PROTOCOL_ERRORS = (HTTPError, SSEError, ProtocolError)
"""Exceptions for bytes that are not HTTP, not a stream of events, or not events of the API."""


class RequestError(Exception):
    """The failure of one request; `str()` describes it to people."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = kind


class StreamState:
    """State of one response, fed with its head and its body as they arrive.

    Raises RequestError, SSEError and ProtocolError for a response that is not a stream of the API; or, not `streamed`,
    one object of it.
    """

    __slots__ = ("_answer", "_body", "_closing_ns", "_counted", "_decoder", "_done_ns", "_hits", "_kind", "_learnt",
                 "_lessons", "_max_body_bytes", "_runs", "_streamed", "_textless_ns", "_tokens", "chunk_ns", "fields",
                 "finish_reason", "finished_ns", "reason", "sent_ns", "status", "template", "usage")  # fmt: skip

    def __init__(self, streamed: bool = True, *, keeps_answer: bool = False) -> None:
        """`keeps_answer`: the answer's words are kept, those that a template takes too."""
        self._streamed = streamed
        self._answer = AnswerReader() if keeps_answer else None
        self.sent_ns: int | None = None
        self.status: int | None = None
        self.reason = ""
        self.fields = b""
        """Header fields of the response, each after its CRLF."""
        self.chunk_ns: array[int] | None = None
        """Arrival time of each chunk that holds content; None before the head of a stream."""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.finished_ns: int | None = None
        self.template: TokenTemplate | None = None
        """Recognizes tokens without decoding them. None before it is learnt, and in the middle of an event."""
        self._kind: Kind | None = None
        """Kind of the last chunk with content."""
        self._runs: list[tuple[Kind, int]] = []
        """(kind, number of chunks with content before it) of each run of chunks of one kind."""
        self._decoder = SSEDecoder()
        self._done_ns: int | None = None
        """Arrival time of [DONE]."""
        self._textless_ns: list[int] = []
        """Arrival time of each chunk that may be a token without text."""
        self._closing_ns: int | None = None
        """Arrival time of a chunk without content that has the finish reason."""
        self._counted = 0
        """Chunks with content that had arrived with the last usage that came alone."""
        self._body: bytearray | None = None
        """The body of an answer that is one object, or an error."""
        self._max_body_bytes = MAX_ERROR_BODY_BYTES
        self._learnt: TokenTemplate | None = None
        self._lessons = self._hits = self._tokens = 0
        """Attempts to learn a template, hits of the earlier templates, and lone tokens decoded in full."""

    @property
    def is_done(self) -> bool:
        """True once [DONE] has come: the answer is over, whether or not the body goes on."""
        return self._done_ns is not None

    def head(self, head: Head) -> None:
        """Take the head of the response, once, before its body."""
        self.status, self.reason, self.fields = head.status, head.reason, head.fields
        if head.status >= 400 or head.content_type == "application/json":  # JSON: perhaps an error with a good status
            self._body = bytearray()
            if not self._streamed and head.status < 400:
                self._max_body_bytes = MAX_ANSWER_BYTES
            return
        if not self._streamed:
            raise RequestError("protocol", f"requested one object, got {head.content_type or 'no content type'}")
        if head.content_type != "text/event-stream":
            raise RequestError("protocol", f"requested a stream, got {head.content_type or 'no content type'}")
        self.chunk_ns = array("q")

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """Take the next bytes of the body, which arrived at `arrived_ns`."""
        if self._body is not None:
            self._body += data
            if len(self._body) >= self._max_body_bytes:
                if self._max_body_bytes == MAX_ANSWER_BYTES:
                    raise RequestError("protocol", f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
                self._raise_http_error(self._body)
            return
        if self._answer is not None:
            self._answer.feed(data)
        decoder = self._decoder
        if (lone := decoder.lone(data)) is not None:
            if (event := self._take(lone, arrived_ns)).kind and event is TOKENS[event.kind]:
                self._learn(data)
        else:
            was_idle = decoder.idle
            events = [self._take(event, arrived_ns) for event in decoder.feed(data)]
            if was_idle and len(events) == 1 and events[0] in TOKENS.values() and decoder.idle:
                self._learn(data)
            self.template = self._learnt if decoder.idle and not self.is_done else None

    def end(self, arrived_ns: int) -> None:
        """Take the end of the body, the last bytes of which arrived at `arrived_ns`; [DONE] ends the answer before."""
        if self._body is not None:
            if self._streamed or (self.status or 0) >= 400 or is_error_body(bytes(self._body[:MAX_ERROR_BODY_BYTES])):
                self._raise_http_error(self._body)
            self.usage, self.finished_ns = parse_answer(bytes(self._body)), arrived_ns
            return
        for event in self._decoder.flush():
            self._take(event, arrived_ns)
        self.finished_ns = self._done_ns or arrived_ns
        chunks, counted = len(self.chunk_ns or ()), self.usage and self.usage.output_tokens
        if is_failure(self.finish_reason):
            raise RequestError("server", f"the answer ended with finish_reason {self.finish_reason}")
        if self.finish_reason is None and not self.is_done:
            raise RequestError("truncated", f"ended after {chunks} chunks with no finish reason or [DONE]")
        if not chunks and not counted:
            raise RequestError("server", f"an answer without a token: finish_reason {self.finish_reason}")
        if self.finish_reason is None and (not counted or self._counted < chunks):
            raise RequestError(
                "truncated", f"[DONE] after {chunks} chunks with no finish reason and no usage after them"
            )

    @property
    def hidden_tokens(self) -> int | None:
        """Tokens of reasoning that the server counts and did not send; None if it does not count reasoning."""
        if self.usage is None or self.usage.thought_tokens is None:
            return None
        return self.usage.hidden_tokens(len(self.chunk_ns or ()), any(kind == "reasoning" for kind, _ in self._runs))

    def answers(self, index: int) -> list[Answer]:
        """Return the words of each choice of the answer to request `index`; nothing where none came or none is kept."""
        return self._answer.answers(index) if self._answer is not None else []

    def kinds(self, times: Sequence[int]) -> list[tuple[Kind, int]]:
        """Return (kind, number of chunks) of each run of one kind; `times` are those of all chunks that are tokens."""
        if len(self._runs) <= 1 or not self.chunk_ns:
            return [(self._kind or "answer", len(times))] if times else []
        starts = [start for _, start in self._runs]
        if len(times) > len(self.chunk_ns):  # chunks without text are among them
            texts = self.chunk_ns
            starts = [bisect_left(times, texts[i]) + i - bisect_left(texts, texts[i]) for i in starts]
        ends = [*starts[1:], len(times)]
        starts[0] = 0
        return [(kind, end - start) for (kind, _), start, end in zip(self._runs, starts, ends, strict=True)]

    def token_times(self) -> tuple[list[int], int | None]:
        """Return the arrival times of the chunks that are tokens, and that of the last token.

        A chunk without text is a token if the server's usage counts more tokens than chunks with text. Those before the
        first text are tokens only if then every token has a chunk: servers also open streams with such chunks. When
        tokens remain without a chunk, the last one came no later than the chunk with the finish reason.
        """
        texts = self.chunk_ns.tolist() if self.chunk_ns else []
        counted = ((self.usage and self.usage.output_tokens) or 0) - (self.hidden_tokens or 0)
        missing = counted - len(texts)
        if missing <= 0:
            return texts, texts[-1] if texts else None
        closing = [] if self._closing_ns is None else [self._closing_ns]
        textless = self._textless_ns
        if missing > len(textless) + len(closing):
            textless = [t_ns for t_ns in textless if texts and t_ns > texts[0]]
        times = sorted(texts + textless[-missing:])
        if missing <= len(textless):
            return times, times[-1]
        if missing == len(textless) + 1:
            times += closing
        return times, max(times[-1:] + closing, default=None)

    def _take(self, data: bytes, arrived_ns: int) -> StreamEvent:
        """Take the data of an event, and return what it says. After [DONE] only a late count of the tokens matters."""
        assert self.chunk_ns is not None
        if self._done_ns is not None:
            with suppress(ProtocolError):
                self._take_usage(parse_event(data))
            return StreamEvent()
        event = parse_event(data)
        if (kind := event.kind) is not None:
            if kind != self._kind:
                self._begin(kind)
            self.chunk_ns.append(arrived_ns)
            if event is TOKENS[kind]:
                return event
        elif event.error is not None:
            raise RequestError("server", event.error)
        elif event.finish_reason and self.finish_reason is None:
            self._closing_ns = arrived_ns
        elif event.textless and self.finish_reason is None and (self.chunk_ns or not event.opens):
            self._textless_ns.append(arrived_ns)
        if event.usage is not None:
            self._take_usage(event)
        if event.finish_reason and not is_failure(self.finish_reason):
            self.finish_reason = event.finish_reason
        if event.done:
            self._done_ns = arrived_ns
            self.template = None
        return event

    def _begin(self, kind: Kind) -> None:
        """Begin a run of chunks of another kind. The template goes: it recognizes tokens of the kind before."""
        self._kind = kind
        self._runs.append((kind, len(self.chunk_ns or ())))
        self._hits += self._learnt.hits if self._learnt else 0
        self.template = self._learnt = None

    def _take_usage(self, event: StreamEvent) -> None:
        """Keep the last counts, but no zeros after a count: some servers send zeros with each chunk."""
        usage, earlier = event.usage, self.usage
        if usage and (usage.output_tokens or not (earlier and earlier.output_tokens)):
            self.usage = usage
            self._counted = self._counted if event.has_content else len(self.chunk_ns or ())

    def _learn(self, token: bytes) -> None:
        """Learn the template of a token that had to be decoded: from the second token on, because the first often
        differs, and only while the templates are of use, because a server may send no two events alike."""
        self._tokens += 1
        hits = self._hits + (self._learnt.hits if self._learnt else 0)
        if self._tokens > 1 and self._lessons <= 4 + hits // 4:
            assert self.chunk_ns is not None
            self._lessons += 1
            self._hits = hits
            template = learn_template(token, self.chunk_ns)
            if template and self._answer is not None:
                template.keep = self._answer.keeper(template.prefix, template.suffix)
                template = template if template.keep else None
            self.template = self._learnt = template

    def _raise_http_error(self, body: bytearray) -> None:
        assert self.status is not None
        text = error_of_body(bytes(body[:MAX_ERROR_BODY_BYTES]))
        if self.status >= 400:
            raise RequestError("http", f"{self.status} {self.reason}: {text}")
        if is_error_body(bytes(body)):
            raise RequestError("server", text)
        raise RequestError("protocol", "requested a stream, got application/json")
