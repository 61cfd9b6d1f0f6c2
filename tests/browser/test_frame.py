"""What every page has: links to its sections, tables that fit a phone, and a form for paper."""

import itertools

from playwright.sync_api import Page

from browser.test_accessibility import violations
from loadgen.report.markup import table, tag
from loadgen.report.page import header, render_page, section

COLUMNS = ("workload", "requests", "mean", "p50", "p90", "p95", "p99", "max", "joules per output token")
TABLE = table(
    COLUMNS, [(name, "355 of 400", *["1,234 ms"] * 6, "0.0123 J") for name in ("chat", "a name " * 9)], "Latency"
)
TEXT = tag("p", "Some words of text. " * 200)
HTML = render_page(
    "T", [header("loadgen", "T"), *(section(name, TABLE, TEXT) for name in ("First", "Second part", "Third", "Last"))]
)


def test_no_column_of_a_table_needs_scrolling_on_a_phone(page_of) -> None:
    page: Page = page_of(HTML)
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        boxes = [cell.bounding_box() for cell in page.locator("section:first-of-type td").all()]
        assert len(boxes) == 2 * (len(COLUMNS) - 1)
        assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    label = "getComputedStyle(document.querySelector('td[data-label=p99]'), '::before').content"
    assert page.evaluate(label) == '"p99"'


def test_a_wide_window_shows_rows_as_rows(page_of) -> None:
    page: Page = page_of(HTML)
    tops = page.evaluate("[...document.querySelectorAll('tbody tr:first-child td')].slice(0, 8).map(c => c.offsetTop)")
    assert len(tops) == len(COLUMNS) - 1
    assert len(set(tops)) == 1


def test_the_contents_stay_in_sight_and_lead_to_their_sections(page_of) -> None:
    page: Page = page_of(HTML)
    page.get_by_role("navigation").get_by_role("link", name="Third").click()
    assert page.url.endswith("#third")
    contents, heading = page.locator(".contents").bounding_box(), page.locator("#third").bounding_box()
    assert contents and contents["y"] == 0
    assert heading and contents["height"] <= heading["y"] < 200


def test_the_first_key_leads_past_the_top_and_headings_have_an_address(page_of) -> None:
    page: Page = page_of(HTML)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("heading", name="Second part").get_by_role("link").click()
    assert page.url.endswith("#second-part")


def test_paper_has_no_links_to_click(page_of) -> None:
    page: Page = page_of(HTML)
    page.emulate_media(media="print")
    assert not page.locator(".contents, .skip").filter(visible=True).count()


def test_the_frame_breaks_no_serious_rule(page_of) -> None:
    page: Page = page_of(HTML)
    for width, scheme in itertools.product((390, 1080), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
