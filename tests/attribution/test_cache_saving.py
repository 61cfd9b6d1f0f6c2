"""What a cache saved and what was computed again, by the law and against a simulation without the cache."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.attribution.cache_saving import CacheWork, cache_joules, cache_work
from loadgen.attribution.cost_model import Coefficients, cost_shares, member_features
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.expert_reads import ExpertReads
from loadgen.attribution.shapley import RunAttribution, attribute_energy
from loadgen.energy.series import series_by_domain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.record import RequestRecord
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.units import NS_PER_MS, NS_PER_S
from support.attribution_runs import request, request_ns

LAW = Coefficients(step_j=3.0, prefill_token_j=0.02, prefill_context_j=1e-6, decode_token_j=0.02,
                   decode_context_j=2e-5, idle_w=100.0)  # fmt: skip


def prefill_steps(prompt: int, cached: int, budget: int = 100) -> EngineSteps:
    """A prompt alone, in steps of `budget` tokens: the membership of the last one, of its first token, comes first."""
    begins = np.roll(np.arange(cached, prompt, budget), 1)
    tokens = np.minimum(budget, prompt - begins)
    steps = len(begins)
    t_ns = np.arange(steps + 1, dtype=np.int64) * NS_PER_MS
    return EngineSteps(
        t_ns[:-1], t_ns[1:], np.ones(steps), np.roll(np.arange(steps, dtype=np.int32), 1), np.zeros(steps, np.int32),
        np.ones(steps, bool), tokens.astype(np.float32), np.zeros(steps, np.float32),
        (begins + tokens / 2).astype(np.float32), np.zeros((0, 2), np.int64), budget=budget,
    )  # fmt: skip


@pytest.mark.parametrize(("prompt", "cached"), [(1000, 0), (1000, 400), (1000, 900), (10_000, 9_900)])
def test_a_cached_prefix_saves_the_difference_of_two_prefills(prompt: int, cached: int) -> None:
    whole, rest = (cost_shares(prefill_steps(prompt, tokens), LAW).sum() for tokens in (0, cached))
    work = cache_work(prefill_steps(prompt, cached), [request(0, 0, [10.0], prompt, cached)])
    assert cache_joules(work, LAW.values, np.zeros((5, 5))).saved_j == pytest.approx([whole - rest])


def test_evicted_tokens_cost_what_they_would_have_saved() -> None:
    """Of 900 tokens that had been computed, 400 were in the cache: the 500 between cost as a prefill of those."""
    records = [request(0, 0, [10.0], 1000, 400)]
    steps = prefill_steps(1000, 400)
    joules = cache_joules(cache_work(steps, records, [900]), LAW.values, np.zeros((5, 5)))
    again = cost_shares(prefill_steps(900, 400), LAW).sum()
    assert joules.recomputed_j == pytest.approx([again])
    nothing = cache_joules(cache_work(steps, records, [300]), LAW.values, np.zeros((5, 5)))
    assert nothing.recomputed_j.tolist() == [0.0], "a server may have more than the plan shows"


def test_a_second_prefill_was_computed_again() -> None:
    """After its first token in the last step of its prefill, a stream is preempted and computes 300 tokens."""
    steps = prefill_steps(300, 0)
    twice = replace(
        steps, start_ns=np.append(steps.start_ns, 9 * NS_PER_MS), end_ns=np.append(steps.end_ns, 10 * NS_PER_MS),
        iterations=np.append(steps.iterations, 3.0), step=np.array([2, 3, 0, 1], np.int32),
        request=np.zeros(4, np.int32), prefilling=np.ones(4, bool), prefill=np.array([100, 300, 100, 100], np.float32),
        decode=np.zeros(4, np.float32), context=np.array([250, 150, 50, 150], np.float32),
    )  # fmt: skip
    work = cache_work(twice, [request(0, 0, [3.0, 10.0], 300, 0)], [0])
    assert work.again.tolist() == [member_features(twice)[1].tolist()]


def test_what_is_not_known_is_not_a_number() -> None:
    steps = prefill_steps(1000, 400)
    untold = msgspec.structs.replace(request(0, 0, [10.0], 1000), cached_tokens=None)
    assert np.isnan(cache_work(steps, [untold], [900]).saved).any()
    assert np.isnan(cache_work(steps, [untold], [900]).again).any()
    told = request(0, 0, [10.0], 1000, 400)
    assert np.isnan(cache_work(steps, [told], [None]).again).any()
    assert np.isnan(cache_work(steps, [told, request(1, 0, [], 1000, 400)]).saved[1]).any(), "it got no token"


def test_the_error_is_that_of_the_prices() -> None:
    work = CacheWork(np.array([[2.0, 1000.0, 0.0, 0.0, 0.0]]), np.zeros((1, 5)))
    covariance = np.diag([0.25, 1e-6, 0.0, 0.0, 0.0])
    covariance[0, 1] = covariance[1, 0] = -4e-4
    joules = cache_joules(work, LAW.values, covariance)
    assert joules.saved_se_j == pytest.approx([np.sqrt(4 * 0.25 + 1.0 - 2 * 2 * 1000 * 4e-4)])
    assert joules.recomputed_se_j.tolist() == [0.0]


def test_uncached_steps_read_experts_and_take_time_where_those_have_a_price() -> None:
    records, steps = [request(0, 0, [10.0], 1000, 400)], prefill_steps(1000, 400)
    experts = ExpertReads(chosen_share=0.1, spread=0.0, hidden_tokens=20.0)
    read, computed = cache_work(replace(steps, experts=experts), records).saved[0, 5:].tolist()
    assert read == pytest.approx(4.0, rel=1e-4), "four steps more, each of which reads all experts"
    assert computed == pytest.approx(4 * 80.0, rel=1e-4)
    timed = cache_work(replace(steps, pace=(1e-3, 1e-5, 0.0, 0.0, 0.0)), records).saved[0]
    assert timed[-1] == pytest.approx(4 * 1e-3 + 400 * 1e-5)


# ------------------------------------------------- against the simulator


def turns(sessions: int, rng: np.random.Generator) -> tuple[list[SubmittedRequest], dict[int, tuple[int, ...]]]:
    """Sessions of ten turns, on contexts that grow from 5,000 to about 50,000 tokens."""
    arrivals: list[SubmittedRequest] = []
    after: dict[int, tuple[int, ...]] = {}
    for session in range(sessions):
        tokens = int(rng.integers(3_000, 10_000))
        for turn in range(10):
            blocks = tuple((session, block) for block in range(tokens // 16))
            think_ns = NS_PER_S + int(rng.integers(0, 2 * NS_PER_S))
            arrivals.append(SubmittedRequest(think_ns, tokens, int(rng.integers(20, 120)), blocks))
            if turn:
                after[len(arrivals) - 1] = (len(arrivals) - 2,)
            tokens += int(rng.lognormal(8, 1))
    return arrivals, after


def attributed(run: SimulatedRun) -> tuple[RunAttribution, list[RequestRecord]]:
    records = [
        request_ns(i, r.arrival_ns, [t_ns + NS_PER_MS // 2 for t_ns in r.token_ns], r.input_tokens, r.cached_tokens)
        for i, r in enumerate(run.requests)
    ]
    series = list(series_by_domain(run.counter).values())
    rows = {"all": np.arange(len(records))}
    return attribute_energy(series, records, NS_PER_S, run.end_ns, sums=rows), records


@pytest.mark.parametrize(("sessions", "hardware"), [(2, "h200"), (8, "h200"), (6, "h100")])
def test_a_run_without_the_cache_costs_what_the_law_says_more(sessions: int, hardware: str) -> None:
    arrivals, after = turns(sessions, np.random.default_rng(sessions))
    gpu, model = read_hardware(hardware), read_model("llama-3.1-8b")
    cached, uncached = (
        simulate(arrivals, gpu, model, EngineOptions(prefix_caching=caching), after=after, tail_ns=NS_PER_S)
        for caching in (True, False)
    )
    result, _ = attributed(cached)
    more = np.array([off.prefill_j - on.prefill_j for on, off in zip(cached.requests, uncached.requests, strict=True)])
    saved = np.array([share.saved_joules for share in result.requests], float)
    assert saved.sum() == pytest.approx(more.sum(), rel=0.1)
    error = result.sums["all"].saved_se_joules
    assert error is not None and 0 < error < 0.1 * saved.sum()
