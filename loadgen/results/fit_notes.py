"""A poor fit in words: what could not be told apart, why, and which numbers that makes uncertain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadgen.attribution.fit_quality import FitQuality

GOOD_R_SQUARED = 0.9
_AT_LIMIT = 0.05
"""A larger share of the time at the power limit is a reason for a poor fit."""

_PRICES = {
    "step_j": "an engine step",
    "prefill_token_j": "a prompt token",
    "prefill_context_j": "a prompt token's context",
    "decode_token_j": "a decoded token",
    "decode_context_j": "a decoded token's context",
    "expert_j": "reading the experts",
    "computed_token_j": "a computed token",
    "busy_w": "the time that steps take",
}


def explains_nothing(held_out: float, power_cap: float, fits: Sequence[FitQuality]) -> str:
    """Return why single requests' joules support no claim, for a law with a held-out R² below 0."""
    why = "; ".join(_causes(power_cap, fits))
    return (
        f"the fitted law explains nothing of held-out windows (R² {held_out:.2f}{f'; {why}' if why else ''}): the"
        " joules of requests, of workloads, of prefill and of decode support no claim; the measured total does"
    )


def fit_notes(held_out: float | None, power_cap: float, fits: Sequence[FitQuality]) -> list[str]:
    """Return sentences about the fits: why they explain little, if they do, and what they did not tell apart.

    held_out: the R² of windows that were held out. power_cap: largest share of the time that a GPU was at its limit.
    """
    notes = []
    if held_out is not None and held_out < GOOD_R_SQUARED:
        why = "; ".join(_causes(power_cap, fits))
        notes.append(
            f"The law explains {max(held_out, 0.0):.0%} of the variation of windows that it was not fitted to"
            f"{f': {why}' if why else ''}. This affects single requests and how energy divides into prefill and decode,"
            " not the measured total."
        )
    for first, second in dict.fromkeys(pair for fit in fits for pair in fit.alike):
        notes.append(
            f"The prices of {_PRICES.get(first, first)} and of {_PRICES.get(second, second)} were not told apart: their"
            f" work came and went together. This affects {_affected(first, second)}; their sum is known better."
        )
    paired = {name for fit in fits for pair in fit.alike for name in pair}
    for name, error in {name: error for fit in fits for name, error in fit.uncertain.items()}.items():
        if name not in paired:
            notes.append(
                f"The price of {_PRICES.get(name, name)} has a standard error of {error:.0%}: there was little of its"
                f" work, or as much in all windows. This affects {_affected(name, name)}."
            )
    return notes


def _causes(power_cap: float, fits: Sequence[FitQuality]) -> Iterator[str]:
    """Yield the causes of a poor fit that the run's own data show."""
    if power_cap > _AT_LIMIT:
        yield (
            f"the GPU was at its power limit in {power_cap:.0%} of the time, and there the clocks"
            " fall instead of the power rising"
        )
    for fit in fits:
        if fit.variation < 2 * fit.noise:
            yield (
                f"the windows' energy varied by {fit.variation:.1%}, less than twice its noise ({fit.noise:.1%}): there"
                " was little to explain"
            )


def _affected(first: str, second: str) -> str:
    """Return the numbers that an error of two prices in opposite directions changes."""
    phases = {name: name.partition("_")[0] for name in (first, second)}.values()
    if all(phase == "prefill" for phase in phases):
        return "the prefills of short against those of long prompts"
    if all(phase in ("step", "decode") for phase in phases):
        return "requests that are decoded together, those with short against those with long contexts"
    return "how energy divides into prefill and decode, and prompts against answers"
