"""The pages that state the code are current, and each page is in the list of its section."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = ("how-to", "reference", "concepts", "results")


def test_generated_pages_are_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DOCS / "tools" / "reference.py", tmp_path], check=True)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    outdated = [path for path in written if (tmp_path / path).read_text() != (DOCS / path).read_text()]
    assert not outdated, f"{outdated}: run make reference"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_lists_its_pages(section: str) -> None:
    start = (DOCS / section / "README.md").read_text()
    pages = {page.name for page in (DOCS / section).glob("*.md")} - {"README.md"}
    assert pages
    missing = sorted(page for page in pages if f"]({page})" not in start)
    assert not missing, f"docs/{section}/README.md does not list {missing}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*/*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_begins_with_its_title_and_a_sentence(page: Path) -> None:
    title, blank, first = page.read_text().split("\n")[:3]
    assert title.startswith("# ") and not blank
    assert first and not first.startswith(("#", "<!--", "```", "    ", "|", "* ", "- ")), "say what the page answers"
