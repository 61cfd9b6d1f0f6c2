"""Pages of runs, comparisons, studies, searches and traces as a reader sees them: desktop and phone, light and dark."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Page

from browser.test_accessibility import violations
from loadgen.report.run_page import render_run_page
from loadgen.report.search_page import render_search_page
from loadgen.report.study_page import render_study_page
from loadgen.report.trace_facts import describe_source
from loadgen.report.trace_page import render_trace_page
from loadgen.results.run_folder import RunResult
from loadgen.results.study_table import StudyInfo
from report import test_compare_page
from support import sample_runs, search_results
from support.session_runs import agent_run
from support.study_rows import repeats

MAX_BYTES = 1_500_000
TRACE = Path(__file__).parents[2] / "traces" / "chat.jsonl"


def aborted() -> RunResult:
    """A run that was stopped: its last requests were cancelled."""
    made = small()
    cut = [
        msgspec.structs.replace(r, error="cancelled", detail="aborted while in flight") if r.index >= 100 else r
        for r in made.records
    ]
    info = msgspec.structs.replace(made.info, stopped_by="aborted")
    return sample_runs.with_summary(replace(made, info=info, records=cut), 4.0)


def half_failed() -> RunResult:
    return sample_runs.run(num_requests=200, failing=0.5)


@cache
def small() -> RunResult:
    return sample_runs.run(num_requests=120)


def large() -> RunResult:
    return sample_runs.run(num_requests=2_000)


def compared() -> str:
    return test_compare_page.page(test_compare_page.PAIR)


def studied() -> str:
    rows = repeats((None, 2.0), (None, 8.0), (8, None), (64, None)) + repeats((None, 8.0), server="other")
    return render_study_page(StudyInfo("Title", "A question", baseline="plain", limits_ms={"ttft": 200.0}), rows)


def traced() -> str:
    return render_trace_page([describe_source(str(TRACE), None)], {})


def searched() -> str:
    return render_search_page(search_results.search())


def searched_over_settings() -> str:
    return render_search_page(search_results.of_settings())


def searched_once() -> str:
    return render_search_page(search_results.first_probe())


def searched_in_vain() -> str:
    return render_search_page(search_results.hopeless())


def open_all(page: Page) -> None:
    """Scroll past all charts, so that each is made."""
    page.evaluate("""async () => {
        for (const figure of document.querySelectorAll("figure.chart")) {
            figure.scrollIntoView();
            await new Promise((shown) => requestAnimationFrame(() => setTimeout(shown)));
        }
    }""")
    page.wait_for_function("() => document.querySelectorAll('.chart:not(.live)').length === 0")


@pytest.mark.parametrize(
    ("make", "width", "dark"),
    [
        (small, 1080, False),
        (large, 390, True),
        (half_failed, 390, False),
        (aborted, 1080, True),
        (sample_runs.without_energy, 390, False),
        (sample_runs.without_completions, 1080, True),
        (sample_runs.single, 320, False),
        (agent_run, 390, True),
        (agent_run, 1080, False),
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


@pytest.mark.parametrize(
    ("make", "width", "dark"),
    [
        (compared, 390, False),
        (compared, 1080, True),
        (studied, 390, True),
        (studied, 1080, False),
        (traced, 390, False),
        (searched, 390, True),
        (searched, 1080, False),
        (searched_over_settings, 390, False),
        (searched_over_settings, 1080, True),
        (searched_once, 390, False),
        (searched_in_vain, 390, True),
    ],
)
def test_the_other_pages_are_read_so_too(page_of, make: Callable[[], str], width: int, dark: bool) -> None:
    page = page_of(make(), width=width, dark=dark)
    open_all(page)
    assert page.locator("figure.chart.live").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []


def test_a_slow_request_is_opened_from_its_row_and_its_time_shown_in_the_charts(page_of) -> None:
    page = page_of(render_run_page(sample_runs.held_up(small(), range(60, 72))))
    row = page.locator("tr[data-request]").first
    row.focus()
    row.press("Enter")
    index = row.get_attribute("data-request")
    assert page.get_by_role("dialog").locator("h3").inner_text() == f"Request {index}"
    page.keyboard.press("Escape")
    page.locator(".zoom-to").first.click()
    page.locator(".reset:visible").first.wait_for()


def test_without_javascript_a_run_has_all_its_drawings_and_long_parts(page_of) -> None:
    page = page_of(render_run_page(small()), width=390, javascript=False)
    assert page.locator("details.fold[open]").count() == page.locator("details.fold").count() > 4
    assert page.locator("figure.chart .static:visible").count() == page.locator("figure.chart").count() > 5


@pytest.mark.parametrize(("width", "is_open"), [(390, False), (1080, True)])
def test_long_parts_are_closed_on_a_phone_alone_and_open_on_paper(page_of, width: int, is_open: bool) -> None:
    page = page_of(render_run_page(small()), width=width)
    folds = page.locator("details.fold")
    assert folds.count() > 4
    assert page.locator("details.fold[open]").count() == (folds.count() if is_open else 0)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.fold[open]").count() == folds.count()
