"""What is known so far of the answer to one request: fed with the body of its response, as it arrives."""

import re
from array import array

from loadgen.client.http1 import Head
from loadgen.client.openai_api import TOKEN, ProtocolError, StreamEvent, Usage, error_of_body, parse_event
from loadgen.client.sse import SSEDecoder
from loadgen.record import ErrorKind

MAX_ERROR_BODY_BYTES = 8192


class RequestError(Exception):
    """What went wrong with one request: `str()` is for people."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = kind


class StreamState:
    """Local to one `send`. Raises RequestError, SSEError and ProtocolError on what is not a stream of the API."""

    __slots__ = ("_between", "_decoder", "_done", "_error_body", "_hits", "_learned", "_template", "_tokens",
                 "chunk_ns", "finish_reason", "finished_ns", "reason", "sent_ns", "status", "usage")  # fmt: skip

    def __init__(self) -> None:
        self.sent_ns: int | None = None
        self.status: int | None = None
        self.reason = ""
        self.chunk_ns: array[int] | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.finished_ns: int | None = None
        self._decoder = SSEDecoder()
        self._between = True
        """Events: whether the next byte begins one."""
        self._done = False
        self._error_body: bytearray | None = None
        self._template: Template | None = None
        self._learned = self._hits = self._tokens = 0

    def head(self, head: Head) -> None:
        self.status, self.reason = head.status, head.reason
        if head.status >= 400:
            self._error_body = bytearray()
            return
        if head.content_type != "text/event-stream":
            raise RequestError("protocol", f"asked for a stream, got {head.content_type or 'no content type'}")
        self.chunk_ns = array("q")

    def feed(self, data: bytes, arrived_ns: int) -> None:
        """The next bytes of the body, and when they came."""
        if self._error_body is not None:
            self._error_body += data
            if len(self._error_body) >= MAX_ERROR_BODY_BYTES:
                self._fail()
            return
        decoder = self._decoder
        if (lone := decoder.lone(data)) is not None:
            event = parse_event(lone)
            self._hear(event, arrived_ns)
            if event is TOKEN:
                self._learn_from(data)
        else:
            was_idle = decoder.idle
            events = [parse_event(event) for event in decoder.feed(data)]
            for event in events:
                self._hear(event, arrived_ns)
            if was_idle and events == [TOKEN] and decoder.idle:
                self._learn_from(data)
            self._between = decoder.idle

    def _learn_from(self, token: bytes) -> None:
        """From the second on; and a server whose events all differ is not worth the trouble."""
        self._tokens += 1
        if self._tokens > 1 and self._learned <= 4 + self._hits // 4:
            self._learned += 1
            self._template = learn(token)

    def end(self, arrived_ns: int) -> None:
        """The body has ended properly."""
        if self._error_body is not None:
            self._fail()
        for event in self._decoder.flush():
            self._hear(parse_event(event), arrived_ns)
        self.finished_ns = arrived_ns
        if not self._done and self.finish_reason is None:
            chunks = len(self.chunk_ns or ())
            raise RequestError("truncated", f"ended after {chunks} chunks with no finish reason or [DONE]")

    def frames(self, data: bytes, at: int, arrived_ns: int) -> int:
        """Takes the HTTP chunks of `data` from `at` on that hold one event each, one that differs from an event already
        decoded in nothing but its text. Gives the position of the first chunk that is anything else."""
        if self._template is None or not self._between:
            return at
        assert self.chunk_ns is not None
        stop, count = self._template.skip(data, at)
        self.chunk_ns += array("q", (arrived_ns,)) * count
        self._hits += count
        return stop

    def around_token(self) -> tuple[bytes, bytes] | None:
        """Of the chunks that `frames` takes."""
        return (self._template.before, self._template.after) if self._template and self._between else None

    def tokens(self, instants: bytes) -> None:
        """As from `frames`: when each came, as int64."""
        assert self.chunk_ns is not None
        known = len(self.chunk_ns)
        self.chunk_ns.frombytes(instants)
        self._hits += len(self.chunk_ns) - known

    def _hear(self, event: StreamEvent, arrived_ns: int) -> None:
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
        self._done = self._done or event.done

    def _fail(self) -> None:
        text = error_of_body(bytes(self._error_body or b"")[:MAX_ERROR_BODY_BYTES])
        raise RequestError("http", f"{self.status} {self.reason}: {text}")


_TEXT_FIELD = re.compile(rb'"(?:content|text|reasoning_content|reasoning)"\s*:\s*"')
_PLAIN = re.compile(
    rb'(?:[ !#-\[\]-~]++|\\["\\/bfnrt]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef]'
    rb"[\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
).fullmatch
"""The inside of a JSON string that is surely valid and surely not empty: UTF-8, and escapes of one letter."""

_SIZES = {size: b"%x\r\n" % size for size in range(0x10, 0x1000)}
_FRAMES = {line: size + len(line) + 2 for size, line in _SIZES.items()}
"""A chunk's size line -> the bytes of the whole chunk: line, data and CRLF."""
_SHORT = 0xFF + 6
_NO_CHUNK = b"\n"
"""Nothing that `_SIZES` has no line for begins so."""
_MANY = 16
"""From as many chunks on it is cheaper to compare them all at once."""


