"""A static drawing shows the known values inside its frame, and nothing of the unknown ones."""

import re
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.report import svg
from loadgen.report.charts.chart import Axis, Chart, Kind, Limit, Series
from loadgen.report.charts.figure import chart_data
from loadgen.report.charts.static import DENSE, LINE, MAX_HINTS, draw_static, scale, shown

NAN = float("nan")
KINDS: tuple[Kind, ...] = ("line", "steps", "dots")


def series(kind: Kind, y: list[float], x: list[float] | None = None, **fields: object) -> Series:
    places = x if x is not None else [float(i) for i in range(len(y) + (kind == "steps"))]
    return replace(Series("chat", np.array(places, float), np.array(y, float), kind), **fields)


TIME, TTFT = Axis("time", "s"), Axis("TTFT", "s")


def chart(*drawn: Series, x: Axis = TIME, y: Axis = TTFT, **fields: object) -> Chart:
    return replace(Chart("key", "A chart", x, y, drawn, "in words"), **fields)


def paths(picture: str) -> list[str]:
    """Return the moves of every curve, dot and whisker, but not those of the limits."""
    return re.findall(r' d="([^"]*)" class="(?!limit)', picture)


def marks(picture: str) -> list[tuple[float, float]]:
    """Return the places of all lines and dots; H and V are spelt out by the last place."""
    places, x, y = [], 0.0, 0.0
    for move in re.findall(r"([MLHVh])([-\d.e+]+)(?: ([-\d.e+]+))?", " ".join(paths(picture))):
        match move:
            case ("M" | "L", a, b):
                x, y = float(a), float(b)
            case ("H", a, _):
                x = float(a)
            case ("V", a, _):
                y = float(a)
        places.append((x, y))
    return places


values = st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12) | st.sampled_from([NAN, 0.0])


@given(st.sampled_from(KINDS), st.lists(values, min_size=1, max_size=12), st.booleans(), st.booleans())
def test_every_mark_is_inside_the_frame(kind: Kind, y: list[float], x_log: bool, y_log: bool) -> None:
    made = chart(series(kind, y), x=Axis("time", "s", log=x_log), y=Axis("TTFT", "s", log=y_log))
    if not shown(made.series[0], made).any():
        return
    picture = draw_static(made)
    assert all(0 <= a <= svg.WIDTH and -0.1 <= b <= made.height + 0.1 for a, b in marks(picture))
    rects = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', picture)
    assert len(rects) == picture.count("<rect")
    assert all(float(a) + float(w) <= svg.WIDTH + 0.1 for a, _, w, _ in rects)
    assert all(float(b) + float(h) <= made.height + 0.1 for _, b, _, h in rects)
    assert "nan" not in picture and "inf" not in picture


@given(st.lists(values, min_size=1, max_size=12), st.booleans(), st.booleans())
def test_the_higher_end_of_an_axis_is_above_the_lower_one_and_every_label_is_between(
    y: list[float], log: bool, whole: bool
) -> None:
    axis = scale(chart(series("dots", y), y=Axis("TTFT", "s", log=log, whole=whole)), "y")
    assert axis.low < axis.high
    slack = 1e-6 * max(axis.high - axis.low, abs(axis.low)) if not log else 1e-6 * axis.high
    assert all(axis.low - slack <= t <= axis.high + slack for t, _ in axis.ticks)
    assert not whole or all(t == round(t) for t, _ in axis.ticks)


@pytest.mark.parametrize(
    ("kind", "y", "curves", "dots"),
    [
        ("line", [1, 2, NAN, 3, 4], 2, 0),
        ("line", [1, NAN, 2, 3], 1, 1),
        ("line", [1], 0, 1),
        ("line", [NAN, 1, NAN], 0, 1),
        ("steps", [1, 2, NAN, 3], 2, 0),
        ("steps", [NAN, 1], 1, 0),
        ("dots", [1, NAN, 2], 0, 2),
    ],
)
def test_an_unknown_value_breaks_a_line_and_a_lone_one_is_a_dot(
    kind: Kind, y: list[float], curves: int, dots: int
) -> None:
    drawn = " ".join(paths(draw_static(chart(series(kind, y)))))
    assert drawn.count("h.01") == dots
    assert drawn.count("M") == curves + dots


