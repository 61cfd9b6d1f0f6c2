"""JUnit XML: counts that agree with the cases, and no text that leaves its place."""

from xml.etree import ElementTree

import pytest

from loadgen.report.junit import Case, junit_xml, verdict_cases
from loadgen.results.summarize import analyse_run
from loadgen.results.verdict import CHECKS
from support import sample_runs

CASES = [
    Case("a", "passed"),
    Case("b", "passed", "a note"),
    Case("c", "failure", "too slow"),
    Case("d", "error", "refused"),
    Case("e", "skipped", "not judged"),
]


def test_the_counts_are_those_of_the_cases_and_each_has_its_message() -> None:
    root = ElementTree.fromstring(junit_xml("compare", CASES))
    (suite,) = root
    for element in (root, suite):
        counts = [element.get(name) for name in ("tests", "failures", "errors", "skipped")]
        assert counts == ["5", "1", "1", "1"]
    assert [case.get("name") for case in suite] == list("abcde")
    assert [[(part.tag, part.get("message") or part.text) for part in case] for case in suite] == [
        [],
        [("system-out", "a note")],
        [("failure", "too slow")],
        [("error", "refused")],
        [("skipped", "not judged")],
    ]


@pytest.mark.parametrize("text", ["]]></failure><x/>", "a\x00b\x1b[31m\ud800", "a\"b'c&amp;<", "\u202e"])
def test_hostile_text_stays_text(text: str) -> None:
    suite = ElementTree.fromstring(junit_xml(text, [Case(text, "failure", text)]))[0]
    (case,) = suite
    (failure,) = case
    shown = "".join(c if c.isprintable() else " " for c in text)
    assert suite.get("name") == case.get("name") == failure.get("message") == shown


def test_each_check_of_a_verdict_is_a_case_with_a_reason_unless_it_is_ok() -> None:
    summary = analyse_run(sample_runs.run(num_requests=40, failing=0.3)).summary
    assert summary is not None
    cases = verdict_cases(summary.verdict)
    assert [case.name for case in cases] == list(CHECKS)
    assert {"failure", "skipped"} <= {case.status for case in cases}
    assert all(case.message for case in cases if case.status != "passed")
