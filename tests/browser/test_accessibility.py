"""axe-core, the checker of accessibility rules, finds nothing serious on the pages."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from support import sample_charts


def violations(page: Page) -> list[tuple[str, str]]:
    """Return the serious violations that axe-core finds in what the page shows now: the rule and the element."""
    found: list[dict[str, Any]] = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    return [(rule["id"], node["html"][:120]) for rule in serious for node in rule["nodes"]]


def test_charts_break_no_serious_rule(page_of) -> None:
    page = page_of(sample_charts.page(), width=390)
    page.locator("#ttft .canvas").focus()
    page.keyboard.press("Home")
    page.keyboard.press("+")
    page.locator("#ttft summary").click()
    page.evaluate("document.dispatchEvent(new CustomEvent('loadgen:request', {detail: 3}))")
    assert violations(page) == []
    page.set_viewport_size({"width": 1080, "height": 900})
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []
