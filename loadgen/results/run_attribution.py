"""Attribution of a finished run: its energy series, aligned with its engine steps, divided among its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.results.engine_attribution import attribute_engine, attribute_engines
from loadgen.results.session_accounts import rows_of_sums, session_rows
from loadgen.workload.tags import rows_by_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.attribution.shapley import RunAttribution
    from loadgen.energy.series import EnergySeries
    from loadgen.results.run_folder import RunResult


def attribute_run(
    result: RunResult, start_ns: int, end_ns: int, further: Mapping[str, Sequence[int]] | None = None
) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Return the attribution of the energy between two instants, and the series it is of. None without energy.

    further: rows of records by a name, whose sums get errors beside those of `part_rows`. Of several engines each has
    an attribution of its own, and the result is their sum.
    """
    sums = {name: np.array(rows, dtype=np.int64) for name, rows in (part_rows(result) | dict(further or {})).items()}
    attribute = attribute_engines if result.info.engines else attribute_engine
    return attribute(result, start_ns, end_ns, sums)


def part_rows(result: RunResult) -> dict[str, list[int]]:
    """Return the rows of the records of the run, "all", of each workload, of each model that was requested, of
    each tag, and of the sums of sessions."""
    rows: dict[str, list[int]] = {"all": list(range(len(result.records)))}
    for row, (request, record) in enumerate(zip(result.schedule, result.records, strict=True)):
        for name in (f"workload {record.workload}", f"model {request.model or result.info.server.get('model') or ''}"):
            rows.setdefault(name, []).append(row)
    rows |= {f"tag {name}": of_tag for name, of_tag in rows_by_tag(result.schedule).items()}
    return rows | rows_of_sums(session_rows(result.schedule))
