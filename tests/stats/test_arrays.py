"""Order and distinctness of whole numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.arrays import in_order


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=20))
def test_each_value_is_there_once_and_in_order(values: list[int]) -> None:
    assert in_order(np.array(values, dtype=np.int64)).tolist() == sorted(set(values))
