"""The parts that pages share, each alone."""

import pytest

from loadgen.report.markup import join, table, tag
from loadgen.report.page import command_box, header, render_page, section, stacked_bar, tile, verdict_box
from report.test_run_page import Page


def test_a_page_has_its_title_its_sections_in_order_and_its_own_rules_last() -> None:
    sections = [section("First part", "one"), section("Second", "two")]
    text = render_page("A < B", sections, ".mine { color: red; }")
    page = Page(text)
    assert page.text.startswith("A < B") and page.text.endswith("First part one Second two")
    assert page.open == []
    style = text[text.index("<style>") : text.index("</style>")]
    assert style.endswith(".mine { color: red; }")
    assert text.replace(".mine { color: red; }", "") == render_page("A < B", sections)


def test_a_section_is_named_by_its_heading() -> None:
    elements = Page(section("First part", "one")).elements
    assert elements[:2] == [("section", {"aria-labelledby": "first-part"}), ("h2", {"id": "first-part"})]


def test_a_heading_links_to_itself() -> None:
    assert Page(section("<First> part", "one")).elements[2] == ("a", {"href": "#first-part", "class": "anchor"})


@pytest.mark.parametrize("number", [0, 2, 3, 5])
def test_a_page_of_several_sections_lists_them_before_the_first(number: int) -> None:
    names = [f"Part {i} & more" for i in range(number)]
    page = Page(render_page("T", [tag("header", "top"), *(section(name, "text") for name in names)]))
    links = [attrs["href"] for name, attrs in page.elements if name == "a" and "class" not in attrs]
    assert links == ([f"#part-{i}-more" for i in range(number)] if number > 2 else [])
    order = [name for name, _ in page.elements if name in ("header", "nav", "section")]
    assert order == ["header", *(["nav"] if number > 2 else []), *["section"] * number]


def test_a_cell_carries_the_name_of_its_column_for_phones() -> None:
    made = Page(table([join(["run", " ", tag("b", "A")]), join([tag("i"), "p<99>"]), ""], [["chat", "1", "2"]], "T"))
    head, *cells = (attrs for name, attrs in made.elements if name == "td")
    assert head == {}  # an empty cell is the header of nothing
    assert cells == [{"data-label": "p<99>"}, {}]


@pytest.mark.parametrize(
    ("columns", "class_", "classes"),
    [(4, None, {}), (4, "wrap", {"class": "wrap"}), (5, "wrap", {"class": "wrap blocks"})],
)
def test_the_rows_of_a_table_of_many_columns_become_blocks_on_a_phone(
    columns: int, class_: str | None, classes: dict[str, str]
) -> None:
    made = Page(table(["a"] * columns, [], "T", class_))
    assert ("table", classes) in made.elements


@pytest.mark.parametrize("simulated", [True, False])
def test_the_top_of_a_page_says_what_is_simulated(simulated: bool) -> None:
    assert ("SIMULATED" in Page(header("loadgen report", "T", simulated=simulated)).text) is simulated


def test_a_verdict_without_reasons_has_no_list() -> None:
    assert [name for name, _ in Page(verdict_box("good", "Valid", [])).elements] == ["div", "strong"]
    box = Page(verdict_box("bad", "Not valid", ["a", "<b>"]))
    assert box.elements[0] == ("div", {"class": "verdict bad"})
    assert box.text == "Not valid a <b>"


@pytest.mark.parametrize(
    ("value", "words", "spans"),
    [("3.02 /s", "3.02 /s", 1), ("1,414", "1,414", 0), ("-", "-", 0), ("867 tokens/s", "867 tokens/s", 1)],
)
def test_the_unit_of_a_tile_is_smaller_than_its_number(value: str, words: str, spans: int) -> None:
    page = Page(tile("Rate", [("", value)], ["a note"]))
    assert page.text == f"Rate {words} a note"
    assert sum(name == "span" for name, _ in page.elements) == spans


@pytest.mark.parametrize(
    ("values", "widths"),
    [
        ([1.0, 3.0], ["25.000%", "75.000%"]),
        ([1.0, -9.0, 1.0], ["50.000%", "0.000%", "50.000%"]),
        ([0.0, 0.0], ["0.000%", "0.000%"]),
    ],
)
def test_parts_of_a_bar_keep_their_shares_side_by_side(values: list[float], widths: list[str]) -> None:
    bar = Page(stacked_bar([("idle", value, "tip") for value in values], "words"))
    rects = [attrs for name, attrs in bar.elements if name == "rect"]
    assert [attrs["width"] for attrs in rects] == widths
    ends = [float(str(attrs["x"])[:-1]) + float(str(attrs["width"])[:-1]) for attrs in rects]
    assert [float(str(attrs["x"])[:-1]) for attrs in rects] == pytest.approx([0, *ends[:-1]])
    assert bar.elements[0][1]["aria-label"] == "words"


def test_only_what_is_unattributed_is_hatched() -> None:
    for account, rects in (("idle", 1), ("unattributed", 2)):
        bar = Page(stacked_bar([(account, 1.0, "tip")], "words"))
        assert sum(name == "rect" for name, _ in bar.elements) == rects


def test_a_command_is_text_and_only_a_script_adds_a_button_that_copies_it() -> None:
    box = Page(command_box("loadgen replay '<b>.jsonl'"))
    assert [name for name, _ in box.elements] == ["div", "code"]
    assert box.text == "loadgen replay '<b>.jsonl'"
