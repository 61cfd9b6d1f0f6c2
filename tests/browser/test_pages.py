"""Pages of runs and traces as a reader sees them: on a desktop and on a phone, in light and dark."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from playwright.sync_api import Page

from browser.test_accessibility import violations
from loadgen.report.run_page import render_run_page
from loadgen.results.run_folder import RunResult
from support import sample_runs

MAX_BYTES = 1_500_000


def aborted() -> RunResult:
    """A run that was stopped: its last requests were cancelled."""
    made = sample_runs.run(num_requests=120)
    cut = [
        msgspec.structs.replace(r, error="cancelled", detail="aborted while in flight") if r.index >= 100 else r
        for r in made.records
    ]
    info = msgspec.structs.replace(made.info, stopped_by="aborted")
    return sample_runs.with_summary(replace(made, info=info, records=cut), 4.0)


def half_failed() -> RunResult:
    return sample_runs.run(num_requests=200, failing=0.5)


def small() -> RunResult:
    return sample_runs.run(num_requests=120)


def large() -> RunResult:
    return sample_runs.run(num_requests=2_000)


def open_all(page: Page) -> None:
    """Scroll past all charts, so that each is made."""
    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelectorAll('.chart:not(.live)').length === 0")


@pytest.mark.parametrize(
    ("make", "width", "dark"),
    [
        (small, 1080, False),
        (large, 390, True),
        (half_failed, 1080, True),
        (half_failed, 390, False),
        (aborted, 390, True),
        (sample_runs.without_energy, 390, False),
        (sample_runs.without_completions, 1080, False),
        (sample_runs.single, 320, False),
    ],
)
def test_a_run_is_read_without_scrolling_sideways_and_without_a_serious_violation(
    page_of, make: Callable[[], RunResult], width: int, dark: bool
) -> None:
    html = render_run_page(make())
    assert len(html.encode()) <= MAX_BYTES
    page = page_of(html, width=width, dark=dark)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


def test_without_javascript_a_run_has_all_its_drawings(page_of) -> None:
    page = page_of(render_run_page(small()), javascript=False)
    assert page.locator("figure.chart .static:visible").count() == page.locator("figure.chart").count() > 5
