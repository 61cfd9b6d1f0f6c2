"""Pages in a real browser. A page that a test opens must stay silent: no console message, no request to anywhere."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")

NAMES = ("chromium", "chromium-browser", "google-chrome")
PageOf = Callable[..., sync_api.Page]


@pytest.fixture(scope="package")
def chromium() -> Iterator[sync_api.Browser]:
    """The browser of this folder's tests. It ends with them: its event loop would be in the way of asyncio's tests."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser was found: none of {', '.join(NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page_of(chromium: sync_api.Browser, tmp_path: Path) -> Iterator[PageOf]:
    """Open a page of this HTML. After the test, what it wrote to the console or wanted to load fails the test."""
    problems: list[str] = []
    opened: list[sync_api.Page] = []

    def open_page(
        html: str, width: int = 1080, dark: bool = False, javascript: bool = True, touch: bool = False
    ) -> sync_api.Page:
        path = tmp_path / f"{len(opened)}.html"
        path.write_text(html, encoding="utf-8")
        page = chromium.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=javascript,
            reduced_motion="reduce",
            has_touch=touch,
        )
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
        opened.append(page)
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in opened:
        page.close()
    assert problems == []
