import math

import pytest

from loadgen.results.search_answer import least_joules, power_near, sought_rate
from loadgen.results.search_result import Probe
from support.probes_of_curves import even_probe, share_at

RATES = (7.0, 8.0, 8.6, 9.2, 9.8, 10.4, 11.0)


def probes(
    idle_watts: float = 200.0, slope: float = 20.0, steepness: float = 12.0, requests: int = 4000, **changes: float
) -> list[Probe]:
    return [
        even_probe(
            rate,
            requests,
            round(requests * share_at(rate, steepness=steepness)),
            watts=idle_watts + slope * rate,
            **changes,
        )
        for rate in RATES
    ]


def true_minimum(idle_watts: float, slope: float, steepness: float) -> tuple[float, float]:
    rates = [5 + 0.001 * i for i in range(8000)]
    joules = [(idle_watts + slope * r) / r / (1 - share_at(r, steepness=steepness)) for r in rates]
    return min(zip(joules, rates, strict=True))[::-1]


@pytest.mark.parametrize(
    ("idle_watts", "slope", "steepness"), [(200, 20, 12), (400, 5, 12), (50, 60, 12), (200, 20, 30), (400, 0, 6)]
)
def test_the_interval_holds_the_rate_of_fewest_joules(idle_watts: float, slope: float, steepness: float) -> None:
    rate, joules = true_minimum(idle_watts, slope, steepness)
    least = least_joules(probes(idle_watts, slope, steepness), None, 0.95)
    assert least is not None
    assert least.rate.low is not None
    assert least.rate.high is not None
    assert least.rate.low <= rate <= least.rate.high
    assert least.joules.low is not None
    assert least.joules.high is not None
    assert least.joules.low <= joules <= least.joules.high


def test_the_larger_the_fixed_share_of_the_power_the_larger_is_the_rate_of_fewest_joules() -> None:
    found = [least_joules(probes(idle, 1000 / 10 - idle / 10), None, 0.95) for idle in (200, 500, 900)]
    rates = [least.rate.value for least in found if least is not None]
    assert len(rates) == 3
    assert rates == sorted(rates)


def test_more_requests_narrow_the_interval_of_the_rate_of_fewest_joules() -> None:
    wide, narrow = (least_joules(probes(requests=n), None, 0.95) for n in (1000, 16000))
    assert wide is not None
    assert narrow is not None
    assert narrow.sought.log_sd < wide.sought.log_sd


def test_where_the_limit_breaks_before_the_minimum_it_is_the_rate_of_fewest_joules() -> None:
    limited, free = (least_joules(probes(), attainment, 0.95) for attainment in (0.99, None))
    limit = sought_rate(probes(), "rate", 0.99, 0.95)
    assert limited is not None
    assert free is not None
    assert limited.rate == limit.estimate
    assert limited.rate.value < free.rate.value
    assert limited.joules.value > free.joules.value


def test_a_limit_beyond_the_minimum_does_not_bind() -> None:
    limited, free = (least_joules(probes(), attainment, 0.95) for attainment in (0.5, None))
    assert limited == free


@pytest.mark.parametrize("attainment", [0.9, 0.93, 0.95, 0.97])
@pytest.mark.parametrize("requests", [60, 400])
def test_the_rate_of_fewest_joules_is_never_above_the_limit(attainment: float, requests: int) -> None:
    few = probes(requests=requests)
    limit, least = sought_rate(few, "rate", attainment, 0.95).estimate, least_joules(few, attainment, 0.95)
    assert least is not None
    assert least.rate.value <= limit.value
    assert limit.high is None or (least.rate.high is not None and least.rate.high <= limit.high)


def test_without_power_the_joules_are_unknown_and_a_usual_rate_stands_in() -> None:
    unknown = [even_probe(rate, 4000, round(4000 * share_at(rate))) for rate in RATES]
    assert least_joules(unknown, None, 0.95) is None
    assert sought_rate(unknown, "joules_per_good_request", None, 0.95).estimate.value == pytest.approx(10, rel=0.02)


def test_the_answer_is_the_rate_of_the_objective() -> None:
    least = least_joules(probes(), None, 0.95)
    assert least is not None
    assert sought_rate(probes(), "joules_per_good_request", None, 0.95).estimate == least.rate
    assert sought_rate(probes(), "rate", 0.95, 0.95).estimate.value == pytest.approx(10, rel=0.02)


def test_the_more_confident_the_wider() -> None:
    widths = [
        sought_rate(probes(), "rate", 0.95, confidence).estimate.relative_width for confidence in (0.8, 0.95, 0.99)
    ]
    assert None not in widths
    assert widths == sorted(width or math.nan for width in widths)


def test_the_power_is_a_line_near_the_rate_without_the_overloaded_probes() -> None:
    overloaded = even_probe(20.0, 500, 500, watts=5000.0)
    power = power_near([*probes(), overloaded], 9.0)
    assert power is not None
    assert (power.watts, power.slope) == (pytest.approx(380), pytest.approx(20))


def test_the_power_of_one_rate_has_no_slope() -> None:
    power = power_near([even_probe(9.0, 500, 5, watts=300.0)], 9.0)
    assert power is not None
    assert (power.watts, power.slope) == (300.0, 0.0)
