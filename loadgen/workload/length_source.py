"""Token lengths of a trace or of bins, found by path or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import data_dir
from loadgen.workload.token_bins import CountedPairs, Pairs, TokenBins, count_pairs, read_bins, sample_lengths
from loadgen.workload.trace_columns import iter_columns

if TYPE_CHECKING:
    from loadgen.workload.trace_formats import Format

DRAWS = 100_000
"""Draws that represent bins where percentiles of their lengths are needed."""


def length_chunks(name: str) -> Iterator[Pairs]:
    """Yield the lengths of a trace in any format, or DRAWS stratified draws from bins; `name` as for `source_path`."""
    path = source_path(name)
    if path.suffix == ".json":
        yield draw_bins(path)[1]
    else:
        yield from ((c.input_tokens, c.output_tokens) for c in iter_columns(path, Counter()))


class CountedWorkload(NamedTuple):
    """The lengths of a workload, and the mean rate of its own arrivals; None where it has none."""

    pairs: CountedPairs
    rps: float | None


def count_workload(name: str) -> CountedWorkload:
    """Count the lengths of a trace in any format, or of bins; `name` as for `source_path`."""
    path = source_path(name)
    if path.suffix == ".json":
        return CountedWorkload(count_pairs(length_chunks(name)), None)
    ends_s: list[float] = []
    requests = 0

    def chunks() -> Iterator[Pairs]:
        nonlocal requests
        for columns in iter_columns(path, Counter()):
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
        for columns in iter_columns(path, Counter(), format=format):
            pairs = columns.input_tokens, columns.output_tokens
            spool.write(np.column_stack(pairs).astype(np.int32).tobytes())
            yield pairs
        parsed = True

    return chunks
