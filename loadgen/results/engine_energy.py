"""The energy accounts of each of several engines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from loadgen.attribution.fit_quality import held_out_r_squared
from loadgen.energy.named_engine import domains_of
from loadgen.results.energy_summary import accounts_mj
from loadgen.results.summary import EngineEnergy
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.results.run_folder import RunResult


def engine_energies(result: RunResult, attribution: RunAttribution | None) -> list[EngineEnergy]:
    """Return the accounts of each engine, without numbers of one whose energy is not known. Empty where there is one
    engine, or no energy."""
    if attribution is None:
        return []
    pairs = list(zip(attribution.requests, result.records, strict=True))
    energies = []
    for engine in result.info.engines:
        is_prefill = engine.role == "prefill"
        own = [
            record for share, record in pairs if engine.name == (share.prefill_engine if is_prefill else share.engine)
        ]
        described = EngineEnergy(
            name=engine.name,
            role=engine.role,
            domains=[domain.name for domain in domains_of(engine, result.info.domains)],
            requests=len(own),
            input_tokens=sum(record.input_tokens or 0 for record in own),
            output_tokens=0 if is_prefill else sum(record.output_tokens or 0 for record in own),
        )
        accounts = attribution.engines.get(engine.name)
        energies.append(described if accounts is None else _with_accounts(described, accounts))
    return energies


def _with_accounts(engine: EngineEnergy, attribution: RunAttribution) -> EngineEnergy:
    accounts = accounts_mj(attribution)
    errors = attribution.sums.get("all")
    return msgspec.structs.replace(
        engine,
        named_by=attribution.named_by,
        measured_joules=j_from_mj(attribution.measured_mj),
        **{f"{name}_joules": j_from_mj(mj) for name, mj in accounts.items()},
        attributed_se_joules=round(errors.attributed_se_joules, 6) if errors else None,
        idle_watts=attribution.idle_w,
        held_out_r_squared=held_out_r_squared(attribution.fits),
    )
