"""Features, cost shares and standard errors on runs of a few steps, computed by hand."""

import numpy as np
import pytest

from loadgen.attribution.cost_model import Coefficients, cost_shares, foreign_features, member_features, overlap
from loadgen.attribution.engine_steps import EngineSteps, ForeignLoad
from loadgen.attribution.other_methods import OtherMethod, request_shares_mj
from loadgen.attribution.shapley import RequestEnergy, RunAttribution, split_energy
from loadgen.attribution.uncertainty import joules_gradient
from loadgen.energy.series import EnergySeries
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_S


def two_steps(foreign: ForeignLoad | None = None) -> EngineSteps:
    """Request 0 prefills 40 tokens after 10 cached ones, then decodes beside request 1; a second each."""
    return EngineSteps(
        start_ns=np.array([0, NS_PER_S]),
        end_ns=np.array([NS_PER_S, 2 * NS_PER_S]),
        iterations=np.array([2.0, 1.0]),
        step=np.array([0, 1, 1], np.int32),
        request=np.array([0, 0, 1], np.int32),
        prefilling=np.array([True, False, True]),
        prefill=np.array([40, 0, 20], np.float32),
        decode=np.array([0, 1, 0], np.float32),
        context=np.array([30, 50, 10], np.float32),
        unseen_ns=np.zeros((0, 2), np.int64),
        foreign=foreign,
    )


def prices(step: float, prefill: float, attention: float, decode: float, read: float) -> Coefficients:
    return Coefficients(
        step_j=step,
        prefill_token_j=prefill,
        prefill_context_j=attention,
        decode_token_j=decode,
        decode_context_j=read,
        idle_w=None,
    )


def test_features_by_hand() -> None:
    assert member_features(two_steps()).tolist() == [
        [2.0, 40, 1200, 0, 0],
        [0.5, 0, 0, 1, 50],
        [0.5, 20, 200, 0, 0],
    ]


def test_cost_shares_by_hand() -> None:
    shares = cost_shares(two_steps(), prices(4.0, 0.5, 0.01, 3.0, 0.02))
    assert shares.tolist() == pytest.approx([8 + 20 + 12, 2 + 3 + 1, 2 + 10 + 2])


@pytest.mark.parametrize("coefficients", [None, prices(0, 0, 0, 0, 0)])
def test_without_prices_a_step_costs_its_duration_in_equal_parts(coefficients: Coefficients | None) -> None:
    assert cost_shares(two_steps(), coefficients, fallback_w=10.0).tolist() == [20, 5, 5]
    assert cost_shares(two_steps(), coefficients).tolist() == [2, 0.5, 0.5]


def test_other_clients_streams_share_a_step_and_owe_their_part() -> None:
    """Two foreign streams in the second step: each of its four members brings a quarter of it."""
    foreign = ForeignLoad(
        edges_ns=np.array([NS_PER_S + 1, 3 * NS_PER_S]),
        members=np.array([2.0]),
        steps=np.array([0.0]),
        prefill=np.array([0.0]),
        decode=np.array([6.0]),
        prefill_in_step=np.array([0.0, 7.0]),
        context=50.0,
    )
    steps = two_steps(foreign)
    assert member_features(steps)[:, 0].tolist() == [2.0, 0.25, 0.25]
    features = foreign_features(steps, np.array([0, NS_PER_S + 1, 3 * NS_PER_S]))
    assert features.sum(axis=0).tolist() == pytest.approx([0.5, 7, 0, 6, 300])
    assert features[0] == pytest.approx(0, abs=1e-6)


def test_idle_time_in_a_window_takes_the_idle_power_s_share() -> None:
    """One window of 4 s and 100 J: shares of 60 J, and 2 s without a step at 10 W."""
    series = EnergySeries("gpu:0", np.array([0, 4 * NS_PER_S]), np.array([0, 100_000]))
    members, idle, unattributed = split_energy(series, two_steps(), np.array([40.0, 6.0, 14.0]), 10.0)
    assert members.tolist() == pytest.approx([50_000, 7_500, 17_500])
    assert (idle, unattributed) == (pytest.approx(25_000), pytest.approx(0, abs=1e-6))
    members, idle, unattributed = split_energy(series, two_steps(), np.array([40.0, 6.0, 14.0]), 10.0, np.array([20.0]))
    assert members.tolist() == pytest.approx([40_000, 6_000, 14_000])
    assert (idle, unattributed) == (pytest.approx(20_000), pytest.approx(20_000))


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


@pytest.mark.parametrize(("start", "end", "pieces"), [
    (0, 10, [(0, 1.0)]),
    (5, 15, [(0, 0.5), (1, 0.5)]),
    (-10, 10, [(0, 0.5)]),
    (15, 25, [(1, 0.5)]),
    (10, 10, [(1, 1.0)]),
    (20, 20, []),
    (-5, 25, [(0, 1 / 3), (1, 1 / 3)]),
])  # fmt: skip
def test_intervals_are_cut_at_window_edges(start: int, end: int, pieces: list[tuple[int, float]]) -> None:
    _, window, share = overlap(np.array([0, 10, 20]), np.array([start]), np.array([end]))
    assert list(zip(window.tolist(), share.tolist(), strict=True)) == [(w, pytest.approx(s)) for w, s in pieces]


@pytest.mark.parametrize(("idle_mj", "attributed_mj", "share"), [(401, 600, 0.6), (399, 600, 0.6), (400, 600, 0.601)])
def test_a_millijoule_too_many_or_too_few_is_an_error(idle_mj: int, attributed_mj: int, share: float) -> None:
    requests = [RequestEnergy(index=0, prefill_joules=None, decode_joules=None, joules=share)]
    result = RunAttribution(
        method="shapley",
        start_ns=0,
        end_ns=1,
        measured_mj=1000,
        idle_mj=idle_mj,
        attributed_mj=attributed_mj,
        unattributed_mj=0,
        requests=requests,
    )
    with pytest.raises(AssertionError, match="not conserved"):
        result.check()


@pytest.mark.parametrize("method", ["output-tokens", "per-request"])
def test_nothing_is_shared_where_no_request_has_weight(method: OtherMethod) -> None:
    series = EnergySeries("gpu:0", np.array([0, 10]), np.array([0, 500]))
    assert request_shares_mj([series], [], method).tolist() == []
