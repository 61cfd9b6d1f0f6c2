"""Facts about traces, by hand, and as a table and a terminal show them."""

import numpy as np
import pytest

from loadgen.report.trace_facts import fact_name, format_fact, session_facts, shares_by_power_of_2, time_facts
from loadgen.report.trace_page import tile_rows
from loadgen.report.trace_terminal import decimal, heat_map, spark_line
from loadgen.stats.distributions import Counts
from loadgen.workload.token_bins import CountedPairs
from loadgen.workload.trace_stats import WINDOWS_S, Description, SessionStats


def counts(*values: float) -> Counts:
    distinct, times = np.unique(np.array(values), return_counts=True)
    return Counts(distinct, times)


ONES = np.ones(3, dtype=np.int64)


def described(**changes: object) -> Description:
    fields: dict[str, object] = {
        "requests": 11, "inputs": counts(1, 2, 3), "outputs": counts(4, 4, 5),
        "pairs": CountedPairs(ONES, ONES, ONES), "workloads": {"w": 11},
    }  # fmt: skip
    return Description(**(fields | changes))  # type: ignore[arg-type]


def test_sessions_have_turns_and_gaps_where_any_is_named() -> None:
    sessions = SessionStats(count=2, turns=counts(1, 4), gap_s=None)
    assert session_facts(described(sessions=sessions)) == {
        "sessions": 2,
        "turns_per_session_mean": 2.5,
        "turns_per_session_p50": sessions.turns.percentile(50),
        "turns_per_session_max": 4,
        "session_gap_p50_s": None,
    }
    assert session_facts(described(sessions=None)) == {"sessions": None}


def test_a_rate_is_the_gaps_over_the_time_they_take() -> None:
    facts = time_facts(
        described(first_s=1.0, last_s=6.0, gaps_s=counts(*[0.5] * 10), dispersion=(2.0,) * len(WINDOWS_S))
    )
    assert (facts["mean_rps"], facts["gap_cv"], facts["index_of_dispersion_60s"]) == (2.0, 0.0, 2.0)
    at_once = time_facts(described(first_s=1.0, last_s=1.0, gaps_s=counts(0.0), dispersion=(None,) * len(WINDOWS_S)))
    assert (at_once["mean_rps"], at_once["gap_cv"], at_once["rate_over_time_rps"]) == (None, None, None)


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [((1,), [1.0]), ((2,), [0, 1.0]), ((3, 4), [0, 0, 1.0]), ((1, 2, 4, 5), [0.25, 0.25, 0.25, 0.25])],
)
def test_a_power_of_two_is_the_upper_end_of_its_share(lengths: tuple[int, ...], shares: list[float]) -> None:
    assert shares_by_power_of_2(counts(*lengths)) == shares


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (1234567, "1,234,567"),
        (1234.5, "1,234.5"),
        (3.0, "3"),
        (0.12349, "0.123"),
        ({"chat": 1200, "code": 3}, "chat 1,200, code 3"),
        ("poisson", "poisson"),
        ([0.0, 0.5, 1.0], "chart"),
    ],
)
def test_a_fact_is_formatted_by_its_type(value: object, text: str) -> None:
    assert format_fact(value, decimal, lambda _: "chart") == text


def test_of_many_names_the_first_twenty_are_listed() -> None:
    assert format_fact({f"w{i}": 1 for i in range(30)}, decimal).count(",") == 19


@pytest.mark.parametrize("values", [[4.0], [0.0, 1.0, 4.0], [1e-9, 4.0]])
def test_a_spark_line_has_a_mark_for_each_value_and_none_for_zero(values: list[float]) -> None:
    marks, _, highest = spark_line(values).partition(" up to ")
    assert len(marks) == len(values) and highest == "4"
    assert [mark == " " for mark in marks] == [value == 0 for value in values]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("gap_cv", "arrival gaps, std / mean"),
        ("index_of_dispersion_60s", "dispersion in 60 s"),
        ("input_p90", "input tokens, p90"),
        ("made_by", "made by"),
    ],
)
def test_a_fact_has_a_name_in_words(key: str, name: str) -> None:
    assert fact_name(key) == name


def test_heat_maps_of_two_traces_begin_at_the_same_length() -> None:
    long, short = (CountedPairs(np.array(inputs), ONES, ONES) for inputs in ((16, 32, 64), (4, 8, 16)))
    axes = [str(heat_map("t", pairs, 4, "utf-8")).splitlines()[-2] for pairs in (long, short)]
    assert axes[0].split() == ["+", "4", "8", "16", "32", "64"]
    assert axes[0].startswith(axes[1])


FACTS = {"input_p50": 7.6, "input_mean": 9.0, "output_p50": 3.0, "output_mean": 4.5, "spearman": None, "requests": 1200}


def test_bins_have_no_arrivals_to_show() -> None:
    rows = tile_rows(FACTS)
    assert [name for name, _, _ in rows] == ["Input tokens", "Output tokens", "Requests", "Input with output"]
    assert rows[0] == ("Input tokens", "8", "median; mean 9.00")
    assert rows[3][1] == "-"
    assert rows[2] == ("Requests", "1,200", "counted in the bins")
    assert tile_rows(FACTS | {"duration_s": None})[2][2] == "in the trace"


@pytest.mark.parametrize(
    ("sessions", "turns", "tile"),
    [(None, None, ("Sessions", "-", "none named")), (40, 2.5, ("Sessions", "40", "2.50 turns on average"))],
)
def test_a_trace_has_its_rate_and_its_sessions(sessions: int | None, turns: float | None, tile: object) -> None:
    arrivals = {"duration_s": 60.0, "mean_rps": 20.0, "index_of_dispersion_60s": 1.0, "prefix_token_reuse": 0.25}
    rows = tile_rows(FACTS | arrivals | {"sessions": sessions, "turns_per_session_mean": turns})
    assert rows[4] == ("Rate", "20.0 /s", "over 60.0 s")
    assert rows[6] == tile
    assert rows[7][1] == "25.0 %"
