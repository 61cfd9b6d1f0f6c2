import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from loadgen.errors import LoadgenError
from loadgen.workload.arrivals import index_of_dispersion, ks_exponential, offsets

SEEDS = range(5)


def gaps_of(arrivals):  # type: ignore[no-untyped-def]
    return np.diff(arrivals, prepend=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_thousand_poisson_arrivals_look_poisson(seed: int) -> None:
    arrivals = offsets("poisson", 2.0, default_rng(seed), count=10_000)
    dispersion = index_of_dispersion(arrivals, 1.0)
    assert dispersion is not None and 0.9 <= dispersion <= 1.1
    distance, critical = ks_exponential(gaps_of(arrivals))
    assert distance < critical
    gaps = gaps_of(arrivals)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03  # 3 / sqrt(n)
    assert 10_000 / arrivals[-1] == pytest.approx(2.0, rel=0.03)


def test_ks_rejects_one_poisson_run_in_twenty() -> None:
    """It is a 5 % test: a critical value too strict or too lax shows as another share of 400 runs."""
    runs = (ks_exponential(default_rng(seed).exponential(3.0, 500)) for seed in range(400))
    rejected = sum(distance > critical for distance, critical in runs)
    assert 8 <= rejected <= 34  # 20 +- 3 standard deviations


@pytest.mark.parametrize("seed", SEEDS)
def test_ks_rejects_what_is_not_exponential(seed: int) -> None:
    for process, burstiness in (("gamma", 0.8), ("gamma", 1.25), ("constant", 1.0)):
        arrivals = offsets(process, 10, default_rng(seed), burstiness=burstiness, count=10_000)  # type: ignore[arg-type]
        distance, critical = ks_exponential(gaps_of(arrivals))
        assert distance > critical


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_gaps_of_gamma_vary_by_1_over_the_root_of_burstiness(burstiness: float) -> None:
    gaps = gaps_of(offsets("gamma", 5, default_rng(1), burstiness=burstiness, count=50_000))
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.03)
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.03)


def test_constant_is_exact() -> None:
    assert offsets("constant", 4, default_rng(0), duration_s=1).tolist() == [0, 0.25, 0.5, 0.75]
    assert offsets("constant", 4, default_rng(0), count=3).tolist() == [0, 0.25, 0.5]


@settings(deadline=None)
@given(
    st.sampled_from(["poisson", "gamma", "constant"]),
    st.floats(0.1, 1000),
    st.floats(0.01, 100),
    st.integers(0, 2**32),
    st.floats(0.2, 5),
)
def test_arrivals_are_sorted_and_inside_the_duration(process, rate, duration_s, seed, burstiness) -> None:  # type: ignore[no-untyped-def]
    arrivals = offsets(process, rate, default_rng(seed), burstiness=burstiness, duration_s=duration_s)
    assert arrivals.dtype == np.float64
    assert np.all(np.diff(arrivals) >= 0)
    assert np.all((arrivals >= 0) & (arrivals < duration_s))


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_same_seed_same_bytes_and_a_longer_run_starts_as_the_shorter(process) -> None:  # type: ignore[no-untyped-def]
    def run(**end) -> bytes:  # type: ignore[no-untyped-def]
        return offsets(process, 100, default_rng(3), burstiness=0.5, **end).tobytes()

    assert run(count=9000) == run(count=9000)
    assert run(count=9000).startswith(run(count=5000))
    assert run(count=90_000).startswith(run(duration_s=60))
    assert len(run(duration_s=60)) > 8 * 4096
    assert run(count=10, duration_s=60) == run(count=10)
    assert run(count=90_000, duration_s=60) == run(duration_s=60)


def test_mean_count_of_many_poisson_runs_is_rate_times_duration() -> None:
    """Nothing is clipped at either end: 2,000 runs of 10 expected arrivals each."""
    rng = default_rng(0)
    counts = [len(offsets("poisson", 5, rng, duration_s=2)) for _ in range(2000)]
    assert np.mean(counts) == pytest.approx(10, abs=3 * math.sqrt(10 / 2000))
    assert np.var(counts) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_what_is_no_rate_burstiness_or_duration_is_said(bad: float) -> None:
    for asked in (
        {"rate": bad, "count": 1},
        {"rate": 1, "burstiness": bad, "count": 1},
        {"rate": 1, "duration_s": bad},
    ):
        with pytest.raises(LoadgenError, match="expected"):
            offsets("gamma", asked.pop("rate"), default_rng(0), **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"count": 0}, {"count": -3}, {"count": 10**12}, {"duration_s": 1e12}])
def test_what_is_no_number_of_requests_is_said(asked) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LoadgenError, match="requests: expected at"):
        offsets("poisson", 1, default_rng(0), **asked)


@pytest.mark.parametrize(
    ("times", "window_s", "wanted"),
    [
        ([], 1, None),  # nothing came
        ([0.0, 1.5], 1, None),  # one whole window only
        ([0.0, 1.0, 2.0, 3.0], 1, 0.0),  # clockwork: 1, 1, 1
        ([0.0, 0.1, 1.0, 1.5, 2.0], 1, 0.0),  # 2, 2 and a window not yet over
        ([0.0, 0.1, 2.5], 1, 2.0),  # 2, 0: variance 2, mean 1; empty windows count
        ([50.0, 50.1, 52.5], 1, 2.0),  # from the first arrival, whenever that was
        ([0.0, 1e12], 1, 1.0),  # an age of empty windows, in no memory
    ],
)
def test_index_of_dispersion_is_variance_over_mean(times: list[float], window_s: float, wanted: float | None) -> None:
    got = index_of_dispersion(np.array(times), window_s)
    assert got == wanted if wanted is None else got == pytest.approx(wanted)


def test_ks_distance_by_hand() -> None:
    """Gaps 1, 1: F(1) = 1 - 1/e = 0.632 where the sample jumps from 0 to 1."""
    assert ks_exponential(np.array([1.0, 1.0]))[0] == pytest.approx(1 - math.exp(-1))
