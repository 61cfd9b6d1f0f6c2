"""Recognise speculative decoding, in which a stream gets a varying number of tokens from each step that it is in.

An engine's counters of drafts decide it. Without them a client's chunks do: a stream that got several tokens in a chunk
either was in several steps, as other streams' chunks show (tokens without text, or a server that sends every n-th
token), or it got all of them from one step, and was in no step without a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadgen.attribution.cost_model import COLUMNS, Coefficients
from loadgen.attribution.engine_steps import EngineSteps, Speculation
from loadgen.telemetry.engine_sample import counter_values

if TYPE_CHECKING:
    from loadgen.stats.arrays import Floats, Ints
    from loadgen.telemetry.engine_sample import EngineSample

MIN_TOKENS = 1.2
"""Fewer tokens in a chunk than this are tokens without text."""
REGULAR = 0.9
"""Share of the streams that get tokens n by n, and the rest at the end, from which the server sends all of them so."""

ALWAYS_DRAFTED = 0.85
"""Share of the steps with a draft from which all had one: the ends of answers cut accepted tokens off."""


def speculation_of(
    engine: Sequence[EngineSample], chunks: Ints, tokens: Ints, steps_between: Ints
) -> Speculation | None:
    """Return what a decode step did for a stream; None if it was one token.

    Without counters, a step is taken to verify as many tokens as the luckiest stream got from each of its chunks: a
    stream with few chunks can have had all of its drafts accepted.

    chunks, tokens: int64[n], those of each stream after its first chunk. steps_between: int64[n], steps of the run from
    its first chunk to its last.
    """
    several = (chunks > 0) & (tokens > 0)
    chunks, tokens, steps_between = chunks[several], tokens[several], steps_between[several]
    per_chunk = tokens.sum() / max(chunks.sum(), 1)
    counted = engine_speculation(engine)
    if counted is not None:
        return _in_drafted_steps(counted, float(per_chunk)) if counted.computed > 1 else None
    if per_chunk < MIN_TOKENS or steps_between.sum() > (chunks.sum() + tokens.sum()) / 2:
        return None
    largest = np.ceil((tokens / chunks).max())
    if np.mean(chunks == np.ceil(tokens / largest)) > REGULAR:
        return None
    return Speculation(float(largest), float(per_chunk), counted=False)


def _in_drafted_steps(counted: Speculation, per_chunk: float) -> Speculation:
    """Return the mean over all decode steps, from that over the steps with a draft.

    A draft that is looked up in the text (n-grams, suffixes) is not there in every step, and the engine counts only
    those that are. Then our streams got fewer tokens from a chunk than from a draft.
    """
    drafted = (per_chunk - 1) / (counted.emitted - 1) if counted.emitted > 1 and per_chunk > 0 else 1.0
    if drafted > ALWAYS_DRAFTED:
        return counted
    drafted = max(drafted, 0.0)
    return Speculation(1 + drafted * (counted.computed - 1), max(per_chunk, 1.0), counted=True)


def engine_speculation(engine: Sequence[EngineSample]) -> Speculation | None:
    """Return what the engine's counters say of a decode step with a draft; None when it does not count drafts.

    An engine that counted no draft computed one token for each that it emitted.
    """
    drafts, drafted, accepted = (grown(engine, name) for name in ("drafts", "draft_tokens", "accepted_tokens"))
    if drafts is None or drafted is None or accepted is None:
        return None
    per_draft = (drafted / drafts, accepted / drafts) if drafts else (0.0, 0.0)
    return Speculation(1 + per_draft[0], 1 + per_draft[1], counted=True)


def grown(engine: Sequence[EngineSample], name: str) -> float | None:
    """Return how far a counter went; None when it is not counted."""
    values: Floats | None = counter_values(engine, name)
    return None if values is None else float(values[-1] - values[0])


def rejected_energy(
    steps: EngineSteps, shares: Floats, member_j: Floats, own: int, coefficients: Coefficients, covariance: Floats
) -> tuple[float, float] | None:
    """Estimate the joules that rejected draft tokens added to the decodes -> (joules, their standard error); None
    without speculative decoding, and when the engine counts no drafts or the fit found no price of a token.

    A decode computed the tokens of its draft and one more, and each has the fit's price of a decoded token in its cost
    share. What a step costs whatever is in it (weights read, the draft model's among them) and the context that is read
    once for all of the tokens are not in it. The error is the price's.

    shares, member_j: float64[M], the members' cost shares, and what they got of the measured energy. own: the requests
    that count, which are the first ones.
    """
    speculation, price = steps.speculation, coefficients.decode_token_j
    if speculation is None or not speculation.counted or price <= 0:
        return None
    ours = (steps.decode > 0) & (steps.request < own)
    rejected = np.where(ours, np.maximum(speculation.computed - steps.decode, 0.0), 0.0)
    measured = np.divide(member_j, shares, out=np.zeros(len(shares)), where=shares > 0)
    tokens = float((rejected * measured).sum())
    row = COLUMNS.index("decode_token_j")
    return price * tokens, float(np.sqrt(covariance[row, row])) * tokens
