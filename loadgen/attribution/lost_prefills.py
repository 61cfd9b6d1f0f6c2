"""Find prefills that were lost: begun, preempted before the first token, and computed again.

A client sees nothing of them but a step that took longer than the work in it. An engine admits prompts in order of
arrival and preempts the latest, so what a step computed beyond that was the beginning of the first prompt that waits.
The engine's counter of preemptions says when there was one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.step_lengths import LengthLaw, Piece, PrefillQueue
from loadgen.telemetry.engine_sample import EngineSample, counter_values, sample_times

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints

LEAST_TOKENS = 256.0
"""Fewest prompt tokens that the length of a step shows: a step hides the first ones behind its reads of weights."""
NOISE = 6.0
"""A step is longer than its work explains by so many times the typical deviation of a step."""


def lost_prefills(
    queue: PrefillQueue, pieces: list[Piece], law: LengthLaw, budget: int, engine: Sequence[EngineSample]
) -> list[Piece]:
    """Return what was computed of prompts before they were preempted, one piece for each such prompt and step.

    pieces: what is placed already.
    """
    grown_ns = _preempted(engine)
    if not len(grown_ns) or law.token_ns <= 0:
        return []
    steps = len(queue.length)
    placed = {(piece.row, piece.step) for piece in pieces}
    filled = np.bincount([p.step for p in pieces], [p.tokens for p in pieces], minlength=steps)
    tokens = unexplained_tokens(queue, pieces, law)
    lost: list[Piece] = []
    for step in np.flatnonzero(tokens > 0).tolist():
        room = min(tokens[step], budget - queue.decoding[step] - filled[step])
        waiting = (queue.sent_ns <= queue.start_ns[step]) & (queue.last_step > step)
        for i in np.flatnonzero(waiting).tolist():
            row, ends_ns = int(queue.row[i]), queue.start_ns[queue.last_step[i]] + queue.length[queue.last_step[i]]
            preempted = (grown_ns[:, 1] > queue.start_ns[step]) & (grown_ns[:, 0] < ends_ns)
            part = min(room, float(queue.tokens[i]))
            if part < LEAST_TOKENS or not preempted.any():
                break
            if (row, step) not in placed:
                lost.append(Piece(row, step, part))
                room -= part
    return lost


def unexplained_tokens(queue: PrefillQueue, pieces: list[Piece], law: LengthLaw) -> Floats:
    """Return float64[S]: prompt tokens, from the beginning of a prompt, that take as long as a step is longer than the
    work in it explains; 0 where that is not much longer, and where no stream decodes."""
    rest_ns = queue.length - law.decoding_ns(queue)
    rest_ns -= np.bincount([p.step for p in pieces], law.work_ns(pieces, queue), minlength=len(rest_ns))
    seen = queue.decoding > 0
    typical_ns = float(np.median(np.abs(rest_ns[seen]))) if seen.any() else 0.0
    tokens = np.maximum(rest_ns, 0.0) / law.token_ns
    tokens = np.maximum(rest_ns, 0.0) / (law.token_ns + max(law.pair_ns, 0.0) * tokens / 2)
    return np.where(seen & (rest_ns > NOISE * typical_ns) & (tokens >= LEAST_TOKENS), tokens, 0.0)


def _preempted(engine: Sequence[EngineSample]) -> Ints:
    """Return int64[k, 2]: the intervals between two samples of the engine's counters in which it preempted."""
    preemptions = counter_values(engine, "preemptions")
    if preemptions is None:
        return np.zeros((0, 2), np.int64)
    t_ns = sample_times(engine)
    return np.stack([t_ns[:-1], t_ns[1:]], axis=1)[np.diff(preemptions) > 0]
