"""The answer of a search in sentences."""

from typing import Any

import pytest

from loadgen.report.format import joules
from loadgen.report.search_text import answer, describe_probe, duration_text, estimate_text, per_second
from loadgen.results.search_result import Estimate, SearchResult, SettingResult
from support import search_results as examples
from support.search_results import probe, probes, search, setting

RATE = (
    "13.4 requests/s [12.8, 14.0] at 95 % confidence: up to this rate, 99 % of the requests are within TTFT ≤ 200 ms "
)
OUTCOMES: list[tuple[SearchResult, str, str, str]] = [
    (search(), "ok", "Answered", f"{RATE}and TPOT ≤ 10 ms. The limit that binds is TPOT."),
    (search(setting(ended="budget")), "ok", "Answered", RATE),
    (
        search(setting(binding=("tpot", "failures"))),
        "ok",
        "Answered",
        "The limit that binds is TPOT. Above it, too many requests fail.",
    ),
    (search(setting(binding=("failures",))), "ok", "Answered", "TPOT ≤ 10 ms. Above it, too many requests fail."),
    (
        search(setting(ended="fails", probes=(probe(failed=9),))),
        "failed",
        "No rate meets the limits",
        "were wanted. 9 of them failed.",
    ),
    (search(setting(ended=None)), "warning", "Running", f"So far: {RATE}"),
    (examples.first_probe(), "warning", "Running", "no rate is known yet"),
    (search(best=None, attainment=0.9).__class__(), "warning", "Running", "no rate is known yet"),
    (
        examples.undecided(),
        "warning",
        "Undecided",
        "The budget of 10 min ended before both ends of the interval were known.",
    ),
    (
        search(setting(ended="budget"), width=0.01),
        "warning",
        "Undecided",
        "The budget of 10 min ended while the interval was 9.0 % of the rate wide; 1 % was wanted.",
    ),
    (
        search(setting(ended="budget", rate=None, least_joules=None, least_joules_rate=None), budget_s=20),
        "warning",
        "Undecided",
        "The budget of 20 s was too short for an answer.",
    ),
    (
        examples.hopeless(),
        "failed",
        "No rate meets the limits",
        "At 0.125 requests/s, the lowest rate tried, 25.0 % of 12 requests met TTFT ≤ 200 ms and TPOT ≤ 10 ms; 99 % "
        "were wanted. TTFT alone was met by 25.0 % and TPOT alone was met by 91.7 %.",
    ),
    (
        examples.limited_by_client(),
        "warning",
        "At least 8.00 requests/s",
        "At least 8.00 requests/s: up to this rate, 99 % of the requests are within TTFT ≤ 200 ms and TPOT ≤ 10 ms. "
        "The server's own limit is unknown: above 14/s this client would use more than 80 % of a core per process: add "
        "--processes.",
    ),
    (search(setting(ended="client", rate=None)), "warning", "No answer", "this client cannot send at higher rates."),
    (examples.broken(), "failed", "The server stopped answering", "Connection refused on 127.0.0.1:8000."),
    (examples.broken(), "failed", "The server stopped answering", f"Before that: {RATE}"),
    (examples.broken(), "failed", "The server stopped answering", "with a longer --budget if that is spent."),
    (examples.of_settings(), "ok", "Answered", "max_num_seqs=256 is the best of 4 settings. 16.1 requests/s"),
    (
        search(*(setting(name, ended="fails") for name in "ab"), best=None),
        "failed",
        "No rate meets the limits",
        "at no rate with any of the 2 settings",
    ),
    (
        search(setting("a", ended="fails"), setting("b", ended="server"), best=None),
        "failed",
        "No answer",
        "the reasons",
    ),
    (
        search(setting("a"), setting("b", ended=None)),
        "warning",
        "Running",
        "a has the largest rate of 2 settings so far.",
    ),
]


@pytest.mark.parametrize(("result", "status", "head", "sentence"), OUTCOMES)
def test_each_ending_has_its_words(result: SearchResult, status: str, head: str, sentence: str) -> None:
    outcome = answer(result)
    assert (outcome.status, outcome.head) == (status, head)
    assert sentence in " ".join(outcome.sentences)


@pytest.mark.parametrize("ended", ["interval", "budget", "fails", "client", "dropped", "server", None])
@pytest.mark.parametrize("made", [(), probes()[:1], probes()])
def test_an_answer_needs_nothing_but_its_ending(ended: Any, made: Any) -> None:
    unknown = dict.fromkeys(("rate", "least_joules", "least_joules_rate"))
    text = " ".join(answer(search(setting(ended=ended, probes=made, binding=(), **unknown))).sentences)
    assert text and "None" not in text and "requests/s [" not in text


FREE = {
    "least_joules_rate": Estimate(value=10.0, low=9.0, high=11.0),
    "least_joules": Estimate(value=45.0, low=43.0, high=47.0),
}
COSTS: list[tuple[SearchResult, str]] = [
    (search(), "costs fewest joules at this same rate: 48.0 J [46.9, 49.1], 85 % less than the 325 J at 1 request/s,"),
    (
        search(setting(**FREE)),
        "costs fewest joules at 10.0 requests/s [9.00, 11.0] at 95 % confidence: 45.0 J [43.0, 47.0], 6 % less than at "
        "the largest rate, 86 % less than the 325 J at 1 request/s, the lowest rate measured.",
    ),
    (search(setting(probes=probes()[6:])), "at this same rate: 48.0 J [46.9, 49.1]."),
    (examples.of_joules(), "A good request costs fewest joules at 14.4 requests/s [13.6, 15.3] at 95 % confidence"),
    (search(limits_ms={}), "A completed request costs fewest joules"),
    (examples.without_energy(), "No energy was measured, so joules are unknown."),
]


