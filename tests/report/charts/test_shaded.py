"""A heat map shades its cells by their values."""

import pytest

from loadgen.report.charts.shaded import Shade, shaded_table
from report.test_run_page import Page


def test_a_heat_map_shades_what_it_has_and_leaves_the_rest_blank() -> None:
    shade = Shade(1.0, 100.0)
    cells = [[(1.0, "1 J", "3"), None], [(100.0, "100 J", ""), (10.0, "10 J", "")]]
    made = Page(shaded_table("Heading", "Caption", ["8", "16"], ["2", "4"], cells, shade))
    classes = [attrs.get("class") for name, attrs in made.elements if name == "td"]
    assert classes == ["h0", "none", "h6", "h3"]
    assert made.text == "Caption input ↓ · output → 2 4 8 1 J 3 16 100 J 10 J"


@pytest.mark.parametrize(("value", "shade"), [(0.5, 0), (1.0, 0), (1.94, 1), (10.0, 3), (99.0, 6), (100.0, 6)])
def test_seven_shades_are_even_on_a_logarithmic_scale(value: float, shade: int) -> None:
    assert Shade(1.0, 100.0)(value) == shade
    assert Shade(5.0, 5.0)(value) == 0
