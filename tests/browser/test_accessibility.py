"""axe-core, the checker of accessibility rules, finds nothing serious on the pages."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from support import sample_charts


def violations(page: Page) -> list[tuple[str, str]]:
    """Return the serious violations that axe-core finds in what the page shows now: the rule and the element."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    return [(rule["id"], node["html"][:120]) for rule in serious for node in rule["nodes"]]


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1080, True)])
def test_charts_break_no_serious_rule(page_of, width: int, dark: bool) -> None:
    page = page_of(sample_charts.page(), width=width, dark=dark)
    page.locator("#ttft .canvas").focus()
    page.keyboard.press("Home")
    page.keyboard.press("+")
    page.locator("#ttft summary").click()
    page.evaluate("document.dispatchEvent(new CustomEvent('loadgen:request', {detail: 3}))")
    assert violations(page) == []
