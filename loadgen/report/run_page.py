"""report.html: a run on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loadgen.report import run_figures
from loadgen.report.energy_section import energy_section, fitted_costs
from loadgen.report.first_screen import first_screen, start_time
from loadgen.report.format import UNKNOWN, clean, count, number, seconds, with_unit
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import definitions, folded, render_page, section
from loadgen.report.requests_section import requests_section
from loadgen.report.run_facts import (
    DEFINITIONS,
    ERROR_MEANING,
    MARKS_LEGEND,
    engine_facts,
    failures,
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
from loadgen.results.drawn_requests import drawn_requests
from loadgen.results.summarize import span
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.summary import Instrument, Summary


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
        section("Load and timekeeping", *_load(result, summary, drawn)),
        section("Failures", failures_table(result.records, span(result)[0])),
        section("How it was measured", files_beside(result), provenance(result.info, summary.instrument)),
        *([section("Fitted costs", costs)] if (costs := fitted_costs(summary.energy)) else []),
    ]
    return render_page(f"{title(result.info, summary)} · loadgen", sections)


# ---------------------------------------------------------------- latency, load, failures


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


def failures_table(records: Iterable[RequestRecord], start_ns: int) -> Markup:
    """Return the failed requests by kind, the most frequent first, each with when it occurred and an example."""
    records = list(records)
    rows = []
    for kind, requests, example in failures(records):
        ended_ns = [r.finished_ns for r in records if r.error == kind and r.finished_ns is not None]
        times_s = [f"{(ns - start_ns) / NS_PER_S:,.2f} s" for ns in (min(ended_ns), max(ended_ns))] if ended_ns else []
        first, last = times_s or (UNKNOWN, UNKNOWN)
        status = UNKNOWN if example.status is None else str(example.status)
        detail = f"#{example.index}: {clean(example.detail, 240)}" if example.detail else UNKNOWN
        rows.append([kind, ERROR_MEANING[kind], count(requests), first, last, status, detail])
    if not rows:
        return tag("p", "No request failed.")
    head = ["kind", "meaning", "requests", "first at", "last at", "status", "an example"]
    return table(head, rows, "Failed requests by kind", "failures")


# ---------------------------------------------------------------- provenance


def files_beside(result: RunResult) -> Markup:
    """Return links to the files of the run folder, in which the page is written."""
    names = ["summary.json", "run.json", "schedule.jsonl", "records.jsonl"]
    names += ["attribution.jsonl"] if result.attribution else []
    names += ["sessions.jsonl"] if result.sessions else []
    names += ["energy.jsonl"] if result.energy else []
    names += ["engine.jsonl"] if result.engine else []
    names += ["spans.jsonl"] if result.spans else []
    links = join(join([", " if i else "", tag("a", name, href=name)]) for i, name in enumerate(names))
    return tag("p", "Files in the folder of this page: ", links, ".")


def provenance(info: RunInfo, instrument: Instrument) -> Markup:
    """Return all that run.json holds of the run, its options, the server, the machine and the meter."""
    rss = None if instrument.max_rss_bytes is None else instrument.max_rss_bytes / 1e6
    run = {
        "run id": info.run_id,
        "loadgen": info.loadgen_version,
        "started": start_time(info),
        "ended by": info.stopped_by or UNKNOWN,
        "seed": info.seed,
        "schedule sha256": info.schedule_sha256,
        "clock anchor": f"wall {info.anchor.wall_ns} ns = monotonic {info.anchor.monotonic_ns} ns",
        "client CPU time": seconds(instrument.cpu_s),
        "client memory": with_unit(rss, "MB"),
        "energy counter polled every": seconds(instrument.sampler_period_s),
    }
    domains = {
        domain.name: f"{domain.source}, every {seconds(domain.period_s)}"
        + (f", within {domain.within}" if domain.within else "")
        for domain in info.domains
    }
    boxes = [("Run", run), ("Options", info.config), ("Server", info.server), ("Host", info.host)]
    boxes += [("Versions", info.versions), ("Energy domains", domains)]
    parts = [folded(name, definitions(_flatten(facts))) for name, facts in boxes if facts]
    return tag("div", *parts, class_="grid")


def _flatten(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return dotted keys and texts; lists joined, and "-" for what is unknown or empty."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{clean(key)}.{inner}", text) for inner, text in _flatten(value)]
        elif isinstance(value, list | tuple):
            rows.append((clean(key), ", ".join(clean(item) for item in value) or UNKNOWN))
        else:
            rows.append((clean(key), UNKNOWN if value is None or value == "" else clean(value)))
    return rows
