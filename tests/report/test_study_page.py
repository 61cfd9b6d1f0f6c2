"""The page of a study: what it shows follows from what was run."""

import re
from itertools import zip_longest
from typing import Any

import pytest

from loadgen.report.format import number
from loadgen.report.study_page import (
    Measure,
    arrivals_table,
    best_reduction,
    goodput_figures,
    measure_axis,
    overview_table,
    pareto_figures,
    power_figures,
    reductions_table,
    relative_range,
    render_study_page,
    shares_table,
)
from loadgen.results.study_table import Row, groups
from loadgen.stats.intervals import Interval
from report.test_run_page import Page

LIMITS = {"ttft": 200.0, "tpot": 10.0}


def row(server: str = "plain", batch: int | None = None, rps: float | None = 8.0, repeat: int = 0, **given: Any) -> Row:
    fields: dict[str, Any] = {
        "cell": f"{server}-{batch}-{rps}-{repeat}",
        "server": server,
        "model": "m",
        "workload": "chat",
        "batch": batch,
        "rps": rps,
        "repeat": repeat,
        "simulated": False,
        "completed": 160,
        "failed": 0,
        "duration_s": 20.0,
        "input_tokens": 1000,
        "output_tokens": 1000,
        "output_tokens_per_s": 100.0 * (rps or batch or 1),
        "measured_joules": 8000.0,
        "prefill_joules": 2000.0,
        "decode_joules": 5000.0,
        "idle_joules": 1000.0,
        "unattributed_joules": 0.0,
        "mean_watts": 400.0,
        "joules_per_output_token": 8.0 / (rps or batch or 1) + 0.01 * repeat,
        "joules_per_request": 50.0,
        "ttft_p50_s": 0.05,
        "ttft_p99_s": 0.2,
        "tpot_p50_s": 0.005 * (1 + (rps or batch or 1) / 16),
        "tpot_p99_s": 0.01,
        "e2e_p50_s": 1.0,
        "goodput_ratio": 0.75,
        "good_requests_per_joule": 0.015,
        "idealized_joules": 800.0,
        "measured_over_idealized": 10.0,
        "energy_valid": True,
        "gpu": "GPU",
        "temperature_c": 40.0,
        "arrival": "poisson" if rps else None,
        "idle_watts": 120.0,
    }
    return Row(**{**fields, **given})


def page(rows: list[Row], limits: dict[str, float] = LIMITS) -> Page:
    return Page(render_study_page("Title", "What is asked.", rows, "plain", limits, {}, 0))


def figures(found: Page) -> list[str]:
    return re.findall(r"chat[-a-z]*, by (?:batch|requests per second)", found.text)


def repeats(*loads: tuple[int | None, float | None], server: str = "plain", **given: Any) -> list[Row]:
    return [row(server, batch, rps, repeat, **given) for batch, rps in loads for repeat in (0, 1, 2)]


def test_a_figure_needs_two_loads_and_a_table_one() -> None:
    one = page(repeats((None, 8.0)))
    assert figures(one) == [] and "8/s" in one.text
    several = page(repeats((None, 2.0), (None, 8.0), (8, None)))
    assert set(figures(several)) == {"chat, by requests per second"}
    both = page(repeats((None, 2.0), (None, 8.0), (8, None), (64, None)))
    assert set(figures(both)) == {"chat, by batch", "chat, by requests per second"}


def test_ids_are_of_one_element_each_and_every_tag_closes() -> None:
    found = page(repeats((None, 2.0), (None, 8.0), (8, None), (64, None)) + repeats((None, 8.0), server="other"))
    ids = [attributes["id"] for _, attributes in found.elements if attributes.get("id")]
    assert len(ids) == len(set(ids)) and not found.open


@pytest.mark.parametrize("wild", [0.0, 1e-9, 1e9])
def test_one_wild_repeat_does_not_push_the_others_out_of_the_picture(wild: float) -> None:
    rows = [*repeats((None, 2.0), (None, 8.0))[:-1], row(repeat=2, joules_per_output_token=wild or None)]
    marks = [a["d"] for name, a in page(rows).elements if name == "path" and a.get("d")]
    ends = [float(value) for mark in marks for value in re.findall(r"V(-?[0-9.]+)", mark or "")]
    assert ends and all(-0.1 <= value <= 240.1 for value in ends), "bars end within the plot"


