"""The words for a poor fit."""

import pytest

from loadgen.attribution.fit_quality import FitQuality
from loadgen.results.fit_notes import explains_nothing, fit_notes


def quality(
    variation: float = 0.3, noise: float = 0.02, uncertain: dict[str, float] | None = None,
    alike: list[tuple[str, str]] | None = None,
) -> FitQuality:  # fmt: skip
    return FitQuality(
        held_out_error_j2=1.0, held_out_variance_j2=1.0, variation=variation, noise=noise, se={},
        uncertain=uncertain or {}, alike=alike or [],
    )  # fmt: skip


def test_a_good_fit_needs_no_note() -> None:
    assert fit_notes(0.97, 0.0, [quality()]) == []
    assert fit_notes(None, 0.0, [quality()]) == []
    assert fit_notes(None, 0.0, []) == []


@pytest.mark.parametrize(
    ("held_out", "power_cap", "variation", "noise", "cause"),
    [
        (0.34, 0.43, 0.3, 0.02, "it was not fitted to: the GPU was at its power limit in 43% of"),
        (0.34, 0.0, 0.17, 0.16, "the windows' energy varied by 17.0%, less than twice its noise (16.0%)"),
        (0.34, 0.99, 0.015, 0.034, "the windows' energy varied by 1.5%, less than twice its noise (3.4%)"),
        (0.34, 0.0, 0.3, 0.02, "not fitted to. This affects single requests"),
        (-0.2, 0.0, 0.3, 0.02, "The law explains 0%"),
    ],
)  # fmt: skip
def test_a_note_has_the_cause_that_the_run_shows(
    held_out: float, power_cap: float, variation: float, noise: float, cause: str
) -> None:
    [note] = fit_notes(held_out, power_cap, [quality(variation, noise)])
    assert cause in note
    assert note.endswith("not the measured total.")


@pytest.mark.parametrize(
    ("pair", "affected"),
    [
        (("prefill_token_j", "prefill_context_j"), "short against those of long prompts"),
        (("step_j", "decode_context_j"), "decoded together"),
        (("step_j", "prefill_token_j"), "into prefill and decode"),
        (("expert_j", "computed_token_j"), "into prefill and decode"),
    ],
)
def test_a_pair_that_was_not_told_apart_affects_what_it_divides(pair: tuple[str, str], affected: str) -> None:
    [note] = fit_notes(0.95, 0.0, [quality(uncertain=dict.fromkeys(pair, 0.6), alike=[pair])])
    assert affected in note
    assert "were not told apart" in note


def test_a_price_without_much_work_stands_alone() -> None:
    [note] = fit_notes(0.95, 0.0, [quality(uncertain={"decode_token_j": 0.79})])
    assert note.startswith("The price of a decoded token has a standard error of 79%")


def test_the_reason_of_an_invalid_law_has_its_cause_and_what_holds() -> None:
    reason = explains_nothing(-0.49, 0.0, [quality(0.17, 0.16)])
    assert reason.startswith(
        "the fitted law explains nothing of held-out windows (R² -0.49; the windows' energy varied"
    )
    assert reason.endswith("the measured total does")
