"""Server-sent events: bytes in, event data out. No I/O, and no event waits for a byte that the format does not need."""

MAX_EVENT_BYTES = 16 << 20


MAX_COMMENT_BYTES = 1 << 10


class SSEError(ValueError):
    """An event that is larger than any server should send."""


class ErrorEvent(bytes):
    """The text of an event that the server names an error: its data, or else its comments.

    `event: error` is followed by data, or by comments alone (Dynamo). A field `error:` stands for both lines (llama.cpp
    in 2025).
    """


class SSEDecoder:
    """Incremental decoder of the `data` fields of a text/event-stream (WHATWG HTML, section 9.2.6).

    A line ends in LF, CRLF or CR, and may be cut anywhere between two calls. A blank line ends an event at once: after
    a lone CR the decoder does not wait to see whether an LF follows, because the event's timestamp depends on it.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._size = 0
        self._is_error = False
        self._comment = b""
        self._skip_lf = False
        self._at_start = True

    @property
    def idle(self) -> bool:
        """True if the next byte begins a line of a new event: no byte or field is held back."""
        return not (self._tail or self._data or self._is_error or self._skip_lf or self._at_start)

    def lone(self, chunk: bytes) -> bytes | None:
        """Decode a chunk that is one whole event in the shape that nearly every server gives it: `data: `, LF, LF.

        Return its data; None if the chunk is anything else, and then only `feed` can take it.
        """
        lines = chunk.splitlines()
        if (
            len(lines) == 2
            and not lines[1]
            and chunk[-1] == 0x0A
            and lines[0].startswith(b"data: ")
            and not (self._tail or self._data or self._is_error or self._skip_lf)
        ):
            self._at_start = False
            return lines[0][6:]
        return None

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of every event that `chunk` completes, in order."""
        if not chunk:
            return []
        if self._skip_lf and chunk[0] == 0x0A:
            chunk = chunk[1:]
        text = self._tail + chunk if self._tail else chunk
        if self._at_start and text:
            if text[:3] == b"\xef\xbb\xbf":
                text = text[3:]
            elif b"\xef\xbb\xbf".startswith(text):
                self._tail = text
                return []
            self._at_start = False
        lines = text.splitlines(keepends=True)
        self._tail = lines.pop() if lines and lines[-1][-1] not in b"\r\n" else b""
        self._skip_lf = text.endswith(b"\r")
        events = self._take_lines(lines)
        if len(self._tail) + self._size > MAX_EVENT_BYTES:
            raise SSEError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def flush(self) -> list[bytes]:
        """Return the event that the end of the stream completes, for servers that omit the last blank line."""
        lines = [self._tail, b""] if self._tail else [b""]
        self._tail = b""
        return self._take_lines(lines)

    def _take_lines(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for raw_line in lines:
            line = raw_line.rstrip(b"\r\n")
            if not line:
                if self._is_error:
                    events.append(ErrorEvent(b"\n".join(self._data) or self._comment.strip()))
                elif self._data:
                    events.append(b"\n".join(self._data))
                self._data, self._size, self._is_error, self._comment = [], 0, False, b""
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data" or name == b"error":
                self._data.append(value)
                self._size += len(value) + 1
                self._is_error = self._is_error or name == b"error"
            elif name == b"event":
                self._is_error = b"error" in value.lower()
            elif not name:  # a comment
                self._comment = (self._comment + b" " + value)[:MAX_COMMENT_BYTES]
        return events
