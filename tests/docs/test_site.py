"""The site is built without a network, and a dead link in it is an error."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("zensical")
TOOLS = Path(__file__).parents[2] / "docs" / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("build_site", TOOLS / "build_site.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


def test_every_page_is_in_the_site_with_all_its_sections(tool: ModuleType, tmp_path: Path) -> None:
    site = tool.build(tmp_path)
    assert (site / "llms.txt").is_file()
    for page in tool.pages():
        name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        html = (site / page.relative_to(tool.DOCS)).with_name(name).read_text()
        text = "".join(tool.FENCE.split(page.read_text())[::2])
        assert html.count("<h2 ") == len(re.findall("(?m)^## ", text)), page


@pytest.mark.parametrize(
    ("html", "dead"),
    [
        ('<a href="b/">', False),
        ('<a href="b/index.html#one">', False),
        ('<a href="b/#one">', False),
        ('<a href="b/#two">', True),
        ('<a href="c/">', True),
        ('<img src="b/missing.svg">', True),
        ('<a href="#own"></a><p id="own">', False),
        ('<a href="https://example.org/">', False),
    ],
)
def test_a_dead_link_is_found(tool: ModuleType, tmp_path: Path, html: str, dead: bool) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "index.html").write_text(html)
    (tmp_path / "b" / "index.html").write_text('<h2 id="one">')
    assert bool(list(tool.dead_links(tmp_path))) == dead


@pytest.mark.parametrize(
    ("name", "text", "outside"),
    [
        ("a.html", '<script src="https://example.org/a.js">', True),
        ("a.html", '<link href="//example.org/a.css">', True),
        ("a.html", '<a href="https://example.org/">', False),
        ("a.html", '<script src="a.js">', False),
        ("a.css", "@font-face{src:url(https://example.org/a.woff2)}", True),
        ("a.css", "a{background:url(a.svg)}", False),
    ],
)
def test_a_request_elsewhere_is_found(tool: ModuleType, tmp_path: Path, name: str, text: str, outside: bool) -> None:
    (tmp_path / name).write_text(text)
    assert bool(list(tool.outside_requests(tmp_path))) == outside


@pytest.mark.parametrize(
    ("link", "followed"),
    [
        ("[a](../concepts/verdict.md)", "[a](../concepts/verdict.md)"),
        ("[a](https://example.org)", "[a](https://example.org)"),
        ("[a](#here)", "[a](#here)"),
        ("[`record.py`](../../loadgen/record.py)", "`record.py`"),
        ("[data](../results/h200-2026)", "data"),
        ("[traces](../../traces/README.md)", "traces"),
        ("[csv](../results/h200-2026/offline/results.csv)", "[csv](../results/h200-2026/offline/results.csv)"),
        ("[schema](../../loadgen/schemas/run.schema.json)", "[schema](../loadgen/schemas/run.schema.json)"),
    ],
)
def test_a_link_leads_to_a_file_of_the_site_or_is_plain_text(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, followed: str
) -> None:
    monkeypatch.setattr(tool, "repository", lambda: None)
    page = tool.DOCS / "how-to" / "README.md"
    (tmp_path / "how-to").mkdir()
    (match,) = tool.LINK.finditer(link)
    assert tool.followed(page, tmp_path / "how-to" / "README.md", match) == followed
