"""report.html: a run on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.report import run_figures
from loadgen.report.energy_section import energy_section, fitted_costs
from loadgen.report.failures_table import failures_of
from loadgen.report.first_screen import first_screen
from loadgen.report.format import count, number
from loadgen.report.markup import Markup, table, tag
from loadgen.report.page import definitions, render_page, section
from loadgen.report.provenance_section import files_beside, provenance
from loadgen.report.requests_section import requests_section
from loadgen.report.run_facts import (
    DEFINITIONS,
    MARKS_LEGEND,
    engine_facts,
    kind_rows,
    latencies_of,
    latency_rows,
    left_out_note,
    load_facts,
    part_heading,
    parts_of,
    request_cells,
    span_facts,
    summary_of,
    title,
    with_short,
)
from loadgen.report.sessions_section import sessions_section
from loadgen.results.drawn_requests import drawn_requests

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Summary


def render_run_page(result: RunResult) -> str:
    """Return the whole page. LoadgenError when the run has no summary."""
    summary, drawn = summary_of(result), drawn_requests(result).tolist()
    sections = [
        *first_screen(result),
        section("Over time", run_figures.over_time(result)),
        section("Latency", *_latency(result, summary, drawn)),
        *requests_section(result, summary, drawn),
        *_kinds(summary),
        section("Energy", *energy_section(result, summary, drawn)),
        *sessions_section(result),
        section("Load and timekeeping", *_load(result, summary, drawn)),
        section("Failures", failures_of(result)),
        section("How it was measured", files_beside(result), provenance(result.info, summary.instrument)),
        *([section("Fitted costs", costs)] if (costs := fitted_costs(summary.energy)) else []),
    ]
    return render_page(f"{title(result.info, summary)} · loadgen", sections)


# ---------------------------------------------------------------- latency, load


def _latency(result: RunResult, summary: Summary, drawn: Sequence[int]) -> list[Markup]:
    shown = latencies_of(summary)
    plots = [
        run_figures.latency(result, field.removesuffix("_s"), with_short(words, short)) for field, short, words in shown
    ]
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [
        [row.label, row.part, row.counted, *(row.cells[name] for name in names)]
        for row in latency_rows(summary, parts_of(summary))
    ]
    head = ["", part_heading(summary), "count", *names]
    latencies = table(head, rows, "Latency of completed requests", "latency")
    marked = MARKS_LEGEND if any("!" in row[0] for row in rows) else ""
    notes = [tag("p", note, class_="soft") for note in (left_out_note(summary), marked) if note]
    meanings = definitions((short, DEFINITIONS[short]) for _, short, _ in shown)
    plots_in_grid = tag("div", *plots, run_figures.ttft_by_input(result, drawn), class_="grid")
    return [latencies, *notes, meanings, plots_in_grid]


def _kinds(summary: Summary) -> list[Markup]:
    """Return the table of the kinds of output, in a list; empty where all of it is answer text."""
    if not (rows := kind_rows(summary, parts_of(summary))):
        return []
    head = ["kind", part_heading(summary), "requests", "tokens", "share", "decode energy", "J/token"]
    cells = [[row.kind, row.part, *row.cells] for row in rows]
    caption = (
        "A kind's energy is that of the decode steps that generated it. Where the server counts reasoning, that count "
        "stands; other tokens are in proportion to the chunks."
    )
    return [section("Output by kind", table(head, cells, "Output by kind"), tag("p", caption, class_="soft"))]


def _load(result: RunResult, summary: Summary, drawn: Sequence[int]) -> list[Markup]:
    head = [
        part_heading(summary),
        "scheduled",
        "sent",
        "completed",
        "failed",
        "input tokens",
        "output tokens",
        "output/s",
    ]
    rows = []
    for name, part in parts_of(summary):
        tokens = part.tokens
        cells = [count(tokens.input), count(tokens.output), number(tokens.output_per_s)]
        rows.append([name, *request_cells(part), *cells])
    facts = [
        (fact.label.capitalize() + (f" of {fact.workload}" if fact.workload else ""), fact.text)
        for fact in (*load_facts(summary), *engine_facts(result.info), *span_facts(result.info))
    ]
    return [table(head, rows, "Requests and tokens"), definitions(facts), run_figures.lag(result, drawn)]