@pytest.mark.parametrize(("result", "text"), COSTS)
def test_the_saving_is_against_loads_that_were_measured(result: SearchResult, text: str) -> None:
    assert text in " ".join(answer(result).sentences)


@pytest.mark.parametrize(
    ("second", "is_rival"),
    [
        (setting("b", 0.97), True),
        (setting("b", 0.5), False),
        (setting("b", 0.97, ended="dropped"), False),
        (setting("b", rate=None), False),
        (setting("b", rate=Estimate(value=12.0, low=12.0, high=None)), True),
    ],
)
def test_a_setting_whose_interval_overlaps_the_best_one_may_be_as_good(second: SettingResult, is_rival: bool) -> None:
    text = " ".join(answer(search(setting("a"), second)).sentences)
    assert text.startswith("a has the largest rate of 2" if is_rival else "a is the best of 2 settings.")
    assert ("b may be as good: the intervals overlap." in text) == is_rival


@pytest.mark.parametrize(
    ("second", "head"),
    [(setting("b", 0.5), "The best setting is known, its rate undecided"), (setting("b", 0.97), "Undecided")],
)
def test_a_best_setting_with_a_vague_rate_is_not_called_undecided_itself(second: SettingResult, head: str) -> None:
    assert answer(search(setting("a", ended="budget"), second, width=0.01)).head == head


def test_the_fewest_joules_are_at_a_rate_of_their_own_where_they_were_searched_for() -> None:
    text = " ".join(answer(search(objective="joules_per_good_request")).sentences)
    assert text.startswith(
        "A good request costs fewest joules at 13.4 requests/s [12.8, 14.0] at 95 % confidence: 48.0 J"
    )


REMARKS: list[tuple[SearchResult, str]] = [
    (search(simulated=True), "The server was simulated"),
    (search(setting(probes=(probe(failed=2), probe(failed=1)))), "3 requests failed: each of them missed its limits."),
    (search(setting(probes=(probe(reasons=("late",)),))), "The verdict on 1 probe has remarks: they are on the page."),
    (
        search(setting(probes=(probe(unfinished=2), probe(unfinished=9, stopped_early=True)))),
        "2 requests had not ended when the probe did, and count for nothing.",
    ),
    (
        search(setting(probes=(probe(ttft_p50_s=None),)), limits_ms={"ttft": 200.0}),
        "No answer has a TTFT, so each of them misses that limit.",
    ),
    (
        search(setting(probes=(probe(tpot_p50_s=None),)), limits_ms={"tpot": 20.0}),
        "No answer has a TPOT, so each of them is within that limit.",
    ),
]


@pytest.mark.parametrize(("result", "remark"), REMARKS)
def test_what_a_reader_must_know_stands_beside_the_answer(result: SearchResult, remark: str) -> None:
    assert remark in answer(result).sentences[-1]
    assert remark not in answer(search()).sentences


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0, "0 s"),
        (0.5, "500 ms"),
        (45, "45 s"),
        (59.6, "1 min"),
        (592, "9 min 52 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
    ],
)
def test_durations_are_written_for_reading(value_s: float, text: str) -> None:
    assert duration_text(value_s) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=48.0, low=46.9, high=49.1), "48.0 J [46.9, 49.1]"),
        (Estimate(value=8.0, low=8.0, high=None), "at least 8.00 J"),
        (Estimate(value=0.05, low=0.0095, high=None), "0.0500 J [9.50 mJ, unknown]"),
        (None, "-"),
    ],
)
def test_an_interval_repeats_its_unit_only_where_it_is_another(estimate: Estimate | None, text: str) -> None:
    assert estimate_text(estimate, joules) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1.0, "1 request/s"), (12.5949, "12.6 requests/s"), (1234.5, "1,230 requests/s"), (0.125, "0.125 requests/s")],
)
def test_a_planned_rate_has_three_digits_at_most(rate: float, text: str) -> None:
    assert per_second(rate) == text


@pytest.mark.parametrize(
    ("made", "estimate", "line"),
    [
        (
            probes()[9],
            setting().rate,
            "probe 9, refining at 13.9 requests/s: 98.4 % of 1,112 requests good, 47.3 J each; rate within the limits "
            "13.4/s [12.8, 14.0]; 1 min 20 s of the budget left",
        ),
        (
            probes()[5],
            None,
            "probe 5, bracketing at 32 requests/s: 0.0 % of 192 requests good (ended early); no rate is known yet; 1 "
            "min 20 s of the budget left",
        ),
        (
            probe(requests=0, good=0, failed=3, watts=None),
            None,
            "probe 0, refining at 8 requests/s: no request counted (3 failed); no rate is known yet; 1 min 20 s of the "
            "budget left",
        ),
    ],
)
def test_a_probe_is_one_line(made: Any, estimate: Estimate | None, line: str) -> None:
    assert describe_probe(made, estimate, 80.0) == line
