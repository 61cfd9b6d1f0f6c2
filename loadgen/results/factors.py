"""Factors that a user states, by which measured energy becomes that of the facility, CO2e and money."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.results.summary import Boundary, BoundaryPart
from loadgen.units import J_PER_KWH

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
GridSource = Annotated[str, msgspec.Meta(max_length=500)]


class Factors(msgspec.Struct, frozen=True, kw_only=True):
    """Factors as stated; None is not stated."""

    pue: Annotated[float, msgspec.Meta(ge=1, le=100)] | None = None
    """Facility power over IT power."""
    grid_intensity: Positive | None = None
    """Grams of CO2e per kWh."""
    grid_source: GridSource | None = None
    """Source and date of grid_intensity."""
    price: Positive | None = None
    """Price per kWh."""

    def facility_joules(self, joules: float) -> float:
        """Return measured energy with the facility's overhead, where a PUE is stated."""
        return joules * (1.0 if self.pue is None else self.pue)

    def co2e_grams(self, joules: float) -> float | None:
        """Return the emissions of the facility's energy; None without an intensity."""
        return None if self.grid_intensity is None else joules / J_PER_KWH * self.grid_intensity

    def cost(self, joules: float) -> float | None:
        """Return the cost of the facility's energy; None without a price."""
        return None if self.price is None else joules / J_PER_KWH * self.price

    @property
    def stated(self) -> bool:
        """True if any number is stated."""
        return any(number is not None for number in (self.pue, self.grid_intensity, self.price))


def factors_of(**stated: Any) -> Factors:
    """Return the factors. Raises LoadgenError for a value that is none."""
    try:
        return msgspec.convert(stated, Factors)
    except msgspec.ValidationError as err:
        problem, _, path = str(err).partition(" - at `$.")
        raise LoadgenError(f"{path.rstrip('`')}: {problem}" if path else problem) from err


def basis_of(sources: Iterable[str]) -> str:
    """Return the basis of joules of these sources: that of the one that says least about what was used."""
    words = " ".join(sources)
    return "simulated" if "simulated" in words else "estimated" if "estimate" in words else "measured"


def boundary_by(factors: Factors, parts: Sequence[BoundaryPart], output_tokens: int) -> Boundary:
    """Return the boundary of the parts of a machine with the facility's overhead, and what follows by the factors. Idle
    is in the other parts, and adds nothing."""
    machine_joules = sum(part.joules or 0.0 for part in parts if part.part != "idle")
    overhead = _overhead_part(machine_joules, factors.pue)
    total = machine_joules + (overhead.joules or 0.0)
    cost = factors.cost(total)
    return Boundary(
        parts=[*parts, overhead],
        total_joules=total,
        co2e_grams=factors.co2e_grams(total),
        cost=cost,
        cost_per_million_output_tokens=None if cost is None or not output_tokens else cost / output_tokens * 1e6,
        **msgspec.structs.asdict(factors),
    )


def _overhead_part(machine_joules: float, pue: float | None) -> BoundaryPart:
    """Return the facility's overhead, by PUE = facility energy / IT energy (ISO/IEC 30134-2)."""
    if pue is None:
        return BoundaryPart(part="overhead", basis="not included", note="cooling and distribution: --pue states them")
    note = f"PUE {pue:g}, as stated, of what is included above"
    return BoundaryPart(part="overhead", basis="estimated", joules=machine_joules * (pue - 1), note=note)
