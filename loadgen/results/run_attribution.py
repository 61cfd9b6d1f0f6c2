"""Attribution of a finished run: its energy series, aligned with its engine steps, divided among its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.cached_tokens import with_cached_tokens
from loadgen.attribution.engine_accounts import EngineShare, sum_of_engines
from loadgen.attribution.shapley import RunAttribution, attribute_energy
from loadgen.attribution.window_fit import align_phase
from loadgen.results.energy_summary import aligned_series
from loadgen.results.engine_parts import engine_parts
from loadgen.results.metrics import with_planned_prompts
from loadgen.results.reusable_tokens import reusable_tokens
from loadgen.results.session_accounts import rows_of_sums, session_rows
from loadgen.workload.tags import rows_by_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.energy.series import EnergySeries
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Ints


def attribute_run(
    result: RunResult, start_ns: int, end_ns: int, further: Mapping[str, Sequence[int]] | None = None
) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Return the attribution of the energy between two instants, and the series it is of. None without energy.

    further: rows of records by a name, whose sums get errors beside those of `part_rows`. Of several engines each has
    an attribution of its own, and the result is their sum.
    """
    sums = {name: np.array(rows, dtype=np.int64) for name, rows in (part_rows(result) | dict(further or {})).items()}
    if not result.info.engines:
        return _attribute(result, start_ns, end_ns, sums)
    shares: list[EngineShare] = []
    series: list[EnergySeries] = []
    for engine, part, probability, named_by in engine_parts(result):
        attribution, own = _attribute(part, start_ns, end_ns, sums)
        if attribution is not None:
            shares.append(EngineShare(engine.name, engine.role, attribution, probability, dict(named_by)))
            series += own
    return (sum_of_engines(shares) if shares else None), series


def _attribute(
    result: RunResult, start_ns: int, end_ns: int, sums: Mapping[str, Ints]
) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Attribute the energy of one engine."""
    series = aligned_series(result)
    if not series:
        return None, []
    records = with_planned_prompts(result.schedule, result.records)
    reusable = reusable_tokens(result.schedule, records, result.warmed)
    records = with_cached_tokens(records, reusable, result.engine)
    shared = steps_beside_others(records, result.engine, result.spans, result.info.run_id, result.info.anchor.offset_ns)
    series = [align_phase(domain, shared.steps) for domain in series]
    return attribute_energy(series, records, start_ns, end_ns, shared=shared, sums=sums, reusable=reusable), series


def part_rows(result: RunResult) -> dict[str, list[int]]:
    """Return the rows of the records of the run, "all", of each workload, of each model that was requested, of
    each tag, and of the sums of sessions."""
    rows: dict[str, list[int]] = {"all": list(range(len(result.records)))}
    for row, (request, record) in enumerate(zip(result.schedule, result.records, strict=True)):
        for name in (f"workload {record.workload}", f"model {request.model or result.info.server.get('model') or ''}"):
            rows.setdefault(name, []).append(row)
    rows |= {f"tag {name}": of_tag for name, of_tag in rows_by_tag(result.schedule).items()}
    return rows | rows_of_sums(session_rows(result.schedule))
