"""The energy of a run on its page: the accounts, the energy of each workload, and the fit behind the shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.report import run_figures
from loadgen.report.boundary_facts import beside_facts, boundary_facts, boundary_rows, host_rows
from loadgen.report.engine_rows import ENGINE_HEADINGS, engine_note, engine_rows
from loadgen.report.format import UNKNOWN, count, joules, number, percent, seconds, share, watts
from loadgen.report.heat_map import heat_map
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import definitions, stacked_bar
from loadgen.report.run_facts import (
    cache_note,
    energy_cells,
    energy_note,
    fit_warning,
    host_cell,
    part_heading,
    parts_of,
    power_words,
    speculation_note,
    whole_answers,
    with_error,
)
from loadgen.results.energy_summary import accounts_mj, imbalance_mj
from loadgen.results.summary import EnergySummary, Summary
from loadgen.units import MJ_PER_J

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.results.run_folder import RunResult


def energy_section(result: RunResult, summary: Summary, drawn: Sequence[int]) -> list[Markup]:
    """Return the parts of the section; a sentence where nothing was measured or attributed."""
    measured, attribution = summary.energy.measured_joules, result.attribution
    if measured is None:
        return [tag("p", energy_note(summary) or "")]
    if attribution is None:
        why = f"{joules(measured)} were measured, and nothing was attributed to requests."
        return [tag("p", why)]
    candidates = (energy_note(summary), speculation_note(summary), cache_note(summary.energy))
    notes = [note for note in candidates if note]
    return [
        *(tag("p", note) for note in notes),
        energy_ledger(attribution, summary.energy),
        *engine_figure(summary),
        *boundary_figure(summary.energy),
        energy_by_workload(summary),
        run_figures.scatter(result, drawn),
        heat_map(result),
    ]


def energy_ledger(attribution: RunAttribution, energy: EnergySummary) -> Markup:
    """Return the accounts to the millijoule, as a bar and as a table."""
    measured, accounts = attribution.measured_mj, accounts_mj(attribution)
    rows = [
        [join([tag("i", class_=f"key {name}"), " ", name]), f"{mj / MJ_PER_J:,.3f} J", share(mj, measured)]
        for name, mj in accounts.items()
    ]
    imbalance = imbalance_mj(attribution)
    total = "= measured" if imbalance == 0 else f"measured ({imbalance:+,} mJ off)"
    rows.append([total, f"{measured / MJ_PER_J:,.3f} J", share(measured, measured)])
    text = ", ".join(f"{name} {share(mj, measured)}" for name, mj in accounts.items())
    bar = stacked_bar(
        [(name, mj, f"{name}: {joules(mj / MJ_PER_J)}, {share(mj, measured)}") for name, mj in accounts.items()], text
    )
    caption = (
        f"Source: {energy.source or 'unknown'}. Method: {energy.method or 'unknown'}."
        f" Over {seconds(energy.duration_s)}, {power_words(energy)}. Coverage {percent(energy.coverage)}."
    )
    if energy.attributed_se_joules is not None and energy.attributed_joules:
        caption += (
            f" Standard error: {joules(energy.measured_se_joules)} of the measured energy,"
            f" {joules(energy.attributed_se_joules)} of the attributed, which is prefill and decode. Joules per request"
            " and per output token have the relative error of the attributed energy,"
            f" {share(energy.attributed_se_joules, energy.attributed_joules)}. It says how far the measurement may be"
            " off, not how far requests differ."
        )
    if energy.came_whole:
        caption += f" {whole_answers(energy.came_whole)}."
    accounts_table = table(["account", "energy", "share"], rows, "Energy accounts", "ledger")
    heading = tag("h3", "Where the energy went")
    return tag("figure", heading, bar, accounts_table, tag("figcaption", caption), class_="wide")


def engine_figure(summary: Summary) -> list[Markup]:
    """Return the accounts of each engine; empty where there is one."""
    engines = summary.energy.engines
    if not engines:
        return []
    accounts = table(ENGINE_HEADINGS, engine_rows(engines), "Energy accounts of each engine")
    caption = tag("figcaption", engine_note(engines, summary.requests.sent))
    return [tag("figure", tag("h3", "Engines"), accounts, caption, class_="wide")]


def boundary_figure(energy: EnergySummary) -> list[Markup]:
    """Return the host's accounts, where there are any, and the table of what the joules include; empty without one."""
    if energy.boundary is None:
        return []
    figures = []
    if energy.host is not None:
        rows = [[name.strip(), *cells] for name, *cells in host_rows(energy.host)]
        caption = "The energy of the host beside the GPUs, in none of the accounts above." + "".join(
            f" {reason[:1].upper()}{reason[1:]}." for reason in energy.host.reasons
        )
        accounts = table(["account of the host", "energy", "share"], rows, "Energy accounts of the host", "ledger")
        figures.append(tag("figure", tag("h3", "The host"), accounts, tag("figcaption", caption)))
    rows = [list(row) for row in boundary_rows(energy.boundary)]
    parts = table(["part", "energy", "basis", ""], rows, "Boundary of the energy")
    facts = definitions([*boundary_facts(energy.boundary), *beside_facts(energy.domains)])
    return [*figures, tag("figure", tag("h3", "Boundary"), parts, facts, class_="wide")]


