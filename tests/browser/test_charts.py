"""What a reader can do with the charts of a page: with a pointer, with a keyboard, and without JavaScript."""

import json
import math

import pytest
from playwright.sync_api import Page

from support import sample_charts

HTML = sample_charts.page()
LEFT, RIGHT, TOP = 56, 24, 14
"""Margins of a plot inside its canvas, in CSS pixels."""


@pytest.fixture
def page(page_of) -> Page:
    return page_of(HTML)


def at(page: Page, key: str, share: float) -> tuple[float, float]:
    """Return the point of the window at `share` of the chart's x axis, at half its height. The chart is scrolled to."""
    page.locator(f"#{key}").scroll_into_view_if_needed()
    canvas = page.locator(f"#{key} .canvas")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    return box["x"] + LEFT + share * (box["width"] - LEFT - RIGHT), box["y"] + box["height"] / 2


def drag(page: Page, key: str, start: float, stop: float) -> None:
    page.mouse.move(*at(page, key, start))
    page.mouse.down()
    page.mouse.move(*at(page, key, stop), steps=3)
    page.mouse.up()


def tip(page: Page, key: str, share: float) -> str:
    """Return the text beside the pointer."""
    page.mouse.move(*at(page, key, share - 0.01))
    page.mouse.move(*at(page, key, share))
    shown = page.locator(f"#{key} .tip")
    shown.wait_for()
    return " ".join(shown.inner_text().split())


def second(text: str) -> float:
    """Return the instant that a tooltip of a chart over time begins with."""
    number, unit = text.split()[:2]
    return float(number) * {"s": 1, "ms": 1e-3}[unit]


def spoken(page: Page) -> str:
    return page.locator(".spoken").inner_text()


def test_the_pointer_shows_the_values_of_all_series_and_a_dash_for_what_is_unknown(page: Page) -> None:
    assert tip(page, "ttft", 5.5 / 30) == "5.50 s p50 105 ms p99 350 ms"
    assert tip(page, "ttft", 11.5 / 30) == "11.5 s p50 - p99 410 ms"
    assert tip(page, "flying", 6.5 / 30).endswith("in flight 2")
    # A curve and the dot on it are one value.
    assert tip(page, "curve", 0.5) == "200 tokens/s vLLM 3.00 J (2.50 J to 3.50 J)"
    assert tip(page, "cdf", 0.999) == "5.00 s chat 100.0 %"


def test_text_of_a_dot_is_text_not_markup(page: Page) -> None:
    page.locator("#dots .canvas").focus()
    page.keyboard.press("Home")
    assert page.locator("#dots .tip").inner_text() == f"request 0 of {sample_charts.EVIL}" == spoken(page)
    assert page.locator("img").count() == 0


def test_drawing_across_a_chart_zooms_all_charts_of_its_group(page: Page) -> None:
    drag(page, "ttft", 1 / 3, 2 / 3)
    assert 10 <= second(tip(page, "ttft", 0.02)) <= 12
    assert 18 <= second(tip(page, "flying", 0.98)) <= 20
    assert page.locator(".reset:visible").count() == 2


def test_a_zoom_is_undone_by_a_button_a_double_click_and_escape(page: Page) -> None:
    for undo in (
        lambda: page.locator("#flying .reset").click(),
        lambda: page.mouse.dblclick(*at(page, "flying", 0.5)),
        lambda: page.locator("#ttft .canvas").press("Escape"),
    ):
        drag(page, "ttft", 1 / 3, 2 / 3)
        assert page.locator(".reset:visible").count() == 2
        undo()
        assert page.locator(".reset:visible").count() == 0
        assert second(tip(page, "flying", 0.02)) < 2


def test_the_wheel_zooms_with_ctrl_alone(page: Page) -> None:
    page.mouse.move(*at(page, "flying", 0.5))
    page.mouse.wheel(0, -100)
    assert page.locator(".reset:visible").count() == 0
    page.mouse.move(*at(page, "flying", 0.5))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.locator("#ttft .reset").wait_for()
    assert second(tip(page, "ttft", 0.02)) > 1


def test_a_tap_shows_values_and_two_fingers_zoom(page_of) -> None:
    page = page_of(HTML, width=390, touch=True)
    x, y = at(page, "ttft", 0.5)
    page.touchscreen.tap(x, y)
    page.locator("#ttft .tip").wait_for()
    assert "p99" in page.locator("#ttft .tip").inner_text()
    fingers = page.context.new_cdp_session(page)
    for kind, apart in [("touchStart", 20), *(("touchMove", apart) for apart in range(30, 120, 10)), ("touchEnd", 0)]:
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}] if apart else []
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.locator("#flying .reset").wait_for()


def test_a_button_with_a_span_shows_it_in_the_charts_over_time(page: Page) -> None:
    page.get_by_role("button", name="Show 5 s to 12 s").click()
    assert 5 <= second(tip(page, "flying", 0.02)) <= 6
    assert 11 <= second(tip(page, "ttft", 0.98)) <= 12


