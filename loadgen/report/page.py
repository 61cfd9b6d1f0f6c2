"""The frame of every page: one file that needs nothing but itself."""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from loadgen.report.format import UNKNOWN, clean
from loadgen.report.markup import Markup, join, tag


def render_page(title: str, sections: Iterable[str], style: str = "") -> str:
    """Return the whole HTML document. `style` has the rules of this page alone; they follow those of all pages."""
    folder = files("loadgen.report")
    template, common = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    body, script = with_contents(list(sections)), ""
    if '<figure class="chart' in body:
        charts = folder / "charts"
        common += (charts / "charts.css").read_text(encoding="utf-8")
        script = f"<script>\n{(charts / 'charts.min.js').read_text(encoding='utf-8')}</script>\n"
    return Template(template).substitute(title=tag("title", title), style=common + style, body=body, script=script)


def with_contents(parts: list[str]) -> Markup:
    """Return the parts of a page with links to its sections before the first of them, where there are several."""
    headings = [found for part in parts for found in _HEADINGS.findall(part)]
    first = next((i for i, part in enumerate(parts) if part.startswith("<section")), len(parts))
    if len(headings) < 3:
        return join(parts)
    links = (tag("li", tag("a", Markup(text), href=f"#{key}")) for key, text in headings)
    contents = tag("nav", tag("ul", *links), class_="contents", aria_label="Contents")
    return join([*parts[:first], contents, *parts[first:]])


_HEADINGS = re.compile(r'<h2 id="([^"]*)"><a [^>]*>(.*?)</a></h2>')
"""Headings as `linked_heading` writes them; all text in them is escaped."""


def linked_heading(level: str, text: str, key: str, *, has_id: bool = True) -> Markup:
    """Return a heading that links to itself, so that its address can be copied. `key` is the id of it or its figure."""
    return tag(level, tag("a", text, href=f"#{key}", class_="anchor"), id=key if has_id else None)


def header(kind: str, title: str, *parts: str, simulated: bool = False) -> Markup:
    """Return the top of a page: its kind ("loadgen report"), its title, and what a reader must see first."""
    badge = tag("span", "SIMULATED", class_="badge") if simulated else ""
    eyebrow = tag("p", f"{kind} ", badge, class_="eyebrow")
    return tag("header", eyebrow, tag("h1", title), *parts)


def verdict_box(kind: str, head: str, lines: Iterable[str]) -> Markup:
    """Return whether the numbers can be believed, and why; `kind` is good, fair or bad."""
    items = [tag("li", line) for line in lines]
    return tag("div", tag("strong", head), tag("ul", *items) if items else "", class_=f"verdict {kind}")


TileValue = tuple[str, str]
"""A short label, or "", and a number with its unit."""


def tile(name: str, values: Sequence[TileValue], notes: Iterable[str], invalid: str | None = None) -> Markup:
    """Return large numbers under one name, struck where the check `invalid` says that they support no claim."""
    numbers = []
    for label, text in values:
        figure, _, unit = text.partition(" ")
        number = join([figure, *([" ", tag("span", unit)] if unit else [])])
        if invalid and text != UNKNOWN:
            number = tag("s", tag("span", "not valid: ", class_="spoken"), number)
        numbers.append(tag("dd", tag("small", label, " ") if label else "", number))
    reason = ""
    if invalid and any(text != UNKNOWN for _, text in values):
        reason = tag("span", f'not valid: see "{invalid}" in the verdict', class_="missed")
    lines = [tag("dd", note, class_="note") for note in (reason, *notes) if note]
    return tag("div", tag("dt", name), *numbers, *lines)


def section(heading: str, *parts: str) -> Markup:
    """Return a section with its heading."""
    key = re.sub(r"\W+", "-", heading.lower()).strip("-")
    return tag("section", linked_heading("h2", heading, key), *parts, aria_labelledby=key)


def command_box(command: str) -> Markup:
    """Return a command. The page's script adds the button that copies it."""
    return tag("div", tag("code", clean(command, 4_000)), class_="copy")


def definitions(rows: Iterable[tuple[str, str]]) -> Markup:
    """Return a list of names and their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in rows), class_="facts")


def folded(heading: str, *parts: str) -> Markup:
    """Return long parts of a page under a heading that opens and closes them. Only on a phone they are closed at first,
    by the page's script."""
    return tag("details", tag("summary", tag("h3", heading)), *parts, open="", class_="fold")


def stacked_bar(parts: Iterable[tuple[str, float, str]], text: str) -> Markup:
    """Return a flat stack of (account, value, tooltip); each part keeps its share of the width. `text` describes it."""
    parts = list(parts)
    total = sum(max(value, 0) for _, value, _ in parts) or 1
    x, marks = 0.0, []
    for name, value, tooltip in parts:
        width = 100 * max(value, 0) / total
        box = {"x": f"{x:.3f}%", "width": f"{width:.3f}%", "height": "100%"}
        hatch = tag("rect", **box, fill="url(#hatch)") if name == "unattributed" else ""
        marks.append(tag("g", tag("title", tooltip), tag("rect", **box, class_=f"account {name}"), hatch))
        x += width
    return tag("svg", *marks, class_="bar", role="img", aria_label=text)
