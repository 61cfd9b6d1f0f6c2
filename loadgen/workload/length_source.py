"""Token lengths of a trace or of bins, found by path or by name."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from numpy.random import default_rng

from loadgen.files import profile_path
from loadgen.workload.token_bins import Pairs, TokenBins, read_bins, sample_lengths
from loadgen.workload.trace_columns import iter_columns

DRAWS = 100_000
"""Draws that represent bins where percentiles of their lengths are needed."""


def length_chunks(name: str) -> Iterator[Pairs]:
    """Yield the lengths of a trace in any format, or DRAWS stratified draws from bins; `name` as for `source_path`."""
    path = source_path(name)
    if path.suffix == ".json":
        yield draw_bins(path)[1]
    else:
        yield from ((c.input_tokens, c.output_tokens) for c in iter_columns(path, Counter()))


def source_path(name: str) -> Path:
    """Return the path of a file, or of the bins of that name in profiles/workloads. Bins have the suffix .json."""
    path = Path(name)
    if path.name == name and not path.suffix and not path.exists():
        return profile_path("workloads", name, "json")
    return path


def draw_bins(path: Path) -> tuple[TokenBins, Pairs]:
    """Read bins and draw DRAWS pairs from them, always the same ones."""
    bins = read_bins(path)
    return bins, sample_lengths(bins, DRAWS, default_rng(0))
