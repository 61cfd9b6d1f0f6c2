"""Attribution of the energy of one engine, of several with GPUs of their own, and of several that share some."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from loadgen.attribution.beside_others import SharedSteps, steps_beside_others
from loadgen.attribution.cached_tokens import with_cached_tokens
from loadgen.attribution.engine_accounts import EngineShare, SharedGpus, sum_of_engines
from loadgen.attribution.shapley import JointAttribution, RunAttribution, attribute_energy, attribute_jointly
from loadgen.attribution.side_by_side import side_by_side
from loadgen.attribution.window_fit import align_phase
from loadgen.results.energy_summary import aligned_series
from loadgen.results.engine_parts import EnginePart, engine_parts
from loadgen.results.metrics import with_planned_prompts
from loadgen.results.reusable_tokens import reusable_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.energy.series import EnergySeries
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.stats.arrays import Ints


class _Prepared(NamedTuple):
    """Arguments of the attribution of one engine, as `attribute_energy` takes them."""

    records: list[RequestRecord]
    reusable: list[int | None]
    steps: SharedSteps


def attribute_engine(
    result: RunResult, start_ns: int, end_ns: int, sums: Mapping[str, Ints]
) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Return the attribution of the run of one engine, and the series it is of. None without energy."""
    series = aligned_series(result)
    if not series:
        return None, []
    records, reusable, shared = _prepare(result)
    series = [align_phase(domain, shared.steps) for domain in series]
    return attribute_energy(series, records, start_ns, end_ns, shared=shared, sums=sums, reusable=reusable), series


def attribute_engines(
    result: RunResult, start_ns: int, end_ns: int, sums: Mapping[str, Ints]
) -> tuple[RunAttribution | None, list[EnergySeries]]:
    """Return the sum of the attributions of several engines, and the series it is of. None if no engine has energy."""
    groups: dict[tuple[str, ...], list[EnginePart]] = {}
    for part in engine_parts(result):
        groups.setdefault(tuple(sorted(domain.name for domain in part.result.info.domains)), []).append(part)
    shares: list[EngineShare] = []
    shared: list[SharedGpus] = []
    series: list[EnergySeries] = []
    for number, parts in enumerate(groups.values()):
        if len(parts) == 1:
            attribution, own = attribute_engine(parts[0].result, start_ns, end_ns, sums)
            attributions: Sequence[RunAttribution | None] = [attribution]
        else:
            attributions, own = [], []
            if joint := _attribute_jointly(result, parts, start_ns, end_ns, sums):
                of_all, own = joint
                attributions = of_all.engines
                shared.append(SharedGpus(number, of_all.idle_mj, of_all.unattributed_mj, of_all.sums))
        shares += [
            EngineShare(
                part.engine.name,
                part.engine.role,
                attribution,
                part.probability,
                dict(part.named_by),
                number,
                has_idle=part is parts[0],
            )
            for part, attribution in zip(parts, attributions or [None] * len(parts), strict=True)
        ]
        series += own
    has_energy = any(share.attribution for share in shares)
    return (sum_of_engines(shares, shared) if has_energy else None), series


def _attribute_jointly(
    result: RunResult, parts: Sequence[EnginePart], start_ns: int, end_ns: int, sums: Mapping[str, Ints]
) -> tuple[JointAttribution, list[EnergySeries]] | None:
    """Return the attribution of these engines, which share their GPUs, and the series; None without energy."""
    series = aligned_series(parts[0].result)
    if not series:
        return None
    prepared = [_prepare(part.result) for part in parts]
    shared = side_by_side([steps for _, _, steps in prepared], len(result.records))
    series = [align_phase(domain, shared.steps) for domain in series]
    records = list(with_planned_prompts(result.schedule, result.records))
    reusable: list[int | None] = [None] * len(records)
    for part, (own, of_own, _) in zip(parts, prepared, strict=True):
        for row in (part.probability > 0).nonzero()[0].tolist():
            reusable[row], records[row] = of_own[row], own[row]
    joint = attribute_jointly(series, records, start_ns, end_ns, shared=shared, sums=sums, reusable=reusable)
    return joint, series


def _prepare(result: RunResult) -> _Prepared:
    records = with_planned_prompts(result.schedule, result.records)
    reusable = reusable_tokens(result.schedule, records, result.warmed)
    records = with_cached_tokens(records, reusable, result.engine)
    ahead_ns = result.info.anchor.offset_ns
    steps = steps_beside_others(records, result.engine, result.spans, result.info.run_id, ahead_ns)
    return _Prepared(list(records), list(reusable), steps)
