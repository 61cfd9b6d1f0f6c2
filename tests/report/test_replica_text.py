"""The cost of the present load on fewer replicas, in words."""

from typing import Any

import pytest

from loadgen.report.replica_text import replica_rows, replica_sentences
from loadgen.report.search_page import render_search_page
from loadgen.results.replicas import with_costs
from loadgen.results.search_result import Estimate, PresentLoad, ReplicaCost, SearchResult
from support.search_results import search, setting


def estimate(value: float, reach: float | None = 0.1) -> Estimate:
    low, high = (None, None) if reach is None else (value * (1 - reach), value * (1 + reach))
    return Estimate(value=value, low=low, high=high)


def cost(replicas: int, joules: float | None, share: float | None = None, **changes: Any) -> ReplicaCost:
    values: dict[str, Any] = {
        "replicas": replicas,
        "rate_rps": 4 / replicas,
        "is_within": True,
        "joules_per_good_request": None if joules is None else estimate(joules),
        "saving": None if share is None else estimate(share),
    }
    return ReplicaCost(**(values | changes))


def served(*costs: ReplicaCost, best: int | None = None, **changes: Any) -> SearchResult:
    values = {"now_rps": 4.0, "replicas": costs[0].replicas if costs else 2, "costs": costs, "best": best}
    return search(present=PresentLoad(**(values | changes)))


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            served(cost(2, 200), cost(1, 138, 0.31), best=1),
            "Serving your 4.00 requests/s on 1 of 2 replicas, the other switched off, saves 31 % [28, 34] of the "
            "joules per good request: 138 J instead of 200 J.",
        ),
        (
            served(cost(4, 400), cost(3, 300, 0.25), cost(2, 210, 0.475), best=2, keep_idle=True),
            "on 2 of 4 replicas, the other 2 at rest, saves 48 % [43, 52]",
        ),
        (
            served(cost(2, 200), cost(1, 138, 0.31, saving=estimate(0.31, None)), best=1),
            "saves 31 % of the joules per good request",
        ),
        (
            served(cost(2, None), cost(1, 138), best=1),
            "costs 138 J [124, 152] on 1 of 2 replicas, the other switched off; on all of them the cost is unknown: no "
            "power is known at 2.00/s, and nothing beyond the probes is extrapolated.",
        ),
        (
            served(cost(2, 200), cost(1, 138, 0.31, is_within=None), best=2),
            "A good request of your 4.00 requests/s costs 200 J [180, 220] on 2 replicas; fewer do not surely keep the "
            "limits.",
        ),
        (served(cost(2, 200), cost(1, 250, -0.25), best=2), "on 2 replicas; on fewer it costs no less."),
        (served(cost(1, 138), best=1), "A good request of your 4.00 requests/s costs 138 J [124, 152]."),
        (served(cost(1, 9_900), best=1), "costs 9,900 J [8,910, 10.9 kJ]."),
        (served(cost(1, None)), "is unknown: no power is known at 4.00/s"),
        (served(cost(2, 200, is_within=None)), "is unknown: 2.00/s lies within the interval of the largest rate."),
        (
            served(cost(2, None, is_within=False)),
            "2 servers at 2.00/s each cannot serve your 4.00 requests/s within the limits.",
        ),
        (served(cost(1, None, is_within=False)), "1 server cannot serve your 4.00 requests/s within the limits."),
        (served(), "is unknown: no rate within the limits is known."),
    ],
)  # fmt: skip
def test_a_load_has_its_sentence(result: SearchResult, sentence: str) -> None:
    assert sentence in " ".join(replica_sentences(result))


def test_without_a_present_load_there_is_no_sentence_and_no_table() -> None:
    assert replica_sentences(search()) == []
    assert "fewer replicas" not in render_search_page(search())


def test_the_page_has_the_costs_by_replicas() -> None:
    load = with_costs(PresentLoad(now_rps=8.0, replicas=4), setting(), 0.99, 0.95)
    page = render_search_page(search(present=load))
    assert "Your load on fewer replicas" in page and "are switched off" in page
    assert "Serving your 8.00 requests/s on 1 of 4 replicas" in page
    rows = replica_rows(load)
    assert [row[:3] for row in rows] == [
        ["4", "2.00", "yes"], ["3", "2.67", "yes"], ["2", "4.00", "yes"], ["1", "8.00", "yes"],
    ]  # fmt: skip
    assert rows[0][4] == "-"
