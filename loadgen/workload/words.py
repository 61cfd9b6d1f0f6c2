"""The words of requests: a user's own prompts, conversations or whole request bodies.

They are read once, into a file of the run that holds one JSON object per request; a schedule refers to them by their
place in that file, by the line of their source, and by their SHA-256. So a source that changes, or that can be read
only once, is sent as it was when it was read, every sending process finds the same words, and memory holds none.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from loadgen.errors import LoadgenError
from loadgen.record import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_Value = TypeVar("_Value")

WORDS = {"messages": "chat", "prompt": "completions", "body": None}
"""The fields that hold the words of a request, and the endpoint that takes each. A body is of any."""

SAMPLING = frozenset((
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "temperature", "top_p", "top_k", "min_p", "stop",
    "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "logit_bias",
    "reasoning_effort", "chat_template_kwargs", "user",
))  # fmt: skip
"""Fields of the API that may stand beside `messages` or `prompt`; they are sent as they are."""

ROUTING = frozenset(("model", "max_tokens", "headers"))
"""Fields of a line that say how its words are sent."""

MAX_WORDS_BYTES = 256 * 2**20
"""Largest request that is taken: servers refuse far smaller ones, and one has to fit into memory to be sent."""

Fields = dict[str, msgspec.Raw]
"""A JSON object whose values keep the bytes in which they were written."""

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
"""Matches a surrogate pair, half a pair (its group), or any other escape."""
HIDDEN = "\ue0dd".encode()
_encode = msgspec.json.Encoder().encode


def decode_fields(data: bytes) -> Fields:
    """Return the fields of a JSON object. MsgspecError or RecursionError: it is none.

    Half a surrogate pair, which models and logs write, stays as it is; the decoder refuses it even in a value that it
    passes over, so that it is hidden meanwhile.
    """
    fields, is_hidden = _decoded(data, _decode_fields)
    return {name: _shown(value) for name, value in fields.items()} if is_hidden else fields


def decode_list(data: bytes) -> list[msgspec.Raw]:
    """Return the items of a JSON list, each with its bytes, as `decode_fields` does."""
    items, is_hidden = _decoded(data, _decode_list)
    return [_shown(item) for item in items] if is_hidden else items


def _decoded(data: bytes, decode: Callable[[bytes], _Value]) -> tuple[_Value, bool]:
    """Return what JSON is, and whether halves of surrogate pairs are hidden in it."""
    try:
        return decode(data), False
    except msgspec.MsgspecError:
        hidden = hide_halves(data)
        if hidden == data or HIDDEN in data:
            raise
        return decode(hidden), True


def _shown(value: msgspec.Raw) -> msgspec.Raw:
    return msgspec.Raw(show_halves(bytes(value)))


def hide_halves(data: bytes) -> bytes:
    """Return JSON in which each half of a surrogate pair is plain text, for a decoder that refuses halves."""
    return ESCAPES.sub(lambda match: HIDDEN + match[1] if match[1] else match[0], data)


def show_halves(data: bytes) -> bytes:
    """Return the JSON that `hide_halves` was given."""
    return data.replace(HIDDEN, b"\\")


class WordsRef(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The place of one request's words."""

    line: int
    """Line, or row, of the source from 1."""
    sha256: str
    """SHA-256 of the words as they were stored."""
    offset: int
    """Offset of its bytes in bodies.jsonl."""
    size: int
    """Bytes in the run's file of words; bodies.jsonl of the run folder is that file, if it was kept."""
    endpoint: Endpoint | None = None
    """The API that they are sent to; None: the run's. See `routes.routed`."""
    is_body: bool = False
    """True if they are a whole request body, which states itself where its answer ends."""
    continues: bool = False
    """True if they are only the new messages of a turn, which follow the answer that was received before it."""


class WordsFile:
    """Stores the words of requests in a file, one line each, while their source is read."""

    def __init__(self, file: IO[bytes], left_out: Counter[str] | None = None) -> None:
        self._file = file
        self.left_out: Counter[str] = Counter() if left_out is None else left_out
        """Number of rows of the sources, or of parts of rows, that have no place in a trace, by what they are."""
        self._end = file.seek(0, os.SEEK_END)

    def add(self, fields: Mapping[str, Any], line: int, endpoint: Endpoint | None, continues: bool = False) -> WordsRef:
        """Store the fields of a line that hold or route its words. OSError: the file cannot be written.

        A line end between two tokens of JSON becomes a space, so that they are one line here.
        """
        data = _encode(fields)
        if b"\n" in data:
            data = data.replace(b"\n", b" ")
        self._file.write(data + b"\n")
        ref = WordsRef(
            line=line,
            sha256=sha256(data).hexdigest(),
            offset=self._end,
            size=len(data),
            endpoint=endpoint,
            is_body="body" in fields,
            continues=continues,
        )
        self._end += len(data) + 1
        return ref

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def stored_words() -> Iterator[tuple[WordsFile, Path]]:
    """Yield a file for the words of a run, and a path at which any process reads it while this one has it open.

    It has no name in its folder, so that nothing is left of it however this process ends. LoadgenError: it cannot be
    made.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (closed below; here only its errors are caught)
    except OSError as err:
        raise LoadgenError(f"cannot store the words of requests in a temporary file: {err.strerror or err}") from err
    with file:
        yield WordsFile(file), Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


class WordsReader:
    """Reads the words of a run's requests. Processes may share the file."""

    def __init__(self, path: Path) -> None:
        """LoadgenError: there is no such file."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as err:
            raise LoadgenError(f"cannot read the words of the requests in {path}: {err.strerror}") from err

    def fields(self, ref: WordsRef) -> Fields:
        """Return the stored fields. LoadgenError: the file was changed or cut while the run lasted."""
        data = os.pread(self._descriptor, ref.size, ref.offset)
        if sha256(data).hexdigest() != ref.sha256:
            raise LoadgenError(f"the words of line {ref.line} were changed or cut while the run lasted")
        return decode_fields(data)

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_descriptor", None)) is not None:
            os.close(descriptor)
