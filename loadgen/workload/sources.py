"""Sources of requests: a trace of lengths or of words, bins, or laws that lengths are drawn from."""

from __future__ import annotations

from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import sha256_of
from loadgen.workload.agent_sessions import holds_sessions, read_sessions, session_files
from loadgen.workload.length_laws import POOL, drawn_trace
from loadgen.workload.session_graphs import are_graphs
from loadgen.workload.token_bins import bins_trace, is_bins, read_bins
from loadgen.workload.trace import Trace, nonempty_in_order, opened, parse_jsonl, read_trace
from loadgen.workload.worded_formats import LOGS, file_texts, worded_format, worded_rows
from loadgen.workload.worded_trace import read_worded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.workload.words import WordsFile


def open_source(
    path: Path | None,
    laws: tuple[str | None, str | None] | None,
    words: WordsFile,
    arrivals: Mapping[str, Any],
    limits: Mapping[str, Any],
    model: str | None = None,
) -> Trace:
    """Return the requests of a trace or of bins, or of lengths drawn from the (input, output) laws, as replay's options
    state them. `arrivals` and `limits` are those of the schedule."""
    if (path is None) == (laws is None):
        raise LoadgenError(
            "nothing to replay: give a TRACE, --input and --output, a TOML file of streams, or --stream chat:3"
            if path is None
            else f"{path} and --input: give a trace, or lengths"
        )
    if path is not None and not is_bins(path):
        # Its mean rate, and what is thinned or added, depend on all requests of a trace.
        is_prefix = arrivals["scale"] == "compress" and (arrivals["rps"] is not None or arrivals["arrival"] == "trace")
        return read_source(path, words, limits["num_requests"] if is_prefix else None, model)
    if limits["duration_s"] is None and limits["num_requests"] is None:
        raise LoadgenError("drawn lengths have no end; say one with --duration or --num-requests")
    count = max(POOL, limits["num_requests"] or 0)
    rng = np.random.default_rng([limits["seed"], 1])
    if path is not None:
        return bins_trace(read_bins(path), count, rng)
    input_law, output_law = laws or (None, None)
    if input_law is None or output_law is None:
        raise LoadgenError("--input and --output: give both, the lengths of prompts and of answers")
    return drawn_trace("lengths", input_law, output_law, count, rng)


def read_source(path: Path, words: WordsFile, limit: int | None = None, model: str | None = None) -> Trace:
    """Read a trace of lengths, or a file with words, which are stored in `words`; at most its first `limit` requests.

    The file is read once, so that it may be a pipe. `model` is asked instead of those that a log recorded; a model
    that a trace names stays.
    """
    if holds_sessions(path):
        return read_sessions([path], words.left_out)
    with opened(path) as file:
        return read_open_source(path, file, words, limit, model)


def read_stored(path: Path) -> Trace:
    """Read a trace of lengths. LoadgenError: the file holds recorded agent sessions, which are no trace yet."""
    if holds_sessions(path):
        raise LoadgenError(f"{path} holds recorded agent sessions: make a trace of them with loadgen trace import")
    return read_trace(path)


def read_independent(path: Path, instead: str) -> Trace:
    """Read a trace of lengths for a sender that waits for no answers. LoadgenError: some request has to wait for
    another; the text ends with `instead`."""
    source = read_stored(path)
    if are_graphs(source.requests):
        raise LoadgenError(f"{path}: requests of agent sessions wait for answers; {instead}")
    return source


def source_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a source: of a folder of sessions, that of its files' names and contents in order."""
    if not path.is_dir():
        return sha256_of(path)
    files = [f"{sha256_of(file)}  {file.name}\n" for file in session_files([path])]
    return sha256("".join(files).encode()).hexdigest()


def read_open_source(
    path: Path, file: IO[bytes], words: WordsFile, limit: int | None = None, model: str | None = None
) -> Trace:
    """Read an open file, which has not been read, as `read_source` does. `path` is its name, for error messages."""
    texts = file_texts(path, file, {}, words.left_out)
    first = next(texts, None)
    if first is not None and (format := worded_format(path, first[1])) is not None:
        replaced = {"model": model} if model and format in LOGS else None
        rows = worded_rows(path, format, chain([first], texts), words.left_out, replaced)
        return read_worded(path, rows, words, limit)
    lengths = parse_jsonl(path, chain([first] if first else [], texts))
    return Trace(path.name.split(".")[0], tuple(nonempty_in_order(path, lengths)), "")
