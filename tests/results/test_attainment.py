"""The load at which limits break: between the last load that holds and the first that does not."""

import pytest

from loadgen.results.attainment import Attainment, LimitBreak, Outcome, is_attained, limit_break


def at(load: float, share: float | None, **by_limit: float) -> Attainment:
    return Attainment(load, share, by_limit, requests=100)


@pytest.mark.parametrize(
    ("shares", "outcome", "held", "broken", "again"),
    [
        pytest.param({1: 1.0, 2: 0.995, 4: 0.5}, "breaks", 2, 4, (), id="breaks between two loads"),
        pytest.param({1: 1.0, 2: 0.99}, "holds", 2, None, (), id="never breaks in range, and the wanted share is met"),
        pytest.param({1: 0.98, 2: 0.5}, "fails", None, 1, (), id="always broken"),
        pytest.param({1: 1.0}, "holds", 1, None, (), id="one load that holds"),
        pytest.param({1: 0.0}, "fails", None, 1, (), id="one load that does not"),
        pytest.param({1: 1.0, 2: 0.9, 4: 1.0, 8: 0.9}, "breaks", 1, 2, (4,), id="not monotone"),
        pytest.param({1: 0.9, 2: 1.0}, "fails", None, 1, (2,), id="holds at a larger load only"),
        pytest.param({1: 1.0, 2: None, 4: 0.9}, "breaks", 1, 4, (), id="an unknown load is left out"),
        pytest.param({1: None}, "unknown", None, None, (), id="unknown"),
        pytest.param({}, "unknown", None, None, (), id="no load"),
    ],
)
def test_the_break_is_at_the_smallest_load_that_misses(
    shares: dict[float, float | None],
    outcome: Outcome,
    held: float | None,
    broken: float | None,
    again: tuple[float, ...],
) -> None:
    points = [at(load, share) for load, share in shares.items()]
    for order in (points, points[::-1]):
        found = limit_break(order, 0.99)
        assert (found.outcome, found.again) == (outcome, again)
        assert (found.held and found.held.load, found.broken and found.broken.load) == (held, broken)


@pytest.mark.parametrize(
    ("by_limit", "binding"),
    [
        ({"ttft": 0.9, "tpot": 1.0}, ("ttft",)),
        ({"ttft": 0.9, "tpot": 0.5}, ("tpot", "ttft")),
        ({"ttft": 0.992, "tpot": 0.991}, ()),
        ({}, ()),
    ],
)
def test_the_limits_that_bind_are_those_that_alone_miss_the_share(
    by_limit: dict[str, float], binding: tuple[str, ...]
) -> None:
    assert limit_break([at(1, 1.0), at(2, 0.5, **by_limit)], 0.99).binding == binding


def test_a_mean_that_rounds_just_below_the_wanted_share_attains_it() -> None:
    assert is_attained((0.9 + 0.99 + 0.93) / 3, 0.94) and not is_attained(0.9399, 0.94)


def test_another_share_moves_the_break() -> None:
    points = [at(1, 1.0), at(2, 0.95), at(4, 0.5)]
    assert limit_break(points, 0.9) == LimitBreak("breaks", points[1], points[2])