@pytest.mark.parametrize(
    ("kind", "x", "y", "which"),
    [
        ("line", [0, 1, 2], [1, 0, -1], [False, False, False]),
        ("line", [1, 2, 3], [1, 0, 2], [True, False, True]),
        ("dots", [0, 1, 2], [1, 1, 1], [False, True, True]),
        ("steps", [0, 0, 1, 2], [1, 1, 1], [False, True, True]),
    ],
)
def test_a_logarithmic_axis_shows_only_what_is_above_0(
    kind: Kind, x: list[float], y: list[float], which: list[bool]
) -> None:
    drawn = series(kind, y, x)
    made = chart(drawn, x=Axis("gap", "s", log=True), y=Axis("TTFT", "s", log=True))
    assert shown(drawn, made).tolist() == which


@pytest.mark.parametrize(
    ("axis", "y", "low", "high"),
    [
        (Axis("a"), [5, 5, 5], 0, 5.2),
        (Axis("a"), [-5, -5], -5, 0.2),
        (Axis("a"), [0, 0], 0, 1.04),
        (Axis("a", low=0, high=1), [0.2, 0.4], 0, 1),
        (Axis("a", low=0), [0, 0], 0, 1.04),
        (Axis("a", low=0, whole=True), [0, 0.5], 0, 1.04),
        (Axis("a", log=True), [3, 3], 2, 5),
        (Axis("a", log=True), [0, -1], 1, 10),
        (Axis("a", log=True, low=3), [4, 90], 3, 100),
    ],
)
def test_equal_values_and_stated_ends_make_an_axis(axis: Axis, y: list[float], low: float, high: float) -> None:
    made = scale(chart(series("dots", y), y=axis), "y")
    assert (made.low, made.high) == pytest.approx((low, high))


def test_labels_of_stated_ticks_do_not_touch() -> None:
    shares = Axis("share", "share", low=0, high=1, ticks=(0, 0.25, 0.5, 0.75, 0.9, 0.99))
    tall, flat = (scale(chart(series("dots", [0, 1]), y=shares, height=height), "y").ticks for height in (190, 60))
    assert [label for _, label in tall] == ["0 %", "25 %", "50 %", "75 %", "90 %", "99 %"]
    assert [label for _, label in flat] == ["0 %", "25 %", "50 %", "75 %", "", "99 %"]
    assert [value for value, _ in flat] == [value for value, _ in tall]


@pytest.mark.parametrize(
    ("low", "high", "heads"),
    [
        ([1], [3], 0),
        ([-2], [3], 1),
        ([-2], [9], 2),
        ([NAN], [3], 0),
        ([NAN], [NAN], 0),
        ([-np.inf], [np.inf], 2),
    ],
)
def test_a_whisker_that_leaves_the_frame_is_cut_there_with_an_arrowhead(
    low: list[float], high: list[float], heads: int
) -> None:
    point = series("dots", [2], low=np.array(low, float), high=np.array(high, float))
    whisker = re.findall(r'd="([^"]*)" class="whisker"', draw_static(chart(point, y=Axis("J", "J", low=0, high=4))))
    assert sum(path.count("L") for path in whisker) == 2 * heads
    assert bool(whisker) == (not np.isnan([*low, *high]).all())


@pytest.mark.parametrize(
    ("limit", "name", "is_drawn"),
    [
        (Limit(2.0, "limit 2 s"), "limit 2 s", True),
        (Limit(50.0, "limit 50 s"), "limit 50 s ↑", False),
        (Limit(1.0, "from here", "x"), "from here", True),
        (Limit(99.0, "the end", "x"), "the end →", False),
    ],
)
def test_a_limit_is_a_named_line_and_one_far_above_the_marks_an_arrow(limit: Limit, name: str, is_drawn: bool) -> None:
    picture = draw_static(chart(series("line", [1, 1.5, 1]), limits=(limit,)))
    assert f">{name}</text>" in picture
    assert ('class="limit"' in picture) is is_drawn


