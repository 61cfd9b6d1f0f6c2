"""Token bins: the joint distribution of a workload's (input, output) tokens.

It is joint because the two depend on each other: two marginal distributions would lose the cells of long prompts with
short answers that decide what a workload costs.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.files import read_json
from loadgen.stats.arrays import Floats, Ints
from loadgen.workload.trace import MAX_TOKENS, Trace, TraceRequest

Lengths = Ints
Pairs = tuple[Lengths, Lengths]
"""Input tokens and output tokens of the same requests, two arrays of one length."""

EdgeLaw = Literal["paper", "log2", "quantile", "stated"]
"""Rules that choose bin edges. stated: made from published numbers, not fitted to requests."""

PAPER_INPUT_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
PAPER_OUTPUT_EDGES = (0, 8, 16, 32, 64, 128, 256, 512)
"""Edges in "Energy Considerations of Large Language Model Inference and Efficiency Optimizations", arXiv 2504.17674."""

QUANTILES = 32
"""Bins per side with `quantile` edges. Within a bin of 1/32 of requests, a law of the right mean errs by about 0.01."""


class TokenBin(msgspec.Struct, frozen=True, kw_only=True):
    """Requests with lo < input <= hi and lo < output <= hi: their number and mean lengths."""

    input_range: tuple[int, int]
    output_range: tuple[int, int]
    count: int
    mean_input: float
    mean_output: float


class TokenBins(msgspec.Struct, frozen=True, kw_only=True):
    """Sorted bins, each with at least one request; `provenance` names their source, licence and making."""

    name: str
    provenance: dict[str, str]
    edges: EdgeLaw
    input_edges: tuple[int, ...]
    output_edges: tuple[int, ...]
    bins: tuple[TokenBin, ...]

    @property
    def count(self) -> int:
        return sum(b.count for b in self.bins)

    @property
    def mean_input(self) -> float:
        return sum(b.count * b.mean_input for b in self.bins) / self.count

    @property
    def mean_output(self) -> float:
        return sum(b.count * b.mean_output for b in self.bins) / self.count


# -- fit --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountedPairs:
    """Distinct (input, output) pairs of a workload, and the number of requests with each."""

    inputs: Lengths
    outputs: Lengths
    counts: Lengths


def count_pairs(chunks: Iterable[Pairs]) -> CountedPairs:
    """Count the distinct pairs. Memory grows with the number of distinct pairs, not of requests."""
    parts: list[tuple[Lengths, Lengths]] = []
    rows = 0
    for inputs, outputs in chunks:
        parts.append(np.unique(inputs << 32 | outputs, return_counts=True))
        rows += len(parts[-1][0])
        if rows > MERGE_ROWS:
            parts = [merge_counts(parts)]
            rows = 0
    if not parts:
        raise LoadgenError("the workload has no requests")
    keys, counts = merge_counts(parts)
    return CountedPairs(keys >> 32, keys & 0xFFFFFFFF, counts)


MERGE_ROWS = 4_000_000
"""Rows of counted chunks that are held before they are merged."""


def merge_counts(parts: list[tuple[Lengths, Lengths]]) -> tuple[Lengths, Lengths]:
    """Return the distinct keys of all (keys, counts) in ascending order, each with the sum of its counts."""
    keys, counts = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[begins], np.add.reduceat(counts, begins)


def fit_bins(name: str, chunks: Callable[[], Iterable[Pairs]], edges: EdgeLaw, provenance: dict[str, str]) -> TokenBins:
    """Fit bins to every pair in `chunks()`, which is called twice: for the exact extremes or quantiles, then to count.

    Memory grows with the number of distinct lengths and of bins, not of requests. Lengths beyond the last edge of
    `paper` go to one more bin that ends at the longest.
    """
    input_histogram: Counter[int] = Counter()
    output_histogram: Counter[int] = Counter()
    for inputs, outputs in chunks():
        count_up(input_histogram, inputs)
        count_up(output_histogram, outputs)
    if not input_histogram:
        raise LoadgenError(f"{name}: no requests to make bins of")
    longest_input, longest_output = max(input_histogram), max(output_histogram)
    match edges:
        case "paper":
            input_edges = _extended(PAPER_INPUT_EDGES, longest_input)
            output_edges = _extended(PAPER_OUTPUT_EDGES, longest_output)
        case "log2":
            input_edges, output_edges = _powers_of_2(longest_input), _powers_of_2(longest_output)
        case "quantile":
            input_edges, output_edges = _quantiles(input_histogram), _quantiles(output_histogram)
        case "stated":
            raise ValueError("stated edges are not fitted")
    return TokenBins(
        name=name,
        provenance=provenance,
        edges=edges,
        input_edges=input_edges,
        output_edges=output_edges,
        bins=count_bins(chunks(), input_edges, output_edges),
    )


def count_up(histogram: Counter[int], values: Lengths) -> None:
    """Add each of `values` to the histogram."""
    distinct, counts = np.unique(values, return_counts=True)
    histogram.update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def _extended(edges: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Add an edge at the longest length if that lies beyond the last edge."""
    return edges if longest <= edges[-1] else (*edges, longest)


