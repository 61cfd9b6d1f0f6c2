"""HTML and SVG elements whose text is escaped because there is no other way to write them."""

import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from typing import Any

import msgspec

from loadgen.report.format import clean


class Markup(str):
    """Text that is already markup. Only this module makes it, out of escaped parts."""

    __slots__ = ()


VOID = frozenset({"line", "rect", "path", "circle", "br"})
"""Elements without content. SVG inside HTML wants them closed."""


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """`<name attributes>children</name>`. `class_` is class, `stroke_width` is stroke-width, None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(clean(part, 4000)) for part in parts))


def table(
    head: Iterable[str],
    rows: Iterable[Iterable[str]],
    caption: str,
    class_: str | None = None,
    requests: Sequence[int] | None = None,
) -> Markup:
    """Return a table in a box of its own: a wide table scrolls, the page does not. Rows begin with a header.

    On a phone a row of more than 4 columns is a block: its header, and each cell below the name of its column.
    `requests` are the indices of the requests that the rows are: choosing a row shows its request.
    """
    head, rows = list(head), list(rows)
    indices: Sequence[int | None] = [None] * len(rows) if requests is None else requests
    names = [_words(cell) or None for cell in head[1:]]
    top = tag("tr", *(tag("th", cell, scope="col") if cell else tag("td") for cell in head))
    body = [
        tag(
            "tr",
            tag("th", header, scope="row"),
            *(tag("td", cell, data_label=name) for cell, name in zip(cells, names, strict=True)),
            data_request=index,
        )
        for (header, *cells), index in zip(rows, indices, strict=True)
    ]
    classes = " ".join(filter(None, (class_, "blocks" if len(head) > 4 else None))) or None
    inner = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body), class_=classes)
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=f"Table: {caption}")


def _words(cell: str) -> str:
    """Return the text of a cell that may be markup."""
    return unescape(_TAGS.sub("", cell)).strip() if isinstance(cell, Markup) else cell


_TAGS = re.compile("<[^>]*>")


def json_data(data: Any, id_: str | None = None) -> Markup:
    """Return data for the page's own script. Nothing in it can end the element: every "<" is written as an escape."""
    text = msgspec.json.encode(data).decode().replace("<", "\\u003c")
    return tag("script", Markup(text), type="application/json", id=id_)
