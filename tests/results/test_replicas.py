"""The cost of a load on fewer replicas: closed forms of a known power, and no number beyond what was probed."""

from random import Random

import pytest

from loadgen.results.replicas import power_curve, with_costs
from loadgen.results.search_result import PresentLoad, SettingResult
from support.search_results import probe, setting, without_energy

RATES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.6)


def cheap(rates: tuple[float, ...] = RATES, noise: float = 0.0, seed: int = 0) -> SettingResult:
    """Return a setting whose power is 200 r^0.2 watts."""
    draw = Random(seed)
    made = [probe(i, rate, watts=200 * rate**0.2 * (1 + draw.gauss(0, noise))) for i, rate in enumerate(rates)]
    return setting(probes=tuple(made))


def load(now_rps: float = 4.0, replicas: int = 2, keep_idle: bool = False) -> PresentLoad:
    return PresentLoad(now_rps=now_rps, replicas=replicas, keep_idle=keep_idle)


@pytest.mark.parametrize(("now_rps", "replicas"), [(4.0, 2), (6.0, 3), (10.0, 5), (3.0, 1)])
def test_replicas_that_are_switched_off_draw_nothing(now_rps: float, replicas: int) -> None:
    served = with_costs(load(now_rps, replicas), cheap(), 0.99, 0.95)
    assert served.best == 1
    assert [cost.replicas for cost in served.costs] == list(range(replicas, 0, -1))
    for cost in served.costs:
        assert cost.joules_per_good_request is not None
        each = 200 * cost.rate_rps**0.2
        assert cost.joules_per_good_request.value == pytest.approx(cost.replicas * each / now_rps, rel=3e-3)
        if cost.replicas < replicas:
            assert cost.saving is not None
            assert cost.saving.value == pytest.approx(1 - (replicas / cost.replicas) ** -0.8, rel=3e-3)


def test_replicas_at_rest_draw_their_idle_power() -> None:
    served = with_costs(load(keep_idle=True), cheap(), 0.99, 0.95)
    on_one = served.costs[-1].joules_per_good_request
    assert on_one is not None
    assert on_one.value == pytest.approx((200 * 4**0.2 + 121) / 4, rel=1e-3)
    no_idle = setting(probes=cheap().probes, idle_watts=None)
    assert with_costs(load(keep_idle=True), no_idle, 0.99, 0.95).costs[-1].joules_per_good_request is None


def test_the_interval_of_the_saving_holds_the_truth_in_95_percent_of_searches() -> None:
    truth, held = 1 - 2**-0.8, 0
    for seed in range(100):
        saving = with_costs(load(), cheap(noise=0.05, seed=seed), 0.99, 0.95).costs[-1].saving
        assert saving is not None and saving.low is not None and saving.high is not None
        held += saving.low <= truth <= saving.high
    assert 89 <= held <= 100


def test_nothing_is_extrapolated_beyond_the_probes() -> None:
    low = with_costs(load(1.5, 2), cheap(), 0.99, 0.95)
    assert [cost.joules_per_good_request is None for cost in low.costs] == [True, False]
    assert low.costs[1].saving is None and low.best == 1
    assert with_costs(load(0.5, 1), cheap(), 0.99, 0.95).best is None


@pytest.mark.parametrize(
    ("now_rps", "within"),
    [
        (12.8, {2: True, 1: True}),
        (13.4, {2: True, 1: None}),  # in the interval of the largest rate
        (14.1, {2: True}),
        (27.0, {2: None}),
        (40.0, {2: False}),
    ],
)
def test_replicas_must_keep_the_limits(now_rps: float, within: dict[int, bool | None]) -> None:
    served = with_costs(load(now_rps), setting(), 0.99, 0.95)
    assert {cost.replicas: cost.is_within for cost in served.costs} == within
    assert served.best == min((count for count, surely in within.items() if surely), default=None)


def test_the_misses_widen_the_interval_where_the_limits_break() -> None:
    far, near = (with_costs(load(rate), cheap(), 0.99, 0.95).costs[-1] for rate in (8.0, 9.0))
    assert far.joules_per_good_request is not None and near.joules_per_good_request is not None
    widths = [cost.relative_width for cost in (far.joules_per_good_request, near.joules_per_good_request)]
    assert widths[0] is not None and widths[1] is not None and widths[1] > 2 * widths[0]


@pytest.mark.parametrize("made", [cheap((2.0,)), cheap((2.0, 4.0)), cheap((1.0, 2.0, 3.0, 4.0, 4.0))])
def test_few_probes_give_a_number_without_an_interval(made: SettingResult) -> None:
    on_two = with_costs(load(), made, 0.99, 0.95).costs[0].joules_per_good_request
    assert on_two is not None and on_two.value == pytest.approx(100 * 2**0.2, rel=2e-2)
    assert (on_two.low, on_two.high) == (None, None)


def test_without_power_or_without_a_rate_nothing_is_known() -> None:
    unmeasured = with_costs(load(), without_energy().settings[0], 0.99, 0.95)
    assert [cost.joules_per_good_request for cost in unmeasured.costs] == [None, None] and unmeasured.best is None
    assert with_costs(load(), setting(rate=None), 0.99, 0.95) == load()


def test_overloaded_probes_say_nothing_about_power() -> None:
    overloaded = probe(99, 20.0, stopped_early=True, watts=1.0)
    curve, other = power_curve(cheap().probes), power_curve((*cheap().probes, overloaded))
    assert curve is not None and other is not None
    assert curve.watts(4.0) == other.watts(4.0) and other.high_rps == 14.6
    assert power_curve([]) is None
