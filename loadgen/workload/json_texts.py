"""The JSON values of a file, as texts, one at a time: its lines, or the elements of the list that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.trace import numbered_lines, shortened
from loadgen.workload.words import MAX_WORDS_BYTES

if TYPE_CHECKING:
    from loadgen.workload.trace import Lines

Value = TypeVar("Value")

CHUNK_BYTES = 2**20
"""Bytes of a list that are read at a time."""

_STRUCTURE = re.compile(rb'["\[\]{},]')
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_MISFIT = re.compile(r"(?P<fault>.*) - at `\$\.?(?P<field>.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field (`.*`)")


def json_texts(path: Path, file: IO[bytes], max_bytes: int = MAX_WORDS_BYTES) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line of JSON Lines, of each element of a list, or of one object on many lines.

    A text has no line ends: those between its values are blanks.
    LoadgenError: a value is longer than `max_bytes`, cut off, or not UTF-8.
    """
    if first_bytes(file).startswith(b"["):
        yield from list_elements(path, file, max_bytes)
        return
    lines = numbered_lines(path, file, max_bytes=max_bytes)
    first = next(lines, None)
    if first is not None and first[1].endswith(("{", "[", ",")):
        text = " ".join(text for _, text in chain([first], lines))
        if len(text) > max_bytes:
            raise LoadgenError(f"{path}: the object in it is longer than {max_bytes >> 20} MiB")
        yield first[0], text
    elif first is not None:
        yield from chain([first], lines)


def first_bytes(file: Any) -> bytes:
    """Return bytes at the beginning of a file that has not been read, without a mark of byte order and blanks."""
    return bytes(file.peek(2**12).removeprefix(_BOM).lstrip(_BLANK))


def list_elements(path: Path, file: IO[bytes], max_bytes: int = MAX_WORDS_BYTES) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of the elements of a JSON list. Each is checked by whoever decodes it."""
    buffer = bytearray(file.read(CHUNK_BYTES))
    position = buffer.index(b"[") + 1
    begin, depth, quoted, number = position, 0, False, 1
    while True:
        index = _next_mark(buffer, position, quoted)
        if index < 0:
            position = len(buffer)
            if position - begin > max_bytes:
                raise LoadgenError(f"{path}:{number}: the element is longer than {max_bytes >> 20} MiB")
            more = file.read(CHUNK_BYTES)
            if not more:
                raise LoadgenError(f"{path}:{number}: the file ends within its list; it was cut off")
            del buffer[:begin]
            position, begin = position - begin, 0
            buffer += more
            continue
        mark, position = buffer[index], index + 1
        if mark == ord('"'):
            quoted = not quoted
        elif mark == ord("\n"):
            raise LoadgenError(f"{path}:{number}: a text has a line end in it; JSON writes it as \\n")
        elif mark in b"[{":
            depth += 1
        elif mark in b"]}" and depth:
            depth -= 1
        elif depth == 0:  # a comma between two elements, or the end of the list
            element = bytes(buffer[begin:index]).strip(_BLANK)
            if element or mark != ord("]") or number > 1:
                yield number, _text(path, number, element)
            begin, number = position, number + 1
            if mark != ord(","):
                break
    rest = bytes(buffer[begin:]).strip(_BLANK) or file.read(CHUNK_BYTES).strip(_BLANK)
    if rest:
        raise LoadgenError(f"{path}: {shortened(rest[:60].decode(errors='replace'))} follows the end of its list")


def _next_mark(buffer: bytearray, position: int, quoted: bool) -> int:
    """Return the index of the next character that has a meaning, -1 if there is none yet.

    Within a text, that is its end, or a line end, which none may have.
    """
    if not quoted:
        mark = _STRUCTURE.search(buffer, position)
        return mark.start() if mark else -1
    begin = position
    while (end := buffer.find(b'"', position)) >= 0:
        before = end
        while before and buffer[before - 1] == ord("\\"):
            before -= 1
        if (end - before) % 2 == 0:
            break
        position = end + 1
    line_end = buffer.find(b"\n", begin, end if end >= 0 else len(buffer))
    return line_end if line_end >= 0 else end


def _text(path: Path, number: int, element: bytes) -> str:
    try:
        return element.replace(b"\n", b" ").decode()
    except UnicodeDecodeError as err:
        byte = f"{err.object[err.start]:#04x} at {err.start}"
        raise LoadgenError(f"{path}:{number}: byte {byte} is not UTF-8") from err


def decoded(path: Path, lines: Lines, decoder: msgspec.json.Decoder[Value]) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of JSON texts. LoadgenError names the file, the number and the field at fault."""
    for number, text in lines:
        try:
            yield number, decoder.decode(text)
        except msgspec.ValidationError as err:
            raise LoadgenError(f"{path}:{number}: {misfit(err)}") from err
        except (msgspec.DecodeError, RecursionError) as err:
            raise LoadgenError(f"{path}:{number}: not a JSON object: {shortened(text)}") from err


def misfit(error: msgspec.ValidationError) -> str:
    """Describe a value of another type than was expected: its field first."""
    message = _UNKNOWN.sub(r"Unknown field \1", str(error))
    match = _MISFIT.fullmatch(message)
    field, fault = (f"{match['field']}: ", match["fault"]) if match else ("", message)
    text = f"{field}{fault[0].lower()}{fault[1:]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Return at most 200 printable characters: safe on one line of a terminal, whatever a file holds."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:200])
