"""Analyse a run folder and write its views."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.results import run_folder

if TYPE_CHECKING:
    from loadgen.workload.schedule import Schedule

_log = logging.getLogger(__name__)


def finish(
    path: Path,
    schedule: Schedule | None = None,
    announce: Callable[[str], None] = lambda _: None,
    assumptions: Mapping[str, Any] | None = None,
) -> run_folder.RunResult:
    """Derive attribution and summary from what was recorded, and write them and the report.

    announce: called with the name of each step before it. assumptions: see `load_run`.
    """
    from loadgen.report import run_page
    from loadgen.results.summarize import load_run

    with run_folder.analysable_later(path):
        announce("attributing energy")
        result = load_run(path, schedule.requests if schedule else None, assumptions)
        assert result.summary is not None
        verdict = {"verdict": result.summary.verdict.status, "reasons": result.summary.verdict.reasons}
        _log.info("verdict on %(folder)s: %(verdict)s %(reasons)s", {"folder": str(path)} | verdict)
        announce("writing the report")
        run_folder.write_analysis(path, result, run_page.render_run_page(result))
    return result
