"""Verdicts and gates as JUnit XML, which CI systems show as test cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from loadgen.report.format import clean

if TYPE_CHECKING:
    from loadgen.results.verdict import Verdict


class Case(NamedTuple):
    """One test case. `message` says why it failed, is in error or was skipped; of one that passed it is a note."""

    name: str
    status: str
    """One of passed, failure, error, skipped."""
    message: str = ""


def verdict_cases(verdict: Verdict) -> list[Case]:
    """Return a case for each check of a run. A warning passes, with its reason; what was not judged is skipped."""
    statuses = {"ok": "passed", "warning": "passed", "failed": "failure", None: "skipped"}
    return [
        Case(check.name, statuses[check.status], check.reason or ("" if check.status else "not judged"))
        for check in verdict.checks
    ]


def junit_xml(suite: str, cases: Sequence[Case]) -> bytes:
    """Return a document with one suite, in UTF-8."""
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.status == "failure" for case in cases)),
        "errors": str(sum(case.status == "error" for case in cases)),
        "skipped": str(sum(case.status == "skipped" for case in cases)),
    }
    root = ElementTree.Element("testsuites", {"name": "loadgen", **counts})
    parent = ElementTree.SubElement(root, "testsuite", {"name": clean(suite), **counts, "time": "0"})
    for case in cases:
        name = {"classname": f"loadgen.{clean(suite)}", "name": clean(case.name), "time": "0"}
        element = ElementTree.SubElement(parent, "testcase", name)
        message = clean(case.message, 2_000)
        if case.status != "passed":
            ElementTree.SubElement(element, case.status, {"message": message})
        elif message:
            ElementTree.SubElement(element, "system-out").text = message
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
