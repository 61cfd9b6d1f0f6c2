"""The checks on how a run ended, on its failures and on its energy, each against runs made by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.verdict import CHECKS, Check, CheckName
from support import sample_runs


def run_of(outcomes: str, stopped_by: str | None = "completed", **info: Any) -> RunResult:
    """Make a run without energy; an outcome a request: `.` completed, or the first letters of a kind of error."""
    made = sample_runs.run(num_requests=len(outcomes), failing=0)
    kinds = {"h": ("http", "503, overloaded"), "c": ("connect", "refused"), "t": ("truncated", None)}
    kinds |= {"x": ("cancelled", "aborted"), "n": ("not_sent", None)}
    records = [
        record if outcome == "." else failed(record, *kinds[outcome])
        for record, outcome in zip(made.records, outcomes, strict=True)
    ]
    changed = msgspec.structs.replace(made.info, **{"stopped_by": stopped_by, "start_ns": sample_runs.START_NS} | info)
    return replace(made, info=changed, records=records, energy=[], attribution=None, summary=None)


def failed(record: RequestRecord, kind: Any, detail: str | None) -> RequestRecord:
    sent_ns = None if kind in ("not_sent", "connect") else record.sent_ns  # a refused connection carries no request
    return RequestRecord(
        index=record.index,
        workload=record.workload,
        scheduled_ns=record.scheduled_ns,
        sent_ns=sent_ns,
        finished_ns=None if kind == "not_sent" else record.sent_ns,
        error=kind,
        detail=detail,
    )


def check(name: CheckName, result: RunResult) -> Check:
    summary = analyse_run(result).summary
    assert summary is not None
    assert [check.name for check in summary.verdict.checks] == list(CHECKS)
    assert summary.instrument.verdicts == summary.verdict.reasons
    return summary.verdict.check(name)


@pytest.mark.parametrize(
    ("outcomes", "stopped_by", "status", "says"),
    [
        ("." * 20, "completed", "ok", None),
        ("h" * 20, "completed", "ok", None),
        ("..hh" * 5, "completed", "ok", None),
        ("." * 18 + "cc", "completed", "ok", None),
        ("." * 8 + "cccc" + "." * 8, "completed", "ok", None),
        ("." * 10 + "tt" + "c" * 8, "completed", "failed", r"gone from \d+\.\d s on: none of the last 8 requests"),
        ("." * 17 + "ccc", "completed", "failed", "none of the last 3 requests could connect"),
        ("c" * 20, "completed", "failed", "gone from .* none of the last 20"),
        ("." * 12 + "n" * 8, "interrupted", "warning", "interrupted: 8 of 20 requests were not sent"),
        ("." * 12 + "xx" + "n" * 6, "aborted", "failed", "aborted: 12 of 20 requests completed"),
        ("." * 12 + "x" * 8, None, "failed", "did not end by itself: the client was killed, 12 of 20"),
    ],
)
def test_a_run_has_finished_when_it_ended_by_itself_with_its_server_alive(
    outcomes: str, stopped_by: str | None, status: str, says: str | None
) -> None:
    finished = check("finished", run_of(outcomes, stopped_by))
    assert finished.status == status
    if says is None:
        assert finished.reason is None
    else:
        assert re.search(says, finished.reason or "")


@pytest.mark.parametrize(
    ("outcomes", "limit", "status", "reason"),
    [
        ("." * 20, "1%", "ok", None),
        ("." * 99 + "h", "1%", "warning", "1 of 100 requests failed (1 http; 503, overloaded)"),
        (
            "." * 98 + "hh",
            "1%",
            "failed",
            "2 of 100 requests failed (2 http; 503, overloaded), more than the limit of 1%",
        ),
        ("." * 98 + "hh", "2", "warning", "2 of 100 requests failed (2 http; 503, overloaded)"),
        ("." * 98 + "ht", "0", "failed", "2 of 100 requests failed (1 http, 1 truncated; 503, overloaded), more than"),
        ("......tttt", "50%", "warning", "4 of 10 requests failed (4 truncated)"),
        (
            "hhhcc",
            "100%",
            "failed",
            "no request completed: 5 of 5 requests failed (3 http, 2 connect; 503,",
        ),
        ("...n.h", None, "failed", "2 of 6 requests failed"),
    ],
)
def test_failures_are_held_against_the_limit_by_kind_and_with_the_servers_words(
    outcomes: str, limit: str | None, status: str, reason: str | None
) -> None:
    failures = check("failures", run_of(outcomes, config={"max_failed": limit} if limit else {}))
    assert failures.status == status
    assert failures.reason is None if reason is None else (failures.reason or "").startswith(reason)


@pytest.mark.parametrize(
    ("outcomes", "stopped_by", "status"),
    [
        ("....nnnn", "interrupted", "ok"),
        ("....xxnn", "aborted", "ok"),
        ("....xxxx", None, "ok"),
        ("..hhxxnn", "aborted", "failed"),
        ("nnnn", "interrupted", None),
        ("....xxxx", "completed", "failed"),
    ],
)
def test_requests_that_the_end_of_the_run_cut_off_did_not_fail(
    outcomes: str, stopped_by: str | None, status: str | None
) -> None:
    assert check("failures", run_of(outcomes, stopped_by)).status == status


@pytest.mark.parametrize(
    ("asked", "domains", "status", "says"),
    [
        ("none", False, None, None),
        ("auto", False, None, "no energy was measured: nvml: not there"),
        ("nvml", False, "failed", "the energy is not valid"),
        ("auto", True, "failed", "the energy is not valid"),
    ],
)
def test_no_energy_fails_only_where_a_source_was_asked_for_or_was_there(
    asked: str, domains: bool, status: str | None, says: str | None
) -> None:
    result = run_of("....", config={"energy": asked}, energy_reasons=["nvml: not there"])
    if not domains:
        result = replace(result, info=msgspec.structs.replace(result.info, domains=[]))
    energy = check("energy", result)
    assert energy.status == status
    assert (energy.reason or "").startswith(says) if says else energy.reason is None


def checks_that_are_not_ok(checks: Sequence[Check]) -> dict[str, str | None]:
    return {check.name: check.status for check in checks if check.status in ("warning", "failed")}


def test_energy_with_a_gap_is_a_warning_on_its_rows_alone() -> None:
    made = sample_runs.run(failing=0)
    half = replace(made, energy=made.energy[: len(made.energy) // 2], summary=None)
    summary = analyse_run(half).summary
    assert summary is not None
    assert checks_that_are_not_ok(summary.verdict.checks) == {"energy": "warning"}
    assert summary.verdict.check("energy").rows == ["energy"]
