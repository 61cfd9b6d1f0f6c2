"""Non-negative least squares for a handful of columns: costs are never negative; and what it predicts of other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints


_NO_GAIN = 1e-10
"""Smaller slopes of the error, relative to the largest at 0, are rounding."""
_MAX_EXCHANGES = 10
"""Columns that are tried, for each that there is: rounding must not keep the search going."""


def nnls(a: Floats, b: Floats) -> tuple[Floats, float]:
    """Return argmin |a x - b|^2 with x >= 0, and that minimum. a: float64[rows, columns], b: float64[rows].

    It is the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23) on the normal
    equations of columns scaled to 1, as Bro and de Jong have it (J. Chemometrics 11, 1997). It begins with all columns,
    less the most negative one at a time, so that columns which are not told apart share what they explain.
    """
    live: NDArray[np.bool_] = np.asarray(a.any(axis=0))
    scale = np.where(live, np.abs(a).max(axis=0, initial=0.0), 1.0)
    gram, moment, total = (a / scale).T @ (a / scale), (a / scale).T @ b, float(b @ b)

    def solved(chosen: NDArray[np.bool_]) -> Floats:
        x = np.zeros(len(moment))
        x[chosen] = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moment[chosen], rcond=1e-10)[0]
        return x

    chosen = live.copy()
    x = solved(chosen)
    while (x < 0).any():
        chosen[np.argmin(x)] = False
        x = solved(chosen)
    for _ in range(_MAX_EXCHANGES * len(x)):
        gain = np.where(live & ~chosen, moment - gram @ x, 0.0)
        if not len(gain) or gain.max() <= _NO_GAIN * np.abs(moment).max():
            break
        column = int(np.argmax(gain))
        chosen[column] = True
        wanted = solved(chosen)
        live[column] = wanted[column] > 0  # if not, the gain was rounding
        while (wanted < 0).any():  # go as far towards it as no column becomes negative, and leave out what reaches 0
            falling = wanted < 0
            way = float((x[falling] / (x[falling] - wanted[falling])).min())
            x = np.where(chosen, x + way * (wanted - x), 0.0)
            chosen &= ~(falling & (x <= _NO_GAIN * x.max(initial=0.0)))
            wanted = solved(chosen)
        x = wanted
    error = total - 2 * float(x @ moment) + float(x @ gram @ x)
    return x / scale, max(error, 0.0)


def block_of(rows: int, blocks: int) -> Ints:
    """Return the number of the block that each row is in: consecutive rows, in blocks of equal size."""
    return np.arange(rows) * blocks // rows


def held_out_predictions(a: Floats, b: Floats, blocks: int, weights: Floats | None = None) -> Floats:
    """Return float64[rows]: what the fit of the other blocks' rows predicts of each (cross-validation: Stone, J. R.
    Stat. Soc. B 36(2), 1974). weights: of the rows in the fit."""
    block = block_of(len(b), blocks)
    weighted_a, weighted_b = (a, b) if weights is None else (a * weights[:, None], b * weights)
    predicted = np.zeros(len(b))
    for held_out in range(blocks):
        others = block != held_out
        x, _ = nnls(weighted_a[others], weighted_b[others])
        predicted[~others] = a[~others] @ x
    return predicted
