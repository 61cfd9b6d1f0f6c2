"""Token lengths of a trace or of bins, found by path or by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import data_dir
from loadgen.workload.agent_sessions import holds_sessions, read_sessions
from loadgen.workload.sources import read_source
from loadgen.workload.token_bins import CountedPairs, Pairs, TokenBins, count_pairs, read_bins, sample_lengths
from loadgen.workload.trace_columns import Columns, columns_of, iter_columns
from loadgen.workload.worded_import import imported_rows
from loadgen.workload.worded_trace import checked_rows
from loadgen.workload.words import WordsFile

if TYPE_CHECKING:
    from loadgen.workload.trace import Trace, TraceRequest
    from loadgen.workload.trace_formats import Format

BLOCK_REQUESTS = 10_000
"""Requests with words that are held at a time."""
DRAWS = 100_000
"""Draws that represent bins where percentiles of their lengths are needed."""


def length_chunks(name: str) -> Iterator[Pairs]:
    """Yield the lengths of a trace in any format, or DRAWS stratified draws from bins; `name` as for `source_path`."""
    path = source_path(name)
    if path.suffix == ".json" and not holds_sessions(path):
        yield draw_bins(path)[1]
    else:
        yield from ((c.input_tokens, c.output_tokens) for c in iter_lengths(path, Counter()))


def iter_lengths(path: Path, dropped: Counter[str], format: Format | None = None) -> Iterator[Columns]:
    """Yield the requests of a trace in any format as columns; of a file with words, the lengths that its rows state.

    LoadgenError: a row with words states none.
    """
    if format is None and holds_sessions(path):
        yield columns_of(read_sessions([path], dropped).requests)
        return
    rows = imported_rows(str(path), format, {}, dropped)
    if rows is None:
        yield from iter_columns(path, dropped, format=format)
        return
    with Path(os.devnull).open("wb") as nowhere:
        requests = (request for _, request in checked_rows(path, rows, WordsFile(nowhere, dropped)))
        while part := list(islice(requests, BLOCK_REQUESTS)):
            yield Columns(
                np.array([request.arrival_s for request in part]),
                np.array([_known(path, request, request.input_tokens, "input_length") for request in part]),
                np.array([_known(path, request, request.output_tokens, "output_length") for request in part]),
                [request.workload for request in part],
                [request.session_id for request in part] if any(request.session_id for request in part) else None,
            )


def read_lengths(name: str) -> Trace:
    """Read a trace whose prompts are made up; one with words as the lengths that its rows state. `name` as for
    `source_path`. LoadgenError: a row with words states none."""
    path = source_path(name)
    with Path(os.devnull).open("wb") as nowhere:
        source = read_source(path, WordsFile(nowhere))
    for request in source.requests:
        _known(path, request, request.input_tokens, "input_length")
        _known(path, request, request.output_tokens, "output_length")
    requests = [msgspec.structs.replace(request, words=None, model=None) for request in source.requests]
    return msgspec.structs.replace(source, requests=tuple(requests))


def _known(path: Path, request: TraceRequest, tokens: int | None, field: str) -> int:
    if tokens is None:
        line = request.words.line if request.words else 0
        raise LoadgenError(
            f"{path}:{line}: no {field}: the tokens of these words are counted by the server that they are sent to; "
            "state their number, or replay the file"
        )
    return tokens


class CountedWorkload(NamedTuple):
    """The lengths of a workload, and the mean rate of its own arrivals; None where it has none."""

    pairs: CountedPairs
    rps: float | None


def count_workload(name: str) -> CountedWorkload:
    """Count the lengths of a trace in any format, or of bins; `name` as for `source_path`."""
    path = source_path(name)
    if path.suffix == ".json" and not holds_sessions(path):
        return CountedWorkload(count_pairs(length_chunks(name)), None)
    ends_s: list[float] = []
    requests = 0

    def chunks() -> Iterator[Pairs]:
        nonlocal requests
        for columns in iter_lengths(path, Counter()):
            requests += len(columns)
            ends_s[:] = [*ends_s[:1], float(columns.arrival_s[0]), float(columns.arrival_s[-1])]
            yield columns.input_tokens, columns.output_tokens

    pairs = count_pairs(chunks())
    duration_s = ends_s[-1] - ends_s[0]
    return CountedWorkload(pairs, (requests - 1) / duration_s if duration_s > 0 else None)


def source_path(name: str) -> Path:
    """Return the path of a file, or that of the shipped trace or workload profile of that name, from any folder.

    Profiles are bins, and have the suffix .json. LoadgenError for a name that is neither; a path is not looked at.
    """
    path, shipped = Path(name), shipped_sources()
    if path.is_file():
        return path
    if name in shipped:
        return shipped[name]
    if path.exists() or path.is_absolute():
        return path
    near = get_close_matches(path.name.split(".")[0], shipped, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(shipped)}"
    if path.name == name and not path.suffix:
        raise LoadgenError(f"no file, trace or workload called {name!r}; {hint}")
    if near:
        raise LoadgenError(f"cannot read {path}: there is no such file; of the shipped sources, {hint}")
    return path


def shipped_sources() -> dict[str, Path]:
    """Return the traces and the workload profiles of the package by name."""
    profiles = sorted((data_dir("profiles") / "workloads").glob("*.json"))
    traces = sorted(path for path in data_dir("traces").iterdir() if path.suffix in (".jsonl", ".toml"))
    return {path.stem: path for path in (*traces, *profiles)}


def draw_bins(path: Path) -> tuple[TokenBins, Pairs]:
    """Read bins and draw DRAWS pairs from them, always the same ones."""
    bins = read_bins(path)
    return bins, sample_lengths(bins, DRAWS, np.random.default_rng(0))


def spooled_lengths(path: Path, format: Format | None, spool: IO[bytes]) -> Callable[[], Iterator[Pairs]]:
    """Return a function that yields a trace's lengths: parsed at the first call, then from `spool`, 8 bytes a request.

    `spool` is an empty file, open for reading and writing.
    """
    parsed = False

    def chunks() -> Iterator[Pairs]:
        nonlocal parsed
        if parsed:
            spool.seek(0)
            while block := spool.read(2**20):
                inputs, outputs = np.frombuffer(block, np.int32).reshape(-1, 2).T.astype(np.int64)
                yield inputs, outputs
            return
        for columns in iter_lengths(path, Counter(), format=format):
            pairs = columns.input_tokens, columns.output_tokens
            spool.write(np.column_stack(pairs).astype(np.int32).tobytes())
            yield pairs
        parsed = True

    return chunks
