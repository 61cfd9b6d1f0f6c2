"""The best of several settings, and the Pareto front of their probes."""

from loadgen.results.best_setting import best_of, front, points
from support.search_results import hopeless, probes, setting, without_energy

UNKNOWN = dict.fromkeys(("rate", "least_joules", "least_joules_rate"))


def test_the_best_setting_has_the_largest_rate_or_the_fewest_joules() -> None:
    settings = [setting("a", 1.0), setting("b", 1.2), setting("c", 0.5)]
    best = best_of(settings, "rate")
    assert best is not None and best.name == "b"
    cheapest = best_of(settings[::2], "joules_per_good_request")
    assert cheapest is not None and cheapest.name == "a"


def test_of_equals_the_first_is_best_and_one_without_an_answer_never_is() -> None:
    best = best_of([setting("none", **UNKNOWN), setting("a"), setting("b")], "rate")
    assert best is not None and best.name == "a"
    assert best_of([], "rate") is None
    assert best_of(hopeless().settings, "rate") is None
    assert best_of(without_energy().settings, "joules_per_good_request") is None


def test_no_point_of_the_front_is_beaten_and_each_beyond_it_is() -> None:
    among = points([setting("a", probes=probes()), setting("b", probes=probes(1.2))])
    best = front(among)
    assert best and all(not point.probe.overloaded for point in among)
    for point in among:
        beaten = any(
            other.good_rps >= point.good_rps
            and other.joules_per_good_request <= point.joules_per_good_request
            and other != point
            for other in among
        )
        assert beaten == (point not in best)


def test_probes_without_power_are_not_on_the_front() -> None:
    assert points(without_energy().settings) == []
    assert front([]) == []