def test_the_legend_switches_a_series_off_and_on(page: Page) -> None:
    button = page.locator("#ttft .legend button").first
    states = []
    for _ in range(3):
        states.append((button.get_attribute("aria-pressed"), "p50" in tip(page, "ttft", 5.5 / 30)))
        button.press("Enter")
    assert states == [("true", True), ("false", False), ("true", True)]


def test_the_keyboard_reads_values_in_order_and_zooms(page: Page) -> None:
    page.locator("#ttft .canvas").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert spoken(page) == "1.50 s: p50 101 ms, p99 310 ms"
    page.keyboard.press("End")
    assert spoken(page).startswith("29.5 s:")
    page.keyboard.press("+")
    page.locator("#flying .reset").wait_for()
    page.keyboard.press("-")
    page.locator("#flying .reset").wait_for(state="hidden")


def test_a_click_on_a_dot_opens_its_request(page: Page) -> None:
    canvas = page.locator("#dots .canvas")
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    panel = page.get_by_role("dialog")
    assert panel.locator("h3").inner_text() == "Request 0"
    page.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    assert canvas.evaluate("node => node === document.activeElement")
    x, y = dot_of(page)
    page.mouse.click(x, y)
    assert panel.locator("h3").inner_text() == "Request 29"


def dot_of(page: Page) -> tuple[float, float]:
    """Return the place in the window of the chart's topmost dot, which is that of request 29."""
    box = page.locator("#dots .canvas").bounding_box()
    data = json.loads(page.locator("#dots script").text_content() or "")
    assert box
    marks = data["series"][0]
    across, up = (
        math.log(marks[of][29] / data[of]["low"]) / math.log(data[of]["high"] / data[of]["low"]) for of in ("x", "y")
    )
    width = box["width"] - LEFT - RIGHT
    return box["x"] + LEFT + across * width, box["y"] + TOP + (1 - up) * data["height"]


def test_the_panel_goes_to_the_neighbours_and_shows_unknown_as_a_dash(page: Page) -> None:
    page.get_by_role("row", name="17").click()
    panel = page.get_by_role("dialog")
    assert panel.locator(".facts").inner_text().split() == [
        "workload",
        "chat",
        "TTFT",
        "117",
        "ms",
        "energy",
        "51.0",
        "J",
    ]
    assert panel.locator(".chunks line").count() == 3
    panel.get_by_role("button", name="Next").click()
    assert panel.locator("h3").inner_text() == "Request 18"
    for _ in range(45):
        page.keyboard.press("ArrowRight")
    assert panel.locator("h3").inner_text() == "Request 59"
    assert panel.locator(".facts").inner_text().split()[-1] == "-"
    assert panel.locator(".chunks").count() == 0
    assert panel.get_by_role("button", name="Next").is_disabled()


def test_words_of_a_request_are_text_not_markup(page: Page) -> None:
    page.evaluate("document.dispatchEvent(new CustomEvent('loadgen:request', {detail: 7}))")
    assert sample_charts.EVIL in page.get_by_role("dialog").inner_text()
    assert page.locator("img").count() == 0


def test_the_values_are_to_be_had_as_a_table(page: Page) -> None:
    tables = [("ttft", "500 ms 100 ms 300 ms", 30), ("flying", "0 s 0", 30), ("dots", "chat 15 tokens 1.50 J", 60)]
    for key, first, rows in tables:
        page.locator(f"#{key} summary").click()
        lines = page.locator(f"#{key} tbody tr")
        lines.first.wait_for()
        assert lines.count() == rows
        assert " ".join(lines.first.inner_text().split()) == first


def test_the_command_is_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == sample_charts.COMMAND


def test_colours_follow_the_readers_scheme(page: Page) -> None:
    canvas = page.locator("#flying canvas").first
    canvas.wait_for()
    before = canvas.evaluate("node => node.toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("before => document.querySelector('#flying canvas').toDataURL() !== before", arg=before)


def test_paper_shows_the_drawing_that_needs_no_script(page: Page) -> None:
    page.locator("#ttft .canvas").wait_for()
    assert page.locator("#ttft .static").is_hidden()
    page.emulate_media(media="print")
    assert page.locator("#ttft .static").is_visible() and page.locator("#ttft .canvas").is_hidden()
    assert page.locator("#ttft .legend").is_visible() and page.locator("#ttft .legend").inner_text() != ""
    assert page.locator(".copy button").is_hidden()


def test_without_javascript_the_drawings_and_tables_remain(page_of) -> None:
    page = page_of(HTML, javascript=False)
    assert page.locator(".static:visible").count() == page.locator("figure.chart").count() == 6
    assert page.locator("button:visible").count() == 1  # the page's own


def test_charts_stay_inside_the_page(page_of) -> None:
    page = page_of(HTML, width=320)
    for key in ("ttft", "failures"):
        at(page, key, 0.5)
    for width in (320, 390, 1080, 300):
        page.set_viewport_size({"width": width, "height": 900})
        inside = "([canvas, width]) => canvas.clientWidth < width && canvas.clientWidth > 0.8 * width - 40"
        page.wait_for_function(inside, arg=[page.locator("#ttft canvas").first.element_handle(), width])
        assert page.evaluate("document.documentElement.scrollWidth") <= width