def test_what_requests_within_limits_cost_is_told_only_where_limits_are() -> None:
    rows = repeats((None, 2.0), (None, 8.0))
    told = page(rows).text
    assert "TTFT ≤ 200 ms, TPOT ≤ 10 ms" in told
    assert "75.0 % 6.00 15.0 [15.0, 15.0]" in told, "160 requests in 20 s; 0.015 a joule"
    assert "within limits" not in page(rows, {}).text


def test_arrivals_are_compared_where_they_differ() -> None:
    same, other = repeats((None, 8.0)), repeats((None, 8.0), workload="chat-bursty", arrival="gamma 0.25")
    assert "Arrivals" not in page(same).text
    assert "gamma 0.25" in page(same + other).text


def test_the_front_is_drawn_through_what_nothing_beats() -> None:
    """J per token falls with the rate while TPOT grows: every one is on it; a dearer, slower server is not."""
    rows = repeats((None, 2.0), (None, 8.0), (None, 16.0))
    rows += repeats((None, 16.0), server="worse", joules_per_output_token=20.0, tpot_p50_s=0.02)
    told = page(rows).text
    assert "the Pareto front (plain 2/s; plain 8/s; plain 16/s)" in told
    assert "Least energy within TPOT ≤ 10 ms: plain at 16/s" in told


def test_a_column_for_the_model_only_where_there_are_several() -> None:
    rows = repeats((None, 2.0))
    assert "server workload load runs" in page(rows).text
    assert "server model workload load runs" in page(rows + repeats((None, 2.0), model="n")).text


def test_idle_power_stands_beside_the_power_under_load() -> None:
    assert "120 W, idle with the model resident" in page(repeats((None, 2.0), (None, 8.0))).text


# -- sections, each alone ---------------------------------------------------------------------------------------------


def text_of(*parts: str) -> str:
    return Page("".join(parts)).text


@pytest.mark.parametrize(
    ("means", "ends", "log", "low", "high"),
    [
        ([2.0, 4.0], [(1.8, 4.4)], True, 1.0, 5.0),
        ([2.0, 4.0], [(1e-9, 1e9)], True, 1.0, 10.0),
        ([2.0, 4.0], [(-5.0, 4.4)], False, 0.0, 4.4),
        ([2.0, 4.0], [(-5.0, 50.0)], False, 0.0, 8.0),
        ([3.0], [(None, None)], False, 0.0, 3.0),
    ],
)
def test_an_axis_has_room_for_bars_up_to_half_or_twice_the_extreme_means(
    means: list[float], ends: list[tuple[float | None, float | None]], log: bool, low: float, high: float
) -> None:
    intervals = [Interval(mean, *end, 3) for mean, end in zip_longest(means, ends, fillvalue=(None, None))]
    axis = measure_axis(intervals, Measure("f", "u", number, "c", log))
    assert (axis.low, axis.high, axis.log) == (pytest.approx(low), pytest.approx(high), log)


@pytest.mark.parametrize(
    ("values", "spread"), [([], None), ([5.0], None), ([5.0, 5.0], 0.0), ([1.0, 2.0, 3.0], 1.0), ([4.0, 2.0], 2 / 3)]
)
def test_a_spread_is_relative_to_the_mean(values: list[float], spread: float | None) -> None:
    assert relative_range(values) == spread


def test_the_best_reduction_is_from_the_worst_baseline_and_from_its_best() -> None:
    """The baseline takes 4 J and 2 J a token, the other 1 J: 75 % and 50 % less."""
    rows = [
        row(batch=batch, rps=None, joules_per_output_token=energy, server=server)
        for server, batch, energy in (("plain", 1, 4.0), ("plain", 8, 2.0), ("other", 8, 1.0))
    ]
    assert best_reduction(groups(rows), "chat", "plain") == (
        "chat: other at batch 8 takes 75.0 % less than plain at batch 1, "
        "and 50.0 % less than plain at its own best, batch 8."
    )
    assert best_reduction(groups(rows[:2]), "chat", "plain") is None, "nothing to compare with"
    assert best_reduction(groups(rows[2:]), "chat", "plain") is None, "no baseline"
    assert best_reduction(groups(rows), "code", "plain") is None


