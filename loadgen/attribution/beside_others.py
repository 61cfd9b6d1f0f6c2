"""Rebuild the engine's steps with other clients' requests in them, by all that is known of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.foreign_counters import counted_records
from loadgen.attribution.foreign_spans import foreign_records
from loadgen.attribution.speculation import engine_speculation
from loadgen.telemetry.engine_sample import counter_values

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.telemetry.engine_sample import EngineSample
    from loadgen.telemetry.engine_span import EngineSpan

PASSES = 2
"""Passes. The steps show how our prefills lay among those of others only once these are in them; a third pass changes
nothing."""


class SharedSteps(NamedTuple):
    """The steps of our requests and of other clients', which are numbered after ours. The last `inferred` of these are
    not known but inferred from the engine's counters."""

    steps: EngineSteps
    foreign: Sequence[RequestRecord]
    inferred: int = 0


def steps_beside_others(
    records: Sequence[RequestRecord],
    engine: Sequence[EngineSample] = (),
    spans: Sequence[EngineSpan] = (),
    run_id: str = "",
    ahead_ns: int = 0,
) -> SharedSteps:
    """Return the steps of a run. Other clients' requests are those of the engine's spans, and what its counters have
    beyond those and ours.

    Of the latter it is not known which of them decodes a token: its context is the mean of ours. run_id, ahead_ns: as
    for `foreign_records`.
    """
    speculation = engine_speculation(engine)
    tokens_per_step = 1.0 if speculation is None else speculation.emitted
    renamed = are_renamed(records, spans, run_id, engine)
    foreign = [] if renamed else foreign_records(records, spans, run_id, ahead_ns, tokens_per_step)
    known = [*records, *foreign]
    steps = ours = engine_steps_of(known, engine)
    counted: list[RequestRecord] = []
    guessed_ns = steps.guessed_ns
    for _pass in range(PASSES):
        counted, guessed_ns = counted_records(known, ours, engine)
        if not counted:
            return SharedSteps(steps, foreign)
        steps = engine_steps_of([*known, *counted], engine)
        ours = steps_of_first(steps, len(known))
    context = steps.context.copy()
    if ours.decode.any():
        others = (steps.request >= len(known)) & (steps.decode > 0)
        context[others] = np.average(ours.context, weights=ours.decode)
    return SharedSteps(replace(steps, context=context, guessed_ns=guessed_ns), [*foreign, *counted], len(counted))


def are_renamed(
    records: Sequence[RequestRecord], spans: Sequence[EngineSpan], run_id: str, engine: Sequence[EngineSample]
) -> bool:
    """Return True if the spans are of our own requests, under ids that a gateway gave them: none has an id of ours, and
    the engine counted less than half of their tokens beyond ours."""
    generated = counter_values(engine, "generation_tokens")
    if generated is None or any(span.id.startswith(f"{run_id}-") for span in spans):
        return False
    of_others = float(generated[-1] - generated[0]) - sum(record.output_tokens or 0 for record in records)
    return of_others < sum(span.output_tokens or 0 for span in spans) / 2


def steps_of_first(steps: EngineSteps, requests: int) -> EngineSteps:
    """Return the steps that the first `requests` requests were in, with no other members."""
    rows = steps.request < requests
    present = np.bincount(steps.step[rows], minlength=steps.count) > 0
    number = np.cumsum(present, dtype=np.int32) - 1
    return replace(
        steps,
        start_ns=steps.start_ns[present],
        end_ns=steps.end_ns[present],
        iterations=steps.iterations[present],
        step=number[steps.step[rows]],
        request=steps.request[rows],
        prefilling=steps.prefilling[rows],
        prefill=steps.prefill[rows],
        decode=steps.decode[rows],
        context=steps.context[rows],
    )
