"""A link to a file of the repository leads to a file, and to a heading of it."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LISTED = subprocess.run(["git", "ls-files", "*.md", "*llms.txt"], cwd=ROOT, capture_output=True, text=True).stdout
PAGES = [ROOT / name for name in LISTED.split()] or sorted((ROOT / "docs").rglob("*.md"))


def anchors(page: Path) -> set[str]:
    """Return the ids that GitHub and the site give the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead(page: Path, address: str) -> bool:
    path, _, anchor = address.partition("#")
    target = page.parent / path if path else page
    return not target.exists() or bool(anchor and target.suffix == ".md" and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    addresses = ["".join(pair) for pair in LINK.findall(FENCE.sub("", page.read_text()))]
    here = [address for address in addresses if not re.match(r"[a-z]+:", address)]
    assert not [address for address in here if dead(page, address)]


@pytest.mark.parametrize(
    ("address", "is_dead"),
    [
        ("b.md", False),
        ("b.md#two-words", False),
        ("b.md#words", True),
        ("c.md", True),
        ("#here", False),
        ("#gone", True),
    ],
)
def test_a_link_is_dead_without_its_file_or_heading(address: str, is_dead: bool, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Here\n")
    (tmp_path / "b.md").write_text("# B\n\n## Two `words`\n\n```\n# words\n```\n")
    assert dead(tmp_path / "a.md", address) == is_dead
