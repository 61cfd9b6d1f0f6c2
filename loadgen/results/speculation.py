"""Speculative decoding in numbers: what the engine counted, and what the rejected tokens cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.results.summary import SpeculationSummary
from loadgen.telemetry.engine_sample import counter_values
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.telemetry.engine_sample import EngineSample


def speculation_summary(
    engine: Sequence[EngineSample], attribution: RunAttribution | None
) -> SpeculationSummary | None:
    """Return what the engine counted between its first and last sample; None when it counted no draft."""
    counters = [counter_values(engine, name) for name in ("drafts", "draft_tokens", "accepted_tokens")]
    drafts, drafted, accepted = (0 if values is None else round(values[-1] - values[0]) for values in counters)
    if not drafts or not drafted:
        return None
    rejected = None if attribution is None else attribution.rejected_joules
    attributed = 0.0 if attribution is None else j_from_mj(attribution.attributed_mj)
    return SpeculationSummary(
        drafts=drafts,
        draft_tokens=drafted,
        accepted_tokens=accepted,
        acceptance=accepted / drafted,
        tokens_per_step=1 + accepted / drafts,
        rejected_joules=rejected,
        rejected_se_joules=None if attribution is None else attribution.rejected_se_joules,
        rejected_share=rejected / attributed if rejected is not None and attributed else None,
    )
