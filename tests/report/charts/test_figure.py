"""A chart becomes a figure that carries its drawing and its data."""

import json
import re

import numpy as np
import pytest

from loadgen.report.charts.chart import Axis, Chart, Series
from loadgen.report.charts.figure import figure


def _chart(y: list[float], name: str = "chat") -> Chart:
    series = Series(name, np.arange(len(y), dtype=float), np.array(y))
    return Chart("ttft", "TTFT over time", Axis("time", "s"), Axis("TTFT", "s"), (series,), text="TTFT by second")


def test_a_figure_carries_its_values_as_data_with_null_for_unknown_ones() -> None:
    data = re.search(r'<script type="application/json">(.*?)</script>', figure(_chart([0.123456, float("nan"), 2])))
    assert data
    assert json.loads(data[1])["series"][0]["y"] == [0.12346, None, 2.0]


def test_a_name_cannot_end_the_element_of_the_data() -> None:
    page = figure(_chart([1, 2], "</script><script>alert(1)</script>"))
    assert page.count("<script") == page.count("</script>") == 1


def test_a_chart_of_unknown_values_says_that_there_is_nothing_to_draw() -> None:
    assert "<svg" not in figure(_chart([float("nan")]))


@pytest.mark.parametrize(
    ("axis", "title"),
    [
        (Axis("TTFT", "s"), "TTFT"),
        (Axis("power", "W"), "power (W)"),
        (Axis("output tokens", "tokens"), "output tokens"),
        (Axis("length", "tokens"), "length (tokens)"),
        (Axis("requests", "1/s"), "requests per second"),
        (Axis("requests in flight"), "requests in flight"),
    ],
)
def test_the_title_of_an_axis_has_the_unit_where_its_labels_do_not(axis: Axis, title: str) -> None:
    made = figure(Chart("k", "T", axis, axis, (Series("a", np.ones(1), np.ones(1)),), text=""))
    assert made.count(f">{title}</p>") == 2
