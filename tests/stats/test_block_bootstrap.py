import numpy as np
import pytest

from loadgen.stats import block_bootstrap
from loadgen.stats.arrays import Floats
from loadgen.stats.block_bootstrap import Ratio, Spread, block_length, resampled_weights, resamples_of


def weights(n: int, length: int, seed: int = 1) -> Floats:
    return np.concatenate(list(resampled_weights(n, length, seed)))


def autoregressive(n: int, slope: float, seed: int = 1) -> Floats:
    noise = np.random.default_rng(seed).normal(size=n)
    series = np.zeros(n)
    for i in range(1, n):
        series[i] = slope * series[i - 1] + noise[i]
    return series


@pytest.mark.parametrize(("n", "length"), [(1, 1), (7, 7), (10, 3), (100, 1), (100, 9), (101, 25)])
def test_each_resample_has_n_elements_in_whole_blocks_on_a_circle(n: int, length: int) -> None:
    drawn = weights(n, length)
    assert drawn.shape == (resamples_of(n), n)
    assert np.all(drawn.sum(axis=1) == n) and np.all(drawn >= 0)
    # Weights change only where a block begins or ends.
    changes = np.abs(np.diff(drawn, axis=1, append=drawn[:, :1])).sum(axis=1)
    assert np.all(changes <= 2 * -(-n // length))


def test_elements_are_drawn_equally_often_and_the_seed_decides() -> None:
    drawn = weights(50, 7)
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.2)
    assert np.array_equal(drawn, weights(50, 7)) and not np.array_equal(drawn, weights(50, 7, seed=2))


def test_parts_of_the_resamples_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_bootstrap, "_PART", 700)
    parts = list(resampled_weights(100, 5, 1))
    assert {len(part) for part in parts} == {7, resamples_of(100) % 7}
    assert resamples_of(100_000) == block_bootstrap.FEWEST_RESAMPLES


@pytest.mark.parametrize(("slope", "least", "most"), [(0.0, 1, 3), (0.5, 4, 25), (0.9, 20, 95)])
def test_blocks_are_longer_the_longer_neighbours_depend_on_one_another(slope: float, least: int, most: int) -> None:
    lengths = [block_length(autoregressive(1000, slope, seed)) for seed in range(20)]
    assert least <= np.median(lengths) <= most


@pytest.mark.parametrize("series", [[], [1.0], [2.0] * 100, [1.0, 2.0, 3.0]])
def test_a_series_without_scatter_has_blocks_of_one(series: list[float]) -> None:
    assert block_length(np.array(series)) == 1


@pytest.mark.parametrize("slope", [0.0, 0.6])
def test_the_standard_error_of_a_mean_is_that_of_theory(slope: float) -> None:
    """For x[i] = a x[i-1] + e[i] it is 1 / ((1 - a) sqrt n)."""
    n = 2_000
    errors = []
    for seed in range(10):
        series = autoregressive(n, slope, seed)
        errors.append(float(Ratio(series, np.ones(n))(weights(n, block_length(series))).std()))
    assert np.mean(errors) == pytest.approx(1 / (1 - slope) / np.sqrt(n), rel=0.15)


@pytest.mark.parametrize("n", [50, 128, 3_000])
def test_equal_weights_give_the_mean_and_the_percentiles(n: int) -> None:
    values = np.random.default_rng(1).lognormal(size=n)
    found = Spread(values, np.arange(n), n, (0.5, 0.9, 0.99))(np.ones((1, n)))[0]
    assert found[0] == pytest.approx(values.mean())
    assert found[1:3] == pytest.approx(np.quantile(values, [0.5, 0.9]), rel=0.05)
    assert np.quantile(values, 0.95) <= found[3] <= values.max()


def test_percentiles_are_those_of_the_values_of_the_elements_that_were_drawn() -> None:
    """The first element has three values, the second none, the third one."""
    spread = Spread(np.array([1.0, 2.0, 3.0, 100.0]), np.array([0, 0, 0, 2]), 3, (0.5,))
    found = spread(np.array([[1.0, 5.0, 0.0], [0.0, 0.0, 2.0]]))
    assert found[:, 0] == pytest.approx([2.0, 100.0])
    assert 1.0 <= found[0, 1] <= 2.0 and found[1, 1] == pytest.approx(100.0, rel=0.5)


def test_a_ratio_over_nothing_is_no_number() -> None:
    assert np.isnan(Ratio(np.zeros(2), np.array([0.0, 1.0]))(np.array([[2.0, 0.0]]))).all()
