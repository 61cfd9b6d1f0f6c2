"""The host's energy and the boundary of a run in words, for the terminal and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.report.boundary_difference import included
from loadgen.report.format import UNKNOWN, clean, joules, number, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.results.summary import Boundary, DomainEnergy, HostEnergy


def host_rows(host: HostEnergy) -> list[tuple[str, str, str]]:
    """Return (account, energy, share of the measured) of the host."""
    way = "time in flight" if host.share_by == "time" else "tokens"
    rows = [
        ("  measured", host.measured_joules),
        ("  = idle", host.idle_joules),
        (f"  + shared by {way}, an estimate", host.attributed_joules),
        ("  + unattributed", host.unattributed_joules),
    ]
    return [(name, f"{amount:,.3f} J", share(amount, host.measured_joules)) for name, amount in rows]


def boundary_rows(boundary: Boundary) -> list[tuple[str, str, str, str]]:
    """Return (part, energy, basis, note) of each part of what serving takes."""
    return [
        (part.part, UNKNOWN if part.joules is None else f"{part.joules:,.0f} J", part.basis, clean(part.note))
        for part in boundary.parts
    ]


def boundary_facts(boundary: Boundary) -> list[tuple[str, str]]:
    """Return (label, text) of the total and of what follows from it by the stated factors."""
    facts = [("total", f"{joules(boundary.total_joules)}, of all that is included, without adding idle again")]
    if boundary.co2e_grams is not None:
        origin = f" ({clean(boundary.grid_source)})" if boundary.grid_source else ", whose source is not stated"
        facts.append(("CO2e", f"{number(boundary.co2e_grams)} g at {number(boundary.grid_intensity)} g/kWh{origin}"))
    if boundary.cost is not None:
        per_tokens = boundary.cost_per_million_output_tokens
        text = f"{number(boundary.cost)} at {number(boundary.price)} per kWh"
        facts.append(("cost", text + f", {number(per_tokens)} per million output tokens" * (per_tokens is not None)))
    return facts


def beside_facts(domains: Sequence[DomainEnergy]) -> list[tuple[str, str]]:
    """Return (label, text) of each domain of the machine, which may contain the others: what it counted by itself."""
    return [
        ("beside", f"{clean(domain.name)} counted {joules(domain.joules)} by itself ({clean(domain.source)})")
        for domain in domains
        if domain.scope == "machine"
    ]


def is_extended(boundary: Boundary) -> bool:
    """Return True if more is included, or stated, than one part and its idle energy."""
    return len(included(boundary)) > 1 or boundary.price is not None or boundary.grid_intensity is not None
