import numpy as np
import pytest

from loadgen.arrivals import changing, index_of_dispersion, offsets, realised, superpose, thin
from loadgen.errors import LoadgenError


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_thinning_lowers_the_rate_and_the_dispersion_as_the_law_says() -> None:
    bursty = offsets("gamma", 50, rng(), burstiness=0.1, duration_s=2000)
    thinned = thin(bursty, 0.2, rng())
    before, after = index_of_dispersion(bursty, 1.0), index_of_dispersion(thinned, 1.0)
    assert before is not None and after == pytest.approx(1 + 0.2 * (before - 1), rel=0.15)
    assert len(thinned) == pytest.approx(0.2 * len(bursty), rel=0.03)
    assert np.isin(thinned, bursty).all()


def test_superposition_keeps_every_arrival_in_order() -> None:
    assert superpose(np.array([1.0, 4.0]), np.array([0.5, 2.0])).tolist() == [0.5, 1.0, 2.0, 4.0]


def test_a_ramp_has_the_rate_of_every_moment_and_a_step_jumps() -> None:
    ramp = changing([(0, 0), (1000, 100)], rng())
    assert len(ramp) == pytest.approx(50_000, rel=0.02)
    assert (ramp < 500).sum() == pytest.approx(12_500, rel=0.04)
    step = changing([(0, 10), (100, 10), (100, 50), (200, 50)], rng())
    assert (step < 100).sum() == pytest.approx(1000, rel=0.1) and (step >= 100).sum() == pytest.approx(5000, rel=0.05)


@pytest.mark.parametrize("points", [[], [(0, 1)], [(1, 1), (2, 1)], [(0, 1), (5, 1), (4, 1)], [(0, 1), (2, -1)]])
def test_impossible_rates_are_said(points: list[tuple[float, float]]) -> None:
    with pytest.raises(LoadgenError, match="expected two points"):
        changing(points, rng())


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_arrivals_as_asked_have_no_verdict(process: str) -> None:
    came = offsets(process, 20, rng(), burstiness=0.5 if process == "gamma" else 1.0, count=5000)  # type: ignore[arg-type]
    assert realised(came, process, 20, 0.5).verdict is None


@pytest.mark.parametrize(
    ("came", "process", "said"),
    [
        (np.arange(1000) / 20, "poisson", "not exponential"),
        (np.arange(1000) / 10, "constant", "10 requests/s instead of 20"),
        (np.cumsum(np.tile([0.01, 0.09], 500)), "constant", "gaps vary by 80%"),
    ],
)
def test_other_arrivals_have_one(came: np.ndarray, process: str, said: str) -> None:
    verdict = realised(came, process, 20).verdict
    assert verdict is not None and said in verdict


def test_too_few_arrivals_say_nothing() -> None:
    assert realised(np.array([0.0, 1.0]), "poisson", 1).rate is None
