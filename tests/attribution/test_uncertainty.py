"""Standard errors, and the gradient of the shares that they are propagated with."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import COLUMNS, cost_shares
from loadgen.attribution.expert_reads import ExpertReads
from loadgen.attribution.shapley import attribute_energy, split_energy
from loadgen.attribution.uncertainty import (
    MIN_WINDOWS,
    divided_by_tokens,
    equal_experts,
    error_model,
    joules_errors,
    joules_gradient,
    request_windows,
    variance_of_ends,
)
from loadgen.attribution.window_fit import Fit
from loadgen.energy.series import EnergySeries
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_S
from support.attribution_runs import MS, counter, prices, request, two_steps


@pytest.mark.parametrize("index", range(5))
def test_the_gradient_is_the_difference_quotient(index: int) -> None:
    values = np.array([4.0, 0.5, 0.01, 3.0, 0.02])
    series = EnergySeries("gpu:0", np.array([0, 2 * NS_PER_S]), np.array([0, 90_000]))
    steps = two_steps()

    def joules(at: Floats) -> Floats:
        members, _, _ = split_energy(series, steps, cost_shares(steps, prices(*at)), None)
        return np.bincount(steps.request, members) / 1000

    step = np.zeros(5)
    step[index] = values[index] * 1e-5
    quotient = (joules(values + step) - joules(values - step)) / (2 * step[index])
    nobody, idle_j = np.zeros((1, len(COLUMNS))), np.zeros(1)
    gradient = joules_gradient(series, steps, cost_shares(steps, prices(*values)), 2, nobody, values, idle_j)
    of_requests = gradient.sum(axis=1)[:, index]
    assert of_requests == pytest.approx(quotient, rel=1e-5, abs=1e-7)
    assert of_requests.sum() == pytest.approx(0, abs=1e-6)  # what one gains, the other loses


def test_standard_errors_grow_with_what_is_unknown() -> None:
    """Alone on an exact counter only the way to the client is uncertain; a coarser counter says so."""
    only = request(0, 1000, [1000 + 20 * i for i in range(1, 51)])
    edges = [i * 100.0 for i in range(21)]
    exact = counter(edges, [10.0] * 10 + [50.0] * 10)
    coarse = EnergySeries("gpu:0", exact.t_ns, exact.mj, np.full(21, 10 * MS))
    errors = [attribute_energy([one], [only], 0, 2000 * MS).requests[0].se_joules or 0 for one in (exact, coarse)]
    assert 0 < errors[0] < 1
    assert errors[1] > 5 * errors[0]


WINDOWS = 400
RNG = np.random.default_rng(0)
DECODED = RNG.integers(10, 200, WINDOWS).astype(np.float64)


def fit_with(residual: Floats) -> tuple[Fit, EnergySeries]:
    """A fit of WINDOWS windows, each of 10 steps and some decoded tokens, with these relative residuals."""
    features = np.zeros((WINDOWS, len(COLUMNS)))
    features[:, 0], features[:, 3] = 10, DECODED
    law = prices(4.0, 0.0, 0.0, 0.2, 0.0)
    energy_j = features @ law.values * (1 + residual)
    series = counter([100.0 * i for i in range(WINDOWS + 1)], energy_j.tolist())
    return Fit(law, features, energy_j, energy_j, np.ones(WINDOWS, bool)), series


def test_noise_makes_windows_uncertain_and_misfit_the_coefficients() -> None:
    """What windows of like work have in common does not average out; noise does, and so does what has drifted."""
    steps = two_steps()
    noise = error_model(*fit_with(RNG.normal(0, 0.02, WINDOWS)), steps)
    misfit = error_model(*fit_with(0.02 * np.sign(DECODED - 100)), steps)
    drifted = error_model(*fit_with(0.02 * np.sign(np.arange(WINDOWS) - WINDOWS / 2)), steps)
    assert noise.noise == pytest.approx(0.02**2, rel=0.2)
    assert misfit.misfit == pytest.approx(0.02**2, rel=0.3)
    assert drifted.misfit < 0.1 * misfit.misfit
    assert (np.diag(misfit.covariance)[[0, 3]] > 4 * np.diag(noise.covariance)[[0, 3]]).all()


def moving(between: Floats) -> Floats:
    """What one window has, the next one lacks."""
    return 0.02 * (between - np.roll(between, 1))


@pytest.mark.parametrize(
    ("residual", "serial"),
    [
        (0.02 * RNG.normal(size=WINDOWS), 0.0),
        (moving(RNG.normal(size=WINDOWS)), -0.5),
        (0.02 * np.repeat(RNG.normal(size=WINDOWS // 8), 8), 0.875),
    ],
)
def test_windows_side_by_side_have_noise_in_common_or_take_it_from_each_other(residual: Floats, serial: float) -> None:
    model = error_model(*fit_with(residual), two_steps())
    assert model.serial == pytest.approx(serial, abs=0.12)
    assert model.serial >= -0.5


def test_noise_that_moves_between_windows_averages_out_over_a_request() -> None:
    """One request in 20 windows of equal energy: 20 variances, and 19 covariances twice."""
    steps = engine_steps_of([request(0, 5, [50 + 20 * i for i in range(100)])])
    series = counter([100.0 * i for i in range(21)], [40.0] * 20)
    fit, fitted_to = fit_with(RNG.normal(0, 0.02, WINDOWS))
    members = np.full(len(steps.step), 8.0)
    errors = joules_errors(fit, fitted_to, series, steps, members, members, 1, 1)
    still = replace(errors.model, noise=1e-4, prefill_j2=0.0, covariance=np.zeros((5, 5)))
    variances = {
        serial: float(replace(errors, model=replace(still, serial=serial), ends=np.zeros(1)).of_requests()[0])
        for serial in (-0.5, 0.0, 0.5)
    }
    independent = variances[0.0]
    assert 0 < variances[-0.5] < 0.1 * independent
    assert variances[0.5] == pytest.approx(2 * independent - variances[-0.5])


def test_the_slack_of_a_counter_is_in_the_noise_of_many_windows() -> None:
    steps = engine_steps_of([request(0, 5, [50, 90, 250])])
    series = replace(counter([0, 100, 200, 300], [1.0, 2.0, 3.0]), slack_ns=np.full(4, 10 * MS))
    few, many = (variance_of_ends(series, steps, np.array([6.0]), n)[0] for n in (MIN_WINDOWS - 1, MIN_WINDOWS))
    assert few == pytest.approx(many * 21**2)


def test_a_division_by_tokens_gives_to_one_what_it_takes_from_another() -> None:
    """Long contexts cost more than their tokens; where only tokens have a price, both divisions are the same."""
    series = EnergySeries("gpu:0", np.array([0, 2 * NS_PER_S]), np.array([0, 90_000]))
    steps = two_steps()
    for law, differs in ((prices(4.0, 0.5, 0.01, 3.0, 0.02), True), (prices(4.0, 0.5, 0.0, 0.5, 0.0), False)):
        gains = divided_by_tokens(series, steps, cost_shares(steps, law), law, 2)
        assert gains.sum() == pytest.approx(0, abs=1e-9)
        assert (np.abs(gains).max() > 0.01) == differs


def test_the_error_of_a_sum_is_not_that_of_independent_requests() -> None:
    """Two requests alone share all of the energy: what one gains, the other loses."""
    chunks = [50 + 20 * i for i in range(60)]
    records = [request(0, 5, chunks, prompt=2000), request(1, 5, chunks, prompt=10)]
    series = counter([100.0 * i for i in range(14)], [40.0 + 5 * (i % 2) for i in range(13)])
    rows = {"one": np.array([0]), "both": np.array([0, 1])}
    sums = attribute_energy([series], records, 0, 1300 * MS, sums=rows).sums
    one, both = sums["one"], sums["both"]
    assert one.attributed_se_joules > 0
    assert both.attributed_se_joules < 2 * one.attributed_se_joules
    assert both.prefill_se_joules > 0


def test_no_price_is_more_uncertain_than_itself() -> None:
    """Steps and tokens that always go together cannot be told apart, and each is uncertain by all of its price."""
    fit, series = fit_with(RNG.normal(0, 0.02, WINDOWS))
    fit.features[:, 3] = 10 * fit.features[:, 0]
    model = error_model(fit, series, two_steps())
    values = fit.coefficients.values
    assert np.all(np.diag(model.covariance) <= values**2 * (1 + 1e-9))
    assert model.covariance[3, 3] > 0.1 * values[3] ** 2
    together = fit.features[0]
    assert together @ model.covariance @ together < (0.02 * together @ values) ** 2


def test_few_windows_are_not_divided_into_components() -> None:
    fit, series = fit_with(np.full(WINDOWS, 0.02))
    few = Fit(fit.coefficients, *(array[: MIN_WINDOWS - 1] for array in fit[1:4]), fit.kept)
    model = error_model(few, series, two_steps())
    assert (model.noise, model.prefill_j2) == (pytest.approx((0.02 / 1.02) ** 2), 0.0)


def test_a_request_has_a_row_in_each_of_its_windows() -> None:
    series = counter([0, 100, 200, 300], [1.0, 2.0, 3.0])
    steps = engine_steps_of([request(0, 5, [50, 90, 250]), request(1, 100, [150])])
    joules = np.arange(1.0, len(steps.step) + 1)
    rows = request_windows(series, steps, joules, 2)
    assert (rows.prefill_j + rows.decode_j).sum() <= joules.sum()
    assert rows.request.tolist() == [0, 0, 0, 1]
    assert rows.window.tolist() == [0, 1, 2, 1]
    assert rows.prefills.tolist() == [1, 0, 0, 1]


def test_an_equal_division_of_experts_gives_to_one_what_it_takes_from_another() -> None:
    """A prefill reads more experts than a decode beside it; two decodes alike read the same. A dense model has none."""
    series = EnergySeries("gpu:0", np.array([0, 2 * NS_PER_S]), np.array([0, 90_000]))
    steps = replace(two_steps(), experts=ExpertReads(0.1, 0.0))
    shares = np.ones(len(steps.step))
    gains = equal_experts(series, steps, shares, 2.0, 2)
    assert gains.sum() == pytest.approx(0, abs=1e-9)
    assert np.abs(gains).max() > 0.1
    alike = replace(steps, prefill=np.zeros_like(steps.prefill), decode=np.ones_like(steps.decode))
    assert equal_experts(series, alike, shares, 2.0, 2) == pytest.approx(np.zeros((2, 2)), abs=1e-9)
    assert not equal_experts(series, two_steps(), shares, 2.0, 2).any()