def energy_by_workload(summary: Summary) -> Markup:
    """Return prefill and decode of each workload, as bars and as numbers."""
    rows: list[list[str]] = []
    for name, part in parts_of(summary):
        spent = part.energy if isinstance(part, Summary) else part
        prefill, decode = spent.prefill_joules, spent.decode_joules
        bar: str = UNKNOWN
        if prefill is not None and decode is not None and prefill + decode > 0:
            text = f"prefill {joules(prefill)} ({share(prefill, prefill + decode)}), decode {joules(decode)}"
            picture = stacked_bar([("prefill", prefill, text), ("decode", decode, text)], text)
            amounts = [with_error(prefill, spent.prefill_se_joules), with_error(decode, spent.decode_se_joules)]
            bar = join([picture, tag("small", " · ".join(amounts))])
        rows.append([name, bar, *energy_cells(spent), *([host_cell(part)] if summary.energy.host else [])])
    head = [part_heading(summary), "prefill · decode", "J/request p50", "p90", "p99", "J/output token", "J/token"]
    head += ["host"] if summary.energy.host else []
    caption = (
        "Prefill and decode as a client sees them: until the first token, and after it. ± is one standard error of the"
        " fitted law. Idle belongs to no workload."
    )
    caption += " Host is an estimate of the host's energy, in no other column." if summary.energy.host else ""
    energy_table = table(head, rows, "Attributed energy by workload")
    return tag("figure", tag("h3", "Energy by workload"), energy_table, tag("figcaption", caption), class_="wide")


_COEFFICIENTS = {
    "step_j": "an engine step, whoever is in it: weights read, launches, static power",
    "prefill_token_j": "a prompt token",
    "prefill_context_j": "a prompt token, for each token before it",
    "decode_token_j": "a decoded token",
    "decode_context_j": "a decoded token, for each token of its context: keys and values read",
    "expert_j": "a step that reads all experts of a mixture; one that reads fewer costs less",
    "computed_token_j": "a token that is computed after the experts have been read",
    "busy_w": "power for as long as a step takes, beside its work",
    "expert_chosen_share": "share of the experts that a token chooses",
    "expert_spread": "spread of the experts' popularity: standard deviation of its logarithm",
    "expert_hidden_tokens": "tokens that are computed while all experts are read",
    "idle_w": "power of the idle server",
    "idle_se_w": "standard error of the idle power",
    "r_squared": "R², the share of the windows' variation that the fit explains",
    "misfit": "typical error of one window (relative RMSE)",
    "outliers": "windows left out as outliers",
}


def fitted_costs(energy: EnergySummary) -> Markup:
    """Return the coefficients that decided the shares, their errors and their meaning; empty without a fit."""
    if not energy.coefficients:
        return Markup()
    rows = []
    errors = energy.coefficients_se or {}
    for name, value in energy.coefficients.items():
        if value is None and name.startswith(("expert_", "computed_", "busy_")):  # not in the law
            continue
        match name.rpartition("_")[2]:
            case "j":
                text = with_error(value, errors.get(name))
            case "w":
                text = watts(value)
            case "outliers":
                text = count(None if value is None else int(value))
            case "misfit":
                text = percent(value)
            case _:
                text = number(value)
        rows.append((_COEFFICIENTS.get(name, name), text))
    if energy.held_out_r_squared is not None:
        rows.append(("R² of windows that the fit was not made of", number(energy.held_out_r_squared)))
    caption = (
        "The energy of each window between two updates of the counter is divided among its requests in proportion to "
        "these costs, which were fitted to the run's own windows. The fit decides the shares within a window; the "
        "counter decides the energy, so no total depends on it. ± is one standard error."
    )
    warning = fit_warning(energy.coefficients)
    notes = energy.fit_notes or ([warning] if warning else [])
    return tag(
        "div",
        tag("p", caption),
        *(tag("p", note, class_="missed") for note in notes),
        table(["cost", "value"], rows, "Fitted costs"),
    )
