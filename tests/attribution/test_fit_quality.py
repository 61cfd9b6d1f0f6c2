"""The quality of a fit: what it explains of held-out windows, and what it tells apart."""

import numpy as np
import pytest

from loadgen.attribution.cost_model import COLUMNS
from loadgen.attribution.fit_quality import MIN_WINDOWS, FitQuality, fit_quality, held_out, held_out_r_squared
from loadgen.attribution.uncertainty import error_model
from loadgen.attribution.window_fit import Fit, Rows
from loadgen.stats.arrays import Floats
from support.attribution_runs import counter, prices, two_steps

WINDOWS = 300
LAW = prices(4.0, 0.0, 0.0, 0.2, 0.0)


def windows(decoded: Floats, noise: float, count: int = WINDOWS) -> Fit:
    """A fit of windows of 10 steps each and so many decoded tokens, with relative noise."""
    features = np.zeros((count, len(COLUMNS)))
    features[:, 0], features[:, 3] = 10, decoded[:count]
    energy_j = features @ LAW.values * (1 + np.random.default_rng(0).normal(0, noise, count))
    return Fit(LAW, features, energy_j, energy_j, np.ones(count, bool))


def quality(fit: Fit) -> FitQuality:
    series = counter([100.0 * i for i in range(len(fit.kept) + 1)], fit.energy_j.tolist())
    return fit_quality(fit, fit.coefficients, error_model(fit, series, two_steps()))


VARIED = np.random.default_rng(1).integers(10, 400, WINDOWS).astype(np.float64)


def test_a_law_that_holds_explains_held_out_windows_and_noise_explains_none() -> None:
    good, bad = quality(windows(VARIED, 0.01)), quality(windows(np.full(WINDOWS, 50.0), 0.1))
    assert held_out_r_squared([good]) == pytest.approx(1, abs=0.01)
    assert held_out_r_squared([bad]) == pytest.approx(0, abs=0.05)
    assert good.variation > 10 * good.noise
    assert bad.variation == pytest.approx(bad.noise, rel=0.2)


def test_a_law_that_predicts_worse_than_the_mean_is_below_zero() -> None:
    """Energy falls as the decoded tokens grow, and no other work could explain it."""
    fit = windows(VARIED, 0.0)
    fit.features[:, 0] = 0
    falling = fit._replace(target_j=120 - fit.target_j / 2, energy_j=120 - fit.energy_j / 2)
    r_squared = held_out_r_squared([quality(falling)])
    assert r_squared is not None and r_squared < 0


def test_few_windows_and_none_are_not_judged() -> None:
    assert held_out(windows(VARIED, 0.01, MIN_WINDOWS - 1)) is None
    assert held_out_r_squared([]) is None
    assert held_out_r_squared([quality(windows(VARIED, 0.01, MIN_WINDOWS - 1))]) is None


def test_where_the_power_limit_held_steps_are_held_out_and_not_its_equal_windows() -> None:
    equal, varied = windows(np.full(WINDOWS, 50.0), 0.1), windows(VARIED, 0.01)
    rows = Rows(varied.features, varied.target_j, np.ones(WINDOWS))
    r_squared = held_out_r_squared([quality(equal._replace(rows=rows))])
    assert r_squared == pytest.approx(1, abs=0.01)


def test_domains_count_by_their_variance() -> None:
    """A GPU that the server does not use explains nothing and varies little."""
    used, unused = quality(windows(VARIED, 0.01)), quality(windows(np.full(WINDOWS, 50.0), 0.001))
    assert held_out_r_squared([used, unused]) == pytest.approx(held_out_r_squared([used]), abs=1e-3)


def test_prices_whose_work_comes_together_are_not_told_apart() -> None:
    steps_and_tokens = windows(np.full(WINDOWS, 100.0), 0.02)
    assert quality(steps_and_tokens).alike == [("step_j", "decode_token_j")]
    assert quality(windows(VARIED, 0.02)).alike == []
    assert quality(windows(VARIED, 0.02)).uncertain == {}
