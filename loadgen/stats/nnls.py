"""Non-negative least squares for a handful of columns: costs are never negative."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats


def nnls(a: Floats, b: Floats) -> tuple[Floats, float]:
    """Return argmin |a x - b|^2 with x >= 0, and that minimum. a: float64[rows, columns], b: float64[rows].

    Every set of columns is tried, on the normal equations of columns scaled to 1: exact, and fast up to about seven
    columns.
    """
    columns = a.shape[1]
    scale = np.where(a.any(axis=0), np.abs(a).max(axis=0), 1.0)
    gram, moment, total = (a / scale).T @ (a / scale), (a / scale).T @ b, float(b @ b)
    best, best_error = np.zeros(columns), total
    for size in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), size)):
            x = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], moment[chosen], rcond=1e-10)[0]
            error = total - 2 * float(x @ moment[chosen]) + float(x @ gram[np.ix_(chosen, chosen)] @ x)
            if (x >= 0).all() and error < best_error * (1 - 1e-12):
                best, best_error = np.zeros(columns), error
                best[chosen] = x
    return best / scale, max(best_error, 0.0)
