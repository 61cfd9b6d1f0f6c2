"""Laws of the audit's outcome: an advisory fails, and nothing audited is not a pass."""

from typing import Any

import pytest

from deploy.audit import outcome

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found"}
BAD = {
    "name": "c",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}, {"id": "CVE-2", "fix_versions": []}],
}


@pytest.mark.parametrize(
    ("packages", "failed", "text"),
    [
        ([CLEAN], False, "no advisory for 1 packages"),
        ([CLEAN, SKIPPED], False, "no advisory for 1 packages; not audited: b"),
        ([SKIPPED], False, "SKIPPED: PyPI has advisories of none of these 1 packages, so nothing was audited"),
        ([], False, "SKIPPED: PyPI has advisories of none of these 0 packages, so nothing was audited"),
        ([CLEAN, BAD], True, "2 advisories\nc 2: CVE-1, fixed in 2.1\nc 2: CVE-2, fixed in no version"),
    ],
)
def test_the_outcome_of_an_audit(packages: list[dict[str, Any]], failed: bool, text: str) -> None:
    assert outcome(packages) == (failed, text)
