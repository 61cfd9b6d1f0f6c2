"""The page of a search: its sections follow from its probes, and every ending reads well."""

import re
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from loadgen.report.search_page import render_search_page
from loadgen.results.search_result import SearchResult
from report.test_run_page import Page
from support import search_results as examples
from support.search_results import probe, probes, search, setting

ORDER = ["settings", "limits", "throughput", "latency", "energy", "how-the-budget-was-spent", "how-it-was-measured"]


def page(result: SearchResult) -> Page:
    return Page(render_search_page(result))


def ids_of(found: Page) -> list[str]:
    return [attributes["id"] or "" for _, attributes in found.elements if attributes.get("id")]


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (examples.of_settings, set()),
        (examples.search, {"settings"}),
        (examples.without_energy, {"settings", "energy"}),
        (examples.hopeless, {"settings"}),
        (examples.limited_by_client, {"settings"}),
        (examples.broken, {"settings"}),
        (examples.undecided, {"settings"}),
        (examples.first_probe, {"settings"}),
        (examples.of_joules, {"settings"}),
        (SearchResult, set(ORDER[:-1])),
    ],
)
def test_a_section_is_there_only_with_something_in_it(make: Callable[[], SearchResult], missing: set[str]) -> None:
    found = page(make())
    ids = ids_of(found)
    assert [key for key in ids if key in ORDER] == [key for key in ORDER if key not in missing]
    assert len(ids) == len(set(ids)) and not found.open
    assert not re.search(r"\bNone\b|\bnan\b", found.text)


@pytest.mark.parametrize(
    ("result", "charts"),
    [
        (search(), {"attainment", "attainment-close", "good-requests", "latency-ttft", "latency-tpot", "budget"}),
        (search(), {"joules-per-good-request", "joules-per-token"}),
        (search(limits_ms={"e2el": 900.0}), {"latency-ttft", "latency-tpot", "latency-e2el"}),
        (examples.of_settings(), {"front", "attainment"}),
    ],
)
def test_the_curves_of_a_search_are_drawn(result: SearchResult, charts: set[str]) -> None:
    assert charts <= set(ids_of(page(result)))


def test_each_probe_leads_to_its_report() -> None:
    links = [attributes.get("href") for tag, attributes in page(search()).elements if tag == "a"]
    assert [link for link in links if link and link.startswith("probes/")] == [
        f"probes/{i:03}/report.html" for i in range(10)
    ]


def test_the_time_of_the_stages_and_of_that_between_them_is_all_of_the_time() -> None:
    text = page(search()).text
    assert "bracketing 6 378 1 min 18 s 13.0 %" in text
    assert "refining 4 4,272 7 min 4 s 70.7 %" in text
    assert "between them - - 23 s 3.8 %" in text


def test_the_reasons_of_dropped_settings_and_the_remarks_on_probes_are_stated() -> None:
    assert "its best rate is below that of max_num_seqs=256" in page(examples.of_settings()).text
    assert "sends were late" in page(search(setting(probes=(probe(reasons=("sends were late",)),)))).text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_from_files_and_servers_are_text(hostile: str) -> None:
    made = tuple(replace(probe, name=hostile, reasons=(hostile,)) for probe in probes())
    of = setting(hostile, probes=made, ended="server", reason=hostile, binding=(hostile,))
    names = dict.fromkeys(("trace", "model", "engine", "started", "command", "loadgen_version"), hostile)
    html = render_search_page(search(of, replace(of, name=f"{hostile}2"), best=hostile, **names))
    assert "<script>alert" not in html and not re.search(r"<img[^>]*onerror", html)
