"""What `loadgen meters` reports of a source, on series computed by hand."""

import msgspec
import numpy as np
import pytest

from loadgen.clock import monotonic_ns
from loadgen.energy.inspect import DomainFacts, domain_facts, inspect_sources, ratio_to_power, update_period_s, verdict
from loadgen.energy.meter import EnergyMeter, Reading
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries
from loadgen.errors import MeterError
from loadgen.units import NS_PER_MS, NS_PER_S


def series(t_ms: list[int], mj: list[int]) -> EnergySeries:
    return EnergySeries("gpu:0", np.array(t_ms, dtype=np.int64) * NS_PER_MS, np.array(mj, dtype=np.int64))


def facts(**changes: object) -> DomainFacts:
    usual = DomainFacts(
        name="gpu:0", source="nvml-counter", uuid=None, within=None, moves=30,
        period_s=0.1, quantum_mj=100, watts=100.0, power_ratio=1.0, verdict="",
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


@pytest.mark.parametrize(("t_ms", "period_s"), [
    ([0, 100], 0.1),
    ([0, 100, 200, 300], 0.1),
    ([0, 100, 200, 400, 500], 0.1),  # one update missed
    ([0, 90, 200, 290, 400], 0.1),
    ([0, 100, 110, 210], 0.07),  # a short gap is still an update
])  # fmt: skip
def test_the_period_is_the_mean_gap_and_missed_updates_are_counted(t_ms: list[int], period_s: float) -> None:
    assert update_period_s(series(t_ms, list(range(len(t_ms))))) == pytest.approx(period_s)


def test_the_ratio_is_taken_between_two_updates_within_the_power_readings() -> None:
    """The counter grows by 10, 12 and 50 J; the power readings, 100 W, cover its second to third update only."""
    counter = series([0, 100, 200, 300], [0, 10_000, 22_000, 72_000])
    assert ratio_to_power(counter, series([100, 200], [0, 10_000])) == pytest.approx(1.2)
    assert ratio_to_power(counter, series([50, 250], [0, 20_000])) == pytest.approx(1.2)
    assert ratio_to_power(counter, series([0, 300], [0, 30_000])) == pytest.approx(2.4)


@pytest.mark.parametrize("power", [
    None,
    series([100], [0]),
    series([101, 299], [0, 1000]),  # one update inside
    series([101, 199], [0, 1000]),  # none
    series([0, 300], [0, 0]),  # no energy to compare with
])  # fmt: skip
def test_without_two_updates_or_any_power_there_is_no_ratio(power: EnergySeries | None) -> None:
    assert ratio_to_power(series([0, 100, 200, 300], [0, 1, 2, 3]), power) is None


def test_the_facts_of_a_counter_by_hand() -> None:
    domain = EnergyDomain(name="gpu:0", source="nvml-counter", uuid="GPU-1", period_s=9.0)
    found = domain_facts(domain, series([0, 100, 200], [0, 0, 20_000]), series([0, 200], [0, 25_000]))
    assert (found.moves, found.quantum_mj) == (3, 20_000)
    assert (found.period_s, found.watts, found.power_ratio) == pytest.approx((0.1, 100, 0.8))
    assert found.verdict.startswith("doubtful")


def test_only_a_counter_is_compared_with_power_and_has_its_period_measured() -> None:
    domain = EnergyDomain(name="cpu", source="rapl", period_s=0.5)
    found = domain_facts(domain, series([0, 100, 200], [0, 0, 20_000]), series([0, 200], [0, 25_000]))
    assert (found.period_s, found.power_ratio) == (0.5, None)


@pytest.mark.parametrize("observed", [None, series([100], [5])])
def test_fewer_than_two_updates_are_no_observation(observed: EnergySeries | None) -> None:
    found = domain_facts(EnergyDomain(name="gpu:0", source="nvml-counter"), observed, None)
    assert (found.period_s, found.quantum_mj, found.watts, found.power_ratio) == (None, None, None, None)
    assert found.verdict.startswith("not usable")


def test_a_counter_that_stands_still_has_no_smallest_step() -> None:
    found = domain_facts(EnergyDomain(name="gpu:0", source="rapl"), series([0, 100], [7, 7]), None)
    assert (found.quantum_mj, found.watts) == (None, 0)


@pytest.mark.parametrize(("changes", "word"), [
    ({"moves": 1}, "not usable"),
    ({"moves": 2}, "good"),
    ({"source": "estimate"}, "an estimate"),
    ({"power_ratio": 0.9}, "good"),
    ({"power_ratio": 1.1}, "good"),
    ({"power_ratio": 0.899}, "doubtful"),
    ({"power_ratio": 1.101}, "doubtful"),
    ({"power_ratio": None}, "good"),
    ({"source": "nvml-power-instant"}, "fair"),
    ({"period_s": None}, "coarse"),
    ({"period_s": 1.0}, "good"),
    ({"period_s": 1.01}, "coarse"),
    ({"source": "simulated nvml-counter"}, "good: simulated, no measurement of hardware; "),
])  # fmt: skip
def test_the_verdict_follows_from_the_facts(changes: dict[str, object], word: str) -> None:
    assert verdict(facts(**changes)).startswith(word)


class Steady:
    """A meter of 100 W whose counter is read every 5 ms."""

    poll_s = 0.005
    notes: list[str] = ["a note"]  # noqa: RUF012
    domains = [EnergyDomain(name="gpu:0", source="test", period_s=0.005)]  # noqa: RUF012

    def __init__(self, watts: float) -> None:
        self.watts = watts
        self.closed = False

    def read(self) -> Reading:
        t_ns = monotonic_ns()
        return Reading([EnergySample(t_ns, "gpu:0", self.watts * t_ns / NS_PER_S)] if self.watts else [])

    def close(self) -> None:
        self.closed = True


def test_sources_keep_their_order_and_those_that_do_not_open_say_why() -> None:
    steady, dead = Steady(100.0), Steady(0.0)

    def refuse() -> EnergyMeter:
        raise MeterError("no driver here")

    absent, usable, still = inspect_sources({"a": refuse, "b": lambda: steady, "c": lambda: dead}, 0.1)
    assert (absent.name, absent.usable, absent.reason) == ("a", False, "no driver here")
    assert (usable.name, usable.usable, usable.reason, usable.notes) == ("b", True, None, ["a note"])
    assert usable.domains[0].watts == pytest.approx(100, rel=0.01)
    assert usable.cpu_share is not None and 0 < usable.cpu_share < 1
    assert (still.name, still.usable) == ("c", False) and still.reason is not None
    assert steady.closed and dead.closed
