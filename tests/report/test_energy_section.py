"""The energy of a run on its page."""

from dataclasses import replace

import msgspec
import pytest

from loadgen.report import energy_section
from loadgen.report.run_facts import power_words, speculation_note
from loadgen.report.run_page import render_run_page
from loadgen.results.summary import EnergySummary, SpeculationSummary
from report.test_run_page import Page
from support import sample_runs


def test_the_ledger_lists_every_account_and_says_what_is_missing() -> None:
    made = sample_runs.single()
    assert made.attribution is not None and made.summary is not None
    whole = Page(energy_section.energy_ledger(made.attribution, made.summary.energy)).text
    assert "= measured" in whole and "100.0 %" in whole and "Method: shapley" in whole
    short = msgspec.structs.replace(made.attribution, measured_mj=made.attribution.measured_mj + 7)
    assert "measured (+7 mJ off)" in Page(energy_section.energy_ledger(short, made.summary.energy)).text


def test_energy_by_workload_has_the_run_and_each_workload() -> None:
    made = sample_runs.run().summary
    assert made is not None
    table_of = Page(energy_section.energy_by_workload(made))
    assert [word for word in table_of.words if word in ("all", "chat", "code")] == ["all", "chat", "code"]
    unknown = msgspec.structs.replace(made, energy=msgspec.structs.replace(made.energy, prefill_joules=None))
    assert sum(name == "svg" for name, _ in Page(energy_section.energy_by_workload(unknown)).elements) == 2


def test_fitted_costs_have_their_units_and_meanings() -> None:
    fit = {
        "step_j": 0.5,
        "decode_context_j": 4.2e-6,
        "idle_w": 100.0,
        "r_squared": 0.99,
        "misfit": 0.25,
        "outliers": 1200.0,
        "decode_token_j": None,
        "expert_j": 2.5,
        "expert_chosen_share": 0.125,
        "expert_hidden_tokens": None,
    }
    energy = EnergySummary(
        valid=True, reasons=[], coefficients=fit, coefficients_se={"step_j": 0.01}, held_out_r_squared=0.98
    )
    text = Page(energy_section.fitted_costs(energy)).text
    for row in (
        "static power 0.500 J ± 0.0100 J",
        "was not made of 0.980",
        "a decoded token -",
        "keys and values read 4.20 µJ",
        "power of the idle server 100 W",
        "that the fit explains 0.990",
        "(relative RMSE) 25.0 %",
        "as outliers 1,200",
        "all experts of a mixture; one that reads fewer costs less 2.50 J",
        "share of the experts that a token chooses 0.125",
    ):
        assert row in text
    assert "while all experts are read" not in text, "a dense model has no row of experts"


@pytest.mark.parametrize("fit", [None, {"step_j": 0.5}])
def test_a_run_has_fitted_costs_only_where_there_was_a_fit(fit: dict[str, float | None] | None) -> None:
    made = sample_runs.single()
    assert made.summary is not None
    energy = msgspec.structs.replace(made.summary.energy, coefficients=fit)
    page = render_run_page(replace(made, summary=msgspec.structs.replace(made.summary, energy=energy)))
    assert ("an engine step, whoever is in it" in page) == (fit is not None)


def test_the_notes_on_a_fit_stand_before_its_costs_and_replace_the_general_warning() -> None:
    energy = EnergySummary(valid=True, reasons=[], coefficients={"step_j": 0.5, "r_squared": 0.1}, fit_notes=["<so>"])
    page = energy_section.fitted_costs(energy)
    assert "&lt;so&gt;" in page and "The fit is poor" not in page
    assert "The fit is poor" in energy_section.fitted_costs(msgspec.structs.replace(energy, fit_notes=[]))


@pytest.mark.parametrize(
    ("r_squared", "misfit", "warning"),
    [
        (0.99, 0.05, None),
        (None, None, None),
        (0.62, 0.05, "The fit is poor: it explains 62.0 % of the windows' variation. The joules"),
        (0.95, 0.31, "The fit is poor: one window is typically off by 31.0 %. The joules"),
        (-0.2, 0.4, "The fit is poor: it explains 0.0 % of the windows' variation, and one window is typically off"),
    ],
)
def test_a_poor_fit_says_what_it_means(r_squared: float | None, misfit: float | None, warning: str | None) -> None:
    text = energy_section.fit_warning({"r_squared": r_squared, "misfit": misfit})
    assert text is None if warning is None else (text or "").startswith(warning)


def test_errors_of_ratios_are_said_to_be_those_of_the_total() -> None:
    made = sample_runs.single()
    assert made.attribution is not None and made.summary is not None
    energy = msgspec.structs.replace(
        made.summary.energy, attributed_joules=200.0, attributed_se_joules=1.0, measured_se_joules=0.5
    )
    text = Page(energy_section.energy_ledger(made.attribution, energy)).text
    assert "relative error of the attributed energy, 0.5 %" in text
    assert "relative error" not in Page(energy_section.energy_ledger(made.attribution, made.summary.energy)).text


def test_speculation_is_told_with_what_is_known_of_its_waste() -> None:
    made = sample_runs.single().summary
    assert made is not None and speculation_note(made) is None
    counts = SpeculationSummary(
        drafts=100, draft_tokens=400, accepted_tokens=300, acceptance=0.75, tokens_per_step=4.0, rejected_joules=None
    )
    unknown = speculation_note(msgspec.structs.replace(made, speculation=counts))
    assert unknown is not None and "75.0 % of them accepted" in unknown and "is not known" in unknown
    priced = msgspec.structs.replace(counts, rejected_joules=50.0, rejected_se_joules=5.0, rejected_share=0.03)
    known = speculation_note(msgspec.structs.replace(made, speculation=priced))
    assert known is not None and "about 50.0 J ± 5.00 J, 3.0 % of the attributed energy" in known


def test_time_at_the_power_limit_is_told_where_there_was_some() -> None:
    energy = EnergySummary(valid=True, reasons=[], mean_watts=690.0, idle_watts=127.0, at_limit_share=0.47)
    assert power_words(energy) == "mean 690 W, idle 127 W, at the power limit 47.0 % of the time"
    for unknown_or_none in (None, 0.0):
        held = msgspec.structs.replace(energy, at_limit_share=unknown_or_none)
        assert power_words(held) == "mean 690 W, idle 127 W"