def test_reductions_need_a_baseline_at_the_same_load() -> None:
    assert "names no baseline" in text_of(reductions_table(groups([row()]), None))
    apart = groups([row(rps=2.0), row("other", rps=8.0)])
    assert "No configuration has a counterpart of plain" in text_of(reductions_table(apart, "plain"))
    same = [row(rps=2.0, joules_per_output_token=4.0), row("other", rps=2.0, joules_per_output_token=3.0)]
    assert "other chat 2/s 25.0 % 4.00 J 3.00 J" in text_of(reductions_table(groups(same), "plain"))
    other_model = [same[0], row("other", rps=2.0, joules_per_output_token=3.0, model="n")]
    assert "other n chat 2/s 25.0 %" in text_of(reductions_table(groups(other_model), "plain")), "by load, else"


def test_every_configuration_is_a_row_with_its_spread() -> None:
    rows = [row(repeat=i, joules_per_output_token=energy) for i, energy in enumerate((1.0, 2.0, 3.0))]
    text = text_of(overview_table(groups(rows)))
    assert "plain chat 8/s 3 2.00 J [" in text and "] 100.0 % 400 W 800 10.0 ×" in text


def test_a_front_needs_three_configurations_that_know_both() -> None:
    three = repeats((None, 2.0), (None, 8.0), (None, 16.0))
    assert "chat: energy against TPOT" in text_of(*pareto_figures(groups(three), {}))
    assert "chat: energy against TTFT" in text_of(*pareto_figures(groups(three), {"e2el": 1.0, "ttft": 200.0}))
    assert "No workload has three" in text_of(*pareto_figures(groups(three[:6]), {}))
    unknown = [*three[:6], row(rps=16.0, tpot_p50_s=None)]
    assert "No workload has three" in text_of(*pareto_figures(groups(unknown), {}))


def test_a_front_says_when_no_configuration_is_within_the_limit() -> None:
    three = repeats((None, 2.0), (None, 8.0), (None, 16.0))
    assert "No configuration is within TPOT ≤ 1 ms." in text_of(*pareto_figures(groups(three), {"tpot": 1.0}))


def test_arrivals_are_in_the_order_of_the_load_and_closed_loops_have_none() -> None:
    text = text_of(arrivals_table(groups([row("b", rps=2.0), row("a", rps=8.0), row("c", batch=4, rps=None)])))
    assert text.index("chat b poisson 2/s") < text.index("chat a poisson 8/s")
    assert "batch 4" not in text


def test_power_needs_two_configurations_that_know_it() -> None:
    assert "Fewer than two" in text_of(*power_figures(groups([row(), row(rps=2.0, mean_watts=None)])))
    text = text_of(*power_figures(groups([row(), row(rps=2.0, mean_watts=200.0, idle_watts=60.0)])))
    assert "plain, chat, 2/s: 200 tokens/s, 200 W" in text
    assert "Dotted: 90.0 W, idle with the model resident" in text, "the mean of 120 W and 60 W"


def test_accounts_are_shares_of_their_sum() -> None:
    text = text_of(shares_table(groups([row()])))
    assert "plain chat 8/s" in text and "25.0 % 62.5 % 12.5 % 0.0 %" in text
    unknown = dict.fromkeys(("prefill_joules", "decode_joules", "idle_joules", "unattributed_joules"))
    assert "No run has attributed energy." in text_of(shares_table(groups([row(**unknown)])))


def test_requests_within_limits_need_measured_energy() -> None:
    assert "No run has measured energy." in text_of(
        *goodput_figures(groups([row(good_requests_per_joule=None)]), LIMITS)
    )