class _Openings(dict[int, bytes]):
    """Bytes of text -> how the chunk that holds it begins."""

    def __init__(self, before: bytes, tail: int) -> None:
        super().__init__()
        self._before, self._around = before, len(before) + tail

    def __missing__(self, text: int) -> bytes:
        line = _SIZES.get(self._around + text) if text > 0 else None
        opening = self[text] = line + self._before if line else _NO_CHUNK
        return opening


class Template:
    """An event around its text. With any plain text between, the event says TOKEN."""

    __slots__ = ("_many_bytes", "_openings", "after", "before")

    def __init__(self, before: bytes, after: bytes) -> None:
        """`after`: up to the CRLF that closes the HTTP chunk."""
        self.before, self.after = before, after
        self._openings = _Openings(before, len(after) - 2)
        self._many_bytes = _MANY * (len(before) + len(after))

    def skip(self, data: bytes, at: int) -> tuple[int, int]:
        """(where the first other chunk begins, how many like this came before it)."""
        if len(data) - at < self._many_bytes:
            return self._skip_each(data, at)
        at, many = self._skip_many(data, at)
        at, more = self._skip_each(data, at)
        return at, many + more

    def _skip_many(self, data: bytes, at: int) -> tuple[int, int]:
        """All the chunks to the last end of an event, if it is them: take the texts from their places, put the chunks
        that they would make together again, and compare."""
        before, after = self.before, self.after
        stop = data.rfind(after, at) + len(after)
        if stop < len(after):
            return at, 0
        pieces = data[at:stop].split(after[-4:])[:-1]
        lead, tail = len(before) + 4, 4 - len(after)
        texts = [piece[lead:tail] if len(piece) <= _SHORT - 4 else piece[lead + 1 : tail] for piece in pieces]
        openings = self._openings
        same = after.join([openings[len(text)] + text for text in texts]) + after
        if b"" in texts or not data.startswith(same, at) or not _PLAIN(b" ".join(texts)):
            return at, 0
        return stop, len(texts)

    def _skip_each(self, data: bytes, at: int) -> tuple[int, int]:
        before, after = self.before, self.after
        lead, tail, total, count = len(before), len(after), len(data), 0
        get, starts, ends = _FRAMES.get, data.startswith, data.endswith
        while size := get(data[at : at + 4]) or get(data[at : at + 5]):
            text, stop = at + (4 if size <= _SHORT else 5) + lead, at + size
            if (
                stop > total
                or text + tail > stop
                or not starts(before, text - lead)
                or not ends(after, text, stop)
                or not _PLAIN(data, text, stop - tail)
            ):
                break
            at = stop
            count += 1
        return at, count


def learn(event: bytes) -> Template | None:
    """The template of one event's bytes, blank line included; None when it is not surely one.

    The proof: with another text in its place the event says TOKEN, with none it says nothing at all. So the text alone
    decides, and it decides by being there. Quotes inside a JSON string are escaped: the field found is a real one.
    """
    for field in _TEXT_FIELD.finditer(event):
        start = field.end()
        end = event.find(b'"', start)
        if _PLAIN(event, start, end):
            before, after = event[:start], event[end:]
            if _says(before + after) == StreamEvent() and _says(before + b"x" + after) == TOKEN:
                return Template(before, after + b"\r\n")
    return None


def _says(data: bytes) -> StreamEvent | None:
    decoder = SSEDecoder()
    events = decoder.feed(data)
    if len(events) != 1 or not decoder.idle:
        return None
    try:
        return parse_event(events[0])
    except ProtocolError:
        return None