def _powers_of_2(longest: int) -> tuple[int, ...]:
    """Return 0, 1, 2, 4 ... up to the first power that is not below `longest`."""
    return (0, *(2**k for k in range((longest - 1).bit_length() + 1)))


def _quantiles(histogram: Counter[int]) -> tuple[int, ...]:
    """Return edges at the quantiles k / QUANTILES, and around any single length that has more than one such share."""
    values = np.array(sorted(histogram))
    counts = np.array([histogram[int(v)] for v in values])
    share = counts.sum() / QUANTILES
    ranks = np.arange(1, QUANTILES + 1) * share * (1 - 1e-12)
    quantiles = values[np.searchsorted(np.cumsum(counts), ranks)]
    spikes = values[counts > share]
    edges = {0, int(values[0]) - 1, *quantiles.tolist(), *spikes.tolist(), *(spikes - 1).tolist()}
    return tuple(sorted(edges))


def count_bins(
    chunks: Iterable[Pairs], input_edges: tuple[int, ...], output_edges: tuple[int, ...]
) -> tuple[TokenBin, ...]:
    """Return the bins between the edges that hold at least one pair, in ascending order, with means to 3 decimals."""
    columns = len(output_edges)
    counts: Counter[int] = Counter()
    input_sums: Counter[int] = Counter()
    output_sums: Counter[int] = Counter()
    for inputs, outputs in chunks:
        cells = np.searchsorted(input_edges, inputs) * columns + np.searchsorted(output_edges, outputs)
        cell_counts = np.bincount(cells)
        keys = np.flatnonzero(cell_counts)
        for total, added in (
            (counts, cell_counts),
            (input_sums, np.bincount(cells, inputs)),  # float64 sums: exact below 2**53
            (output_sums, np.bincount(cells, outputs)),
        ):
            total.update(dict(zip(keys.tolist(), map(int, added[keys]), strict=True)))
    return tuple(
        TokenBin(
            input_range=(input_edges[key // columns - 1], input_edges[key // columns]),
            output_range=(output_edges[key % columns - 1], output_edges[key % columns]),
            count=counts[key],
            mean_input=round(input_sums[key] / counts[key], 3),
            mean_output=round(output_sums[key] / counts[key], 3),
        )
        for key in sorted(counts)
    )


# -- sample -----------------------------------------------------------------------------------------------------------


def sample_lengths(bins: TokenBins, n: int, rng: np.random.Generator) -> Pairs:
    """Draw `n` (input, output) pairs in random order, closer in distribution to the bins than independent draws are.

    Bins are drawn systematically: n points evenly spaced (by one random offset) over the cumulative counts, so each
    bin gets its share of n up to rounding. Within a bin, lengths are drawn from `_within`, stratified too, input and
    output independently.
    """
    if n < 1:
        raise LoadgenError(f"{n} requests: expected at least 1")
    counts = np.array([b.count for b in bins.bins])
    points = (np.arange(n) + rng.random()) * (counts.sum() / n)
    cell = np.minimum(np.searchsorted(np.cumsum(counts), points, side="right"), len(counts) - 1)
    inputs = _within(
        np.array([b.input_range for b in bins.bins]), np.array([b.mean_input for b in bins.bins]), cell, rng
    )
    outputs = _within(
        np.array([b.output_range for b in bins.bins]), np.array([b.mean_output for b in bins.bins]), cell, rng
    )
    order = np.argsort(rng.random(n), kind="stable")
    return inputs[order], outputs[order]


def _within(ranges: Lengths, means: Floats, cell: Lengths, rng: np.random.Generator) -> Lengths:
    """Draw a length in (lo, hi] for each entry of `cell`, from the maximum-entropy law with the bin's mean.

    On k = 1..w that is the truncated geometric, P(k) ~ exp(theta k): uniform when the mean is in the middle, and
    concentrated at the end that the mean is near. Inverse: k = ceil(log(1 + u (exp(theta w) - 1)) / theta).
    """
    lo, width = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
    mean = means - lo
    mirrored = mean > (width + 1) / 2  # solve for theta <= 0 only, where exp cannot overflow
    theta = geometric_theta(np.where(mirrored, width + 1 - mean, mean), width.astype(np.float64))
    # Uniform numbers such that the m of one cell fall one into each m-th of [0, 1); `cell` is sorted.
    _, begins, size = np.unique(cell, return_index=True, return_counts=True)
    shuffled = np.lexsort((rng.random(len(cell)), cell))  # a random order within each cell
    stratum = shuffled - np.repeat(begins, size)
    u, w, t = (stratum + rng.random(len(cell))) / np.repeat(size, size), width[cell], theta[cell]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(t * w > -1e-9, u * w, np.log1p(u * np.expm1(t * w)) / t)
    k = np.clip(np.ceil(steps), 1, w).astype(np.int64)
    return np.asarray(lo[cell] + np.where(mirrored[cell], w + 1 - k, k))


def geometric_theta(mean: Floats, width: Floats) -> Floats:
    """Solve sum(k exp(theta k)) / sum(exp(theta k)) = mean over k = 1..width for theta <= 0, by bisection.

    The quotient is 1 / (1 - q) - w q^w / (1 - q^w) with q = exp(theta).
    """
    low, high = np.full_like(mean, -40.0), np.full_like(mean, -1e-12)
    for _ in range(80):
        theta = (low + high) / 2
        with np.errstate(over="ignore"):
            mean_at_theta = np.where(
                theta * width > -1e-4,
                (width + 1) / 2 + theta * (width**2 - 1) / 12,  # the two terms below cancel here
                -1 / np.expm1(theta) - width / np.expm1(-width * theta),
            )
        below = mean_at_theta < mean
        low, high = np.where(below, theta, low), np.where(below, high, theta)
    return (low + high) / 2


# -- files ------------------------------------------------------------------------------------------------------------


def bins_trace(bins: TokenBins, count: int, rng: np.random.Generator) -> Trace:
    """Return `count` requests without arrivals, whose lengths are drawn from the bins."""
    inputs, outputs = sample_lengths(bins, count, rng)
    pairs = zip(inputs.tolist(), outputs.tolist(), strict=True)
    requests = (TraceRequest(arrival_s=0.0, input_tokens=i, output_tokens=o, workload=bins.name) for i, o in pairs)
    return Trace(bins.name, tuple(requests), "", False)


def bins_json(bins: TokenBins) -> bytes:
    """Return JSON with one field, and in `bins` one bin, a line."""
    encode = msgspec.json.encode
    fields = {f: encode(getattr(bins, f)) for f in bins.__struct_fields__ if f != "bins"}
    fields["count"] = encode(bins.count)
    fields["bins"] = b"[\n" + b",\n".join(encode(b) for b in bins.bins) + b"\n]"
    return b"{\n" + b",\n".join(encode(f) + b": " + value for f, value in fields.items()) + b"\n}\n"


def is_bins(path: Path) -> bool:
    """Return whether a .json file holds token bins, by its beginning. LoadgenError: it cannot be read."""
    if path.suffix != ".json" or not path.is_file():  # a pipe can be read once
        return False
    try:
        with path.open("rb") as file:
            return b'"input_edges"' in file.read(2**16)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err


def read_bins(path: Path) -> TokenBins:
    """Read and validate the bins in `path`. Raises LoadgenError."""
    bins = read_json(path, TokenBins, "token bins (`loadgen trace fit` makes them)")
    if not bins.bins:
        raise LoadgenError(f"{path}: no bins in it")
    for i, b in enumerate(bins.bins):
        place = f"{path}: bin {i}"
        if b.count < 1:
            raise LoadgenError(f"{place}: count {b.count}: expected at least 1")
        for side, (lo, hi), mean in (("input", b.input_range, b.mean_input), ("output", b.output_range, b.mean_output)):
            if not 0 <= lo < hi <= MAX_TOKENS:
                raise LoadgenError(f"{place}: {side}_range {lo}, {hi}: expected 0 <= lo < hi <= {MAX_TOKENS}")
            if not lo + 1 - 0.001 <= mean <= hi + 0.001:
                raise LoadgenError(f"{place}: mean_{side} {mean}: expected a mean of lengths in ({lo}, {hi}]")
    return bins
