"""Build the documentation as a site, without a network.

    python docs/tools/build_site.py [FOLDER]     FOLDER/site is the site; build/docs by default

Pages are copied, and the pictures, tables and schemas that they link to. A link to anything else in the repository,
such as source or a folder of data, would lead nowhere: it becomes a link to the repository if pyproject.toml has its
address, else plain text.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from reference import DOCS, SECTIONS, entries, title

ROOT = DOCS.parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?<=^```)(\w+) .*", re.MULTILINE)
"""Language of a block, and the name that tests know it by: the site's Markdown takes such a line for text."""
SHOWN = {".md", ".svg", ".png", ".json", ".csv", ".txt"}
"""Kinds of files that a browser shows, and that are therefore part of the site."""


def build(folder: Path) -> Path:
    """Write the site and return its folder. A dead link, a dead anchor and a request elsewhere are errors."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        copy(page, folder / "pages" / page.relative_to(DOCS))
    shutil.copy(DOCS / "llms.txt", folder / "pages")
    shutil.copytree(DOCS / "pictures", folder / "pages" / "pictures")
    (folder / "zensical.toml").write_text((DOCS / "tools" / "zensical.toml").read_text() + f"nav = {navigation()}\n")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"{built.stdout}\n{built.stderr}")
    for page in pages():  # llms.txt links to the pages as they were written
        shutil.copy(folder / "pages" / page.relative_to(DOCS), folder / "site" / page.relative_to(DOCS))
    if faults := [*dead_links(folder / "site"), *outside_requests(folder / "site")]:
        sys.exit("\n".join(faults))
    return folder / "site"


def pages() -> list[Path]:
    return [DOCS / "README.md", *sorted(page for section in SECTIONS for page in (DOCS / section).glob("*.md"))]


def navigation() -> str:
    """Return the site's menu: each section's README.md and the pages in its list, as TOML."""
    sections = ['{"Start here" = "README.md"}']
    for section in SECTIONS:
        below = [f'"{section}/README.md"', *(f'{{"{name}" = "{page}"}}' for name, page, _ in entries(section))]
        sections.append(f'{{"{title(DOCS / section / "README.md")}" = [{", ".join(below)}]}}')
    return f"[{', '.join(sections)}]"


def copy(page: Path, copied: Path) -> None:
    """Write a page with the links that the site can follow, and the files beside it that it links to."""
    copied.parent.mkdir(parents=True, exist_ok=True)
    pieces = FENCE.split(page.read_text())
    pieces[::2] = [LINK.sub(lambda link: followed(page, copied, link), piece) for piece in pieces[::2]]
    pieces[1::2] = [NAME.sub(r"\1", piece) for piece in pieces[1::2]]
    copied.write_text("".join(pieces))


def followed(page: Path, copied: Path, link: re.Match[str]) -> str:
    image, text, address = link.groups()
    parts = urlsplit(address)
    target = (page.parent / parts.path).resolve()
    if parts.scheme or not parts.path:
        return link[0]
    if target.suffix not in SHOWN or (target.suffix == ".md" and not target.is_relative_to(DOCS)):
        url = repository()
        return f"{image}[{text}]({url}/blob/main/{target.relative_to(ROOT)})" if url else text
    if target.suffix == ".md":
        return link[0]
    pages = copied.parents[len(page.relative_to(DOCS).parts) - 1]
    beside = pages / target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT)
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(target, beside)
    return f"{image}[{text}]({os.path.relpath(beside, copied.parent)})"


def repository() -> str | None:
    """Return the repository's address, None if pyproject.toml has none."""
    urls: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    return urls.get("Repository")


class Addresses(HTMLParser):
    """Collects what a built page links to, what it loads, and the ids that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif address := values.get("src") or values.get("href") or values.get("srcset"):
            self.loaded.append(address)


def read(page: Path) -> Addresses:
    found = Addresses()
    found.feed(page.read_text())
    return found


def dead_links(site: Path) -> Iterator[str]:
    """Yield each relative address of a built page that has no file, or no element of that id."""
    read_pages = {page: read(page) for page in site.rglob("*.html")}
    for page, found in read_pages.items():
        for address in {*found.links, *found.loaded}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            ids = read_pages[target].ids if target in read_pages else {parts.fragment}
            if not target.is_file() or (parts.fragment and parts.fragment not in ids):
                yield f"{page.relative_to(site)}: {address} leads nowhere"


def outside_requests(site: Path) -> Iterator[str]:
    """Yield each address elsewhere that a page or a style sheet would load."""
    for page in site.rglob("*.html"):
        yield from (f"{page}: loads {one}" for one in read(page).loaded if urlsplit(one).netloc)
    for style in site.rglob("*.css"):
        yield from (f"{style}: loads {one}" for one in re.findall(r"url\([\"']?(https?:[^)]+)", style.read_text()))


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"))
