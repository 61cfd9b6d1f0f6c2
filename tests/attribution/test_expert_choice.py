"""Experts are found where the windows show them, and nowhere else."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import Coefficients, step_features
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.expert_choice import BLOCKS, MIN_BLOCK_WINDOWS, neighbours, with_experts
from loadgen.attribution.expert_reads import ExpertReads
from loadgen.attribution.shapley import attribute_energy
from loadgen.attribution.window_fit import fit_coefficients
from loadgen.energy.series import EnergySeries, series_by_domain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.simulator.experts import Routing
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_S
from support.attribution_runs import request_ns

MIXTURE, DENSE = "qwen3-30b-a3b", "llama-3.1-8b"


class Served(NamedTuple):
    """A simulated run as a client sees it, and what each request truly cost, in joules."""

    records: list[RequestRecord]
    series: EnergySeries
    steps: EngineSteps
    joules: Floats


@cache
def served(model: str, noise: float = 0.0, seconds: float = 40.0, skew: float = 0.5) -> Served:
    """Six requests a second on the simulated engine."""
    rng = np.random.default_rng(5)
    arrivals, at_s = [], 2.0
    while (at_s := at_s + float(rng.exponential(1 / 6))) < 2 + seconds:
        prompt, answer = int(rng.lognormal(5.5, 1.2)) + 5, int(rng.integers(2, 250))
        arrivals.append(SubmittedRequest(round(at_s * NS_PER_S), min(prompt, 6000), answer))
    options = EngineOptions(routing=Routing(skew=skew))
    run = simulate(arrivals, read_hardware("h200"), read_model(model), options, CounterOptions(noise=noise))
    records = [
        request_ns(
            i,
            truth.arrival_ns,
            [t_ns + int(rng.integers(200_000, 800_000)) for t_ns in truth.token_ns],
            truth.input_tokens,
        )
        for i, truth in enumerate(run.requests)
    ]
    (series,) = series_by_domain(run.counter).values()
    joules = np.array([truth.prefill_j + truth.decode_j for truth in run.requests])
    return Served(records, series, engine_steps_of(records), joules)


@pytest.mark.parametrize(("noise", "skew"), [(0.0, 0.0), (0.0, 1.0), (0.03, 0.5)])
def test_a_mixture_of_experts_is_found_and_explains_the_windows(noise: float, skew: float) -> None:
    _, series, steps, _ = served(MIXTURE, noise, skew=skew)
    found = with_experts(series, steps, step_features(steps))
    assert found.experts is not None
    model = read_model(MIXTURE)
    assert found.experts.chosen_share == pytest.approx(model.experts_per_token / model.experts, rel=0.35)
    fit, dense = fit_coefficients(series, found), fit_coefficients(series, steps)
    assert fit.experts == found.experts
    assert (1 - (fit.r_squared or 0)) < 0.5 * (1 - (dense.r_squared or 0))


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_requests_of_a_mixture_get_what_they_cost(skew: float) -> None:
    records, series, _, truth = served(MIXTURE, skew=skew)
    result = attribute_energy([series], records, 0, int(series.t_ns[-1]))
    error = np.abs(np.array([share.joules for share in result.requests]) / truth - 1)
    median, p90 = np.percentile(error, [50, 90])
    assert median < 0.01
    assert p90 < 0.03


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_dense_model_has_no_experts(noise: float) -> None:
    _, series, steps, _ = served(DENSE, noise)
    assert with_experts(series, steps, step_features(steps)).experts is None
    fit = fit_coefficients(series, steps)
    assert (fit.expert_j, fit.computed_token_j, fit.expert_chosen_share, fit.experts) == (None, None, None, None)


def test_a_run_of_few_windows_cannot_tell() -> None:
    _, series, steps, _ = served(MIXTURE, seconds=4.0)
    assert len(series) < BLOCKS * MIN_BLOCK_WINDOWS
    assert with_experts(series, steps, step_features(steps)).experts is None


def test_coefficients_hold_the_reads_that_they_are_the_prices_of() -> None:
    reads = ExpertReads(0.1, 0.5, 700.0)
    fit = Coefficients(
        step_j=1.0, prefill_token_j=0.0, prefill_context_j=0.0, decode_token_j=0.0, decode_context_j=0.0, expert_j=2.0,
        expert_chosen_share=0.1, expert_spread=0.5, expert_hidden_tokens=700.0, idle_w=None,
    )  # fmt: skip
    assert fit.experts == reads
    assert fit.values.tolist() == [1, 0, 0, 0, 0, 2, 0]


def test_neighbours_are_possible_reads() -> None:
    near = neighbours(ExpertReads(0.8, 0.1, 500.0), 2.0, 0.25)
    assert all(experts.chosen_share < 1 and experts.spread >= 0 for experts in near)
    assert {experts.hidden_tokens for experts in near} == {250.0, 500.0, 1000.0}
    assert all(experts.hidden_tokens is None for experts in neighbours(ExpertReads(0.1, 0.0), 2.0, 0.25))
