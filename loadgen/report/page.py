"""The frame of every page: one file that needs nothing but itself."""

from collections.abc import Iterable
from importlib.resources import files
from string import Template

from loadgen.report.markup import Markup, join, tag


def render_page(title: str, sections: Iterable[str], style: str = "") -> str:
    """Return the whole HTML document. `style` has the rules of this page alone; they follow those of all pages."""
    folder = files("loadgen.report")
    template, common = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    return Template(template).substitute(title=tag("title", title), style=common + style, body=join(sections))


def header(kind: str, title: str, *parts: str, simulated: bool = False) -> Markup:
    """Return the top of a page: its kind ("loadgen report"), its title, and what a reader must see first."""
    badge = tag("span", "SIMULATED", class_="badge") if simulated else ""
    eyebrow = tag("p", f"{kind} ", badge, class_="eyebrow")
    return tag("header", eyebrow, tag("h1", title), *parts)


def verdict_box(kind: str, head: str, lines: Iterable[str]) -> Markup:
    """Return whether the numbers can be believed, and why; `kind` is good, fair or bad."""
    items = [tag("li", line) for line in lines]
    return tag("div", tag("strong", head), tag("ul", *items) if items else "", class_=f"verdict {kind}")


def tiles(rows: Iterable[tuple[str, str, str]]) -> Markup:
    """Return large numbers: a name, a number with its unit, and a note."""
    marks = []
    for name, value, note in rows:
        figure, _, unit = value.partition(" ")
        large = tag("dd", figure, " ", tag("span", unit)) if unit else tag("dd", figure)
        marks.append(tag("div", tag("dt", name), large, tag("dd", note, class_="note")))
    return tag("dl", *marks, class_="tiles")


def section(heading: str, *parts: str) -> Markup:
    key = heading.lower().replace(" ", "-")
    return tag("section", tag("h2", heading, id=key), *parts, aria_labelledby=key)


def definitions(rows: Iterable[tuple[str, str]]) -> Markup:
    """Return a list of names and their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in rows), class_="facts")


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
