"""The counts of a probe: of its requests in a steady state, those that were good. Pure.

A server that was empty before answers the first requests faster than later ones, and one that empties answers the last
ones faster. So a probe counts neither those of the time in which it fills, some times as long as a request takes, nor
those that may have ended after the sending did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.results.metrics import meets_limit
from loadgen.results.search_result import Block, Stage
from loadgen.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord

BLOCKS = 32
"""Largest number of blocks of a probe: enough for batch means, and few enough that each has many requests."""
_FILLS = {"bracket": 1.0, "refine": 8.0, "present": 8.0}
"""Time in which the server fills, in times that a request takes. Near its capacity queues grow slowly."""
_MAX_FILL = 0.4
"""Largest share of the probe that it takes."""
_DECIDED = 0.9
"""Share of the requests that are decided within `decision_s`."""


class Outcome(NamedTuple):
    """Outcome of a request: the limits that it met, and the time after which all of them were decided."""

    sent_s: float
    met: frozenset[str]
    is_good: bool
    has_failed: bool
    decision_s: float


class ProbeCounts(NamedTuple):
    """Fields of a Probe."""

    from_s: float
    until_s: float
    decision_s: float
    requests: int
    good: int
    failed: int
    unfinished: int
    met: dict[str, int]
    blocks: tuple[Block, ...]


def outcome_of(record: RequestRecord, limits_ms: Mapping[str, float], start_ns: int) -> Outcome:
    """Return the outcome of a request that was sent. `start_ns` is second 0."""
    assert record.sent_ns is not None
    met = frozenset(name for name, limit in limits_ms.items() if record.ok and meets_limit(record, name, limit))
    ends_s = [] if record.finished_ns is None else [(record.finished_ns - record.sent_ns) / NS_PER_S]
    ends_s += [limits_ms[name] * NS_PER_MS / NS_PER_S for name in ("ttft", "e2el") if name in limits_ms.keys() - met]
    return Outcome(
        sent_s=(record.sent_ns - start_ns) / NS_PER_S,
        met=met,
        is_good=record.ok and len(met) == len(limits_ms),
        has_failed=not record.ok,
        decision_s=min(ends_s, default=0.0),
    )


def count(
    outcomes: Sequence[Outcome],
    sending_s: float,
    stage: Stage,
    *,
    stopped_early: bool = False,
    waited_s: Sequence[float] = (),
) -> ProbeCounts:
    """Return the counts of a probe that sent requests for `sending_s` seconds.

    One that was stopped early counts up to its last request: its server did not empty while they were decided.
    waited_s: times after which requests were still undecided at the end of the run. They take longer than that.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome.sent_s)
    decided_s = [outcome.decision_s for outcome in outcomes]
    takes_s = max((float(np.quantile(s, _DECIDED)) for s in (decided_s, [*decided_s, *waited_s]) if s), default=0.0)
    from_s = min(_FILLS[stage] * takes_s, _MAX_FILL * sending_s)
    until_s = sending_s if stopped_early else max(sending_s - takes_s, (sending_s + from_s) / 2)
    counted = [outcome for outcome in outcomes if from_s <= outcome.sent_s < until_s]
    parts = np.array_split(np.array([not outcome.is_good for outcome in counted]), min(BLOCKS, len(counted)) or 1)
    names = {name for outcome in counted for name in outcome.met}
    return ProbeCounts(
        from_s=from_s,
        until_s=until_s,
        decision_s=takes_s,
        requests=len(counted),
        good=sum(outcome.is_good for outcome in counted),
        failed=sum(outcome.has_failed for outcome in counted),
        unfinished=len(waited_s),
        met={name: sum(name in outcome.met for outcome in counted) for name in sorted(names)},
        blocks=tuple(Block(len(part), int(part.sum())) for part in parts if len(part)),
    )
