"""Read and write traces from a program."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from loadgen.errors import LoadgenError
from loadgen.workload import trace as traces
from loadgen.workload.length_source import read_lengths, source_path
from loadgen.workload.token_bins import is_bins
from loadgen.workload.trace import Trace, TraceRequest


def read_trace(source: str | os.PathLike[str]) -> Trace:
    """Read the arrivals and the lengths of a trace: a file, or the name of a shipped one such as "chat".

    A file of your own prompts is read if its lines state both lengths. The words are left out: to send them, `replay`
    the file.
    LoadgenError: it cannot be read, or it is of another kind; `loadgen trace import` reads logs and tables.
    """
    path = source_path(os.fspath(source))
    if path.suffix == ".toml" or is_bins(path):
        raise LoadgenError(f"{path} has no requests before they are drawn: `loadgen trace sample` writes a trace")
    return read_lengths(os.fspath(source))


def write_trace(
    path: str | os.PathLike[str], requests: Trace | Iterable[TraceRequest], *, overwrite: bool = False
) -> None:
    """Write requests as a trace that `replay` and other tools read, in the order of their arrivals, all or nothing.

    It is compressed if `path` ends in .gz or .zst.
    LoadgenError: a request has no lengths or has words of its own, the file exists and would change, or it cannot be
    written.
    """
    rows = sorted(requests.requests if isinstance(requests, Trace) else requests, key=lambda row: row.arrival_s)
    if not rows:
        raise LoadgenError(f"{path}: a trace has at least one request")
    for number, row in enumerate(rows, 1):
        if row.words is not None or row.input_tokens is None or row.output_tokens is None:
            raise LoadgenError(f"{path}:{number}: expected a request with both of its lengths, and no words of its own")
        if not (math.isfinite(row.arrival_s) and row.input_tokens >= 1 and row.output_tokens >= 1):
            raise LoadgenError(f"{path}:{number}: expected a finite arrival, and lengths of at least 1 token")
    traces.write_trace(Path(path), rows, overwrite=overwrite)
