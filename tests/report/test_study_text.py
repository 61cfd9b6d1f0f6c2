"""The findings of a study in sentences, by hand."""

import pytest

from loadgen.report.study_text import best_reduction, best_setting, break_sentence, findings, interval_text, reason_text
from loadgen.results.attainment import Attainment
from loadgen.results.study_table import StudyInfo, groups
from loadgen.stats.intervals import Interval
from support.study_rows import full_row

BOTH = StudyInfo("t", limits_ms={"ttft": 200.0, "tpot": 10.0})
ONE = StudyInfo("t", limits_ms={"ttft": 200.0})


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (None, "-"),
        (Interval(2.0, None, None, 1), "2.00 J"),
        (Interval(2.0, None, None, 2), "2.00 J [unknown]"),
        (Interval(2.0, 1.0, 3.0, 3), "2.00 J [1.00 J, 3.00 J]"),
    ],
)
def test_a_mean_stands_with_its_interval_or_with_the_reason_for_none(interval: Interval | None, text: str) -> None:
    assert interval_text(interval) == text


# -- the load at which limits break ------------------------------------------------------------------------------------


def at(load: float, share: float | None, **by_limit: float) -> Attainment:
    return Attainment(load, share, by_limit, 100)


@pytest.mark.parametrize(
    ("points", "study", "is_rate", "sentence"),
    [
        pytest.param(
            [at(8, 0.994), at(12, 0.912, ttft=0.912)],
            ONE,
            True,
            "TTFT ≤ 200 ms is met by 99 % of the requests up to 8/s (99.4 % of 100) and no longer at 12/s (91.2 % of "
            "100): it breaks between 8/s and 12/s. The limit that binds is TTFT (met by 91.2 %).",
            id="breaks",
        ),
        pytest.param(
            [at(1, 1.0), at(8, 1.0)],
            BOTH,
            False,
            "TTFT ≤ 200 ms and TPOT ≤ 10 ms are met by 99 % of the requests at every load up to 8 in flight (100.0 % "
            "of 100): they break nowhere in this range.",
            id="never",
        ),
        pytest.param(
            [at(4, 1.0)],
            ONE,
            True,
            "TTFT ≤ 200 ms is met by 99 % of the requests at 4/s (100.0 % of 100), the only load: it breaks nowhere in "
            "this range.",
            id="one load",
        ),
        pytest.param(
            [at(4, 0.5)],
            ONE,
            True,
            "TTFT ≤ 200 ms is not met by 99 % of the requests at 4/s (50.0 % of 100), the only load: it breaks below "
            "this range.",
            id="one load that misses",
        ),
        pytest.param(
            [at(4, 0.5, ttft=0.6, tpot=0.55), at(8, 0.4)],
            BOTH,
            True,
            "TTFT ≤ 200 ms and TPOT ≤ 10 ms are not met by 99 % of the requests at the smallest load, 4/s (50.0 % "
            "of 100): they break below this range. The limits that bind are TPOT (met by 55.0 %) and TTFT (met by "
            "60.0 %).",
            id="always",
        ),
        pytest.param(
            [at(1, 1.0), at(2, 0.985, ttft=0.993, tpot=0.992), at(4, 1.0)],
            BOTH,
            True,
            "TTFT ≤ 200 ms and TPOT ≤ 10 ms are met by 99 % of the requests up to 1/s (100.0 % of 100) and no longer "
            "at 2/s (98.5 % of 100): they break between 1/s and 2/s. Each limit alone is met often enough; together "
            "they are not. Yet they are met at 4/s: more repeats or longer runs would show whether that is chance.",
            id="not monotone",
        ),
        pytest.param([at(1, None)], ONE, True, "how many requests are within TTFT ≤ 200 ms is unknown.", id="unknown"),
    ],
)
def test_at_what_load_the_limits_break_is_one_sentence(
    points: list[Attainment], study: StudyInfo, is_rate: bool, sentence: str
) -> None:
    assert break_sentence(points, study, is_rate) == sentence


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("no GPU", "no GPU"),
        ("it broke\n  traceback", "it broke"),
        ("it did not start and said last:\n  loading\n  no memory", "it did not start and said last: no memory"),
    ],
)
def test_the_reason_of_a_failed_run_is_one_line_with_what_it_announces(reason: str, line: str) -> None:
    assert reason_text(reason) == line


# -- the best setting --------------------------------------------------------------------------------------------------


def test_the_best_setting_is_the_cheapest_within_the_limits() -> None:
    """24/s takes less energy for each good request, but too few of its requests are good."""
    shares = {2.0: (1.0, 0.01), 8.0: (0.995, 0.02), 24.0: (0.9, 0.03)}
    rows = [full_row(rps=r, goodput_ratio=s, good_requests_per_joule=g) for r, (s, g) in shares.items()]
    assert best_setting(groups(rows), BOTH) == (
        "of the settings with at least 99 % of the requests within TTFT ≤ 200 ms and TPOT ≤ 10 ms, plain at 8/s takes "
        "the least energy: 50.0 J per request within the limits, 1.00 J per output token, 8.00 requests/s served, 800 "
        "output tokens/s, TTFT p99 200 ms, TPOT p99 7.50 ms."
    )
    assert best_setting(groups(rows), StudyInfo("t", limits_ms=BOTH.limits_ms, wanted=0.9)) is not None


def test_without_a_setting_within_the_limits_the_nearest_is_named() -> None:
    rows = [full_row(rps=rps, goodput_ratio=share) for rps, share in ((2.0, 0.9), (8.0, 0.5))]
    assert best_setting(groups(rows), ONE) == (
        "no setting has at least 99 % of the requests within TTFT ≤ 200 ms; plain at 2/s comes nearest with 90.0 %."
    )
    assert best_setting(groups([full_row(goodput_ratio=None)]), ONE) is None


def test_without_energy_the_best_setting_serves_the_most() -> None:
    dark = {"joules_per_output_token": None, "good_requests_per_joule": None, "goodput_ratio": 1.0}
    rows = [full_row(rps=2.0, completed=40, **dark), full_row(rps=8.0, **dark)]
    for study in (ONE, StudyInfo("t")):
        sentence = best_setting(groups(rows), study)
        assert sentence is not None and "plain at 8/s serves the most: 8.00 requests/s served" in sentence


def test_the_best_reduction_is_from_the_worst_baseline_and_from_its_best() -> None:
    """The baseline takes 4 J and 2 J a token, the other 1 J: 75 % and 50 % less."""
    rows = [
        full_row(batch=batch, rps=None, joules_per_output_token=energy, server=server)
        for server, batch, energy in (("plain", 1, 4.0), ("plain", 8, 2.0), ("other", 8, 1.0))
    ]
    assert best_reduction(groups(rows), "plain") == (
        "other at 8 in flight takes 75.0 % less energy per output token than plain at 1 in flight, "
        "and 50.0 % less than plain at its own best, 8 in flight."
    )
    assert best_reduction(groups(rows[:2]), "plain") is None, "nothing to compare with"
    assert best_reduction(groups(rows[2:]), "plain") is None, "no baseline"


def test_findings_name_the_workload_and_the_model_where_there_are_several() -> None:
    one = findings(groups([full_row(goodput_ratio=1.0)]), ONE)
    assert [sentence.partition(":")[0] for sentence in one] == ["chat", "chat, plain"]
    two = findings(groups([full_row(goodput_ratio=1.0), full_row(model="n", goodput_ratio=1.0)]), ONE)
    assert [sentence.partition(":")[0] for sentence in two] == [
        "chat, m",
        "chat, m, plain",
        "chat, n",
        "chat, n, plain",
    ]
