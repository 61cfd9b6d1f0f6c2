"""Non-negative least squares for a handful of columns: costs are never negative; and what it predicts of other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints


def nnls(a: Floats, b: Floats) -> tuple[Floats, float]:
    """Return argmin |a x - b|^2 with x >= 0, and that minimum. a: float64[rows, columns], b: float64[rows].

    Sets of columns are solved without the constraint, on the normal equations of columns scaled to 1. A set is done
    with when its answer has no negative part, or is no better than one that has none: no part of the set can be better.
    Otherwise each set with one column less is tried. Exact, and fast up to about ten columns.
    """
    columns = a.shape[1]
    live = a.any(axis=0)
    scale = np.where(live, np.abs(a).max(axis=0, initial=0.0), 1.0)
    gram, moment, total = (a / scale).T @ (a / scale), (a / scale).T @ b, float(b @ b)
    best, best_error = np.zeros(columns), total
    sets = [tuple(np.flatnonzero(live).tolist())]
    tried = set(sets)
    while sets:
        chosen = list(sets.pop())
        x = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moment[chosen], rcond=1e-10)[0]
        error = total - 2 * float(x @ moment[chosen]) + float(x @ gram[np.ix_(chosen, chosen)] @ x)
        if error >= best_error * (1 - 1e-12):
            continue
        if (x >= 0).all():
            best, best_error = np.zeros(columns), error
            best[chosen] = x
            continue
        order = np.argsort(-x)  # the most negative column is left out first
        smaller = [tuple(column for column in chosen if column != chosen[i]) for i in order]
        sets += [part for part in smaller if part and part not in tried]
        tried.update(smaller)
    return best / scale, max(best_error, 0.0)


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
