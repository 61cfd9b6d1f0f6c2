"""Shaded tables by input and output length, such as the mean joules of requests."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.report.charts.shaded import Shade, shaded_table
from loadgen.report.format import joules
from loadgen.report.markup import Markup, tag

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult


class Point(NamedTuple):
    """One completed request whose energy and lengths are known."""

    input_tokens: int
    output_tokens: int
    joules: float


def points(result: RunResult) -> list[Point]:
    """Return the points. Failed requests have energy too, but no lengths to set it against."""
    if result.attribution is None:
        return []
    records = {record.index: record for record in result.records if record.ok}
    return [
        Point(record.input_tokens, record.output_tokens, share.joules)
        for share in result.attribution.requests
        if (record := records.get(share.index)) is not None and share.joules is not None
        if record.input_tokens is not None and record.output_tokens is not None
    ]


@dataclass(frozen=True)
class Heat:
    """Mean joules per request by (input, output) tokens. A cell [low, high) without a request is None, not 0."""

    input_edges: list[int]
    output_edges: list[int]
    cells: list[list[tuple[int, float] | None]]


def heat(points: list[Point]) -> Heat | None:
    """Return cells between powers of two; of four or more if there would be more than eight rows or columns."""
    if not points:
        return None
    inputs = np.array([p.input_tokens for p in points])
    outputs = np.array([p.output_tokens for p in points])
    energy = np.array([p.joules for p in points])
    rows, columns = _edges(inputs), _edges(outputs)
    row, column = (np.searchsorted(e, v, "right") - 1 for e, v in ((rows, inputs), (columns, outputs)))
    shape = (len(rows) - 1, len(columns) - 1)
    place = row * shape[1] + column
    counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(place, weights=energy, minlength=shape[0] * shape[1]).reshape(shape)
    cells = [
        [(int(n), float(j / n)) if n else None for n, j in zip(ns, js, strict=True)]
        for ns, js in zip(counts, sums, strict=True)
    ]
    return Heat(rows, columns, cells)


def _edges(tokens: NDArray[np.int64]) -> list[int]:
    low, high = int(max(tokens.min(), 1)).bit_length() - 1, int(max(tokens.max(), 1)).bit_length()
    stride = max(1, -(-(high - low) // 8))
    exponents = [*range(low, high, stride), low + stride * -(-(high - low) // stride)]
    edges = [2**e for e in exponents]
    return [0, *edges[1:]] if tokens.min() == 0 else edges


def heat_map(result: RunResult) -> Markup:
    """Return the mean joules of completed requests by input and output length."""
    heading = "Mean joules per request by length"
    grid = heat(points(result))
    if grid is None:
        return tag(
            "figure", tag("h3", heading), tag("p", "No completed request has attributed energy.", class_="empty")
        )
    means = [cell[1] for row in grid.cells for cell in row if cell and cell[1] > 0]
    shade = Shade(min(means, default=1), max(means, default=1))
    cells = [[cell and (cell[1], joules(cell[1]), f"{cell[0]:,}") for cell in row] for row in grid.cells]
    table_caption = "Mean joules per request, by input tokens (down) and output tokens (across)"
    box = shaded_table(heading, table_caption, _ranges(grid.input_edges), _ranges(grid.output_edges), cells, shade)
    return tag(
        "figure",
        tag("h3", heading),
        tag("p", "J, shaded on a logarithmic scale", class_="unit"),
        box,
        tag("figcaption", "Rows: input tokens. Columns: output tokens. Small: number of requests. Blank: no request."),
        class_="wide",
    )


def _ranges(edges: list[int]) -> list[str]:
    pairs = itertools.pairwise(edges)
    return [f"{a:,}" if b == a + 1 else f"{a:,}–{b - 1:,}" for a, b in pairs]
