"""Requests whose phases are known, but not their chunks -> Work: a slot of time stands for the engine's steps in it.

A span says when a request's prefill began, when its first token came and when it ended. Between those its tokens are
taken as evenly spread, which is the one assumption made here. Time is cut into slots of equal length; everyone who is
in a slot is a member of one step as long as the slot is in use. The coefficients then read per slot, not per step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.sidecar.otlp import RequestSpan
from loadgen.work import Floats, Ints, Work


class Phases(NamedTuple):
    """Prefills and decodes of n requests: P rows of both kinds. A request without tokens has neither."""

    request: Ints
    start_ns: Ints
    end_ns: Ints
    prefilling: NDArray[np.bool_]
    tokens: Floats
    context: Floats
    """Tokens before the phase began: cached ones for a prefill, the prompt for a decode."""


def phases_of(requests: Sequence[RequestSpan]) -> Phases:
    rows = [
        row
        for index, request in enumerate(requests)
        if (first_ns := first_token_of(request)) is not None
        for row in _rows(index, request, first_ns)
    ]
    table = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    amounts = np.array([row[4:] for row in rows], dtype=np.float64).reshape(-1, 2)
    return Phases(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.bool_), amounts[:, 0], amounts[:, 1])


def first_token_of(request: RequestSpan) -> int | None:
    """When its prefill ended. Where nobody says (no stream): as if it took as long as one token."""
    if not request.output_tokens:
        return None
    if request.first_token_ns is not None:
        return request.first_token_ns
    return request.prefill_ns + (request.end_ns - request.prefill_ns) // request.output_tokens


def _rows(index: int, request: RequestSpan, first_ns: int) -> list[tuple[int, int, int, int, float, float]]:
    prompt, cached = request.input_tokens or 0, request.cached_tokens or 0
    computed = max(prompt - cached, 0)
    prefill = (index, min(request.prefill_ns, first_ns), first_ns, 1, float(computed), float(cached))
    if (later := (request.output_tokens or 0) - 1) < 1:
        return [prefill]
    return [prefill, (index, first_ns, request.end_ns, 0, float(later), float(prompt))]


def slot_work(phases: Phases, start_ns: int, end_ns: int, slot_ns: int, unseen_ns: Ints) -> Work:
    """What was done in [start, end], a step a slot."""
    length = np.maximum(phases.end_ns - phases.start_ns, 1)
    begin = np.maximum(phases.start_ns, start_ns)
    end = np.minimum(phases.start_ns + length, end_ns)
    inside = end > begin
    phase = np.flatnonzero(inside)
    first_slot, last_slot = begin[inside] // slot_ns, (end[inside] - 1) // slot_ns
    pieces = last_slot - first_slot + 1
    row = np.repeat(phase, pieces)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    slot = np.repeat(first_slot, pieces) + nth
    from_ns = np.maximum(begin[row], slot * slot_ns)
    to_ns = np.minimum(end[row], (slot + 1) * slot_ns)
    tokens = phases.tokens[row] * (to_ns - from_ns) / length[row]
    before = phases.tokens[row] * ((from_ns + to_ns) / 2 - phases.start_ns[row]) / length[row]
    used, step = np.unique(slot, return_inverse=True)
    prefilling = phases.prefilling[row]
    return Work(
        start_ns=_extreme(np.minimum, from_ns, step, len(used)),
        end_ns=_extreme(np.maximum, to_ns, step, len(used)),
        iterations=np.ones(len(used)),
        step=step.astype(np.int32),
        request=phases.request[row].astype(np.int32),
        prefilling=prefilling,
        prefill=np.where(prefilling, tokens, 0.0).astype(np.float32),
        decode=np.where(prefilling, 0.0, tokens).astype(np.float32),
        context=(phases.context[row] + before).astype(np.float32),
        unseen_ns=unseen_ns,
    )


def _extreme(choose: np.ufunc, t_ns: Ints, step: Ints, steps: int) -> Ints:
    start = np.iinfo(np.int64).max if choose is np.minimum else np.iinfo(np.int64).min
    result = np.full(steps, start, dtype=np.int64)
    choose.at(result, step, t_ns)
    return result


def slot_for(phases: Phases, start_ns: int, end_ns: int, finest_ns: int, most_rows: int) -> int:
    """The finest slot, whole multiples of `finest_ns`, with which the work has about `most_rows` rows at most."""
    busy = np.minimum(phases.end_ns, end_ns) - np.maximum(phases.start_ns, start_ns)
    inside = busy[busy > 0]
    room = max(most_rows - 2 * len(inside), most_rows // 4)
    return max(1, -(-int(inside.sum()) // (finest_ns * room))) * finest_ns
