"""Token lengths of a trace or of bins, found by path or by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.files import profile_path
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
    """Return the path of a file, or of the bins of that name in profiles/workloads. Bins have the suffix .json."""
    path = Path(name)
    if path.name == name and not path.suffix and not path.exists():
        return profile_path("workloads", name, "json")
    return path


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
