"""The boundary of a bill: the parts of what serving takes that its joules have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.results.factors import basis_of, boundary_by
from loadgen.results.summary import BoundaryPart
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.results.bill import BillSums
    from loadgen.results.summary import Boundary

_MAX_SOURCES = 8
"""Sources that the table names."""


def bill_boundary(bill: BillSums) -> Boundary:
    """Return what the joules of a bill include, and what follows from them by the stated factors."""
    counter = j_from_mj(bill.counter_mj)
    sources = sorted(bill.sources)
    basis = basis_of(sources)
    note = ", ".join(sources[:_MAX_SOURCES]) + (", ..." if len(sources) > _MAX_SOURCES else "")
    shared_mj = sum(group.idle_mj for group in bill.groups.values())
    idle = j_from_mj(bill.idle_mj + shared_mj)
    idle_note = "of the row above, " + ("shared among the lines" if shared_mj else "a line of its own")
    parts = [
        BoundaryPart(part="accelerator", basis=basis, joules=counter, note=note or "the ledger names no source"),
        BoundaryPart(part="host", basis="not included", note="the sidecar's metrics have it by domain"),
        BoundaryPart(part="idle", basis=basis, joules=idle, note=idle_note),
        BoundaryPart(part="chassis", basis="not included", note="fans, disks, power supplies"),
    ]
    return boundary_by(bill.factors, parts, sum(group.output_tokens for group in bill.groups.values()))
