"""The energy of a run on its page."""

import msgspec

from loadgen.report import energy_section
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


def test_without_a_fit_there_are_no_fitted_costs() -> None:
    made = sample_runs.single().summary
    assert made is not None
    assert energy_section.fitted_costs(msgspec.structs.replace(made.energy, coefficients=None)) == ""
    fit = {
        "step_j": 0.5,
        "idle_w": 100.0,
        "r_squared": 0.99,
        "misfit": 0.25,
        "outliers": 1200.0,
        "decode_token_j": None,
    }
    text = Page(energy_section.fitted_costs(msgspec.structs.replace(made.energy, coefficients=fit))).text
    for row in ("one engine step 0.500 J", "idle power 100 W", "R² of the fit 0.990", "a window 25.0 %", "out 1,200"):
        assert row in text
