"""Non-negative least squares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.nnls import held_out_predictions, nnls


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_nnls_is_optimal(seed: int, columns: int) -> None:
    """No small non-negative step from the answer makes the error smaller (Karush-Kuhn-Tucker)."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((40, columns)), rng.normal(size=40)
    x, _ = nnls(a, b)
    gradient = a.T @ (a @ x - b)
    assert (x >= 0).all()
    assert gradient.min() > -1e-4
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-4


def test_a_column_that_would_be_negative_is_left_out() -> None:
    """Of b = (1, -1) by the unit columns, only the first helps: x = (1, 0), and the 1 of the second row remains."""
    x, error = nnls(np.eye(2), np.array([1.0, -1.0]))
    assert x.tolist() == [1, 0]
    assert error == pytest.approx(1)


def test_the_minimum_is_the_residual_of_the_answer() -> None:
    """Through (1, 1), (2, 3): the best line through 0 has slope 7 / 5 and leaves 10 - 49 / 5."""
    x, error = nnls(np.array([[1.0], [2.0]]), np.array([1.0, 3.0]))
    assert x == pytest.approx([1.4])
    assert error == pytest.approx(0.2)


def test_columns_that_are_not_told_apart_share_what_they_explain() -> None:
    x, error = nnls(np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0]]), np.array([2.0, 4.0]))
    assert x == pytest.approx([1, 1, 0], abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)


def test_columns_of_zeros_get_zero() -> None:
    x, _ = nnls(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([2.0, 4.0]))
    assert x.tolist() == [0, pytest.approx(3)]


def test_a_row_is_predicted_by_the_other_blocks_alone() -> None:
    rng = np.random.default_rng(3)
    a = rng.uniform(0, 10, (40, 2))
    b = a @ [2.0, 0.5]
    b[8:16] += 100  # the second of five blocks is off
    predicted = held_out_predictions(a, b, 5)
    np.testing.assert_allclose(predicted[8:16], a[8:16] @ [2.0, 0.5], rtol=1e-6)
    assert np.abs(predicted[:8] - a[:8] @ [2.0, 0.5]).max() > 1


def test_rows_of_no_weight_say_nothing_of_the_others() -> None:
    rng = np.random.default_rng(4)
    a = rng.uniform(0, 10, (40, 2))
    b = a @ [2.0, 0.5]
    b[::2] += 100
    weights = np.tile([0.0, 1.0], 20)
    np.testing.assert_allclose(held_out_predictions(a, b, 5, weights), a @ [2.0, 0.5], rtol=1e-6)