@pytest.mark.parametrize("of", ["x", "y"])
def test_names_of_limits_at_the_upper_edge_stand_below_each_other(of: Literal["x", "y"]) -> None:
    limits = tuple(Limit(value, f"limit {value:g}", of) for value in (90.0, 91.0, 92.0))
    picture = draw_static(chart(series("line", [1, 2]), limits=limits))
    rows = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]* class="limit-name"', picture)]
    assert np.diff(rows).tolist() == [LINE, LINE]


@pytest.mark.parametrize(
    ("x", "y", "is_left"),
    [
        ([0, 5, 9.5], [1, 3, 5], True),  # a label at the right end of the line
        ([0, 5, 9.5], [5, 3, 5], False),  # at both ends
        ([0, 5, 9.5], [1, 3, 3], False),  # far below
        ([0, 5, 5], [1, 3, 5], False),  # in the middle
    ],
)
def test_the_name_of_a_limit_is_not_where_labels_are(x: list[float], y: list[float], is_left: bool) -> None:
    limit = Limit(5.2, "TTFT ≤ 5 s")
    made = chart(series("dots", y, x, labels=["4/s", "8/s", "24/s"]), x=Axis("x", "", low=0, high=10), limits=(limit,))
    assert ('text-anchor="end" class="limit-name"' not in draw_static(made)) is is_left
    assert [drawn["left"] for drawn in chart_data(made)["limits"]] == [is_left]


def test_a_label_that_would_touch_one_before_is_left_out() -> None:
    points = series("dots", [1, 1, 1], [0, 0.01, 1], labels=["4/s", "8/s", "16/s"])
    picture = draw_static(chart(points))
    assert re.findall(r'class="label"[^>]*>([^<]*)<', picture) == ["4/s", "16/s"]


def test_lines_differ_by_their_dashes_in_the_drawing_and_in_the_data() -> None:
    made = chart(
        *(series(kind, [1, 2], [0, 1], name=name) for kind, name in (("line", "a"), ("line", "b"), ("dots", "b")))
    )
    assert re.findall(r'stroke-dasharray="([^"]*)"', draw_static(made)) == [svg.DASHES[1]]
    assert [drawn["dash"] for drawn in chart_data(made)["series"]] == [None, [7, 4], None]


def test_a_band_is_broad_and_takes_no_dashes_from_the_lines_above_it() -> None:
    plan = series("steps", [1, 2], [0, 1, 2], name="plan", band=True)
    made = chart(plan, *(series("steps", [1, 2], [0, 1, 2], name=name) for name in "ab"))
    assert [drawn["dash"] for drawn in chart_data(made)["series"]] == [None, None, [7, 4]]
    assert draw_static(made).count('class="curve band"') == 1


@pytest.mark.parametrize(("count", "dashes"), [(DENSE, 1), (DENSE + 1, 0)])
def test_a_long_series_over_time_has_no_dashes(count: int, dashes: int) -> None:
    pair = [series("steps", [float(i % 7) for i in range(count)], name=name) for name in "ab"]
    assert draw_static(chart(*pair, group="time")).count("stroke-dasharray") == dashes
    assert draw_static(chart(*pair)).count("stroke-dasharray") == 1


@pytest.mark.parametrize(("count", "hints"), [(3, 3), (MAX_HINTS, MAX_HINTS), (MAX_HINTS + 1, 0)])
def test_a_few_dots_have_a_tooltip_each_and_many_are_one_path(count: int, hints: int) -> None:
    dots = series("dots", [1.0] * count, hints=[f"request {i}" for i in range(count)])
    assert draw_static(chart(dots)).count("<title>request") == hints
