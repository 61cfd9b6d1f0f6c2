"""The script of the pages' charts is built of the source beside it, and stands on the pages that have a chart."""

import hashlib
import json
import re
from importlib.resources import files

import numpy as np

from loadgen.report.charts.chart import Axis, Chart, Series
from loadgen.report.charts.figure import figure
from loadgen.report.page import render_page, section

CHARTS = files("loadgen.report.charts")
BUNDLE = (CHARTS / "charts.min.js").read_text(encoding="utf-8")


def _page(num_charts: int) -> str:
    series = (Series("chat", np.arange(3.0), np.arange(3.0)),)
    charts = [Chart(f"c{i}", "TTFT", Axis("time", "s"), Axis("TTFT", "s"), series, "text") for i in range(num_charts)]
    return render_page("t", [section("Charts", *map(figure, charts))])


def test_the_bundle_is_of_the_committed_sources() -> None:
    """`make charts` writes their hash into the banner."""
    digest = hashlib.sha256()
    sources = [f for f in (CHARTS / "script").iterdir() if f.name.endswith((".js", ".json"))]
    for source in sorted(sources, key=lambda f: f.name):
        digest.update(source.read_bytes())
    assert f"sources sha256 {digest.hexdigest()}" in BUNDLE[:500]


def test_the_bundle_names_the_pinned_library_and_carries_its_notices() -> None:
    package = json.loads((CHARTS / "script" / "package.json").read_text(encoding="utf-8"))
    banner = BUNDLE[: BUNDLE.index("*/")]
    assert f"Apache ECharts {package['dependencies']['echarts']}." in banner
    assert (CHARTS / "script" / "NOTICE").read_text(encoding="utf-8").strip() in banner


def test_the_bundle_can_stand_inside_a_page() -> None:
    assert "</script" not in BUNDLE.lower()
    assert "<!--" not in BUNDLE


def test_the_bundle_neither_evaluates_text_nor_calls_out() -> None:
    for call in (r"\beval\(", r"\bnew Function\(", r"\bfetch\(", "XMLHttpRequest", "WebSocket", "importScripts"):
        assert not re.search(call, BUNDLE), call


def test_a_page_has_the_script_once_if_it_has_a_chart() -> None:
    assert [_page(n).count(BUNDLE) for n in (0, 1, 3)] == [0, 1, 1]


def test_a_page_allows_no_request_to_anywhere() -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', _page(1))
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert not re.search(r"https?:|\*|unsafe-eval", policy[1])
