"""One request while it is served: its tokens become events of a stream, and a fault may spoil them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from loadgen.simulator.api import DONE, ERROR_EVENT, EVENT_ERROR, Ask, Events, ResponseEvents, usage_json
from loadgen.simulator.spans import Finished, engine_id
from loadgen.simulator.tokens import answer_words

if TYPE_CHECKING:
    from loadgen.simulator.engine import Sequence
    from loadgen.simulator.faults import Fault
    from loadgen.telemetry.traceparent import SpanIds


class ChunkedWriter:
    """Writes to a prepared streaming response without aiohttp's coroutine per write: one call, one packet."""

    def __init__(self, request: web.Request) -> None:
        self._transport = request.transport
        self._chunked = request.version >= HttpVersion11

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False, slots=True)
class ServedRequest:
    """One request while it is served."""

    ask: Ask
    seq: Sequence
    request_id: str
    response_id: str
    created_s: int
    finish_reason: str
    word_seed: int
    fault: Fault | None
    parent: SpanIds | None
    done: asyncio.Future[None]
    """Completes when there is nothing more to send."""
    wire: ChunkedWriter | None = None
    events: Events | ResponseEvents | None = None
    words: Iterator[str] | None = None
    sent_tokens: int = 0
    """Tokens whose step has ended, so that the client may have them."""
    muted: bool = False
    first_token_ns: int = 0
    last_token_ns: int = 0

    @property
    def text(self) -> str:
        return "".join(islice(answer_words(self.word_seed), self.sent_tokens))

    @property
    def finished(self) -> Finished:
        """The completed request, for its span."""
        assert self.seq.started_ns is not None
        return Finished(
            engine_id(self.request_id, self.ask.endpoint),
            self.seq.arrival_ns,
            self.seq.started_ns,
            self.first_token_ns,
            self.last_token_ns,
            self.seq.input_tokens,
            self.sent_tokens,
            self.parent,
        )

    @property
    def usage(self) -> bytes:
        return usage_json(self.ask.endpoint, self.seq.input_tokens, self.sent_tokens, self.seq.cached_tokens)

    def emit(self, end_ns: int, tokens: int = 1) -> None:
        """Count the tokens of a step at its end; write their one event if the response is a stream."""
        is_first = self.sent_tokens == 0
        if is_first:
            self.first_token_ns = end_ns
        self.last_token_ns = end_ns
        self.sent_tokens += tokens
        wire = self.wire
        if wire is None or self.muted:
            return
        assert self.events is not None and self.words is not None
        if self.fault is not None and self.sent_tokens > self.seq.output_tokens // 2 and self._fail(wire):
            return
        is_last = self.sent_tokens == self.seq.output_tokens
        usage = self.usage if self.ask.continuous_usage else None
        is_textless = self.fault == "textless" and self.sent_tokens > self.seq.output_tokens // 2
        text = "" if is_textless else "".join(islice(self.words, tokens))
        data = self.events.opening if is_first else b""
        data += self.events.token(text, self.finish_reason if is_last else None, usage)
        if is_last:
            counts = self.ask.include_usage and self.fault != "no_usage"
            data += self.events.closing(self.finish_reason, self.usage if counts else None)
        if is_last and self.fault != "no_done" and self.ask.endpoint != "responses":
            data += DONE
        wire.write(data)

    def _fail(self, wire: ChunkedWriter) -> bool:
        """Apply the fault at the first token past half; return True if nothing more is to be sent."""
        assert self.events is not None
        match self.fault:
            case "bad_json":
                self.fault = None
                wire.write(self.events.broken())
                return False
            case "stall":
                self.muted = True
            case "truncate":
                self._cut()
            case "error_event":
                wire.write(ERROR_EVENT + DONE)
                self._cut()
            case "disconnect":
                self._cut()
                wire.reset()
            case "abort":
                wire.write(self.events.token("", "abort", None) + DONE)
                self._cut()
            case "done_early":
                wire.write(DONE)
                self._cut()
            case "event_error":
                wire.write(EVENT_ERROR + DONE)
                self._cut()
        return self.muted

    def _cut(self) -> None:
        self.muted = True
        if not self.done.done():
            self.done.set_result(None)
