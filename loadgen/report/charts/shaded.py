"""A table of input against output lengths whose cells are shaded by their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.report.markup import Markup, tag

Cell = tuple[float, str, str] | None
"""The value that decides the shade, its text, and a small note below or ""; None is drawn blank."""


@dataclass(frozen=True)
class Shade:
    """Seven shades between two values."""

    low: float
    high: float

    def __call__(self, value: float) -> int:
        """Return 0 (lowest) to 6 (highest), on a logarithmic scale."""
        if value <= self.low or self.high <= self.low:
            return 0
        return min(6, int(7 * np.log(value / self.low) / np.log(self.high / self.low)))


def shaded_table(
    heading: str, caption: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]],
    shade: Shade,
) -> Markup:  # fmt: skip
    """Return a heat map: input tokens of `rows` down, output tokens of `columns` across."""
    corner = tag("th", "input ↓ · output →", scope="col", class_="corner")
    top = tag("tr", corner, *(tag("th", label, scope="col") for label in columns))
    body = []
    for label, row in zip(rows, cells, strict=True):
        marks = [tag("th", label, scope="row")]
        for cell in row:
            if cell is None:
                marks.append(tag("td", class_="none"))
            else:
                value, text, note = cell
                marks.append(tag("td", text, tag("small", note) if note else "", class_=f"h{shade(value)}"))
        body.append(tag("tr", *marks))
    inner = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body), class_="heat")
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=heading)
