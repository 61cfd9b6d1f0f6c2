"""Measure how large a run's page is, how long it takes to make, and how long a browser takes to open it.

    python -m benchmarks.instrument.page_opening [--requests 120 2000 100000] [--keep FOLDER]

Needs Chromium. The runs are made up, seeded, of two workloads for 500 s or as long as 4 requests/s take. A page is open
when its script has ended and what is in the window is drawn: the median of five times, each in a new tab.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from loadgen.report.run_page import render_run_page

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support import sample_runs

DRAWN = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


def opening_s(browser: Browser, path: Path) -> float:
    """Return the seconds from the start of the navigation until the first charts are drawn."""
    page = browser.new_page(viewport={"width": 1080, "height": 900})
    page.goto(path.as_uri(), wait_until="load")
    took = float(page.evaluate(DRAWN)) / 1000
    page.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[120, 2_000, 100_000])
    parser.add_argument("--keep", type=Path, help="folder for the pages")
    options = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = options.keep or Path(made)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        print(f"{'requests':>10}{'page':>12}{'made in':>12}{'opened in':>12}")
        for count in options.requests:
            result = sample_runs.run(num_requests=count, rps=max(4.0, count / 500))
            start = time.perf_counter()
            html = render_run_page(result)
            made_s = time.perf_counter() - start
            path = folder / f"run-{count}.html"
            path.write_text(html, encoding="utf-8")
            opened_s = statistics.median(opening_s(browser, path) for _ in range(5))
            size_kb = path.stat().st_size / 1000
            print(f"{count:>10,}{size_kb:>9,.0f} kB{made_s:>10.2f} s{opened_s:>10.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
