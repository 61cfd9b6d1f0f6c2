"""Divide the energy of decoding among the kinds of output: by the chunk that ended each step of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from loadgen.record import Kind

if TYPE_CHECKING:
    from loadgen.attribution.engine_steps import EngineSteps
    from loadgen.record import RequestRecord
    from loadgen.stats.arrays import Floats

KINDS: tuple[Kind, ...] = get_args(Kind)


def decode_by_kind(records: Sequence[RequestRecord], steps: EngineSteps, member_mj: Floats) -> Floats:
    """Return float64[n, 3]: of each request the energy of its decode memberships by kind, in the order of KINDS.

    steps: made from these records' chunks, so that the memberships of a request are in the order of its chunks; a
    membership after the last chunk is of that chunk's kind. Requests of unknown kinds have zeros.
    """
    shares = np.zeros((len(records), len(KINDS)))
    code = {kind: number for number, kind in enumerate(KINDS)}
    runs = [record.kinds or () for record in records]
    if not any(runs):
        return shares
    only = np.array([code[kinds[0][0]] if len(kinds) == 1 else -1 for kinds in runs], dtype=np.int8)
    rows = np.flatnonzero(~steps.prefilling)
    request = steps.request[rows]
    alike = only[request] >= 0
    cells = request[alike].astype(np.int64) * len(KINDS) + only[request[alike]]
    shares += np.bincount(cells, member_mj[rows[alike]], minlength=shares.size).reshape(shares.shape)
    mixed = np.array([len(kinds) > 1 for kinds in runs], dtype=bool)
    if not mixed.any():
        return shares
    first_row = np.zeros(len(records), dtype=np.int64)
    present, first = np.unique(steps.request, return_index=True)
    first_row[present] = first
    rows = rows[mixed[request]]
    numbers = np.flatnonzero(mixed)
    bounds = np.searchsorted(steps.request[rows], [numbers, numbers + 1])
    for i, start, stop in zip(numbers.tolist(), *bounds.tolist(), strict=True):
        own = rows[start:stop]
        ends = np.cumsum([count for _, count in runs[i]])
        run = np.minimum(np.searchsorted(ends, own - first_row[i], side="right"), len(ends) - 1)
        codes = np.array([code[kind] for kind, _ in runs[i]])[run]
        shares[i] = np.bincount(codes, member_mj[own], minlength=len(KINDS))
    return shares
