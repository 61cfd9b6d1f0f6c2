"""Recognize the chunks of one stream that are tokens without decoding them.

The events of a stream are alike except for their text. Once one event has been decoded, the bytes around its text are
a template, and this rule decides about each HTTP chunk that follows:

    A chunk is one token if it is  SIZE CRLF prefix text suffix,  where
    SIZE    is the size of the chunk's data in two or three lower-case hexadecimal digits, the first of them not zero,
            without extensions;
    prefix  is what stood before the text of the decoded event;
    text    is not empty and surely the inside of a JSON string: complete and valid UTF-8 (no overlong form, no
            surrogate, nothing above U+10FFFF) of printable characters other than `"` and `\\` (DEL counts as not
            printable), or escapes of one letter: \\" \\\\ \\/ \\b \\f \\n \\r \\t;
    suffix  is what stood after the text, up to and including the CRLF that closes the chunk.

Every other chunk is left to the full decoders, so the rule may refuse a token but never accepts anything else.
`_token_reader.c` applies the same rule where it is compiled; one table of chunks tests both.
"""

import re
from array import array
from collections.abc import Callable

from loadgen.client.openai_api import ROLE, TEXTLESS, TOKENS, ProtocolError, StreamEvent, parse_event
from loadgen.client.sse import SSEDecoder

_TEXT_FIELD = re.compile(rb'"(?:content|text|reasoning_content|reasoning|thinking|refusal|delta)"\s*:\s*"')
_is_plain_text = re.compile(
    rb'(?:[ !#-\[\]-~]++|\\["\\/bfnrt]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef]'
    rb"[\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
).fullmatch

_CHUNK_BYTES = {b"%x\r\n" % size: size + len(b"%x\r\n" % size) + 2 for size in range(0x10, 0x1000)}
"""A chunk's size line -> the bytes of the whole chunk: size line, data and CRLF."""
_MAX_SHORT_CHUNK_BYTES = 0xFF + 6
"""The longest chunk whose size line has four bytes; longer ones have five."""


def skip_tokens_in_python(data: bytes, start: int, prefix: bytes, suffix: bytes) -> tuple[int, int]:
    """Return where the first chunk of `data[start:]` that is not a token begins, and the number of tokens before it."""
    lead, tail, total, count = len(prefix), len(suffix), len(data), 0
    chunk_bytes, starts, ends = _CHUNK_BYTES.get, data.startswith, data.endswith
    while size := chunk_bytes(data[start : start + 4]) or chunk_bytes(data[start : start + 5]):
        text, stop = start + (4 if size <= _MAX_SHORT_CHUNK_BYTES else 5) + lead, start + size
        if (
            stop > total
            or not starts(prefix, text - lead)
            or not ends(suffix, text, stop)
            or not _is_plain_text(data, text, stop - tail)
        ):
            break
        start = stop
        count += 1
    return start, count


try:
    from loadgen.client._token_reader import skip_tokens
except ImportError:  # not compiled here
    skip_tokens = skip_tokens_in_python


class TokenTemplate:
    """The bytes around the text of one stream's tokens. Tokens that it recognizes are appended to `instants`, the
    stream's arrival times as int64."""

    __slots__ = ("hits", "instants", "keep", "prefix", "suffix")

    def __init__(self, prefix: bytes, suffix: bytes, instants: "array[int]") -> None:
        self.prefix, self.suffix, self.instants = prefix, suffix, instants
        self.hits = 0
        """Tokens recognized."""
        self.keep: Callable[[bytes], None] | None = None
        """Called with the chunks of tokens that were recognized, if their words are wanted."""

    def skip(self, data: bytes, start: int, arrived_ns: int) -> int:
        """Count the tokens at the beginning of `data[start:]`, and return where the first other chunk begins."""
        stop, count = skip_tokens(data, start, self.prefix, self.suffix)
        if self.keep and count:
            self.keep(data[start:stop])
        self.instants += array("q", (arrived_ns,)) * count
        self.hits += count
        return stop

    def extend(self, instants: bytes) -> None:
        """Add tokens that the compiled reader recognized: their arrival times as int64."""
        self.instants.frombytes(instants)
        self.hits += len(instants) // 8


def learn_template(event: bytes, instants: "array[int]") -> TokenTemplate | None:
    """Return the template of one event's bytes, blank line included; None if it is not surely one.

    The proof: the event decodes to a token with another text in place of its own, and to an event without content with
    an empty one. So the presence of the text alone makes the event a token, of one kind, whatever the text is. Quotes
    inside a JSON string are escaped, hence the field that was found is a real one.
    """
    for field in _TEXT_FIELD.finditer(event):
        start = field.end()
        end = event.find(b'"', start)
        if _is_plain_text(event, start, end):
            prefix, suffix = event[:start], event[end:]
            if _decode(prefix + suffix) in (TEXTLESS, ROLE) and _decode(prefix + b"x" + suffix) in TOKENS.values():
                return TokenTemplate(prefix, suffix + b"\r\n", instants)
    return None


def _decode(data: bytes) -> StreamEvent | None:
    """Decode the bytes of exactly one event; None if they are anything else."""
    decoder = SSEDecoder()
    events = decoder.feed(data)
    if len(events) != 1 or not decoder.idle:
        return None
    try:
        return parse_event(events[0])
    except ProtocolError:
        return None
