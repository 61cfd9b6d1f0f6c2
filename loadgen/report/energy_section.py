"""The energy of a run on its page: the accounts, the energy of each workload, and the fit behind the shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.report import run_figures
from loadgen.report.format import UNKNOWN, count, joules, number, percent, seconds, share, watts
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import definitions, stacked_bar
from loadgen.report.run_facts import energy_cells, energy_note, parts_of, whole_answers
from loadgen.results.energy_summary import accounts_mj, imbalance_mj
from loadgen.results.summary import EnergySummary, Summary
from loadgen.units import MJ_PER_J

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.results.run_folder import RunResult


def energy_section(result: RunResult, summary: Summary) -> list[Markup]:
    measured, attribution = summary.energy.measured_joules, result.attribution
    if measured is None:
        return [tag("p", energy_note(summary) or "")]
    if attribution is None:
        why = f"{joules(measured)} were measured, and nothing was attributed to requests."
        return [tag("p", why)]
    note = energy_note(summary)
    return [
        tag("p", note) if note else Markup(),
        energy_ledger(attribution, summary.energy),
        energy_by_workload(summary),
        run_figures.scatter(result),
        run_figures.heat_map(result),
    ]


def energy_ledger(attribution: RunAttribution, energy: EnergySummary) -> Markup:
    """Return the accounts to the millijoule, as a bar and as a table."""
    measured, accounts = attribution.measured_mj, accounts_mj(attribution)
    rows = [
        [join([tag("i", class_=f"key {name}"), " ", name]), f"{mj:,}", joules(mj / MJ_PER_J), share(mj, measured)]
        for name, mj in accounts.items()
    ]
    imbalance = imbalance_mj(attribution)
    total = "= measured" if imbalance == 0 else f"measured ({imbalance:+,} mJ off)"
    rows.append([total, f"{measured:,}", joules(measured / MJ_PER_J), share(measured, measured)])
    text = ", ".join(f"{name} {share(mj, measured)}" for name, mj in accounts.items())
    bar = stacked_bar([(name, mj, f"{name}: {mj:,} mJ, {share(mj, measured)}") for name, mj in accounts.items()], text)
    caption = (
        f"Source: {energy.source or 'unknown'}. Method: {energy.method or 'unknown'}."
        f" Over {seconds(energy.duration_s)}, mean {watts(energy.mean_watts)}. Coverage {percent(energy.coverage)}."
    )
    if energy.came_whole:
        caption += f" {whole_answers(energy.came_whole).capitalize()}."
    accounts_table = table(["account", "mJ", "energy", "share"], rows, "Energy accounts", "ledger")
    heading = tag("h3", "Where the energy went")
    return tag("figure", heading, bar, accounts_table, tag("figcaption", caption), class_="wide")


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
            bar = join([picture, tag("small", f"{joules(prefill)} · {joules(decode)}")])
        rows.append([name, bar, *energy_cells(spent)])
    head = ["requests of", "prefill · decode", "J/request p50", "p90", "p99", "J/output token", "J/token"]
    caption = (
        "Prefill and decode as a client sees them: until the first token, and after it. Idle belongs to no workload."
    )
    energy_table = table(head, rows, "Attributed energy by workload")
    return tag("figure", tag("h3", "Energy by workload"), energy_table, tag("figcaption", caption), class_="wide")


_COEFFICIENTS = {
    "step_j": "one engine step",
    "prefill_token_j": "a prompt token",
    "prefill_context_j": "a prompt token, per token before it",
    "decode_token_j": "a decoded token",
    "decode_context_j": "a decoded token, per token of its context",
    "idle_w": "idle power",
    "idle_se_w": "its standard error",
    "r_squared": "R² of the fit",
    "misfit": "relative RMSE of a window",
    "outliers": "windows left out",
}


def fitted_costs(energy: EnergySummary) -> Markup:
    """Return the coefficients that decided the shares; empty where nothing was fitted."""
    if not energy.coefficients:
        return Markup()
    rows = []
    for name, value in energy.coefficients.items():
        match name.rpartition("_")[2]:
            case "j":
                text = joules(value)
            case "w":
                text = watts(value)
            case "outliers":
                text = count(None if value is None else int(value))
            case "misfit":
                text = percent(value)
            case _:
                text = number(value)
        rows.append((_COEFFICIENTS.get(name, name), text))
    caption = "Fitted to this run's windows. The fit decides the shares of a window; the counter decides its energy."
    return tag("figure", tag("h3", "Fitted costs"), definitions(rows), tag("figcaption", caption))
