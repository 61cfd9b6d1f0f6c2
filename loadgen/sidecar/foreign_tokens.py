"""Estimates other clients' share of an engine from output tokens: those it counted beyond those of our spans. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loadgen.telemetry.engine_sample import EngineSample

RECENT = 120
"""Intervals between engine samples that say how large an interval's tokens can be."""


class TokenBalance(NamedTuple):
    """The estimate's state, carried from one commit to the next."""

    carried: float = 0.0
    """Tokens that the engine counted beyond the spans' and that are not foreign yet; negative when it is behind."""
    foreign: float = 0.0
    """Tokens of other clients in total."""
    recent: tuple[float, ...] = ()
    """The engine's tokens in each of up to RECENT intervals."""


def foreign_shares(
    engine_tokens: Sequence[float], span_tokens: Sequence[float], balance: TokenBalance
) -> tuple[list[float], TokenBalance]:
    """Return other clients' share of the engine's tokens in each interval, 0 to 1, and the balance after them.

    The engine's count and the spans' even spread disagree a little in every interval and agree over time, so the
    difference is carried along, and only what goes beyond the tokens of two intervals is foreign.
    """
    carried, foreign_total, recent = balance.carried, balance.foreign, list(balance.recent)
    shares = []
    for engine, covered in zip(engine_tokens, span_tokens, strict=True):
        recent = [*recent[1 - RECENT :], engine]
        tolerance = 2 * max(recent)
        carried += engine - covered
        foreign = min(max(carried - tolerance, 0.0), engine)
        carried = max(carried - foreign, -tolerance)
        foreign_total += foreign
        shares.append(foreign / engine if engine > 0 else 0.0)
    return shares, TokenBalance(carried, foreign_total, tuple(recent))


def generated_tokens(earlier: EngineSample, later: EngineSample) -> float:
    """Return the output tokens between two samples. A count that went down began at zero again: a restart."""
    start, end = (sample.get("generation_tokens", 0.0) for sample in (earlier, later))
    return end - start if end >= start else end
