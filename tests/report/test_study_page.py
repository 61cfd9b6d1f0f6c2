"""The page of a study: what it shows follows from what was run."""

import re
from typing import Any

import pytest

from loadgen.report.study_page import render_study_page
from loadgen.results.study_table import Row
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
    assert "Least energy within tpot ≤ 10 ms: plain at 16/s" in told


def test_a_column_for_the_model_only_where_there_are_several() -> None:
    rows = repeats((None, 2.0))
    assert "server workload load runs" in page(rows).text
    assert "server model workload load runs" in page(rows + repeats((None, 2.0), model="n")).text


def test_idle_power_stands_beside_the_power_under_load() -> None:
    assert "120 W, idle with the model resident" in page(repeats((None, 2.0), (None, 8.0))).text
