"""Ways in which the boundaries of two compared sides differ: the parts they include, and the factors they state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, clean

if TYPE_CHECKING:
    from loadgen.results.summary import Boundary, Summary

FACTORS = {
    "pue": "PUE",
    "grid_intensity": "grid intensity in g/kWh",
    "grid_source": "source of the grid intensity",
    "price": "price per kWh",
}


def boundary_differences(a: Sequence[Summary], b: Sequence[Summary], letter: str) -> list[str]:
    """Return a sentence for each difference; none where a side has no energy. a, b: the runs of each side."""
    sides = [[run.energy.boundary for run in side if run.energy.boundary is not None] for side in (a, b)]
    if not all(sides):
        return []
    parts = [_texts([", ".join(included(boundary)) for boundary in side]) for side in sides]
    sentences = []
    if parts[0] != parts[1]:
        sentences.append(f"The total energy of A includes {parts[0]}; that of {letter} {parts[1]}.")
    stated = {
        name: [_texts([_text(getattr(boundary, field)) for boundary in side]) for side in sides]
        for field, name in FACTORS.items()
    }
    if other := [f"{name} {of_a} and {of_b}" for name, (of_a, of_b) in stated.items() if of_a != of_b]:
        sentences.append(f"A and {letter} state different factors: {'; '.join(other)}.")
    return sentences


def included(boundary: Boundary) -> list[str]:
    """Return the names of the parts whose joules are in the total. Idle is in the others."""
    return [part.part for part in boundary.parts if part.joules is not None and part.part != "idle"]


def _texts(texts: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def _text(value: float | str | None) -> str:
    if value is None:
        return UNKNOWN
    return clean(value) if isinstance(value, str) else f"{value:g}"
