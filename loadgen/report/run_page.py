"""report.html: a run on one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loadgen.report import run_figures
from loadgen.report.format import UNKNOWN, clean, count, joules, number, percent, seconds, share, watts, with_unit
from loadgen.report.markup import Markup, join, table, tag
from loadgen.report.page import definitions, header, render_page, section, stacked_bar, tiles, verdict_box
from loadgen.report.run_facts import (
    ERROR_MEANING,
    HEADLINES,
    MARKS_LEGEND,
    energy_cells,
    energy_note,
    engine_facts,
    failures,
    is_simulated,
    kind_rows,
    latencies_of,
    latency_rows,
    left_out_note,
    load_facts,
    mark,
    parts_of,
    request_cells,
    server_line,
    span_facts,
    summary_of,
    title,
    verdict_remarks,
    whole_answers,
)
from loadgen.results.energy_summary import accounts_mj, imbalance_mj
from loadgen.results.summary import EnergySummary, Instrument, Summary
from loadgen.units import MJ_PER_J, NS_PER_S

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunInfo, RunResult
    from loadgen.results.verdict import Status


def render_run_page(result: RunResult) -> str:
    """Return the whole page. LoadgenError when the run has no summary."""
    summary = summary_of(result)
    energy, rate, requests = summary.energy, summary.rate, summary.requests
    per_request = energy.joules_per_request
    requested = "no rate requested" if rate.requested_rps is None else f"of {rate.requested_rps:.4g}/s requested"
    idle = "not measured" if energy.idle_watts is None else f"{watts(energy.idle_watts)} idle"
    ttft, tpot, tokens = summary.ttft_s, summary.tpot_s, summary.tokens
    numbers = [
        ("energy", "Energy per request", joules(per_request.p50 if per_request else None), "median, attributed"),
        ("energy", "Energy per output token", joules(energy.joules_per_output_token), "attributed"),
        ("energy", "Mean power", watts(energy.mean_watts), idle),
        ("rate", "Requests sent", with_unit(rate.achieved_rps, "/s"), requested),
        ("ttft_s", "Time to first token", seconds(ttft.p50), f"median; p99 {seconds(ttft.p99)}"),
        ("tpot_s", "Time per output token", seconds(tpot.p50), f"median; p99 {seconds(tpot.p99)}"),
        ("tokens.output", "Output", with_unit(tokens.output_per_s, "tokens/s"), f"{count(tokens.output)} tokens"),
        (
            "requests",
            "Completed",
            count(requests.completed),
            f"of {count(requests.scheduled)}; {count(requests.failed)} failed",
        ),
    ]
    sections = [
        _header(result, summary),
        tiles((name + mark(summary, row), value, note) for row, name, value, note in numbers),
        section("Energy", *_energy(result, summary)),
        section("Latency", *_latency(result, summary)),
        *_kinds(summary),
        section("Load and timekeeping", *_load(result, summary)),
        section("Failures", failures_table(result.records)),
        section("Provenance", provenance(result.info, summary.instrument)),
    ]
    return render_page(f"{title(result.info, summary)} · loadgen", sections)


def _header(result: RunResult, summary: Summary) -> Markup:
    """Return the run in a few lines, and its verdict with every reason."""
    info, status = result.info, summary.verdict.status
    kinds: dict[Status | None, str] = {"ok": "good", "warning": "fair", "failed": "bad", None: "fair"}
    lines = [remark.text for remark in verdict_remarks(summary)] or ["Every check that applies to this run passed."]
    facts = (_start_time(info), seconds(summary.duration_s), f"run {clean(info.run_id)}")
    simulated = "The server was simulated: joules and times are a model's, not a machine's."
    return header(
        "loadgen report",
        title(info, summary),
        tag("p", server_line(info)),
        tag("p", " · ".join(fact for fact in facts if fact), class_="soft"),
        tag("p", simulated, class_="soft") if is_simulated(info) else "",
        verdict_box(kinds[status], HEADLINES[status], lines),
        simulated=is_simulated(info),
    )


def _start_time(info: RunInfo) -> str:
    if info.start_ns is None:
        return ""
    wall_s = (info.anchor.wall_ns + info.start_ns - info.anchor.monotonic_ns) / NS_PER_S
    return f"{datetime.fromtimestamp(wall_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


# ---------------------------------------------------------------- energy


def _energy(result: RunResult, summary: Summary) -> list[Markup]:
    measured, attribution = summary.energy.measured_joules, result.attribution
    if measured is None:
        return [tag("p", energy_note(summary) or ""), run_figures.over_time(result)]
    if attribution is None:
        why = f"{joules(measured)} were measured, and nothing was attributed to requests."
        return [tag("p", why), run_figures.over_time(result)]
    note = energy_note(summary)
    return [
        tag("p", note) if note else Markup(),
        energy_ledger(attribution, summary.energy),
        energy_by_workload(summary),
        fitted_costs(summary.energy),
        run_figures.over_time(result),
        run_figures.legend(run_figures.workloads(result)),
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


# ---------------------------------------------------------------- latency, load, failures


def _latency(result: RunResult, summary: Summary) -> list[Markup]:
    plots = [
        run_figures.latency(result, field.removesuffix("_s"), heading)
        for field, _, heading in latencies_of(summary)
        if field != "itl_s"
    ]
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [
        [row.label, row.part, row.counted, *(row.cells[name] for name in names)]
        for row in latency_rows(summary, parts_of(summary))
    ]
    head = ["", "requests of", "count", *names]
    latencies = table(head, rows, "Latency of completed requests", "latency")
    marked = MARKS_LEGEND if any("!" in row[0] for row in rows) else ""
    notes = [tag("p", note, class_="soft") for note in (left_out_note(summary), marked) if note]
    plots_in_grid = tag("div", *plots, class_="grid")
    return [run_figures.legend(run_figures.workloads(result)), plots_in_grid, latencies, *notes]


def _kinds(summary: Summary) -> list[Markup]:
    """Return the table of the kinds of output, in a list; empty where all of it is answer text."""
    if not (rows := kind_rows(summary, parts_of(summary))):
        return []
    head = ["kind", "requests of", "requests", "tokens", "share", "decode energy", "J/token"]
    cells = [[row.kind, row.part, *row.cells] for row in rows]
    caption = (
        "A kind's energy is that of the decode steps that generated it. Where the server counts reasoning, that count "
        "stands; other tokens are in proportion to the chunks."
    )
    return [section("Output by kind", table(head, cells, "Output by kind"), tag("p", caption, class_="soft"))]


def _load(result: RunResult, summary: Summary) -> list[Markup]:
    head = ["requests of", "scheduled", "sent", "completed", "failed", "input tokens", "output tokens", "output/s"]
    rows = []
    for name, part in parts_of(summary):
        tokens = part.tokens
        cells = [count(tokens.input), count(tokens.output), number(tokens.output_per_s)]
        rows.append([name, *request_cells(part), *cells])
    facts = [
        (fact.label.capitalize() + (f" of {fact.workload}" if fact.workload else ""), fact.text)
        for fact in (*load_facts(summary), *engine_facts(result.info), *span_facts(result.info))
    ]
    return [table(head, rows, "Requests and tokens"), definitions(facts), run_figures.lag(result)]


def failures_table(records: Iterable[RequestRecord]) -> Markup:
    """Return the failed requests by kind, the most frequent first, each with an example."""
    rows = [
        [
            kind,
            ERROR_MEANING[kind],
            count(requests),
            UNKNOWN if example.status is None else str(example.status),
            f"#{example.index}: {clean(example.detail, 240)}" if example.detail else UNKNOWN,
        ]
        for kind, requests, example in failures(records)
    ]
    if not rows:
        return tag("p", "No request failed.")
    head = ["kind", "meaning", "requests", "status", "an example"]
    return table(head, rows, "Failed requests by kind", "failures")


# ---------------------------------------------------------------- provenance


def provenance(info: RunInfo, instrument: Instrument) -> Markup:
    """Return all that run.json holds of the run, its options, the server, the machine and the meter."""
    rss = None if instrument.max_rss_bytes is None else instrument.max_rss_bytes / 1e6
    run = {
        "run id": info.run_id,
        "loadgen": info.loadgen_version,
        "started": _start_time(info),
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
    parts = [tag("div", tag("h3", name), definitions(_flatten(facts))) for name, facts in boxes if facts]
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
