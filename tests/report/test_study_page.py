"""The page of a study: which sections it has follows from what was run, in the order in which they are looked for."""

import re
from dataclasses import replace

import pytest

from loadgen.report.study_page import render_study_page
from loadgen.results.study_table import Row, StudyInfo
from report.test_run_page import Page
from support.study_rows import full_row, repeats

LIMITS = {"ttft": 200.0, "tpot": 10.0}
LOADS = ((None, 2.0), (None, 8.0), (8, None), (64, None))


def page(rows: list[Row], **changes: object) -> Page:
    fields: dict[str, object] = {"baseline": "plain", "limits_ms": LIMITS}
    return Page(render_study_page(StudyInfo("Title", "What is asked.", **(fields | changes)), rows))  # type: ignore[arg-type]


def ids_of(found: Page) -> list[str]:
    return [attributes["id"] or "" for _, attributes in found.elements if attributes.get("id")]


def headings(found: Page) -> list[str]:
    return [key for key in ids_of(found) if key in ORDER]


ORDER = [
    "findings",
    "limits",
    "latency-and-throughput",
    "energy",
    "reduction-against-the-baseline",
    "arrivals",
    "power",
    "every-run",
    "how-it-was-measured",
]


def test_a_whole_study_has_every_section_in_order() -> None:
    rows = repeats(*LOADS) + repeats((None, 8.0), server="other", arrival="gamma 0.25")
    assert headings(page(rows)) == ORDER


@pytest.mark.parametrize(
    ("rows", "changes", "missing"),
    [
        pytest.param(repeats(*LOADS), {"limits_ms": {}}, {"limits"}, id="no limits"),
        pytest.param(repeats(*LOADS), {"baseline": None}, {"reduction-against-the-baseline"}, id="no baseline"),
        pytest.param(
            repeats(
                *LOADS,
                joules_per_output_token=None,
                measured_joules=None,
                mean_watts=None,
                good_requests_per_joule=None,
                energy_valid=False,
            ),
            {},
            {"energy", "reduction-against-the-baseline", "power"},
            id="no energy",
        ),
        pytest.param([], {}, set(ORDER) - {"how-it-was-measured"}, id="no run is done"),
    ],
)
def test_a_section_is_there_only_with_something_in_it(
    rows: list[Row], changes: dict[str, object], missing: set[str]
) -> None:
    arrivals = {"arrivals"}  # all of one process
    assert headings(page(rows, **changes)) == [key for key in ORDER if key not in missing | arrivals]


def test_ids_are_of_one_element_each_and_every_tag_closes() -> None:
    found = page(repeats(*LOADS) + repeats((None, 8.0), server="other"))
    ids = ids_of(found)
    assert len(ids) == len(set(ids)) and not found.open


@pytest.mark.parametrize(
    ("rows", "changes", "head", "remark"),
    [
        ([full_row()], {}, "Every run is valid", ""),
        ([full_row()], {"remaining": 2}, "Every run so far is valid", "2 runs to go"),
        ([full_row(verdict="warning")], {}, "With remarks", "1 run with a remark in the verdict"),
        ([full_row(energy_valid=False)], {}, "With remarks", "1 run with energy that is not valid"),
        ([full_row(simulated=True)], {}, "With remarks", "The server was simulated"),
        ([full_row(), full_row(gpu="other")], {}, "With remarks", "Not all runs were on the same GPUs"),
        ([full_row()], {"failed": {"x-r0": "it broke\ntraceback"}}, "With failed runs", "x-r0 failed: it broke"),
        ([full_row()], {"failed": {"x-r0": "no", "x-r1": "no"}}, "With failed runs", "2 runs failed: no"),
        ([full_row(measured_joules=None, energy_valid=False)], {}, "Every run is valid", "no energy measured"),
    ],
)
def test_the_head_says_whether_the_numbers_can_be_believed(
    rows: list[Row], changes: dict[str, object], head: str, remark: str
) -> None:
    text = page(rows, **changes).text
    assert head in text and remark in text and "traceback" not in text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_from_files_and_servers_are_text(hostile: str) -> None:
    names = dict.fromkeys(("model", "workload", "engine", "engine_options", "remarks", "gpu"), hostile)
    rows = [full_row(hostile, rps=rps, **names) for rps in (1.0, 2.0)]
    study = StudyInfo(hostile, hostile, hostile, LIMITS, command=hostile, file=hostile, workloads={hostile: hostile})
    html = render_study_page(replace(study, failed={hostile: hostile}), rows)
    assert "<script>alert" not in html and not re.search(r"<img[^>]*onerror", html)
