"""Attribution of a finished run: its energy series, aligned with its engine steps, divided among its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.attribution.beside_others import steps_beside_others
from loadgen.attribution.cost_model import align_phase
from loadgen.attribution.shapley import RunAttribution, attribute_energy
from loadgen.results.energy_summary import aligned_series
from loadgen.results.metrics import with_planned_prompts

if TYPE_CHECKING:
    from loadgen.energy.series import EnergySeries
    from loadgen.results.run_folder import RunResult


def attribute_run(result: RunResult, start_ns: int, end_ns: int) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Return the attribution of the energy between two instants, and the series it is of. None without energy."""
    series = aligned_series(result)
    if not series:
        return None, []
    shared = steps_beside_others(with_planned_prompts(result.schedule, result.records), result.engine)
    series = [align_phase(domain, shared.steps) for domain in series]
    return attribute_energy(series, result.records, start_ns, end_ns, shared=shared), series
