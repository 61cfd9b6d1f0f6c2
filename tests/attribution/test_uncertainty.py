"""Standard errors, and the gradient of the shares that they are propagated with."""

import numpy as np
import pytest

from loadgen.attribution.cost_model import cost_shares
from loadgen.attribution.shapley import attribute_energy, split_energy
from loadgen.attribution.uncertainty import joules_gradient
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
    gradient = joules_gradient(series, steps, cost_shares(steps, prices(*values)), 2)
    assert gradient[:, index] == pytest.approx(quotient, rel=1e-5, abs=1e-7)
    assert gradient[:, index].sum() == pytest.approx(0, abs=1e-6)  # what one gains, the other loses


def test_standard_errors_grow_with_what_is_unknown() -> None:
    """Alone on an exact counter only the way to the client is uncertain; a coarser counter says so."""
    only = request(0, 1000, [1000 + 20 * i for i in range(1, 51)])
    edges = [i * 100.0 for i in range(21)]
    exact = counter(edges, [10.0] * 10 + [50.0] * 10)
    coarse = EnergySeries("gpu:0", exact.t_ns, exact.mj, np.full(21, 10 * MS))
    errors = [attribute_energy([one], [only], 0, 2000 * MS).requests[0].se_joules or 0 for one in (exact, coarse)]
    assert 0 < errors[0] < 1
    assert errors[1] > 5 * errors[0]
