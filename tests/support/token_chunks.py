"""One table for the rule of `loadgen.client.token_template`, which the Python walker and the C reader must pass."""

from support.scripted_server import chunk

EVENT = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
PREFIX, SUFFIX = EVENT.split(b'"a"', 1)[0] + b'"', b'"' + EVENT.split(b'"a"', 1)[1] + b"\r\n"


def with_text(text: bytes) -> bytes:
    """Return a well-formed chunk whose event has `text` between the quotes."""
    return chunk(PREFIX + text + SUFFIX[:-2])


def _padded(data_bytes: int) -> bytes:
    """Return a token whose chunk has so many bytes of data."""
    return with_text(b"x" * (data_bytes - len(PREFIX) - len(SUFFIX) + 2))


_TOKEN = with_text(b"a")
_SIZE_LINE, _DATA = _TOKEN.split(b"\r\n", 1)

TEXTS: list[tuple[str, bytes, bool]] = [
    ("one letter", b"a", True),
    ("no text", b"", False),
    ("a space", b" ", True),
    ("the last printable character", b"~", True),
    ("DEL", b"\x7f", False),
    ("a control character", b"\x1f", False),
    ("a tab that is not escaped", b"\t", False),
    ("NUL", b"\0", False),
    ("a quote that is not escaped", b'a"b', False),
    ("a quote alone", b'"', False),
    *((f"escape {letter}", b"\\" + letter.encode(), True) for letter in '"\\/bfnrt'),
    *((f"no escape {letter}", b"\\" + letter.encode(), False) for letter in "aeux0'"),
    ("a unicode escape", b"\\u00e9", False),
    ("a backslash at the end", b"a\\", False),
    ("two backslashes at the end", b"a\\\\", True),
    ("a NUL that is escaped", b"\\\0", False),
    ("two bytes, the least", b"\xc2\x80", True),
    ("two bytes, the greatest", b"\xdf\xbf", True),
    ("two bytes, overlong", b"\xc1\xbf", False),
    ("two bytes, the second too small", b"\xc2\x7f", False),
    ("two bytes, the second too great", b"\xc2\xc0", False),
    ("two bytes, the second missing", b"\xc2", False),
    ("a continuation byte alone", b"\x80", False),
    ("three bytes, the least", b"\xe0\xa0\x80", True),
    ("three bytes, overlong", b"\xe0\x9f\xbf", False),
    ("three bytes before the surrogates", b"\xed\x9f\xbf", True),
    ("a surrogate", b"\xed\xa0\x80", False),
    ("three bytes after the surrogates", b"\xee\x80\x80", True),
    ("three bytes, the greatest", b"\xef\xbf\xbf", True),
    ("three bytes, the third wrong", b"\xe1\x80\xc0", False),
    ("three bytes, the third missing", b"\xe1\x80", False),
    ("four bytes, the least", b"\xf0\x90\x80\x80", True),
    ("four bytes, overlong", b"\xf0\x8f\xbf\xbf", False),
    ("four bytes, the greatest", b"\xf4\x8f\xbf\xbf", True),
    ("above U+10FFFF", b"\xf4\x90\x80\x80", False),
    ("a byte that begins no character", b"\xf5\x80\x80\x80", False),
    ("four bytes, the fourth wrong", b"\xf1\x80\x80\x7f", False),
    ("a mixture", 'héllo 漢🚀\\n\\"'.encode(), True),
]

CHUNKS: list[tuple[str, bytes, bool]] = [
    *((f"text: {name}", with_text(text), is_token) for name, text, is_token in TEXTS),
    ("two digits, the greatest", _padded(0xFF), True),
    ("three digits, the least", _padded(0x100), True),
    ("three digits, the greatest", _padded(0xFFF), True),
    ("four digits", _padded(0x1000), False),
    ("a leading zero", b"0" + _TOKEN, False),
    ("upper-case digits", b"FF" + _padded(0xFF)[2:], False),
    ("an extension", _SIZE_LINE + b";x\r\n" + _DATA, False),
    ("a space after the size", _SIZE_LINE + b" \r\n" + _DATA, False),
    ("a size line that ends in LF", _SIZE_LINE + b"\n" + _DATA, False),
    ("a size one too small", b"%x\r\n" % (int(_SIZE_LINE, 16) - 1) + _DATA, False),
    ("a size one too great", b"%x\r\n" % (int(_SIZE_LINE, 16) + 1) + _DATA, False),
    ("another prefix", _TOKEN.replace(b"delta", b"gamma"), False),
    ("another suffix", _TOKEN.replace(b"null", b"nulL"), False),
    ("the finish reason", _TOKEN.replace(b"null", b'"stop"'), False),
    ("the last byte missing", _TOKEN[:-1], False),
    ("the last two bytes missing", _TOKEN[:-2], False),
    ("only the size line", _SIZE_LINE + b"\r\n", False),
    ("the end of the body", b"0\r\n\r\n", False),
]
