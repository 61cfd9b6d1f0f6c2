"""The failed requests of a run on its page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from loadgen.report.format import UNKNOWN, clean, count
from loadgen.report.markup import Markup, table, tag
from loadgen.report.run_facts import ERROR_MEANING, failures
from loadgen.results.summarize import span
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult


def failures_of(result: RunResult) -> Markup:
    """Return the table of a run's failed requests."""
    return failures_table(result.records, span(result)[0])


def failures_table(records: Iterable[RequestRecord], start_ns: int) -> Markup:
    """Return the failed requests by kind, the most frequent first, each with when it occurred and an example."""
    records = list(records)
    rows = []
    for kind, requests, example in failures(records):
        ended_ns = [r.finished_ns for r in records if r.error == kind and r.finished_ns is not None]
        times_s = [f"{(ns - start_ns) / NS_PER_S:,.2f} s" for ns in (min(ended_ns), max(ended_ns))] if ended_ns else []
        first, last = times_s or (UNKNOWN, UNKNOWN)
        status = UNKNOWN if example.status is None else str(example.status)
        detail = f"#{example.index}: {clean(example.detail, 240)}" if example.detail else UNKNOWN
        rows.append([kind, ERROR_MEANING[kind], count(requests), first, last, status, detail])
    if not rows:
        return tag("p", "No request failed.")
    head = ["kind", "meaning", "requests", "first at", "last at", "status", "an example"]
    return table(head, rows, "Failed requests by kind", "failures")
