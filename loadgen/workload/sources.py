"""Sources of requests: a trace of lengths or of words, by its path or by the name of a shipped one."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from loadgen.workload.trace import Trace, check_rereadable, file_sha256, numbered_lines, opened, read_trace
from loadgen.workload.worded_trace import is_worded, read_worded, worded_fields
from loadgen.workload.words import MAX_WORDS_BYTES

if TYPE_CHECKING:
    from loadgen.workload.words import WordsFile


def read_source(path: Path, words: WordsFile, limit: int | None = None) -> Trace:
    """Read a trace of lengths, or the first `limit` requests of one with words, which are stored in `words`."""
    check_rereadable(path)
    with opened(path) as file:
        lines = numbered_lines(path, file, max_bytes=MAX_WORDS_BYTES)
        header = next(lines, None)
        if header is not None and is_worded(header[1]):
            trace = read_worded(path, worded_fields(path, chain([header], lines)), words, limit)
            return msgspec.structs.replace(trace, sha256=file_sha256(path))
    return read_trace(path)
