"""The pictures of the dashboards: the layout of the dashboard, the values of the answers, and nothing made up."""

import json
import re
from math import inf
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.instrument.dashboard_pictures import BOARDS, LOADS, STEP_S, Curve, drawn, labels, last, ticks


def panel(kind: str = "timeseries", unit: str = "s", **place: int) -> dict[str, Any]:
    position = {"x": 0, "y": 0, "w": 12, "h": 8} | place
    return {"id": 1, "type": kind, "title": "<T>", "gridPos": position, "fieldConfig": {"defaults": {"unit": unit}}}


def picture(*curves: Curve, **about: Any) -> str:
    svg = drawn({"title": "A & B", "panels": [panel(**about)]}, {1: list(curves)}, 60)
    ElementTree.fromstring(svg)
    return svg


@pytest.mark.parametrize("path", sorted(BOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_each_panel_of_a_dashboard_is_in_its_picture_with_an_answer_or_without(path: Any) -> None:
    board = json.loads(path.read_text())
    svg = drawn(board, {panel["id"]: [] for panel in board["panels"]}, sum(seconds for *_, seconds in LOADS))
    ElementTree.fromstring(svg)
    assert svg.count('class="panel"') == svg.count("No data") == len(board["panels"])


def test_a_line_is_broken_where_a_value_is_unknown() -> None:
    svg = picture(Curve("p99", [(0, 1), (STEP_S, 2), (20, 1), (20 + STEP_S, 3)]))
    (path,) = re.findall(r'<path class="s0" d="(M[^"]*L[^"]*)"', svg)
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_names_are_escaped_and_those_without_room_are_left_out() -> None:
    svg = picture(*(Curve(f"<script>{i}", [(0, 1)]) for i in range(6)), w=8)
    assert "<script>" not in svg and 0 < svg.count("&lt;script&gt;") < 6


@pytest.mark.parametrize(("unit", "text"), [("s", "250 ms"), ("percentunit", "25.0 %"), ("reqps", "0.250 /s")])
def test_a_stat_is_the_last_value_in_its_unit(unit: str, text: str) -> None:
    curve = Curve("c", [(0, 9), (2, 0.25)])
    assert last([curve]) == 0.25 and f">{text}<" in picture(curve, kind="stat", unit=unit)


def test_a_bar_is_as_long_as_its_last_value() -> None:
    svg = picture(Curve("<a>", [(0, 9), (2, 4)]), Curve("b", [(2, 1)]), kind="bargauge", unit="joule")
    widths = [float(width) for width in re.findall(r'class="cell" [^>]*width="([0-9.]+)"', svg)]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01) and "&lt;a&gt;" in svg and "4.00 J" in svg


def test_a_heat_map_draws_the_requests_between_two_bounds() -> None:
    curves = [Curve(bound, [(2, count)]) for bound, count in (("10", 0), ("20", 3), ("50", 3), ("+Inf", 4))]
    svg = picture(*curves, kind="heatmap", unit="joule")
    assert svg.count('class="cell"') == 2 and "20.0 J" in svg and "+Inf" in svg and float("+Inf") == inf


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 1), (0, 0.0237), (-3e-12, 4e-12), (0, 97531), (0, 5)])
def test_ticks_are_round_and_reach_around_the_values(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low + 1e-13 and marks[-1] >= high - 1e-13 and len(marks) <= 7


@pytest.mark.parametrize(
    ("marks", "texts"),
    [([0.0, 5.0, 10.0], ["0 J", "5.00 J", "10.0 J"]), ([-5e-12, 0.0, 1e-11], ["-5e-12", "0", "1e-11"])],
)
def test_the_labels_of_an_axis_are_of_one_kind(marks: list[float], texts: list[str]) -> None:
    assert labels(marks, "joule") == texts
